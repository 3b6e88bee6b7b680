"""The weights of a run as a file: which ones, and that a model reads them again."""

import json

import jax
import jax.numpy as jnp
import pytest

from gnp.analysis import export
from gnp.training.checkpoint import read_checkpoint
from gnp.training.early_stopping import BEST
from model import load_pretrained
from tests.trees import assert_trees_equal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def averaged(small_run, tmp_path_factory):
    """Return the directory of a run with averaged parameters, whose best epoch is not its last."""
    directory = tmp_path_factory.mktemp("export") / "run"
    small_run(directory, ema_decay="0.5", early_stopping__metric="test_loss")
    file = directory / "metrics.jsonl"
    first, *others = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [first | {"test_loss": 0.0}, *others]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_the_file_is_read_again_to_the_bit(averaged, tmp_path, capsys):
    file = tmp_path / "new" / "weights.safetensors"
    newest = read_checkpoint(averaged, None)
    for words, restored in (
        ([], read_checkpoint(averaged, None, BEST)),
        ([f"--checkpoint={newest.step}"], newest),
    ):
        assert export.main([str(averaged), f"--out={file}", *words]) == 0
        assert f"the averaged weights of step {restored.step}, " in capsys.readouterr().out
        average, rest = restored.state.ema, restored.state.model_state
        zeros = jax.tree.map(jnp.zeros_like, (average, rest))
        params, state, _ = load_pretrained(file, *zeros)
        assert_trees_equal((params, state), (average, rest))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--out=weights.npz"], 2, "weights.npz: a file that ends in .safetensors is needed"),
        (["--checkpoint=7"], 1, "no checkpoint of step 7"),
        (["--checkpoint=first"], 2, "first: best or a step is needed"),
    ],
)
def test_what_is_wrong_is_one_line(averaged, capsys, words, code, message):
    assert export.main([str(averaged), *words]) == code
    assert message in capsys.readouterr().err
