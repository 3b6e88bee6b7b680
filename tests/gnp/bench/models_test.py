"""The page of models: every registered name has a line, and the page is up to date."""

from pathlib import Path

import pytest

from gnp.bench import models, pages

PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"


def test_the_page_lists_every_registered_name(registered_models):
    text = PAGE.read_text()
    missing = [name for name in registered_models if f"| `{name}` |" not in text]
    assert not missing, "run python -m gnp.bench.models --page=docs/models.md"


@pytest.mark.parametrize("name", ["EvolutionIrisMLP", "WideResNet_16_4", "ViT_TI16", "VGG11"])
def test_a_line_of_the_page_is_what_the_command_gives(name):
    assert models.table([models.describe(name)]).splitlines()[-1] in PAGE.read_text()


@pytest.mark.slow
def test_the_whole_page_is_what_the_command_gives(registered_models):
    rows = [models.describe(name) for name in registered_models]
    assert models.table(rows) in PAGE.read_text()


@pytest.mark.parametrize(
    ("flops", "text"), [(380, "380"), (9_960, "10 k"), (1.234e6, "1.2 M"), (1.1e11, "110 G")]
)
def test_units(flops, text):
    row = models.Row("m", "", (1,), 1, 1, flops)
    assert models.table([row]).endswith(f"| {text} |")


def test_the_command(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("a\n{}\nold\n{}\nb\n".format(*models.MARKS))
    models.main(["--models", "EvolutionIrisMLP", f"--page={page}"])
    printed = capsys.readouterr().out.strip()
    assert page.read_text() == f"a\n{models.MARKS[0]}\n\n{printed}\n\n{models.MARKS[1]}\nb\n"


@pytest.mark.parametrize("words", [["--models", "Foo"], ["--models", "DigitsCN"]])
def test_unknown_models(words, capsys):
    with pytest.raises(SystemExit) as stop:
        models.main(words)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_wrong_pages(tmp_path):
    page = tmp_path / "page.md"
    with pytest.raises(SystemExit, match="No such file"):
        models.main(["--models", "EvolutionIrisMLP", f"--page={page}"])
    page.write_text("no marks")
    with pytest.raises(pages.PageError, match="it needs the lines"):
        pages.read_page(page, models.MARKS)
