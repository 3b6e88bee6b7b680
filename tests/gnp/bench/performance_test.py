"""The page of performance: made of JSON files, up to date, with the targets that are met."""

import json
from pathlib import Path

import pytest

from gnp.bench import performance, step

DOCS = Path(__file__).resolve().parents[3] / "docs"
ABOUT = {"backend": "cpu", "device": "cpu", "machine": "x86_64", "cores": 2, "jax": "0.10.2",
         "batch_size": 64, "dtype": "float32"}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    def row(model, name, milliseconds, ratio, first_call=None):
        row = step.Row(model, name, milliseconds, 1.0, ratio, 100.0, None, first_call)
        return row._asdict()

    files = {
        "step-1.json": {**ABOUT, "bench": "step", "runs": 5, "rows": [
            row("ResNet18", "plain", 1000.0, 1.0),
            row("ResNet18", "penalised", 1800.0, 1.8, 15.4)]},  # as earlier versions spelled it
        "step-2.json": {**ABOUT, "bench": "step", "runs": 5, "rows": [
            row("MnistTutorialCNN", "plain", 10.0, 1.0)]},
        "step-3.json": {**ABOUT, "bench": "step", "runs": 5, "dtype": "bfloat16", "rows": [
            row("ResNet18", "plain", 5000.0, 1.0)]},
        "startup.json": {**ABOUT, "bench": "startup", "model": "WideResNet_28_10", "rows": [
            {"cache": "warm", "seconds": 5.0, "spread": 0.1, "ratio": 0.331}]},
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


def test_the_page_is_what_the_results_give():
    page = (DOCS / "performance.md").read_text()
    results = performance.read_results(DOCS / "performance")
    for section, text in performance.sections(results).items():
        start, end = performance.marks(section)
        assert f"{start}\n\n{text}\n\n{end}" in page, (
            "run python -m gnp.bench.performance --page=docs/performance.md"
        )


def test_files_that_differ_in_models_share_a_table(results):
    text = performance.sections(performance.read_results(results))["step"]
    assert text.count("| model | step |") == 2
    assert "Batch 64, float32, 5 runs; 2 cores (x86_64, cpu), jax 0.10.2." in text
    assert text.index("ResNet18") < text.index("MnistTutorialCNN") < text.index("bfloat16")


def test_targets(results):
    found = performance.targets_table(performance.targets(performance.read_results(results)))
    assert found.lines == [
        ("ResNet18: plain over the original's 1.44 s", "0.69", "0.80", "yes"),
        ("ResNet18: penalized over plain", "1.80", "1.90", "yes"),
        ("ResNet18: penalized over the original's 2.8 s", "0.64", "0.80", "yes"),
        ("ResNet18: first penalized call in s (the original's: 42)", "15.4", "15.0", "no"),
        ("WideResNet_28_10: start with a warm cache over a cold one", "0.33", "0.33", "yes"),
    ]


def test_the_command(results, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("\n".join(f"{a}\n{b}" for a, b in map(performance.marks, performance.SECTIONS)))
    performance.main([f"--results={results}", f"--page={page}"])
    assert "| ResNet18 | penalized | 1800.00 |" in page.read_text()
    assert "Not measured yet." in page.read_text()
    assert "ResNet18: penalized over plain" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{}", "[]", '{"bench": "step", "rows": [{}]}', "\x00"])
def test_files_of_no_benchmark(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SystemExit, match=r"a\.json is not what step, peers.* write"):
        performance.main([f"--results={tmp_path}"])


def test_an_empty_folder(tmp_path):
    with pytest.raises(SystemExit, match="no \\*.json"):
        performance.main([f"--results={tmp_path}"])
