"""Schedules against their closed forms."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer import SCHEDULES, STRATEGIES, OptimizerError, gnp_warmup, learning_rate_schedule
from tests.published import load

STEPS_PER_EPOCH, EPOCHS, BASE = 4, 6, 0.5


def schedule(name: str, **options: Any) -> Any:
    return learning_rate_schedule(
        name, BASE, **{"steps_per_epoch": STEPS_PER_EPOCH, "total_epochs": EPOCHS} | options
    )


def closed_form(name: str, t: int, warmup_steps: int) -> float:
    total = STEPS_PER_EPOCH * EPOCHS
    decayed = {
        "constant": 1.0,
        "stepped": 0.2 ** ((t > 10) + (t > 16)),  # at a boundary the old rate holds
        "cosine": 0.5 * (1 + math.cos(math.pi * max(t - warmup_steps, 0) / (total - warmup_steps))),
        "cosine_restarts": 0.5 * (1 + math.cos(math.pi * (t // STEPS_PER_EPOCH % 4) / 4)),
        "exponential": 0.7 ** (t / STEPS_PER_EPOCH),
        "inverse_time": 1 / (1 + 0.25 * t),
    }[name]
    ramp = min(1.0, t / warmup_steps) if warmup_steps else 1.0
    return BASE * ramp * decayed


@pytest.mark.parametrize("warmup_epochs", [0, 1.5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_closed_form(name: str, warmup_epochs: float) -> None:
    rate = schedule(
        name, warmup_epochs=warmup_epochs, boundaries=(2.5, 4), factor=0.2, rate=0.7, decay=0.25,
        period=4,
    )  # fmt: skip
    steps = range(STEPS_PER_EPOCH * EPOCHS + 1)
    expected = [closed_form(name, t, int(warmup_epochs * STEPS_PER_EPOCH)) for t in steps]
    np.testing.assert_allclose([float(rate(t)) for t in steps], expected, rtol=1e-5, atol=1e-7)
    traced = jax.vmap(rate)(jnp.arange(len(steps)))
    np.testing.assert_allclose(np.broadcast_to(traced, len(steps)), expected, rtol=1e-5, atol=1e-7)


def test_cosine_stays_at_zero_after_the_last_step() -> None:
    assert float(schedule("cosine")(10_000)) == 0.0


@pytest.mark.parametrize("run", load("gnp_trajectory")[1]["runs"])
def test_schedules_of_the_penaltys_authors(run: str) -> None:
    """And what docs/from_the_original.md says of theirs: the logged rate lags a step."""
    arrays, meta = load("gnp_trajectory")
    settings, size = meta["runs"][run]["settings"], meta["training_set"]["steps_per_epoch"]
    kept = {name: settings[name] for name in ("base_lr", "total_epochs", "warmup_epochs")}
    penalty = settings["gnp"]["r"], settings["gnp"]["alpha"], size * settings["warmup_epochs"]
    with jax.enable_x64(True):
        rate = learning_rate_schedule(settings["lr_schedule_type"], steps_per_epoch=size, **kept)
        ours = (rate, *gnp_warmup(settings["gr_warmup_strategy"], *penalty))
        for name, each in zip(("lr", "metric/r", "metric/alpha"), ours, strict=True):
            theirs = arrays[f"f64/{run}/{name}"]
            found = [float(each(t)) for t in range(len(theirs))]
            np.testing.assert_allclose(found, theirs, rtol=1e-7, err_msg=name)
    rates = arrays[f"f64/{run}/lr"]
    np.testing.assert_array_equal(arrays[f"f64/{run}/lr_logged"][1:], rates[:-1])


@pytest.mark.parametrize("warmup_steps", [0, 4])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gnp_warmup_closed_form(strategy: str, warmup_steps: int) -> None:
    r, alpha = gnp_warmup(strategy, 0.1, 0.8, warmup_steps)
    for t in range(8):
        ramp = min(1.0, t / warmup_steps) if warmup_steps else 1.0
        gate = float(t >= warmup_steps)
        factor = {"none": 1.0, "lambda": 1.0, "r": ramp, "zero": gate}[strategy]
        np.testing.assert_allclose(r(t), 0.1 * factor, rtol=1e-6)
        factor = ramp if strategy == "lambda" else 1.0
        np.testing.assert_allclose(alpha(t), 0.8 * factor, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(r)(t), r(t), rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(SCHEDULES),
    warmup_epochs=st.floats(0, 5),
    step=st.integers(0, 30),
)
def test_learning_rate_is_within_zero_and_base(name: str, warmup_epochs: float, step: int) -> None:
    assert 0.0 <= float(schedule(name, warmup_epochs=warmup_epochs)(step)) <= BASE * (1 + 1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_as_many_steps_as_can_be_counted(name: str) -> None:
    """2³¹ - 1; boundaries beyond never come."""
    size, boundaries = 10**6, (1000, 2000, 1e30)
    options = {"steps_per_epoch": size, "boundaries": boundaries, "factor": 0.5, "rate": 0.999}
    rate = jax.jit(schedule(name, total_epochs=2147, warmup_epochs=1, decay=1e-9, **options))
    steps = jnp.array([0, size // 2, 1000 * size, 1000 * size + 1, 2000 * size + 1, 2**31 - 1])
    rates = [float(rate(step)) for step in steps]
    assert rates[0] == 0 and all(0 <= each <= BASE for each in rates)
    if name == "stepped":
        assert rates == [0, BASE / 2, BASE, BASE / 2, BASE / 4, BASE / 4]


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("cosin", {}, "lr_schedule_type='cosin' is not one of constant, stepped, cosine"),
        ("cosin", {}, "did you mean 'cosine'?"),
        ("cosine", {"warmup_epochs": 6}, "warmup_epochs=6 leaves none of total_epochs=6"),
        ("constant", {"warmup_epochs": -1}, "warmup_epochs=-1 must"),
        ("stepped", {"boundaries": (3, 2)}, "boundaries=(3, 2) must be epochs that increase"),
        ("stepped", {"boundaries": (0, 2)}, "boundaries=(0, 2) must"),
        ("stepped", {"boundaries": (2, 2.01)}, "at least one step apart"),
        ("stepped", {"factor": -1}, "factor=-1 must"),
        ("exponential", {"rate": 0}, "rate=0 must be > 0"),
        ("inverse_time", {"decay": -1e-3}, "decay=-0.001 must"),
        ("cosine_restarts", {"period": 0}, "period=0 must"),
        ("cosine", {"total_epochs": 2**29}, "total_epochs=536870912 of 4 steps are more steps"),
        ("stepped", {"warmup_epochs": 1e300}, "warmup_epochs=1e+300 of 4 steps are more steps"),
    ],
)
def test_wrong_learning_rate_schedules(name: str, options: Any, message: str) -> None:
    with pytest.raises(OptimizerError) as caught:
        schedule(name, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("lamda", 0.1, 0.8, 4), "did you mean 'lambda'?"),
        (("none", -0.1, 0.8, 4), "r=-0.1 must"),
        (("none", 0.1, -0.8, 4), "alpha=-0.8 must"),
        (("none", 0.1, 0.8, -4), "warmup_steps=-4 must"),
        (("r", 0.1, 0.8, 2**31), "warmup_steps=2147483648 must"),
    ],
)
def test_wrong_gnp_warmups(arguments: Any, message: str) -> None:
    with pytest.raises(OptimizerError) as caught:
        gnp_warmup(*arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
