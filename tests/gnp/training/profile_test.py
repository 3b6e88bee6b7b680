"""A trace of steps: where it ends, and where it cannot be written."""

import contextlib

import jax
import pytest

from gnp.training.profile import FOLDER, ProfiledSteps


def take_step(state, batch, key, step):
    return state, {"loss": step}


def test_a_run_that_ends_early_has_a_trace(tmp_path):
    steps = ProfiledSteps(take_step, 2, 9, tmp_path)
    assert steps("state", (), None, 0) == ("state", {"loss": 0})
    assert not (tmp_path / FOLDER).exists()
    assert steps("state", (), None, 1) == ("state", {"loss": 1})
    steps.close()
    steps.close()
    assert len(list((tmp_path / FOLDER).rglob("*.xplane.pb"))) == 1


def test_the_trace_ends_with_the_last_step(tmp_path):
    steps = ProfiledSteps(take_step, 1, 1, tmp_path)
    steps((), (), None, 0)
    assert len(list((tmp_path / FOLDER).rglob("*.xplane.pb"))) == 1
    steps((), (), None, 1)
    steps.close()
    assert len(list((tmp_path / FOLDER).rglob("*.xplane.pb"))) == 1


def test_a_trace_that_cannot_be_written_is_told_in_one_line(tmp_path):
    in_the_way = tmp_path / FOLDER / "plugins"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    steps = ProfiledSteps(take_step, 1, 1, tmp_path)
    with pytest.raises(OSError, match=r"profile: the trace cannot be written: .*plugins") as raised:
        steps((), (), None, 0)
    assert "\n" not in str(raised.value)
    steps.close()
    in_the_way.unlink()
    with contextlib.suppress(RuntimeError):
        jax.profiler.stop_trace()  # before jax 0.12 it keeps a trace that it could not write
