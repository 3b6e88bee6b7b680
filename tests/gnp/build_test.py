"""From a config to the parts of a run."""

from pathlib import Path
from types import SimpleNamespace

import jax
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
