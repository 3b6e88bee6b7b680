"""Checkpoints come back to the bit, and damaged ones are noticed."""

import errno
import os
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp.training import checkpoint
from gnp.training.checkpoint import CheckpointError, Checkpoints
from gnp.training.state import TrainState


def make_state(scale: float = 1.0, width: int = 3) -> TrainState:
    params = {"dense": {"kernel": scale * jnp.arange(4.0 * width).reshape(4, width)}}
    return TrainState(params, {"mean": jnp.ones(3)}, optax.adam(1e-3).init(params))


def save(directory: Path, steps: tuple[int, ...]) -> None:
    checkpoints = Checkpoints(directory)
    for step in steps:
        checkpoints.save(step, make_state(step), {"step": step, "sums": {"loss": 0.1 * step}})
    checkpoints.wait()
    checkpoints.close()


def restore(directory: Path, step: int | None = None, like: TrainState | None = None):
    checkpoints = Checkpoints(directory)
    try:
        return checkpoints.restore(like or make_state(), step)
    finally:
        checkpoints.close()


def test_comes_back_to_the_bit(tmp_path):
    save(tmp_path, (1, 2))
    restored = restore(tmp_path)
    assert restored.step == 2
    assert restored.progress == {"step": 2, "sums": {"loss": 0.2}}
    assert jax.tree.structure(restored.state) == jax.tree.structure(make_state())
    for ours, theirs in zip(
        jax.tree.leaves(restored.state), jax.tree.leaves(make_state(2)), strict=True
    ):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_none_in_an_empty_directory(tmp_path):
    assert restore(tmp_path) is None


def test_a_step_by_its_number(tmp_path):
    save(tmp_path, (1, 2))
    assert restore(tmp_path, 1).step == 1
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 .* there are: 1, 2"):
        restore(tmp_path, 7)


def test_donated_right_after_save(tmp_path):
    """The loop donates the state to the next step while the checkpoint is still being written."""
    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1000, tree), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    state = jax.tree.map(lambda x: jnp.ones((512, 512)), {"a": 0, "b": 0})
    for step in (1, 2):
        checkpoints.save(step, TrainState(state, {}, ()), {})
        state = spoil(state)
    checkpoints.wait()
    like = TrainState({"a": jnp.ones((512, 512)), "b": jnp.ones((512, 512))}, {}, ())
    first, second = checkpoints.restore(like, 1), checkpoints.restore(like, 2)
    checkpoints.close()
    np.testing.assert_array_equal(first.state.params["a"], 1.0)
    np.testing.assert_array_equal(second.state.params["b"], 1001.0)


def files_of(directory: Path, step: int) -> list[str]:
    folder = directory / "checkpoints" / str(step)
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_every_damaged_file_leads_to_the_checkpoint_before(tmp_path, harm):
    save(tmp_path / "original", (1, 2))
    names = files_of(tmp_path / "original", 2)
    assert len(names) > 5
    for number, name in enumerate(names):
        directory = tmp_path / str(number)
        shutil.copytree(tmp_path / "original", directory)
        file = directory / "checkpoints" / "2" / name
        content = file.read_bytes()
        if harm == "remove":
            file.unlink()
        elif harm == "truncate":
            file.write_bytes(content[: len(content) // 2])
        else:
            middle = len(content) // 2
            file.write_bytes(
                content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )
        restored = restore(directory)
        if restored.step == 2:  # a file that is not read: nothing may be lost
            np.testing.assert_array_equal(
                restored.state.params["dense"]["kernel"], make_state(2).params["dense"]["kernel"]
            )
            continue
        assert restored.step == 1
        assert "checkpoint 2 is damaged" in restored.warnings[0]
        np.testing.assert_array_equal(
            restored.state.params["dense"]["kernel"], make_state(1).params["dense"]["kernel"]
        )
        assert not (directory / "checkpoints" / "2").exists()


def test_all_damaged_is_said(tmp_path):
    save(tmp_path, (1,))
    (tmp_path / "checkpoints" / "1" / "sha256.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        restore(tmp_path)


def test_another_model_is_said(tmp_path):
    save(tmp_path, (1,))
    with pytest.raises(CheckpointError, match=r"another model.*dense/kernel is \(4, 3\) there"):
        restore(tmp_path, like=make_state(width=5))


def test_leaving_it_waits_even_after_an_error(tmp_path):
    with pytest.raises(KeyError), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), {})
        raise KeyError
    assert restore(tmp_path).step == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
# The cache of compiled programs meets the limit too.
@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache entry")
@pytest.mark.parametrize("who", ["TensorStore", "the digests"])
def test_a_full_disk_is_said(tmp_path, monkeypatch, who):
    """A limit on the size of files stands for it."""

    def full(_):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    save(tmp_path, (1,))
    large = make_state(width=4000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    line = r"checkpoint 2 could not be written .*File too large; the newest good one is of step 1$"
    with pytest.raises(CheckpointError, match=line), Checkpoints(tmp_path) as checkpoints:
        try:
            if who == "TensorStore":
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
            else:
                monkeypatch.setattr(checkpoint, "_hashes", full)
            checkpoints.save(2, large, {})
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    monkeypatch.undo()
    assert restore(tmp_path).step == 1
