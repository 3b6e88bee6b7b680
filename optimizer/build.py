"""The optimizer that a config asks for: chain, schedules, and the rule for penalized steps."""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._checks import OptimizerError, check_choice, check_flag, check_names, check_number
from ._tree import mixing_types
from .adamg import adamg
from .build_masks import GRASSMANN_OPTIMIZERS, build_labels, decay_mask
from .centralization import centralize, is_convolution
from .gradient_norm_penalty import gradient_norm_penalty, penalized_gradient
from .looksam import looksam
from .parameters import is_normalization
from .perturbation import METHODS
from .recorder import record_gradient_evolution
from .schedules import STRATEGIES, count_steps, gnp_warmup, learning_rate_schedule
from .sgdg import sgdg

# The Optax optimizer of each type, and the parameters that a config may set, with defaults.
_BASE: Mapping[str, tuple[Callable[..., optax.GradientTransformation], Mapping[str, Any]]] = {
    "SGD": (optax.sgd, {"momentum": None, "nesterov": False}),
    "Momentum": (optax.sgd, {"momentum": 0.9, "nesterov": True}),
    "Adam": (
        optax.adamw,
        {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0, "nesterov": False}
        | {"weight_decay": 0.0},
    ),
    "RMSProp": (
        optax.rmsprop,
        {"decay": 0.9, "eps": 1e-8, "eps_in_sqrt": True, "initial_scale": 0.0, "centered": False}
        | {"momentum": None, "nesterov": False, "bias_correction": False},
    ),
}
# SGD-G and Adam-G train the Grassmann group; the rest is trained by SGD with momentum.
_GRASSMANN: Mapping[str, tuple[Callable[..., optax.GradientTransformation], Mapping[str, Any]]] = {
    "SGDG": (sgdg, {"momentum": 0.9, "grad_clip": 0.1}),
    "AdamG": (adamg, {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "grad_clip": 0.1}),
}
_EUCLIDEAN = {"euclidean_momentum": 0.9, "nesterov": True}
# Weights of a moving average, which are below 1.
_AVERAGING = ("momentum", "euclidean_momentum", "b1", "b2", "decay")

OPTIMIZERS = (*_BASE, *_GRASSMANN)
CENTRALIZE = ("none", "all", "conv")
CENTRALIZE_AT = ("gradient", "update")
WHERE = ("all", "normalization", "others")


class Schedules(NamedTuple):
    """Values that change with the step: each a schedule step -> value."""

    learning_rate: optax.Schedule
    r: optax.Schedule
    alpha: optax.Schedule
    learning_rate_grassmann: optax.Schedule | None = None  # SGDG and AdamG alone


def build_optimizer(config: Any, steps_per_epoch: int) -> optax.GradientTransformationExtraArgs:
    """Build the chain that a config asks for.

    Recorder → penalty → clipping by the global norm → centralization → base optimizer, where SGDG
    and AdamG have a Euclidean and a Grassmann group. A transformation that a config turns off is
    left out of the chain.

    Args:
        config: Read are base_lr, total_epochs, warmup_epochs, lr_schedule_type,
          lr_schedule_params, gradient_clipping (of the global norm; 0 for none),
          no_weight_decay_on_bn, gr_warmup_strategy, gnp, opt and record.gradients.
        steps_per_epoch: Steps in one epoch.

    Returns:
        The chain. Its `update` takes `grad_fn`, `penalized` and `penalize` (see
        `gradient_norm_penalty`), also where it has no penalty. Where record.gradients is set,
        `end_epoch` reads the recorder in its state.

    Raises:
        OptimizerError: a value is unknown or out of range. In a penalized step: gnp.where selects
          no parameter.

    Example:
        >>> from types import SimpleNamespace as Config
        >>> import jax, jax.numpy as jnp
        >>> from optimizer import build_optimizer, build_step_rule
        >>> config = Config(
        ...     seeds=0, base_lr=0.1, total_epochs=2, warmup_epochs=0.0,
        ...     lr_schedule_type="constant",
        ...     lr_schedule_params=Config(boundaries=(), factor=0.1, rate=0.97, decay=0.0),
        ...     gradient_clipping=0.0, no_weight_decay_on_bn=False, gr_warmup_strategy="none",
        ...     use_hybrid_training=False, hybrid_config=Config(p=0.0),
        ...     gnp=Config(r=0.1, alpha=0.8, norm_perturbations=False, every=2, warmup_epochs=None,
        ...                adaptive=False, method="finite_difference", where="all", reuse=0.0),
        ...     opt=Config(opt_type="SGD", opt_params={}, centralize="none"),
        ... )
        >>> opt, penalized = build_optimizer(config, 10), build_step_rule(config, 10)
        >>> grad_fn = jax.grad(lambda p: 0.5 * jnp.vdot(p, p))
        >>> params = jnp.array([3.0, 4.0])
        >>> state = opt.init(params)
        >>> for step in range(2):
        ...     updates, state = opt.update(
        ...         grad_fn(params), state, params, grad_fn=grad_fn, penalize=penalized(step)
        ...     )
        ...     print(penalized(step), [round(float(u), 4) for u in updates])
        True [-0.3048, -0.4064]
        False [-0.3, -0.4]
    """
    schedules = build_schedules(config, steps_per_epoch)
    check_number("gradient_clipping", config.gradient_clipping)
    chain: list[optax.GradientTransformation] = []
    record = getattr(config, "record", None)  # a config of one's own need not have it
    if record is not None and record.gradients:
        chain.append(record_gradient_evolution())
    if config.gnp.r > 0:
        penalty, reuse = build_penalty(config, steps_per_epoch), config.gnp.reuse
        check_number("gnp.reuse", reuse)
        chain.append(looksam(penalty, reuse) if reuse > 0 else penalty)
    if config.gradient_clipping > 0:
        chain.append(optax.clip_by_global_norm(config.gradient_clipping))
    chain.append(_base_optimizer(config, schedules))
    return optax.with_extra_args_support(optax.chain(*chain))


def build_penalty(config: Any, steps_per_epoch: int) -> optax.GradientTransformationExtraArgs:
    """Build the `gradient_norm_penalty` that a config asks for, without groups and LookSAM.

    Args:
        config: Read are those of `build_schedules` and gnp, with r > 0.
        steps_per_epoch: Steps in one epoch.

    Raises:
        OptimizerError: a value is unknown or out of range.
    """
    schedules = build_schedules(config, steps_per_epoch)
    return gradient_norm_penalty(schedules.r, schedules.alpha, **_penalty_options(config.gnp))


def build_penalized_gradient(config: Any, steps_per_epoch: int) -> Callable[..., Any]:
    """Build the `penalized_gradient` that a config asks for, with its schedules read at a step.

    For training steps that penalize the gradient of each micro-batch or group on their own and hand
    the mean to `update(..., penalized=...)` of the chain of `build_optimizer`.

    Args:
        config: Read are those of `build_schedules` and gnp, with r > 0.
        steps_per_epoch: Steps in one epoch.

    Returns:
        A function (grad_fn, params, grads, step) -> penalized gradient; the step may be traced.

    Raises:
        OptimizerError: a value is unknown or out of range.
    """
    options, schedules = _penalty_options(config.gnp), build_schedules(config, steps_per_epoch)

    def at_step(grad_fn: Callable[[Any], Any], params: Any, grads: Any, step: Any) -> Any:
        count = jnp.asarray(step, jnp.int32)  # as the transformation counts
        r, alpha = schedules.r(count), schedules.alpha(count)
        return penalized_gradient(grad_fn, params, grads, r, alpha, **options)

    return at_step


def build_schedules(config: Any, steps_per_epoch: int) -> Schedules:
    """Build the schedules of a config: learning rate, and r and alpha after their warmup.

    Args:
        config: Read are base_lr, total_epochs, warmup_epochs, lr_schedule_type,
          lr_schedule_params, gr_warmup_strategy, gnp and opt.
        steps_per_epoch: Steps in one epoch.

    Returns:
        Schedules of the step; r is 0 at every step without a penalty.

    Raises:
        OptimizerError: a value is unknown or out of range.
    """
    count_steps("total_epochs", config.total_epochs, steps_per_epoch)
    learning_rate = _learning_rate(config, config.base_lr, steps_per_epoch)
    check_choice("gr_warmup_strategy", config.gr_warmup_strategy, STRATEGIES)
    check_number("gnp.r", config.gnp.r)
    check_number("gnp.alpha", config.gnp.alpha)
    warmup_steps = _penalty_warmup_steps(config, steps_per_epoch)
    r, alpha = gnp_warmup(config.gr_warmup_strategy, config.gnp.r, config.gnp.alpha, warmup_steps)
    grassmann = None
    if config.opt.opt_type in GRASSMANN_OPTIMIZERS:
        grassmann = _learning_rate(config, config.opt.learning_rate_grassmann, steps_per_epoch)
    return Schedules(learning_rate, r, alpha, grassmann)


def build_step_rule(config: Any, steps_per_epoch: int) -> Callable[[int], bool]:
    """Build the rule for penalized steps, which the host knows before it starts them.

    A step whose penalized gradient would be the plain one (r = 0; α = 0 unless `normalize`) is
    plain; so are all but every `gnp.every`-th step, counted from step 0, and, in hybrid training,
    those that a draw from (seeds, step) leaves out with probability 1 - p. Plain Python: no
    device is asked.

    Args:
        config: Read are seeds, warmup_epochs, gr_warmup_strategy, gnp, use_hybrid_training and
          hybrid_config.p.
        steps_per_epoch: Steps in one epoch.

    Returns:
        A function step -> bool, for the `penalize` of `update`.

    Raises:
        OptimizerError: a value is unknown or out of range.
    """
    every, hybrid = config.gnp.every, config.use_hybrid_training
    seed, p = config.seeds, config.hybrid_config.p
    check_choice("gr_warmup_strategy", config.gr_warmup_strategy, STRATEGIES)
    check_number("gnp.every", every, low=1)
    if every != int(every):
        raise OptimizerError(f"gnp.every={every!r} must be a whole number")
    check_number("hybrid_config.p", p, high=1.0)
    first = _first_penalized_step(config, steps_per_epoch)

    def is_penalized(step: int) -> bool:
        if first is None or step < first or step % every != 0:
            return False
        return not hybrid or _draw(seed, step) < p

    return is_penalized


def opt_param_names(opt_type: str) -> tuple[str, ...]:
    """Return the names that `opt.opt_params` may hold for an optimizer.

    Args:
        opt_type: One of `OPTIMIZERS`.

    Raises:
        OptimizerError: the type is unknown.

    Example:
        >>> from optimizer import opt_param_names
        >>> opt_param_names("Adam")
        ('b1', 'b2', 'eps', 'eps_root', 'nesterov', 'weight_decay')
    """
    check_choice("opt.opt_type", opt_type, OPTIMIZERS)
    return tuple(_defaults(opt_type))


def check_opt_params(opt_type: str, opt_params: Mapping[str, Any]) -> None:
    """Check the type of an optimizer and its parameters, names and values, computing nothing.

    Args:
        opt_type: One of `OPTIMIZERS`.
        opt_params: Some of `opt_param_names(opt_type)` with their values.

    Raises:
        OptimizerError: the type or a name is unknown or a value is out of range.

    Example:
        >>> from optimizer import check_opt_params
        >>> check_opt_params("Momentum", {"momentum": 0.95, "nesterov": False})
    """
    allowed, defaults = opt_param_names(opt_type), _defaults(opt_type)
    hint = "" if "weight_decay" in allowed else "; for weight decay set l2_regularization"
    check_names("opt.opt_params", opt_params, allowed, f" (opt.opt_type={opt_type!r}{hint})")
    for key, value in opt_params.items():
        name, default = f"opt.opt_params.{key}", defaults[key]
        if isinstance(default, bool):
            check_flag(name, value)
        elif key == "grad_clip" and value == 0:
            raise OptimizerError(f"{name}={value!r} must be > 0, or None for no clipping")
        elif value is not None or (default is not None and key != "grad_clip"):
            is_weight = key in _AVERAGING
            check_number(name, value, high=1.0 if is_weight else math.inf, below=is_weight)


def _learning_rate(config: Any, base_lr: float, steps_per_epoch: int) -> optax.Schedule:
    given = config.lr_schedule_params
    return learning_rate_schedule(
        config.lr_schedule_type,
        base_lr,
        steps_per_epoch=steps_per_epoch,
        total_epochs=config.total_epochs,
        warmup_epochs=config.warmup_epochs,
        boundaries=tuple(given.boundaries),
        factor=given.factor,
        rate=given.rate,
        decay=given.decay,
    )


def _penalty_options(gnp: Any) -> dict[str, Any]:
    """Return the options that the penalty and its pure function share."""
    check_choice("gnp.method", gnp.method, METHODS)
    check_choice("gnp.where", gnp.where, WHERE)
    return {
        "normalize": gnp.norm_perturbations,
        "adaptive": gnp.adaptive,
        "method": gnp.method,
        "where": _perturbed(gnp.where),
    }


def _perturbed(choice: str) -> Callable[[optax.Params], Any] | None:
    """Return the mask of the parameters that the penalty moves."""
    if choice == "all":
        return None

    def where(params: optax.Params) -> Any:
        mask = jax.tree.map(
            lambda is_norm: is_norm == (choice == "normalization"), is_normalization(params)
        )
        if not any(jax.tree.leaves(mask)):
            raise OptimizerError(f"gnp.where={choice!r} selects no parameter of this model")
        return mask

    return where


def _base_optimizer(config: Any, schedules: Schedules) -> optax.GradientTransformation:
    """Return the optimizer itself, with centralization before it or behind it."""
    opt = config.opt
    check_opt_params(opt.opt_type, opt.opt_params)
    params = {**_defaults(opt.opt_type), **opt.opt_params}
    if opt.opt_type not in GRASSMANN_OPTIMIZERS:
        if opt.opt_type == "Adam":
            params["mask"] = lambda tree: decay_mask(tree, config.no_weight_decay_on_bn)
        base = _BASE[opt.opt_type][0](schedules.learning_rate, **params)
        base = base._replace(update=mixing_types(base.update))
        return _with_centralization(opt, base)
    euclidean = optax.sgd(
        schedules.learning_rate, params.pop("euclidean_momentum"), params.pop("nesterov")
    )
    grassmann = _GRASSMANN[opt.opt_type][0](schedules.learning_rate_grassmann, **params)
    groups = {"euclidean": euclidean, "grassmann": grassmann}
    if opt.centralize != "none" and opt.centralize_at == "update":
        # A centralized step would leave the manifold.
        groups["euclidean"] = _with_centralization(opt, euclidean)
        return optax.partition(groups, build_labels(config))
    return _with_centralization(opt, optax.partition(groups, build_labels(config)))


def _with_centralization(
    opt: Any, base: optax.GradientTransformation
) -> optax.GradientTransformation:
    check_choice("opt.centralize", opt.centralize, CENTRALIZE)
    if opt.centralize == "none":
        return base
    check_choice("opt.centralize_at", opt.centralize_at, CENTRALIZE_AT)
    centralized = centralize(is_convolution if opt.centralize == "conv" else None)
    if opt.centralize_at == "gradient":
        return optax.chain(centralized, base)
    # The update holds the decoupled weight decay: the authors centralize both together.
    return optax.chain(base, centralized)


def _defaults(opt_type: str) -> dict[str, Any]:
    """Return the parameters of an optimizer that a config may set, with their defaults."""
    if opt_type in _GRASSMANN:
        return {**_GRASSMANN[opt_type][1], **_EUCLIDEAN}
    return dict(_BASE[opt_type][1])


def _penalty_warmup_steps(config: Any, steps_per_epoch: int) -> int:
    epochs: float | None = config.gnp.warmup_epochs
    if epochs is None:
        epochs = config.warmup_epochs
    return count_steps("gnp.warmup_epochs", epochs, steps_per_epoch)


def _first_penalized_step(config: Any, steps_per_epoch: int) -> int | None:
    """Return the first step at which the penalty is on, but for every and hybrid; None: never."""
    gnp, strategy = config.gnp, config.gr_warmup_strategy
    # With normalize, alpha = 0 is no plain step: it follows g/‖g‖.
    is_plain_without_alpha = not gnp.norm_perturbations
    if gnp.r == 0 or (gnp.alpha == 0 and is_plain_without_alpha):
        return None
    warmup_steps = _penalty_warmup_steps(config, steps_per_epoch)
    if strategy == "zero":
        return warmup_steps
    starts_at_zero = strategy == "r" or (strategy == "lambda" and is_plain_without_alpha)
    return 1 if starts_at_zero and warmup_steps > 0 else 0


def _draw(seed: int, step: int) -> float:
    """Draw from [0, 1), by the seed and the step only."""
    return random.Random(f"hybrid training, seed {seed}, step {step}").random()
