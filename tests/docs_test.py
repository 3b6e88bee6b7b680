"""The pages: every Python block runs and prints what is shown, every link leads somewhere."""

import contextlib
import io
import json
import re
import sys
import types
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

import optimizer
from config.rules import problems
from model import get_model
from model.describe import count_parameters
from tests.marks import quick_first

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "optimizer/README.md",
    *sorted(page for page in DOCS.rglob("*.md") if DOCS / "_build" not in page.parents),
]
NUMBER = re.compile(r"\d+(?:\.(\d+))?")


class Block(NamedTuple):
    """A fenced block or a tutorial's cell: language, text, the number of lines above it."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    source = page.read_text()
    fence = r"^```(?:\{code-cell\} )?(\w*)\n(.*?)^```$"
    fenced = re.finditer(fence, source, flags=re.DOTALL | re.MULTILINE)
    return [Block(m[1], m[2], source[: m.start(2)].count("\n")) for m in fenced]


def run(page: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The names after the page's Python blocks have run, in order, as one module.

    A block of `text` right after one of Python shows what that one printed; numbers may differ by
    one in the last digit shown.
    """
    monkeypatch.setitem(sys.modules, "gnp_optimizer", optimizer)
    place = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, place.__name__, place)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which tutorials add the checkout
    printed = None
    # A reader's jax is not as strict as that of the tests.
    with jax.numpy_rank_promotion("allow"):
        for block in blocks(page):
            if block.language == "python":
                code = compile("\n" * block.line + block.text, page, "exec")
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    exec(code, vars(place))
                printed = output.getvalue()
                continue
            if block.language == "text" and printed is not None:
                assert shows(block.text, printed), f"{page.name}:{block.line}\n{printed}"
            printed = None
    return vars(place)


def shows(shown: str, printed: str) -> bool:
    words = [NUMBER.sub("#", text).split() for text in (shown, printed)]
    pairs = zip(NUMBER.finditer(shown), NUMBER.finditer(printed), strict=False)
    return words[0] == words[1] and all(
        abs(float(a[0]) - float(b[0])) < 1.5 * 10 ** -len(a[1] or "") for a, b in pairs
    )


def anchors(page: Path) -> set[str]:
    """Return the names that `#` can have in a page, as GitHub and MyST make it of the headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme(monkeypatch):
    names = run(ROOT / "README.md", monkeypatch)
    config = names["get_config"]()
    assert problems(config) == []
    assert names["loss"](names["params"], names["x"], names["y"]) < 1e-2
    assert names["params"]["b"] == pytest.approx(3.0, abs=0.1)


# They compile several steps each.
SLOW = (
    DOCS / "your_own_loop.md",
    *(page for folder in ("loops", "tutorials") for page in (DOCS / folder).glob("*.md")),
)


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in PAGES[1:]],
    ids=lambda page: page.stem,
)
def test_every_other_page(page, monkeypatch):
    if page.stem == "equinox":
        pytest.importorskip("equinox", reason="needs equinox: pip install equinox")
    run(page, monkeypatch)


@pytest.mark.slow
def test_an_nnx_model_trains_and_is_evaluated(run_gnp, tmp_path):
    """The page's block is a config file."""
    (block,) = blocks(DOCS / "loops/nnx_model.md")
    (tmp_path / "my_net.py").write_text(block.text)
    line = ("--config=my_net.py", "--working_dir=run", "--config.total_epochs=10")
    assert run_gnp(*line).returncode == 0
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert row["test_error_rate"] < 0.08
    seen = run_gnp("--mode=inspect", *line)
    assert seen.returncode == 0, seen.stderr
    assert "net/hidden/kernel" in seen.stdout
    evaluated = run_gnp("--mode=eval", *line)
    assert evaluated.returncode == 0, evaluated.stderr
    again = json.loads(evaluated.stdout.splitlines()[-1])
    assert again["test_error_rate"] == row["test_error_rate"]


def test_a_block_shows_what_is_printed():
    assert shows("error: 2%\n", "error: 3%\n")
    assert shows("0.70 True\n", "0.71 True\n")
    assert not shows("error: 2%\n", "error: 4%\n")
    assert not shows("0.70 True\n", "0.72 True\n")
    assert not shows("1 True\n", "1 False\n")
    assert not shows("1 1\n", "1\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tests_that_a_page_names_are_there(page):
    """As `tests/FILE.py`, `tests/FILE.py::NAME`, or `::NAME` behind another of the same file."""
    file = ""
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", page.read_text()):
        file = path or file
        if path:
            assert (ROOT / path).exists(), path
        if name:
            assert f"\ndef {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


def test_the_page_of_models_lists_every_registered_name(registered_models):
    text = (DOCS / "models.md").read_text()
    assert [name for name in registered_models if f"| `{name}` |" not in text] == []


ROWS = re.findall(r"^\| `(\w+)` .*$", (DOCS / "models.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", quick_first(sorted(ROWS, key=lambda name: "MLP" not in name), 3))
def test_the_page_of_models_counts_parameters(name):
    line = re.search(rf"^\| `{name}` .*$", (DOCS / "models.md").read_text(), re.MULTILINE)
    *_, shape, classes, parameters, _, _ = (cell.strip() for cell in line[0].split("|"))
    module = get_model(name, int(classes.replace(",", "")))
    count = count_parameters(module, tuple(map(int, shape.split(" × "))))
    assert f"{count:,}" == parameters


def test_the_reference_has_every_public_name():
    index, reference, training = (
        (DOCS / "api" / f"{page}.rst").read_text() for page in ("index", "optimizer", "training")
    )
    assert ".. automodule:: optimizer\n   :members:\n   :imported-members:\n" in reference
    for name, thing in vars(optimizer).items():
        if not name.startswith("_") and not isinstance(thing, types.ModuleType):
            assert f"   {name}\n" in index, f"{name} is not in api/index.rst"
            if isinstance(thing, (int, tuple)):  # which automodule leaves out
                assert f".. autodata:: {name}\n" in reference, f"{name} is not in optimizer.rst"
    for module in (ROOT / "gnp" / "training").glob("[a-z]*.py"):
        assert f".. automodule:: gnp.training.{module.stem}\n" in training
