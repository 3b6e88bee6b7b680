"""Devices: the same numbers on 1, 2 and 4 of them, whole or split; the state stays where it is."""

import functools
import itertools
import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FLAGS = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
STEPS = 5
WORDS = {
    "model.model_name": "Tiny",
    "model.model_params": "{}",
    "batch_size": "16",
    "dataset.subset": "160",
    "lr_schedule_type": "constant",
    "warmup_epochs": "0",
    "base_lr": "0.01",
    "gnp.r": "0.1",
    "total_epochs": "1",
}
VARIANTS = {
    "momentum": {"ema_decay": "0.9", "record.gradients": "true"},
    "SGDG": {"opt.opt_type": "SGDG"},
    "AdamG": {"opt.opt_type": "AdamG"},
    "hvp": {"gnp.method": "hvp"},
    "groups": {"gnp.sync_perturbations": "false", "gnp.m": "4", "gradient_clipping": "1.0"},
    "groups looksam": {
        "gnp.sync_perturbations": "false", "gnp.m": "4", "gnp.every": "3", "gnp.reuse": "0.5",
    },
    "micro": {"accumulate_steps": "2", "accumulate_penalty": "micro"},
    "batch norm groups": {"model.model_params": "{'batch_norm_group': 8}"},
    "one gradient": {"gnp.method": "momentum_sam", "accumulate_steps": "2"},
    "functional": {"gnp.method": "functional_sam", "gnp.ascent_share": "0.5"},
    "memory": {"gnp.method": "vasso", "gnp.every": "2", "gnp.reuse": "0.5"},
    "accumulated": {"accumulate_steps": "2", "record.gradients": "true"},
}  # fmt: skip
LAYOUTS = tuple((data, fsdp) for data, fsdp in itertools.product((1, 2, 4), (1, 2, 4))
                if data * fsdp <= 4)  # fmt: skip
QUICK = [(1, 1), (1, 4)]


def register_tiny() -> None:
    """Batch norm and dropout; two devices split the columns of its convolution, four its rows."""
    import flax.linen as nn

    from model.layers import BatchNorm
    from model.registry import register

    @register("Tiny")
    class Tiny(nn.Module):
        num_classes: int
        batch_norm_group: int | None = None
        dtype: Any = None
        remat: bool = False

        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            x = nn.Conv(6, (4, 4), (4, 4), use_bias=False)(x)
            x = nn.relu(BatchNorm(0.99, group=self.batch_norm_group)(x, train))
            x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
            return nn.Dense(self.num_classes)(x)


class Trainer:
    """In the process with four devices: builds and trains runs as the command line does."""

    def __init__(self) -> None:
        import jax

        from gnp import experiment
        from gnp.training import mesh

        register_tiny()
        mesh.SMALLEST = 12
        self.jax, self.module, self.devices = jax, experiment, jax.devices()

    @functools.cache  # noqa: B019
    def run(self, variant: str, layout: tuple[int, int]) -> Any:
        from config import load_config
        from ds_pipeline import build_dataset

        self.jax.devices = lambda: self.devices[: layout[0] * layout[1]]
        mesh = {"mesh.data": str(layout[0]), "mesh.fsdp": str(layout[1])}
        words = {**WORDS, **VARIANTS[variant], **mesh}
        config = load_config("config/digits.py", list(words.items()))
        return self.module.build_experiment(config, build_dataset(config))

    def initial(self, variant: str, layout: tuple[int, int]) -> Any:
        return self.run(variant, layout).initialize()[0]

    def steps(
        self, variant: str, layout: tuple[int, int], state: Any, first: int = 0, count: int = STEPS
    ) -> Any:
        """Takes steps; checks that the state stays where it is and in its memory."""
        jax, experiment = self.jax, self.run(variant, layout)
        batches = experiment.train_batches(first)
        for step, batch in zip(range(first, first + count), batches, strict=False):
            old = state
            state, metrics = experiment.train_step(state, batch, jax.random.key(1), step)
            # What orbax has read may lie in memory that is not jax's to give to the step.
            donated = all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
            assert donated or step == first, "not donated"
            for leaf, expected in zip(
                jax.tree.leaves(state), jax.tree.leaves(experiment.abstract_state), strict=True
            ):
                assert leaf.sharding == expected.sharding
        for step in (experiment.plain_step, experiment.penalized_step):
            assert step._cache_size() <= 1, "compiled twice"
        return state, jax.device_get(metrics)


@functools.cache
def the_trainer() -> Trainer:
    """The one of this process: it compiles a run once."""
    return Trainer()


def train(variants: list[str], layouts: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """'variant data fsdp' -> leaves of the state and the last metrics; the bytes of a device."""
    warnings.simplefilter("error", UserWarning)  # "Some donated buffers were not usable"
    trainer, result = the_trainer(), {}
    for variant, layout in itertools.product(variants, layouts):
        state = trainer.initial(variant, layout)
        bytes_here = sum(
            leaf.addressable_shards[0].data.nbytes for leaf in trainer.jax.tree.leaves(state)
        )
        state, metrics = trainer.steps(variant, layout, state)
        leaves = trainer.jax.tree.leaves(trainer.jax.device_get((state, metrics)))
        result[f"{variant} {layout}"] = [bytes_here, [np.asarray(x).tolist() for x in leaves]]
    return result


def move() -> dict[str, Any]:
    """Checkpoints of each layout go on in each other; the parameters after some more steps."""
    from gnp.training.checkpoint import Checkpoints

    trainer, result = the_trainer(), {}
    for written in QUICK:
        state, _ = trainer.steps("momentum", written, trainer.initial("momentum", written), 0, 2)
        held = trainer.jax.device_get(state)
        with tempfile.TemporaryDirectory() as directory, Checkpoints(Path(directory)) as saved:
            saved.save(2, state, {})
            saved.wait()
            for read in QUICK:
                restored = saved.restore(trainer.run("momentum", read).abstract_state)
                assert restored is not None
                trainer.jax.tree.map(
                    np.testing.assert_array_equal, trainer.jax.device_get(restored.state), held
                )
                state, _ = trainer.steps("momentum", read, restored.state, 2, 2)
                leaves = trainer.jax.tree.leaves(trainer.jax.device_get(state.params))
                result[f"{written} {read}"] = [x.tolist() for x in leaves]
    return result


def sent() -> dict[str, Any]:
    """Return what four devices send in a penalized step, and how many parameters are split."""
    trainer = the_trainer()
    experiment = trainer.run("SGDG", (1, 4))
    batch = next(experiment.train_batches(0))
    with trainer.jax.set_mesh(experiment.mesh):
        state, key = experiment.abstract_state, trainer.jax.random.key(1)
        program = (
            experiment.penalized_step.lower(state, batch, key, np.uint32(0)).compile().as_text()
        )
    kinds = re.findall(r" (all-gather|all-to-all|collective-permute)(?:-start)?[(]", program)
    leaves = trainer.jax.tree.leaves(experiment.abstract_state.params)
    return {"kinds": kinds, "split": sum(not x.sharding.is_fully_replicated for x in leaves)}


def quick() -> list[Any]:
    """Return what the quick tests read, from one process."""
    return [train(["momentum", "groups"], QUICK), move()]


def in_process(call: str, environment: dict[str, str]) -> Any:
    """Calls a function of this file in a process with four devices."""
    folder = str(Path(__file__).parent)
    program = f"import sys, json; sys.path.insert(0, {folder!r}); import devices_test as t; "
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{program}print(json.dumps(t.{call}))"],
        capture_output=True, check=False, cwd=Path(__file__).resolve().parents[3],
        env=environment | FLAGS, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found(gnp_environment):
    return in_process("quick()", gnp_environment)


def assert_close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=3e-6)


def check(trained, variants, layouts):
    for variant, layout in itertools.product(variants, layouts):
        assert_close(trained[f"{variant} {layout}"][1], trained[f"{variant} (1, 1)"][1])


@pytest.mark.slow
def test_devices_and_layouts_change_nothing(found):
    """After 5 penalized steps: parameters, statistics, optimizer state and metrics."""
    check(found[0], ["momentum"], QUICK)
    whole, quarter = (found[0][f"momentum {layout}"][0] for layout in ((1, 1), (1, 4)))
    assert whole / 4 < quarter < whole / 3  # what is small is not split


@pytest.mark.slow
def test_groups_on_devices_and_layouts_change_nothing(found):
    check(found[0], ["groups"], QUICK)


@pytest.mark.slow
def test_batch_norm_groups_change_nothing_on_more_devices(gnp_environment):
    """A group of 8 examples is on two devices of four."""
    variants = ["momentum", "batch norm groups"]
    trained = in_process(f"train({variants}, {QUICK})", gnp_environment)
    check(trained, variants, QUICK)
    whole, groups = (trained[f"{variant} (1, 1)"][1] for variant in variants)
    assert not np.allclose(whole[0], groups[0])


@pytest.mark.slow
def test_a_checkpoint_goes_on_in_another_layout(found):
    assert len(found[1]) == len(QUICK) ** 2
    for leaves in found[1].values():
        assert_close(leaves, found[1]["(1, 1) (1, 1)"])


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layout_gives_the_same(gnp_environment, variant):
    trained = in_process(f"train({[variant]}, {list(LAYOUTS)})", gnp_environment)
    check(trained, [variant], LAYOUTS)


@pytest.mark.slow
def test_parameters_are_gathered_once_a_gradient_and_nothing_else_is_moved(gnp_environment):
    found = in_process("sent()", gnp_environment)
    assert found["split"] == 2
    assert found["kinds"] == ["all-gather"] * 2 * found["split"]
