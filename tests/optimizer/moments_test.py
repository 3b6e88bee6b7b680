"""Rules for steps: what they remember, and what a config asks of them."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from optimizer import OptimizerError, StepRule, UnusualNorm, build_step_rule

NORMS = [float(x) for x in np.random.default_rng(0).lognormal(size=40)]


def decisions(rule: Any, norms: Any = NORMS, first: int = 0, lag: int = 1) -> list[bool]:
    """Ask for each step; the norm of a step comes after `lag` more steps have been asked for."""
    found = []
    for step, _ in enumerate(norms[first:], first):
        if step - lag >= first:
            rule.observe(step - lag, norms[step - lag])
        found.append(rule(step))
    return found


def by_definition(norms: list[float], start: float, end: float, total: int) -> list[bool]:
    found, mean, variance = [False, False], 0.0, 0.0
    for step in range(2, len(norms)):
        square = norms[step - 2] ** 2
        mean = square if step == 2 else 0.9 * mean + 0.1 * square
        variance = 0.9 * variance + 0.1 * (square - mean) ** 2
        threshold = start + (end - start) * step / total
        found.append(square >= mean + threshold * variance**0.5)
    return found


@pytest.mark.parametrize("thresholds", [(1.0, -1.0), (0.5, 0.5)])
def test_an_unusual_norm_is_that_of_the_formula(thresholds: Any) -> None:
    expected = by_definition(NORMS, *thresholds, total=len(NORMS))
    assert decisions(UnusualNorm(*thresholds, len(NORMS))) == expected
    assert 5 < sum(expected) < 35


def test_it_does_not_matter_how_early_a_norm_is_known() -> None:
    one, other = (UnusualNorm(1.0, -1.0, len(NORMS)) for _ in range(2))
    early = []
    for step, norm in enumerate(NORMS):
        early.append(one(step))
        one.observe(step, norm)
    assert early == decisions(other, lag=2) == decisions(UnusualNorm(1.0, -1.0, len(NORMS)))


@pytest.mark.parametrize("stop", [1, 2, 17])
def test_it_goes_on_from_its_json(stop: int) -> None:
    whole = UnusualNorm(1.0, -1.0, len(NORMS))
    expected = decisions(whole, lag=0)
    first, second = (StepRule(lambda _: True, UnusualNorm(1.0, -1.0, len(NORMS))) for _ in "ab")
    begun = decisions(first, NORMS[:stop], lag=0)
    second.restore(json.loads(json.dumps(first.to_json())))
    assert begun + decisions(second, first=stop, lag=0) == expected
    second.restore(None)
    assert second.to_json() == UnusualNorm(1.0, 1.0, 1).to_json()


def test_a_norm_that_is_not_finite_is_left_out() -> None:
    rule = UnusualNorm(1.0, 1.0, 10)
    for step, norm in enumerate([1.0, float("nan"), float("inf"), 1e200, 1.0]):
        rule.observe(step, norm)
        rule(step)
    assert rule(6) and rule.to_json()["moments"] == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    "saved", [{}, [], {"moments": [1.0], "unread": []}, {"moments": None, "unread": [[1, "2"]]}]
)
def test_what_it_has_not_written_is_refused(saved: Any) -> None:
    with pytest.raises(OptimizerError, match="are not in what was saved"):
        UnusualNorm(1.0, -1.0, 10).restore(saved)
    StepRule(lambda _: True).restore(saved)  # which remembers nothing


@pytest.mark.parametrize("keys", [{"start": "1"}, {"end": float("nan")}, {"total_steps": 0}])
def test_wrong_numbers(keys: Any) -> None:
    with pytest.raises(OptimizerError, match=f"{next(iter(keys))}="):
        UnusualNorm(**({"start": 1.0, "end": 1.0, "total_steps": 5} | keys))


def test_the_conditions_of_a_config_hold_together(make_config: Callable[..., Any]) -> None:
    config = make_config(**{"gnp.every": 3})  # 3 epochs of 10 steps
    config.gnp.tail_epochs = 1.5
    rule = build_step_rule(config, 10)
    assert [step for step in range(30) if rule(step)] == [15, 18, 21, 24, 27]
    assert rule.to_json() == {}
    config.gnp.unusual_norm = (-10.0, -10.0)  # each norm is, from the third step on
    config.gnp.tail_epochs = None
    rule = build_step_rule(config, 10)
    assert [step for step, yes in enumerate(decisions(rule, NORMS[:10])) if yes] == [3, 6, 9]


@pytest.mark.parametrize("method", ["sam", "momentum_sam"])
def test_a_relative_is_on_without_alpha(make_config: Callable[..., Any], method: str) -> None:
    config = make_config(**{"gnp.method": method, "gnp.alpha": 0.0})
    assert build_step_rule(config, 4)(0)
    config.gr_warmup_strategy, config.gnp.warmup_epochs = "zero", 0.5
    assert [build_step_rule(config, 4)(step) for step in (1, 2)] == [False, True]
