"""A run so small that tests can train it often, in this process, through the command's own code."""

import functools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

IRIS = str(Path(__file__).resolve().parents[2] / "config" / "iris.py")
# Five steps an epoch, three epochs; each second step penalized.
KEYS = {
    "batch_size": "24",
    "total_epochs": "3",
    "evaluate_every_n_epochs": "1",
    "save_ckpt_every_n_epochs": "1",
    "log_every_n_steps": "2",
    "opt.opt_type": "Adam",
    "gnp.r": "0.1",
    "gnp.alpha": "0.5",
    "gnp.every": "2",
}


@pytest.fixture(scope="session")
def small_run() -> Iterator[Callable[..., SimpleNamespace]]:
    """Train in a directory, or go on there, with gnp.main.train.run; call it with keys of config.

    Further arguments: `stop`, the step (from 0) in which SIGTERM comes; `wrap`, a function from
    train step to train step. Returns the exit code, the state and the checkpoints' steps, and the
    run's config and experiment.
    """
    import dataclasses

    import jax

    from config import load_config
    from ds_pipeline import build_dataset
    from gnp.experiment import build_experiment
    from gnp.main import train
    from gnp.training import run_directory
    from gnp.training.checkpoint import Checkpoints, read_checkpoint

    @functools.cache
    def built(overrides: tuple[tuple[str, str], ...]) -> Any:
        config = load_config(IRIS, overrides)
        return config, build_experiment(config, build_dataset(config))

    def run(
        directory: Path,
        stop: int | None = None,
        wrap: Callable[[Any], Any] = lambda train_step: train_step,
        **keys: str,
    ) -> SimpleNamespace:
        named = {name.replace("__", "."): value for name, value in keys.items()}
        config, experiment = built(tuple((KEYS | named).items()))

        def train_step(state: Any, batch: Any, key: Any, step: int) -> Any:
            if step == stop:
                signal.raise_signal(signal.SIGTERM)
            return wrap(experiment.train_step)(state, batch, key, step)

        watched = dataclasses.replace(experiment, train_step=train_step)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "build_experiment", lambda *_: watched)
            patch.setattr(train, "show_results", lambda *_: None)  # pictures take a second
            with run_directory.locked(directory):
                code = train.run(config, directory)
        state = jax.device_get(read_checkpoint(directory, experiment.abstract_state).state)
        with Checkpoints(directory, read_only=True) as checkpoints:
            steps = checkpoints.steps()
        return SimpleNamespace(
            code=code, state=state, steps=steps, config=config, experiment=experiment
        )

    yield run
