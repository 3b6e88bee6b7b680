"""Every Python block of the README runs."""

import re
import sys
from pathlib import Path

import pytest

import optimizer
from config import default
from config.load import conflicts
from config.schema import problems

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def block_with(text: str) -> str:
    (block,) = (block for block in BLOCKS if text in block)
    return block


def test_the_config_is_allowed():
    names: dict = {}
    exec(block_with("def get_config"), names)
    config = names["get_config"]()
    assert problems(config, default.KEYS) == []
    assert conflicts(config) == []


def test_the_loop_of_your_own_learns(monkeypatch):
    monkeypatch.setitem(sys.modules, "gnp_optimizer", optimizer)
    names: dict = {}
    exec(block_with("gnp_optimizer"), names)
    assert names["loss"](names["params"], names["x"], names["y"]) < 1e-2
    assert names["params"]["b"] == pytest.approx(3.0, abs=0.1)


def test_there_are_no_other_blocks():
    assert len(BLOCKS) == 2


def test_every_file_it_links_to_is_there():
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", README)
    assert links
    for link in links:
        assert (Path(__file__).resolve().parents[1] / link).exists(), link
