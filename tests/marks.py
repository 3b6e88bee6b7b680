"""Which parameters of a test run in the quick suite."""

from collections.abc import Sequence
from typing import Any

import pytest


def quick_first(values: Sequence[Any], count: int = 1) -> list[Any]:
    """Return the parameters of a test, those after the first `count` marked slow.

    For tests whose parameters take the same code through one more compilation.
    """
    slow = [
        pytest.param(*(value if type(value) is tuple else (value,)), marks=pytest.mark.slow)
        for value in values[count:]
    ]
    return [*values[:count], *slow]
