"""Runs are grouped, counted and shown; what is no run is named."""

import csv
import io
import json
import math
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from plotly import graph_objects

from config import default
from gnp.analysis.report import __main__ as report
from gnp.analysis.report.groups import group_runs, method
from gnp.analysis.report.runs import read_runs
from gnp.bench.methods import METHODS
from gnp.training.evolution import FIELDS

CONFIG = json.loads(json.dumps({key.name: key.default for key in default.KEYS})) | {
    "dataset.dataset_name": "digits", "model.model_name": "DigitsCNN",
}  # fmt: skip
GNP = {"gnp.r": 0.05, "gnp.alpha": 0.8}


def write_run(
    path, changes=None, seed=0, errors=(0.3, 0.1, 0.2), epochs=None, seconds=1.0, metric=None
):
    """Write a run directory that was never trained."""
    path.mkdir(parents=True)
    metric = metric or "test_error_rate"
    config = CONFIG | {"total_epochs": epochs or len(errors)}
    config |= {"seeds": seed, "init_seeds": seed} | (changes or {})
    (path / "config.json").write_text(json.dumps(config))
    rows = [
        {
            "epoch": epoch, "step": 10 * epoch, "train_loss": 1 / epoch,
            metric.replace("test", "train"): error, "test_loss": 2 / epoch, metric: error,
            "epoch_seconds": 9.0 if epoch == 1 else seconds,
        }
        for epoch, error in enumerate(errors, start=1)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_evolution(path, epochs=3, layers=((4, 3), (2, 40), (5,))):
    """Write what the recorder leaves, of a model with these layers."""
    random = np.random.default_rng(0)
    (path / "evolution").mkdir()
    for epoch in range(1, epochs + 1):
        found = {
            "names": np.array([f"Layer_{i}/kernel" for i in range(len(layers))]),
            "sizes": np.array([math.prod(shape) for shape in layers]),
            "steps": np.int32(10),
        }
        for field in FIELDS:
            maps = [random.random((shape[0] if len(shape) > 1 else 1, min(shape[-1], 32)))
                    for shape in layers]  # fmt: skip
            found[f"mean/{field}"] = np.array([each.mean() for each in maps])
            found[f"max/{field}"] = np.array([each.max() for each in maps])
            found |= {f"map/{field}/{i}": each for i, each in enumerate(maps)}
        np.savez(path / "evolution" / f"epoch_{epoch:05d}.npz", **found)


def write_sharpness(path, eigenvalue=4.0):
    """Write what gnp.analysis.sharpness leaves."""
    checkpoints = [
        {"step": step, "hessian_eigenvalues": [eigenvalue * factor, 1.0], "hessian_trace": 9.0,
         "sam_sharpness": None, "density_width": 0.1, "parameters": 500}
        for step, factor in ((30, 1.0), (10, 3.0))
    ]  # fmt: skip
    (path / "sharpness.json").write_text(json.dumps(checkpoints))
    line = np.linspace(-1, 1, 5)
    np.savez(
        path / "sharpness.npz", step=30, density_points=line, density=np.exp(-line**2),
        gradient_distances=line, gradient_losses=1 + line**2, random_distances=line,
        random_losses=np.stack([1 + line**2, 2 + line**2]), contour_distances=line,
        contour_losses=np.where(np.eye(5) > 0, np.nan, 1 + np.add.outer(line**2, line**2)),
    )  # fmt: skip


class Page(HTMLParser):
    """The tags of a page, checked to be closed, its texts and its figures."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.figures = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-2:] == ["figure", "script"]:
            self.figures.append(json.loads(data))
        elif self.open[-1:] != ["script"] and "style" not in self.open and data.strip():
            self.texts.append(data.strip())

    @property
    def panels(self):
        return [figure["layout"]["meta"]["panels"] for figure in self.figures]


@pytest.fixture
def make(tmp_path, capsys):
    """Make a report of directories; return exit code, output, errors."""

    def run(*arguments):
        code = report.main([*map(str, arguments), f"--out={tmp_path / 'out'}"])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def results(tmp_path):
    """Return the lines of report.csv."""
    return lambda: list(csv.DictReader(io.StringIO((tmp_path / "out/report.csv").read_text())))


@pytest.fixture
def page(tmp_path):
    """Return the page that was made."""
    return lambda: Page((tmp_path / "out" / "report.html").read_text())


def test_numbers_of_a_group(tmp_path, make, results):
    write_run(tmp_path / "runs/a", seed=0, errors=(0.3, 0.1, 0.2), seconds=1.0)
    write_run(tmp_path / "runs/b", {"dataset.data_dir": "x"}, 1, (0.3, 0.3, 0.4), seconds=3.0)
    write_run(tmp_path / "runs/c", GNP, 0, (0.3, 0.2, 0.1), seconds=5.0)
    code, out, err = make(tmp_path / "runs")
    assert (code, err) == (0, "")
    assert out.startswith("3 runs in 2 groups\n")
    best, plain = results()
    assert (plain["group"], best["group"]) == ("Momentum", "GNP r=0.05 α=0.8")
    expected = {
        "runs": 2, "finished": 2, "final_mean": 0.3, "final_median": 0.3,
        "final_deviation": math.sqrt(0.02), "best_mean": 0.2, "best_deviation": math.sqrt(0.02),
        "total_seconds": 13.0, "epoch_seconds": 2.0, "step_seconds": 0.2, "epoch_cost_ratio": 1.0,
    }  # fmt: skip
    assert {name: float(plain[name]) for name in expected} == pytest.approx(expected)
    assert (float(best["epoch_cost_ratio"]), best["final_deviation"]) == (2.5, "")
    table = (tmp_path / "out/report.md").read_text()
    assert "| GNP r=0.05 α=0.8 | 1 | 10.00% | 10.00% | 10.00% | 19 s | 5.0 s | 2.50 |" in table
    assert "30.00 ± 14.14%" in table
    assert "| GNP r=0.05 α=0.8 | 0.8 | 0.05 |" in table


def test_the_average_of_the_parameters_has_a_column(tmp_path, make, results, page):
    for seed, error in enumerate((0.1, 0.3)):
        directory = write_run(tmp_path / f"runs/{seed}", {"ema_decay": 0.9}, seed)
        rows = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row["test_ema_error_rate"] = error
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_run(tmp_path / "runs/plain")
    assert make(tmp_path / "runs")[0] == 0
    assert {row["ema_mean"] for row in results()} == {"0.2", ""}
    table = (tmp_path / "out/report.md").read_text()
    assert "| of the average |" in table
    assert "| 20.00 ± 14.14% |" in table
    assert "Of the average: of the parameters' exponential moving average" in table
    (figure,) = page().figures
    titles = [each["text"] for each in figure["layout"]["annotations"]]
    assert "<b>Test error of the average</b>" in titles


@pytest.mark.parametrize("name", ["GNP r=0.05 α=0.8", "runs/c"])
def test_baseline_by_name_or_directory(tmp_path, monkeypatch, make, results, name):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/a", seconds=1.0)
    write_run(tmp_path / "runs/c", GNP, seconds=5.0)
    assert make("runs", f"--baseline={name}")[0] == 0
    assert {r["group"]: float(r["epoch_cost_ratio"]) for r in results()} == {
        "Momentum": 0.2, "GNP r=0.05 α=0.8": 1.0,
    }  # fmt: skip


def test_every_method_has_a_name_of_its_own():
    names = [method({**CONFIG, **changes}) for changes in METHODS.values()]
    assert len(set(names)) == len(METHODS)
    assert method({**CONFIG, **METHODS["SAM"]}) == "Momentum + SAM r=0.05"
    assert method({**CONFIG, **METHODS["LookSAM k = 5"]}, False) == "LookSAM r=0.05 k=5"
    assert method({**CONFIG, "gnp.r": 0.1, "gnp.lambda": 0.05}, False) == "GNP r=0.1 α=0.5"


def test_other_keys_part_groups_that_words_do_not(tmp_path):
    for seed, rate in ((0, 0.1), (0, 0.2), (1, 0.2)):
        write_run(tmp_path / f"{seed}_{rate}", {"base_lr": rate, "batch_size": 64.0}, seed)
    runs, _ = read_runs([tmp_path])
    found = {group.name: len(group.runs) for group in group_runs(runs)}
    assert found == {"Momentum · base_lr=0.1": 1, "Momentum · base_lr=0.2": 2}


def test_numbers_that_hardly_differ_have_names_of_their_own(tmp_path):
    for rate in (0.1, 0.1000001):
        write_run(tmp_path / str(rate), {"base_lr": rate})
    names = [group.name for group in group_runs(read_runs([tmp_path])[0])]
    assert names == ["Momentum · base_lr=0.1", "Momentum · base_lr=0.1000001"]


@pytest.mark.parametrize("kind", ["csv", "npz", "image_folder"])
def test_ones_own_data_are_told_apart_by_their_path(tmp_path, make, page, results, kind):
    for number, (place, error) in enumerate((("a/x", 0.1), ("a/x", 0.2), ("b/y", 0.4))):
        changes = {"dataset.dataset_name": kind, "dataset.data_dir": place}
        write_run(tmp_path / f"runs/{number}", changes, number, (error,))
    assert make(tmp_path / "runs")[1].startswith("3 runs in 2 groups")
    found = {row["group"]: (row["runs"], float(row["final_mean"])) for row in results()}
    assert found == {
        f"{kind} x · Momentum": ("2", pytest.approx(0.15)), f"{kind} y · Momentum": ("1", 0.4),
    }  # fmt: skip
    assert f"3 runs on {kind} x and {kind} y" in page().texts


def test_one_file_with_several_targets(tmp_path, make):
    for target in ("rooms", "price"):
        changes = {"dataset.dataset_name": "csv", "dataset.data_dir": "x", "dataset.target": target}
        write_run(tmp_path / f"runs/{target}", changes)
    make(tmp_path / "runs")
    text = (tmp_path / "out/report.md").read_text()
    assert "## csv x, test error rate, x, price\n" in text
    assert "## csv x, test error rate, x, rooms\n" in text


def test_whole_numbers_are_the_same_with_and_without_a_point(tmp_path):
    write_run(tmp_path / "a", {"dataset.subset": 2000})
    write_run(tmp_path / "b", {"dataset.subset": 2000.0}, seed=1)
    assert len(group_runs(read_runs([tmp_path])[0])) == 1


def test_keys_of_later_versions_are_at_their_defaults(tmp_path):
    write_run(tmp_path / "a")
    old = {name: value for name, value in CONFIG.items() if name != "record.gradients"}
    write_run(tmp_path / "b", seed=1)
    (tmp_path / "b/config.json").write_text(json.dumps({**old, "total_epochs": 3, "seeds": 1}))
    assert len(group_runs(read_runs([tmp_path])[0])) == 1


def test_a_run_in_progress_is_marked_and_left_out_of_the_numbers(tmp_path, make, results, page):
    write_run(tmp_path / "runs/a", errors=(0.3, 0.2, 0.1))
    write_run(tmp_path / "runs/b", seed=1, errors=(0.9,), epochs=3)
    write_run(tmp_path / "runs/c", GNP, errors=(), epochs=3)
    assert make(tmp_path / "runs")[0] == 0
    plain, begun = results()
    assert (plain["runs"], plain["finished"], float(plain["final_mean"])) == ("2", "1", 0.1)
    assert (begun["finished"], begun["final_mean"], begun["total_seconds"]) == ("0", "", "")
    texts = page().texts
    assert "1 of 2 unfinished" in texts
    assert "at epoch 0 of 3" in texts
    assert "| Momentum (1 of 2 unfinished) | 2 |" in (tmp_path / "out/report.md").read_text()
    assert any(text.startswith("2 runs of 3 not at the end") for text in texts)


def test_one_run_alone(tmp_path, make, page):
    run = write_run(tmp_path / "a")
    assert make(run)[:2] == (0, f"1 run in 1 group\nin {tmp_path / 'out'}: report.html, "
                                "report.md, report.csv\n")  # fmt: skip
    assert page().panels == [4]
    assert "What differs" not in page().texts


def test_a_run_named_twice_counts_once(tmp_path, make):
    run = write_run(tmp_path / "runs/a")
    assert make(run, tmp_path / "runs", run)[1].startswith("1 run in 1 group")


def test_runs_inside_a_run_count_but_not_in_what_it_writes(tmp_path, make):
    run = write_run(tmp_path / "runs/a")
    write_run(run / "seed-1", seed=1)
    write_run(run / "checkpoints" / "copy")
    write_run(tmp_path / "runs/.hidden")
    for path in (tmp_path / "runs", run):
        assert make(path)[1].startswith("2 runs in 1 group")


@pytest.mark.parametrize("name", ["evolution", "gradients", "checkpoints"])
def test_a_folder_may_be_called_like_a_part_of_a_run(tmp_path, make, name):
    write_run(tmp_path / "runs" / name / "a")
    assert make(tmp_path / "runs")[1].startswith("1 run in 1 group")


def test_a_run_that_ended_without_a_number_is_left_out_of_the_mean(tmp_path, make, results, page):
    write_run(tmp_path / "runs/a", errors=(0.3, 0.2))
    write_run(tmp_path / "runs/b", seed=1, errors=(0.1, math.nan))
    assert make(tmp_path / "runs")[0] == 0
    (row,) = results()
    assert (row["runs"], float(row["final_mean"]), row["final_deviation"]) == ("2", 0.2, "")
    assert any(text.startswith("1 run left out of the mean") for text in page().texts)


def test_names_that_are_no_text(tmp_path, make, page):
    write_run(tmp_path / "runs" / "\udcff<script>")
    write_run(tmp_path / "runs" / "b", seed=1)
    assert make(tmp_path / "runs")[0] == 0
    assert "?<script>" in page().texts


def test_runs_with_one_seed_are_said_to_be(tmp_path, make, page):
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b")
    make(tmp_path / "runs")
    assert any("2 runs have 1 seed between them" in text for text in page().texts)


def test_data_sets_and_regression_are_kept_apart(tmp_path, make, page, results):
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b", {"model.model_name": "MLP"})
    write_run(
        tmp_path / "runs/c",
        {"dataset.dataset_name": "boston", "loss": "squared_error"},
        errors=(4.25, 3.125),
        metric="test_mean_absolute_error",
    )
    assert make(tmp_path / "runs")[0] == 0
    assert {row["group"] for row in results()} == {
        "digits · DigitsCNN · Momentum", "digits · MLP · Momentum", "boston · DigitsCNN · Momentum",
    }  # fmt: skip
    texts = page().texts
    assert "3 runs on digits and boston" in texts
    assert "test mean absolute error" in texts
    assert "3.12" in texts


DAMAGES = {
    "no JSON": ("config.json", "{", "cannot be read"),
    "a list": ("config.json", "[]", "a JSON object is needed"),
    "another program": ("config.json", '{"architectures": []}', "not the config of a gnp run"),
    "another type": ("config.json", json.dumps(CONFIG | {"gnp.r": "x"}), 'gnp.r = "x"'),
    "no rows": ("metrics.jsonl", "{}\n", "line 1: no object with epoch"),
    "no epoch": ("metrics.jsonl", '{"step": 1}\n', "line 1: no object with epoch"),
    "no text": ("metrics.jsonl", b"\xff\xfe\x00", "line 1: not JSON"),
    "a value that is none by default": (
        "config.json", json.dumps(CONFIG | {"dataset.data_dir": [1]}), "dataset.data_dir = [1]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_refused_by_name_and_skipped_in_a_folder(tmp_path, make, page, damage):
    name, content, reason = DAMAGES[damage]
    bad = write_run(tmp_path / "runs/bad")
    (bad / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, _, err = make(bad)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("gnp: ") and str(bad) in err and reason in err
    assert not (tmp_path / "out").exists()
    code, _, err = make(tmp_path / "runs")
    assert code == 1 and err.count("\n") == 1 and reason in err
    good = write_run(tmp_path / "runs/good")
    for arguments in ([bad, good], [tmp_path / "runs"]):
        code, out, err = make(*arguments)
        assert code == 0
        assert err.startswith(f"warning: skipped: {bad}") and reason in err
        assert out.startswith("1 run in 1 group, 1 skipped\n")
    assert any(text.startswith("1 directory skipped") for text in page().texts)


def test_bad_command_lines(tmp_path, make, capsys):
    run = write_run(tmp_path / "runs/a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, words in (
        ([tmp_path / "empty"], "is no run directory and holds none"),
        ([tmp_path / "nowhere"], "does not exist"),
        ([tmp_path / "file"], "is a file"),
        ([run, "--baseline=SAM"], "the groups: 'Momentum'"),
        ([], "required: RUN"),
        ([run, "--wrong"], "--wrong"),
    ):
        code, _, err = make(*arguments)
        assert (code, err.count("\n")) == (2, 1), arguments
        assert err.startswith("gnp: ") and words in err
    assert report.main([str(run), f"--out={tmp_path / 'file'}"]) == 2
    assert "--out=" in capsys.readouterr().err
    assert report.main([str(run), f"--out={tmp_path / 'file' / 'below'}"]) == 1
    assert capsys.readouterr().err.startswith(f"gnp: {tmp_path / 'file' / 'below'}")


def test_evolution_and_sharpness_are_in_the_page(tmp_path, make, results, page):
    run = write_run(tmp_path / "runs/a")
    write_evolution(run)
    write_sharpness(run)
    write_sharpness(write_run(tmp_path / "runs/b", seed=1), eigenvalue=6.0)
    assert make(tmp_path / "runs")[::2] == (0, "")
    (row,) = results()
    assert float(row["hessian_eigenvalues_mean"]) == 5.0
    assert (float(row["hessian_trace_mean"]), row["sam_sharpness_mean"]) == (9.0, "")
    found = page()
    assert found.panels == [5, 3, 2, 4, 1]
    lines = [each for each in found.figures[2]["data"] if each["legend"] == "legend2"]
    assert [each["line"]["dash"] for each in lines] == ["solid"] * 3 + ["dash"] * 3
    for gradient, accumulated in zip(lines[:3], lines[3:], strict=True):
        assert gradient["name"] == accumulated["name"]
        assert gradient["line"]["color"] == accumulated["line"]["color"]
        assert gradient["yaxis"] == accumulated["yaxis"] == "y2"
    maps = found.figures[1]
    assert [frame["name"] for frame in maps["frames"]] == ["1", "2", "3"]
    for frame in maps["frames"]:
        assert [each["z"]["shape"] for each in frame["data"]] == ["4, 3", "2, 32", "1, 5"] * 3
    assert [trace["visible"] for trace in maps["data"]] == [False, True, False] * 3
    for figure in found.figures:
        graph_objects.Figure(figure)  # plotly knows every name and value
    assert {"Gradients", "Sharpness", "λmax"} <= set(found.texts)
    assert "SAM sharpness" not in found.texts


def test_what_is_not_drawn_is_said(tmp_path, make, page):
    for number in range(9):
        run = write_run(tmp_path / f"runs/{number}", {"base_lr": 1.0 + number})
        write_evolution(run)
        write_sharpness(run)
    code, _, err = make(tmp_path / "runs")
    assert (code, err) == (0, "warning: gradients are shown of 8 groups; 1 more recorded theirs\n")
    assert any("3 more groups can be shown in a report" in text for text in page().texts)


def test_sharpness_that_does_not_compare_or_is_damaged_is_named(tmp_path, make, page):
    for seed, radius in enumerate((0.05, 0.1)):
        run = write_run(tmp_path / f"runs/{seed}", seed=seed)
        values = [{"step": 30, "hessian_trace": 9.0, "sam_radius": radius, "examples": 50}]
        (run / "sharpness.json").write_text(json.dumps(values))
    (write_run(tmp_path / "runs/2", seed=2) / "sharpness.json").write_text("{")
    code, _, err = make(tmp_path / "runs")
    assert (code, err.count("\n")) == (0, 2)
    words = "sharpness was measured with sam_radius = 0.05 and 0.1, which do not compare"
    assert words in err and words in page().texts
    assert "runs/2/sharpness.json is damaged" in err


def test_damaged_evolution_and_sharpness_leave_the_rest(tmp_path, make, page):
    run = write_run(tmp_path / "a")
    write_evolution(run)
    (run / "evolution/epoch_00002.npz").write_text("x")
    (run / "sharpness.json").write_text("{}")
    code, _, err = make(run)
    assert code == 0
    assert "epoch_00002.npz is damaged" in err and "sharpness.json is no list" in err
    assert page().panels == [4]


def test_the_page_is_alone_and_what_runs_are_called_is_only_text(tmp_path, make, page):
    write_run(tmp_path / '<b>&"</script>', {"model.model_name": "</script><b>|M"})
    write_run(tmp_path / "x", {"model.model_name": "N"})
    assert make(*tmp_path.glob("[<x]*"))[0] == 0
    found = page()
    assert [tag for tag, _ in found.tags if tag in ("b", "img", "iframe")] == ["b"] * 0
    links = [a.get("src") or a.get("href") for _, a in found.tags if "src" in a or "href" in a]
    assert all(link.startswith(("#", "data:")) for link in links)
    policy = [a["content"] for tag, a in found.tags if a.get("http-equiv")]
    assert policy[0].startswith("default-src 'none'")
    names = {trace.get("name") for figure in found.figures for trace in figure["data"]}
    assert "&lt;/script&gt;&lt;b&gt;|M · Momentum" in names  # which plotly takes for HTML
    assert "&lt;/script&gt;&lt;b&gt;\\|M" in (tmp_path / "out/report.md").read_text()


def test_no_cell_is_a_formula(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    for name in ("=1+1", "+1", "-1", "@x", "\t=1", "\r=1"):
        for model in (name, "B"):
            changes = {"dataset.dataset_name": name, "model.model_name": model}
            write_run(tmp_path / name / model, changes)
    assert make(*(f"./{path.name}" for path in tmp_path.iterdir()))[0] == 0
    rows = list(csv.reader((tmp_path / "out/report.csv").read_text().splitlines()))
    assert len(rows) == 13
    for cell in (cell for row in rows for cell in row):
        assert cell[:1] not in tuple("=+@\t\r") and not cell.startswith("-1"), cell


def test_no_text_of_a_report_is_a_terminals_command(tmp_path, make):
    write_run(tmp_path / "runs" / "a\x1b[2J", {"model.model_name": "x\x1b[2J"})
    write_run(tmp_path / "runs" / "b\nc", {"model.model_name": "y"}, errors=(0.1,), epochs=4)
    (write_run(tmp_path / "runs" / "c\x1b[2J\nd") / "config.json").write_text("[]")
    code, out, err = make(tmp_path / "runs")
    assert code == 0 and err.count("\n") == 1
    for text in (out, err, *((tmp_path / f"out/report.{kind}").read_text() for kind in
                             ("md", "csv"))):  # fmt: skip
        assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.slow
def test_a_hundred_runs_make_a_page_of_some_size(tmp_path, make, page):
    random = np.random.default_rng(0)
    for group in range(20):
        for seed in range(5):
            errors = (0.9 * 0.97 ** np.arange(100) + 0.01 * random.random(100)).tolist()
            write_run(tmp_path / f"runs/{group}/{seed}", {"base_lr": 0.01 * group}, seed, errors)
    assert make(tmp_path / "runs")[1].startswith("100 runs in 20 groups")
    assert (tmp_path / "out/report.html").stat().st_size < 7e6
    assert any("16 groups of the smallest error, of 20" in text for text in page().texts)
    (figure,) = page().figures
    entries = [trace for trace in figure["data"] if trace["showlegend"]]
    assert len({trace["name"] for trace in entries}) == len(entries) == 16
    assert sum(trace.get("visible") == "legendonly" for trace in entries) == 16 - 7


@pytest.fixture
def browser():
    """Start a headless Chromium; the test skips where there is none."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="needs a browser: pip install playwright, and Chromium"
    )
    names = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
    path = next(filter(None, map(shutil.which, names)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path)
        except sync_api.Error as error:
            reason = str(error).splitlines()[0]
            pytest.skip(f"needs a browser: apt-get install chromium ({reason})")
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open a page with a width and a scheme; return it and what went wrong in it."""

    def run(path, width, scheme):
        phone = width < 600
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=phone,
            is_mobile=phone,
        )  # fmt: skip
        page, wrong = context.new_page(), []
        page.on("console", lambda m: wrong.append(m.text) if m.type != "log" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda r: (
                None if r.url.startswith(("file:", "data:", "blob:")) else wrong.append(r.url)
            ),
        )
        page.goto(path.as_uri())
        return page, wrong

    return run


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path, make, open_page):
    for name, changes, last in (("a", {}, 0.2), ("b", GNP, 0.1)):
        for seed in (0, 1):
            errors = (0.5, 0.4, last + seed / 9)
            write_run(tmp_path / f"runs/{name}{seed}", changes, seed, errors)
        write_evolution(tmp_path / f"runs/{name}0", layers=((30, 40), (4, 3), (5,)))
        write_sharpness(tmp_path / f"runs/{name}0")
    assert make(tmp_path / "runs")[0] == 0
    path = tmp_path / "out" / "report.html"
    for width, scheme in ((360, "dark"), (400, "light"), (400, "dark"), (1400, "light"),
                          (1400, "dark")):  # fmt: skip
        page, wrong = open_page(path, width, scheme)
        _check_figures(page, 5)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        _check_colors_follow(page, scheme)
        _check_choices(page)
        _check_legend(page)
        _check_sorting(page)
        page.locator("summary", has_text="Momentum").click()
        _check_figures(page, 5)  # another run's instead
        assert wrong == []
        page.context.close()


def _check_figures(page, number):
    """Check that so many figures are seen, and have marks, inside of their frames."""

    def drawn():
        return page.eval_on_selector_all(
            ".plot",
            """plots => plots.filter(plot => plot.checkVisibility()).map(plot =>
                plot.querySelectorAll(
                    "g.trace path, .heatmaplayer image, .contourlevel path, .contourfill path"
                ).length > 0
                && plot.querySelector(".main-svg").getBoundingClientRect().width
                    <= plot.clientWidth + 1)""",
        )  # fmt: skip

    _wait(page, drawn, lambda now: now == [True] * number)


def _wait(page, value, is_right):
    """Wait until a value is right: figures are drawn anew a moment after an event."""
    for _ in range(500):
        if is_right(value()):
            return
        page.wait_for_timeout(20)
    raise AssertionError(value())


def _check_colors_follow(page, scheme):
    def color():
        return page.evaluate(
            """() => {
                const text = document.querySelector(".xtick text");
                return text?.isConnected ? getComputedStyle(text).fill : "";
            }"""
        )

    before = color()
    page.emulate_media(color_scheme={"light": "dark", "dark": "light"}[scheme])
    _wait(page, color, lambda now: now not in ("", before))
    page.emulate_media(color_scheme=scheme)
    _wait(page, color, lambda now: now == before)


def _check_choices(page):
    """Check that heatmaps follow the slider, and then the menu of layers."""

    def pictures():
        found = page.locator(".heatmaplayer image").evaluate_all(
            "images => images.map(image => image.getAttribute('href'))"
        )
        return found if len(found) == 3 else [None] * 3

    def all_new(before):
        return lambda now: all(a not in (None, b) for a, b in zip(now, before, strict=True))

    slider, first = page.locator(".slider-rail-touch-rect").first, pictures()
    slider.click(position={"x": 2, "y": 2}, force=True)
    _wait(page, pictures, all_new(first))
    second = pictures()
    assert "Layer_0/kernel: 1,200 values" in page.locator(".updatemenu-header").first.text_content()
    page.locator(".updatemenu-header").first.click(force=True)
    page.locator(".updatemenu-dropdown-button").nth(1).click(force=True)
    _wait(page, pictures, all_new(second))


def _check_legend(page):
    """Check that an entry takes its group's lines away in all panels and brings them back."""
    lines = page.locator(".plot").first.locator("g.trace.scatter")
    before, entry = lines.count(), page.locator(".legendtoggle").first
    entry.click(force=True)
    _wait(page, lines.count, lambda now: now == before // 2)
    page.wait_for_timeout(500)  # not a double click
    page.locator(".legendtoggle").first.click(force=True)
    _wait(page, lines.count, lambda now: now == before)


def _check_sorting(page):
    names = page.locator("section:first-of-type tbody th")
    before = names.all_inner_texts()
    button = page.locator("section:first-of-type thead button").nth(2)
    button.focus()
    button.press("Enter")
    button.press("Enter")
    assert names.all_inner_texts() == before[::-1]
    assert (
        page.locator("section:first-of-type th[aria-sort]").get_attribute("aria-sort")
        == "descending"
    )


def test_a_data_sets_name_is_only_text(tmp_path, make, page):
    write_run(tmp_path / "runs/a", {"dataset.dataset_name": "<b>D"})
    write_run(tmp_path / "runs/b")
    assert make(tmp_path / "runs")[0] == 0
    assert "b" not in {tag for tag, _ in page().tags}
    assert "<b>D: Results" in page().texts


def test_the_first_epoch_which_compiles_does_not_count(tmp_path, make, results):
    write_run(tmp_path / "run", errors=(0.2, 0.1))
    assert make(tmp_path / "run")[0] == 0
    (row,) = results()
    seconds = [float(row[name]) for name in ("total_seconds", "epoch_seconds", "step_seconds")]
    assert seconds == pytest.approx([10.0, 1.0, 0.1])


def test_a_run_that_stopped_early_counts_with_its_best_epoch(tmp_path, make, results):
    """By the number that chooses it; and it is at its end, though not at total_epochs."""
    changes = {
        "dataset.dataset_name": "forecast", "dataset.horizon": 24, "loss": "squared_error",
        "early_stopping.metric": "test_error_rate", "early_stopping.patience": 1,
    }  # fmt: skip
    for seed, errors in enumerate(((0.3, 0.1, 0.2), (0.1, 0.2))):
        write_run(tmp_path / "runs" / str(seed), changes, seed, errors, epochs=9)
    code, _, _ = make(tmp_path / "runs")
    (line,) = results()
    assert code == 0 and line["metric"] == "test_loss"
    assert (line["final_mean"], line["finished"]) == ("1.5", "2")  # the losses are 2 / epoch
    text = (tmp_path / "out/report.md").read_text()
    assert "after the epoch of the smallest test_error_rate, mean" in text
    assert "not at the end" not in text and "forecast, horizon 24" in text
