"""From a config to the parts of a run."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from config import ConfigError, load_config
from gnp import build
from model import ModelError

CONFIG = str(Path(__file__).resolve().parents[2] / "config" / "digits.py")


def test_grassmann_columns_start_at_length_one():
    run = build.build_run(load_config(CONFIG, [("opt.opt_type", "SGDG")]))
    params = build.initial_state(run, seed=0).state.params
    columns = np.asarray(params["Conv_1"]["kernel"]).reshape(-1, 64)
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), 1, rtol=1e-6)
    dense = np.asarray(params["Dense_0"]["kernel"])
    assert np.abs(np.linalg.norm(dense, axis=0) - 1).min() > 1e-3


def test_a_model_that_cannot_take_the_inputs_is_told_in_one_line():
    config = load_config(CONFIG, [])
    initialise, _ = build.build_functions(config, lambda x: x, (4,), 3)
    with pytest.raises(ModelError, match=r"DigitsCNN cannot take inputs of shape \(4,\)") as raised:
        jax.eval_shape(initialise, jax.random.key(0))
    assert "\n" not in str(raised.value)


def test_a_real_target_needs_squared_error():
    config = load_config(CONFIG, [])
    real = SimpleNamespace(is_regression=True, name="prices")
    with pytest.raises(ConfigError, match="set loss to squared_error"):
        build.check_objective(config, real)
    build.check_objective(load_config(CONFIG, [("loss", "squared_error")]), real)


def test_each_device_needs_its_share_of_each_micro_batch(monkeypatch):
    config = load_config(CONFIG, [("accumulate_steps", "32")])
    mesh = SimpleNamespace(size=4)
    monkeypatch.setattr(build, "build_mesh", lambda *_: mesh)
    with pytest.raises(ConfigError) as raised:
        build.build_run(config)
    assert str(raised.value) == (
        "accumulate_steps = 32 leaves micro-batches of 2 examples, which cannot be split over 4 "
        "devices: batch_size must be a multiple of 128"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "batch_size = 64"),
        ({"accumulate_steps": "2"}, "batch_size / accumulate_steps = 32"),
        ({"gnp.sync_perturbations": "false", "gnp.m": "16"}, "gnp.m = 16"),
    ],
)
def test_batch_norm_groups_divide_what_the_model_is_given(monkeypatch, words, message):
    group = ("model.model_params.batch_norm_group", "24")
    config = load_config(CONFIG, [*words.items(), group])
    monkeypatch.setattr(build.ds_pipeline, "build_dataset", None)  # is not reached
    with pytest.raises(ConfigError) as raised:
        build.build_run(config)
    assert f"batch_norm_group = 24 does not divide {message}, the examples" in str(raised.value)
    assert "allowed is 1, 2, 4, 8, 16" in str(raised.value)
    config.model.model_params.batch_norm_group = 16
    build._check_batch_norm_group(config)


@pytest.mark.parametrize(
    ("data", "fsdp", "message"),
    [
        ("-1", "-1", "mesh.data = -1 and mesh.fsdp = -1: only one of them can be -1, all the rest"),
        ("-1", "4", "4 does not divide the number of devices, 6: allowed is 1, 2, 3, 6"),
        ("2", "2", "are for 4 devices, and there are 6: their product must be that number"),
    ],
)
def test_a_mesh_that_is_not_of_these_devices(monkeypatch, data, fsdp, message):
    config = load_config(CONFIG, [("mesh.data", data), ("mesh.fsdp", fsdp), ("batch_size", "60")])
    monkeypatch.setattr(jax, "device_count", lambda: 6)
    with pytest.raises(ConfigError) as raised:
        build.check_devices(config)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    elsewhere = build.on_these_devices(config)
    assert (elsewhere.mesh.data, elsewhere.mesh.fsdp) == (-1, 1)
    elsewhere.mesh.fsdp = 3
    assert build.on_these_devices(elsewhere).mesh.fsdp == 3


@pytest.mark.parametrize("penalty", ["batch", "micro"])
def test_the_penalty_is_in_the_chain_or_in_the_micro_batches(monkeypatch, penalty):
    given = []

    def keep(_, __, chain, *, accumulation, **___):
        given.append((chain, accumulation))
        return lambda state: state

    monkeypatch.setattr(build, "build_train_step", keep)
    words = [("accumulate_steps", "4"), ("accumulate_penalty", penalty)]
    build.build_run(load_config(CONFIG, words))
    params, points = jnp.ones(3), []
    for chain, accumulation in given:
        assert accumulation.parts == 4
        assert (accumulation.penalty is not None) == (penalty == "micro")
        chain.update(
            params,
            chain.init(params),
            params,
            grad_fn=lambda at: points.append(at) or at,
            penalize=True,
        )
    perturbed = [bool((at != params).any()) for at in points]
    assert perturbed == [penalty == "batch"] * 2


def test_the_average_has_buffers_of_its_own_and_costs_nothing_where_it_is_off():
    with_it = build.build_run(load_config(CONFIG, [("ema_decay", "0.9")]))
    state = build.initial_state(with_it, seed=0).state
    for ours, theirs in zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.unsafe_buffer_pointer() != theirs.unsafe_buffer_pointer()
    assert build.initial_state(build.build_run(load_config(CONFIG)), seed=0).state.ema is None


def test_the_average_of_the_grassmann_group_stays_on_the_manifold():
    labels = {"conv": "grassmann", "dense": "euclidean"}
    average = build._average(0.75, lambda params: labels)
    one = {"conv": jnp.array([[1.0], [0.0], [0.0]]), "dense": jnp.array([4.0])}
    other = {"conv": jnp.array([[0.0], [1.0], [0.0]]), "dense": jnp.array([8.0])}
    mixed = average(one, other)
    np.testing.assert_allclose(mixed["conv"][:, 0], np.array([3, 1, 0]) / 10**0.5, rtol=1e-6)
    np.testing.assert_allclose(mixed["dense"], 5.0)
