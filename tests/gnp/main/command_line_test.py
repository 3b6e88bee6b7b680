"""Keys that are given without a config file, and the run directory's path."""

from pathlib import Path

import pytest

from gnp.main.command_line import UsageError, parse

EVAL = ("--mode=eval", "--working_dir=runs/x")
INSPECT = ("--mode=inspect", "--config=config/digits.py")


def test_eval_takes_keys_that_results_do_not_depend_on():
    line = parse([*EVAL, "--config.dataset.data_dir=moved"])
    assert line is not None and line.config is None
    assert line.overrides == (("dataset.data_dir", "moved"),)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*EVAL, "--config.batch_size=3"], "only retrain, dataset.data_dir"),
        ([*EVAL, "--config.dataset.workers=many"], "dataset.workers = 'many'"),
        ([*EVAL, "--config.nothing=1"], "unknown config key nothing"),
        (["--working_dir=x", "--config.batch_size=3"], "batch_size needs --config=FILE"),
    ],
)
def test_others_need_a_file(words, said):
    with pytest.raises(UsageError) as raised:
        parse(words)
    assert said in str(raised.value)


def test_a_run_directory_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    line = parse(["--mode=eval", "--working_dir=~/runs/x"])
    assert line is not None and line.working_dir == Path(tmp_path, "runs", "x")


def test_eval_needs_a_run_or_weights():
    words = ["--mode=eval", "--config=config/digits.py"]
    with pytest.raises(UsageError) as raised:
        parse(words)
    (message,) = str(raised.value).splitlines()
    assert message == (
        "--mode=eval needs --working_dir=DIR, the run directory, or weights to evaluate, "
        "--config.model.pretrained=FILE"
    )
    words.append("--config.model.pretrained=w.npz")
    line = parse(words)
    assert line is not None and line.working_dir is None
    with pytest.raises(UsageError, match="^--checkpoint=44 needs --working_dir=DIR"):
        parse([*words, "--checkpoint=44"])


@pytest.mark.parametrize("mode", ["train", "eval", "inspect"])
@pytest.mark.parametrize(
    "path", ["gs://bucket/run", "s3://b/r", "file:/r", "a\0b", "~nobody-here/r", "gr\udcf6"]
)
def test_a_run_directory_that_is_no_path(mode, path):
    with pytest.raises(UsageError) as raised:
        parse([f"--mode={mode}", "--config=config/digits.py", f"--working_dir={path}"])
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"--working_dir={path} ")


def test_a_checkpoint_is_a_step_or_a_path(tmp_path):
    """Take the run of a path for the directory where none is named."""
    folder = tmp_path / "run" / "checkpoints" / "44"
    folder.mkdir(parents=True)
    for path, words in ((tmp_path / "run", ()), (Path("other"), ("--working_dir=other",))):
        line = parse(["--mode=eval", f"--checkpoint={folder}", *words])
        assert line is not None and (line.working_dir, line.checkpoint) == (path, folder)
    line = parse([*EVAL, "--checkpoint=44"])
    assert line is not None and line.checkpoint == 44
    for words, flag in ((["--mode=eval"], "--mode=eval"), (INSPECT, "--checkpoint=44")):
        with pytest.raises(UsageError, match=f"{flag} needs --working_dir=DIR"):
            parse([*words, "--checkpoint=44"])
