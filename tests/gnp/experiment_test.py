"""From a config to the parts of a run."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optimizer
from config import load_config
from ds_pipeline import build_dataset
from gnp import experiment as experiments
from gnp.experiment import build_experiment, name_problems
from gnp.training.gradients import Grads
from model import get_model
from tests.marks import quick_first

CONFIG = str(Path(__file__).resolve().parents[2] / "config" / "digits.py")


def build(*words):
    config = load_config(CONFIG, words)
    return build_experiment(config, build_dataset(config))


def first_state(*words):
    return build(*words).initialize()[0]


@pytest.mark.slow
def test_grassmann_columns_start_at_length_one():
    params = first_state(("opt.opt_type", "SGDG")).params
    columns = np.asarray(params["Conv_1"]["kernel"]).reshape(-1, 64)
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), 1, rtol=1e-6)
    dense = np.asarray(params["Dense_0"]["kernel"])
    assert np.abs(np.linalg.norm(dense, axis=0) - 1).min() > 1e-3


def test_the_size_of_the_evaluations_batches():
    experiment = build(("eval_batch_size", "100"))
    counts = [int(batch["mask"].sum()) for batch in experiment.eval_batches()]
    assert counts == [100, 100, 100, 59]


@pytest.fixture
def built_steps(monkeypatch):
    """(gradient_of, chain, penalize) of the train steps that build_experiment asks for."""
    given = []

    def fake(gradient_of, chain, *, penalize, **_):
        given.append((gradient_of, chain, penalize))
        return lambda state, batch, key, step: (
            state,
            {"penalized": jnp.bool(penalize), "step": step},
        )

    monkeypatch.setattr(experiments, "build_train_step", fake)
    return given


@pytest.mark.parametrize("kind", quick_first(("batch", "micro")))
def test_the_penalty_is_in_the_chain_or_in_the_micro_batches(monkeypatch, built_steps, kind):
    """And in one of them only."""

    def gradient(params, model_state, batch, key):
        return Grads(params), {"size": jnp.float32(len(batch["label"]))}, model_state

    monkeypatch.setattr(experiments, "build_gradient", lambda _: gradient)
    words = {"accumulate_steps": "4", "accumulate_penalty": kind, "opt.opt_type": "SGD"}
    build(*words.items(), ("warmup_epochs", "0"))
    params, batch = jnp.ones(3), {"label": jnp.zeros(64)}
    assert [penalize for *_, penalize in built_steps] == [False, True]
    for gradient_of, chain, penalize in built_steps:
        found, metrics, _ = gradient_of(5)(params, {}, batch, jax.random.key(0))
        assert metrics["size"] == 16
        np.testing.assert_array_equal(found.clean, params)
        assert (found.penalized is not None) == (penalize and kind == "micro")
        points = []
        update, _ = chain.update(
            found.clean,
            chain.init(params),
            params,
            grad_fn=lambda at: points.append(at) or at,  # noqa: B023
            penalized=found.penalized,
            penalize=penalize,
        )
        assert len(points) == (penalize and kind == "batch")
        # By either way the gradient of |params|^2 / 2 grows by alpha * r / |params|, times lr.
        growth = 1 + 0.8 * 0.05 / 3**0.5 if penalize else 1
        np.testing.assert_allclose(update, -0.05 * growth * params, rtol=1e-6)


@pytest.mark.parametrize("method", ["sam", "functional_sam"])
def test_the_first_gradient_is_of_a_share_and_the_second_of_all(monkeypatch, method):
    """In micro-batches of 32; functional SAM's second one is given both points."""

    def gradient(params, model_state, batch, key):
        return Grads(params), {"size": jnp.float32(len(batch["label"]))}, model_state

    given = []

    def fake(gradient_of, chain, *, perturbed_of, penalize, **_):
        given.append((gradient_of, perturbed_of, penalize))
        return lambda *args: args

    monkeypatch.setattr(experiments, "build_train_step", fake)
    monkeypatch.setattr(experiments, "build_gradient", lambda _: gradient)
    monkeypatch.setattr(experiments, "build_functional_gradient", lambda *_: gradient)
    build(("gnp.method", method), ("gnp.ascent_share", "0.25"), ("accumulate_steps", "2"))
    here, moved, batch = jnp.ones(3), 2 * jnp.ones(3), {"label": jnp.zeros(64)}
    for gradient_of, perturbed_of, penalize in given:
        _, first, _ = gradient_of(5)(here, {}, batch, jax.random.key(0))
        point, second, _ = perturbed_of(5, here)(moved, {}, batch, jax.random.key(0))
        assert (first["size"], second["size"]) == (8 if penalize else 32, 32)
        points = [moved] if method == "sam" else [moved, here]
        np.testing.assert_array_equal(jax.tree.leaves(point.clean), points)


@pytest.mark.parametrize("words", [{}, {"gnp.method": "functional_sam"}, {"gnp.ascent_share": 0.5}])
def test_both_gradients_are_of_the_losses_sum(monkeypatch, words):
    """Also in micro-batches, and where the first one is of a share of the examples."""

    def gradient(params, model_state, batch, key):
        return Grads(jnp.ones(3)), {}, model_state

    given = []

    def fake(gradient_of, chain, *, perturbed_of, penalize, **_):
        given.append((gradient_of, perturbed_of))
        return lambda *args: args

    monkeypatch.setattr(experiments, "build_train_step", fake)
    monkeypatch.setattr(experiments, "build_gradient", lambda _: gradient)
    monkeypatch.setattr(experiments, "build_functional_gradient", lambda *_: gradient)
    words = words | {"loss_reduction": "sum", "accumulate_steps": 2}
    build(*((name, str(value)) for name, value in words.items()))
    batch = {"label": jnp.zeros(64)}
    for gradient_of, perturbed_of in given:
        gradients = [gradient_of(5), *([perturbed_of(5, jnp.ones(3))] if perturbed_of else [])]
        for each in gradients:
            clean = each(jnp.ones(3), {}, batch, jax.random.key(0))[0].clean
            np.testing.assert_array_equal(clean, 64 * jnp.ones(3))
        assert len(gradients) == (2 if len(words) == 3 else 1)


@pytest.mark.parametrize("kind", ["batch", "micro"])
def test_only_the_clean_gradient_of_a_penalized_step_has_no_backward_noise(monkeypatch, kind):
    """As in the penalty's published code: plain steps and perturbed passes have it."""
    given, from_linen = [], experiments.from_linen

    def fake(gradient_of, chain, *, perturbed_of, penalize, **_):
        given.append((gradient_of, perturbed_of, penalize))
        return lambda *args: args

    def net(module, **rest):
        return from_linen(module, **rest)._replace(apply=module.backward_noise)

    def gradient(is_noisy):
        return lambda params, model_state, *_: (Grads(params + 10 * is_noisy), {}, model_state)

    module = get_model("WideResNet_2_2_ShakeShake", 10, depth=8, backward_noise=True)
    monkeypatch.setattr(experiments.model, "build_model", lambda *_: module)
    monkeypatch.setattr(experiments, "from_linen", net)
    monkeypatch.setattr(experiments, "build_train_step", fake)
    monkeypatch.setattr(experiments, "build_eval_step", lambda *_: print)
    monkeypatch.setattr(experiments, "build_loss", lambda is_noisy, *_: is_noisy)
    monkeypatch.setattr(experiments, "build_gradient", gradient)
    penalty = {"gnp.alpha": "1.0", "gnp.r": "3.0", "warmup_epochs": "0"}
    parts = {"accumulate_steps": "2", "accumulate_penalty": "micro"} if kind == "micro" else {}
    build(*penalty.items(), *parts.items())
    params, batch = jnp.array([4.0]), {"label": jnp.zeros(64)}
    assert [penalize for *_, penalize in given] == [False, True]
    for gradient_of, perturbed_of, penalize in given:
        grads, *_ = gradient_of(5)(params, {}, batch, jax.random.key(0))
        assert grads.clean == (4 if penalize else 14)
        if grads.penalized is not None:
            assert grads.penalized == 4 + 3 + 10
        assert perturbed_of(5, params)(params, {}, batch, jax.random.key(0))[0].clean == 14
    assert (grads.penalized is not None) == (kind == "micro")


def test_the_rule_chooses_the_step(built_steps):
    experiment = build(("gnp.every", "3"), ("warmup_epochs", "0"))
    state, _ = experiment.initialize()
    for step in range(7):
        state, metrics = experiment.train_step(state, {}, jax.random.key(0), step)
        assert (bool(metrics["penalized"]), int(metrics["step"])) == (step % 3 == 0, step)


# On the smallest network; those that take another way through the step come first.
METHODS = {
    "functional_sam": {"gnp.ascent_share": "0.5"},
    "momentum_sam": {"accumulate_steps": "2", "gnp.sync_perturbations": "true"},
    "wsam": {"gnp.method_params.decouple": "true"},
    "gsam": {"gnp.sync_perturbations": "false", "gnp.m": "8", "gnp.method_params.rho_min": "0.01"},
} | {
    method: {} for method in optimizer.GNP_METHODS
    if method not in (*optimizer.METHODS, "functional_sam", "momentum_sam", "wsam", "gsam")
}  # fmt: skip


@functools.cache
def two_steps(method):
    """Return the parameters after two steps, penalized ones if there is a method."""
    words = {"batch_size": "24", "warmup_epochs": "0"}
    if method:
        words |= {"gnp.r": "0.1", "gnp.method": method} | METHODS[method]
    config = load_config(str(Path(CONFIG).with_name("iris.py")), list(words.items()))
    assert name_problems(config) == []
    experiment = build_experiment(config, build_dataset(config))
    state, _ = experiment.initialize()
    for step, batch in zip(range(2), experiment.train_batches(0), strict=False):
        assert experiment.step_rule(step) == bool(method)
        state, metrics = experiment.train_step(state, batch, jax.random.key(0), step)
    assert float(metrics["finite"]) == 1
    return jax.device_get(state.params)


@pytest.mark.parametrize("method", quick_first(tuple(METHODS), 1))
def test_each_method_trains(method):
    """Otherwise than plain training; there is no normalization to perturb in this network."""
    if method == "sam_on":
        with pytest.raises(optimizer.OptimizerError, match="and this model has none"):
            two_steps(method)
        return
    plain, found = jax.tree.leaves(two_steps(None)), jax.tree.leaves(two_steps(method))
    assert max(np.abs(a - b).max() for a, b in zip(plain, found, strict=True)) > 1e-5


def test_a_memory_in_groups_is_refused_before_the_data_are_read():
    words = [("gnp.method", "vasso"), ("gnp.sync_perturbations", "false")]
    (line,) = name_problems(load_config(CONFIG, words))
    assert line.startswith("gnp.method='vasso' remembers gradients, which a group")


@pytest.mark.slow
def test_the_average_has_buffers_of_its_own_and_costs_nothing_where_it_is_off():
    state = first_state(("ema_decay", "0.9"))
    for ours, theirs in zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.unsafe_buffer_pointer() != theirs.unsafe_buffer_pointer()
    assert first_state().ema is None


@pytest.mark.slow
def test_the_average_of_the_grassmann_group_stays_on_the_manifold(monkeypatch):
    averages = []

    def fake(*_, average, **__):
        averages.append(average)
        return lambda state, batch, key, step: (state, {})

    monkeypatch.setattr(experiments, "build_train_step", fake)
    state, _ = build(("opt.opt_type", "SGDG"), ("ema_decay", "0.75")).initialize()
    other = jax.tree.map(lambda x: np.flip(x, 0), state.params)
    mixed = jax.jit(averages[0])(state.params, other)
    columns = np.asarray(mixed["Conv_1"]["kernel"]).reshape(-1, 64)
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), 1, rtol=1e-6)
    one, two = (tree["Dense_0"]["kernel"] for tree in (state.params, other))
    np.testing.assert_allclose(mixed["Dense_0"]["kernel"], 0.75 * one + 0.25 * two, rtol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        [("total_epochs", "1"), ("warmup_epochs", "0.6")],
        [("lr_schedule_type", "stepped"), ("lr_schedule_params.boundaries", "0.3,0.8")],
        [("total_epochs", "2000000000"), ("lr_schedule_type", "stepped")],
        [("gnp.warmup_epochs", "3000"), ("gr_warmup_strategy", "r")],
    ],
)
def test_fractions_of_epochs_and_many_are_allowed_before_the_data_are_known(overrides):
    assert name_problems(load_config(CONFIG, overrides)) == []


def test_the_parameters_are_drawn_from_init_seeds_alone():
    kernels = [
        np.asarray(first_state(*words).params["Dense_0"]["kernel"])
        for words in ((), (("seeds", "1"),), (("init_seeds", "1"),))
    ]
    np.testing.assert_array_equal(kernels[1], kernels[0])
    assert not np.array_equal(kernels[2], kernels[0])


@pytest.mark.slow
def test_names_are_looked_up_without_a_device(gnp_environment):
    """In processes that are not connected yet; groups build their penalty as a pure function."""
    program = """if True:
        from config import load_config
        from gnp.experiment import name_problems
        keys = {"gnp.r": "0.1", "gnp.alpha": "1", "gnp.sync_perturbations": "False", "gnp.m": "8"}
        config = load_config("config/iris.py", [*keys.items()])
        assert name_problems(config) == []
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, check=False, cwd=Path(CONFIG).parents[1], text=True, timeout=100,
        env=gnp_environment | {"JAX_PLATFORMS": "nowhere"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
