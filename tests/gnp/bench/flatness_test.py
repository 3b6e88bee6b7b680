"""The table of flatness: its arms, what is read again, what it says; slow: the whole command."""

import json

import pytest

from gnp.bench import flatness, methods
from tests.data_sets import write_tfds_set


def measured(top, trace=10.0):
    return {"hessian_eigenvalues": [top, 1.0], "hessian_trace": trace, "sam_sharpness": 0.1,
            "gradient_norm": 0.01, "loss": 0.2}  # fmt: skip


def test_the_arms_are_methods():
    assert set(flatness.METHODS) <= set(methods.METHODS)


def test_failed_runs_are_in_the_table():
    text = flatness.table({"SAM": [0.02, None]}, {"SAM": [measured(2.0)]})
    assert text.endswith("| SAM | 2 | 10 | 0.1 | 0.01 | 0.2 | 2.00% (1 of 2 failed) |")
    text = flatness.table({"SAM": [None]}, {"SAM": []})
    assert text.endswith("|  |  |  |  |  | (1 of 1 failed) |")


def test_the_verdict_is_that_of_the_numbers():
    found = {
        "SGD": [measured(4.0), measured(6.0)],
        "SAM": [measured(2.0), measured(3.0)],
        "SGD + GC": [measured(5.0), measured(7.0, trace=20.0)],
        "SGD + GNP": [],
    }
    assert flatness.verdict(found).splitlines() == [
        "- SAM: λmax 0.50 times that of SGD (below in every run), "
        "trace 1.00 times that of SGD (overlap).",
        "- SGD + GC: λmax 1.20 times that of SGD (overlap), "
        "trace 1.50 times that of SGD (overlap).",
    ]


def test_a_wrong_page_is_refused_before_anything_is_trained(tmp_path):
    words = ["--data_dir=x", f"--out={tmp_path / 'out'}", f"--page={tmp_path / 'none.md'}"]
    with pytest.raises(SystemExit, match=r"none\.md: No such file"):
        flatness.main(words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [["--seeds=0"], ["--methods", "ASAM"], ["--methods", "SAM", "--page=README.md"]]
)
def test_bad_arguments(words, tmp_path):
    with pytest.raises(SystemExit) as stop:
        flatness.main(["--data_dir=x", f"--out={tmp_path / 'out'}", *words])
    assert stop.value.code == 2


@pytest.mark.slow
def test_the_whole_command(tmp_path, monkeypatch):
    write_tfds_set(tmp_path / "data", "mnist", n_train=2000, n_test=20, shape=(28, 28, 1))
    page = tmp_path / "page.md"
    page.write_text("{}\n{}\n".format(*flatness.MARKS))
    small = flatness.SETTINGS._replace(eigenvalues=1, eigenvalue_steps=3, trace_samples=2)
    monkeypatch.setattr(flatness, "SETTINGS", small)
    monkeypatch.setattr(flatness, "METHODS", ("SGD", "SAM"))
    words = [f"--data_dir={tmp_path / 'data'}", f"--out={tmp_path / 'out'}", f"--page={page}",
             "--seeds=1"]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        flatness.main(words)
    assert end.value.code == 0
    table = (tmp_path / "out" / "flatness.md").read_text()
    assert table.strip() in page.read_text()
    before = (tmp_path / "out" / "flatness.json").read_text()
    # What is there is only read.
    monkeypatch.setattr(flatness, "measure_flatness", None)
    with pytest.raises(SystemExit) as end:
        flatness.main(words)
    assert end.value.code == 0
    assert json.loads(before) == json.loads((tmp_path / "out" / "flatness.json").read_text())
