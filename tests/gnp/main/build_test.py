"""From a config to the parts of a run."""

from pathlib import Path

import numpy as np

from config import load_config
from gnp.main import build

CONFIG = str(Path(__file__).resolve().parents[3] / "config" / "digits.py")


def test_grassmann_columns_start_at_length_one():
    run = build.build_run(load_config(CONFIG, [("opt.opt_type", "SGDG")]))
    params = build.initial_state(run, seed=0).state.params
    columns = np.asarray(params["Conv_1"]["kernel"]).reshape(-1, 64)
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), 1, rtol=1e-6)
    dense = np.asarray(params["Dense_0"]["kernel"])
    assert np.abs(np.linalg.norm(dense, axis=0) - 1).min() > 1e-3
