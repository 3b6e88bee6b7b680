"""The optimizer that a config asks for: its chain, and its schedules."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._checks import OptimizerError, check_choice, check_flag, check_names, check_number
from ._tree import mixing_types
from .adam import adam
from .adamg import adamg
from .build_masks import GRASSMANN_OPTIMIZERS, build_labels, decay_mask
from .centralization import centralize, is_convolution
from .looksam import looksam
from .methods import build_method, gnp_gradients, gnp_method_params
from .moments import mixes_without_radius, penalty_warmup_steps
from .parameters import KINDS, is_normalization, parameter_kinds
from .perturbation import ByLabel, Values, relative
from .recorder import record_gradient_evolution
from .sam_family import decouple, proportional_radius
from .schedules import STRATEGIES, count_steps, gnp_warmup, learning_rate_schedule
from .sgdg import sgdg

# The Optax optimizer of each type, and the parameters that a config may set, with defaults.
_BASE: Mapping[str, tuple[Callable[..., optax.GradientTransformation], Mapping[str, Any]]] = {
    "SGD": (optax.sgd, {"momentum": None, "nesterov": False}),
    "Momentum": (optax.sgd, {"momentum": 0.9, "nesterov": True}),
    "Adam": (
        adam,
        {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0, "nesterov": False}
        | {"weight_decay": 0.0, "eps_uncorrected": False},
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
CENTRALIZE_AT = ("gradient", "update", "perturbation")
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
        ...     lr_schedule_params=Config(
        ...         boundaries=(), factor=0.1, rate=0.97, decay=0.0, period=1
        ...     ),
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
    behind: list[optax.GradientTransformation] = [_base_optimizer(config, schedules)]
    if config.gradient_clipping > 0:
        behind.insert(0, optax.clip_by_global_norm(config.gradient_clipping))
    if config.gnp.r > 0:
        penalty = _with_reuse(config.gnp, build_penalty(config, steps_per_epoch))
        if gnp_method_params(config.gnp).get("decouple"):
            _check_decoupled(config)
            behind = [decouple(penalty, optax.chain(*behind), schedules.learning_rate)]
        else:
            chain.append(penalty)
    return optax.with_extra_args_support(optax.chain(*chain, *behind))


def build_penalty(config: Any, steps_per_epoch: int) -> optax.GradientTransformationExtraArgs:
    """Build the penalty, or its relative, that a config asks for, without groups and LookSAM.

    Args:
        config: Read are those of `build_schedules` and gnp, with r > 0, and opt.
        steps_per_epoch: Steps in one epoch.

    Raises:
        OptimizerError: a value is unknown or out of range.
    """
    gnp, opt = config.gnp, config.opt
    check_choice("gnp.where", gnp.where, WHERE)
    check_flag("gnp.adaptive", gnp.adaptive)
    parts: dict[str, Any] = {}
    if gnp.adaptive:
        parts["metric"] = relative()
    if gnp.where != "all":
        parts["where"] = _perturbed(gnp.where)
    if opt.centralize != "none" and opt.centralize_at == "perturbation":
        parts["direction"] = _centralization(opt)
    schedules = build_schedules(config, steps_per_epoch)
    r = schedules.r
    if mixes_without_radius(config):
        # So small that it moves no parameter, and not the 0 that turns the penalty off.
        r = _at_least(float(jnp.finfo(jnp.float32).tiny), r)
    return build_method(gnp, _by_kind(gnp, "r", r), _by_kind(gnp, "alpha", schedules.alpha), parts)


def _by_kind(gnp: Any, name: str, schedule: optax.Schedule) -> Values:
    """Return a schedule, or one for each kind of parameter where a config has values for some."""
    given = getattr(gnp, f"{name}_by_kind", None)  # a config of one's own need not have it
    own = {kind: getattr(given, kind, None) for kind in KINDS}
    if all(value is None for value in own.values()):
        return schedule
    whole = getattr(gnp, name)
    if whole == 0:
        raise OptimizerError(f"gnp.{name}_by_kind needs gnp.{name} > 0, whose place it takes")

    def of_kind(kind: str, value: float | None) -> optax.Schedule:
        if value is None:
            return schedule
        check_number(f"gnp.{name}_by_kind.{kind}", value)
        return lambda step: value / whole * schedule(step)

    return ByLabel(parameter_kinds, {kind: of_kind(kind, value) for kind, value in own.items()})


def _at_least(least: float, schedule: optax.Schedule) -> optax.Schedule:
    return lambda step: jnp.maximum(schedule(step), least)


def build_penalized_gradient(config: Any, steps_per_epoch: int) -> Callable[..., Any]:
    """Build what `build_penalty` does as a pure function, with its schedules read at a step.

    For training steps that penalize the gradient of each micro-batch or group on their own and hand
    the mean to `update(..., penalized=...)` of the chain of `build_optimizer`.

    Args:
        config: Read are those of `build_penalty`.
        steps_per_epoch: Steps in one epoch.

    Returns:
        A function (grad_fn, params, grads, step) -> penalized gradient; the step may be traced.

    Raises:
        OptimizerError: a value is unknown or out of range, or the method remembers gradients.
    """
    penalty = build_penalty(config, steps_per_epoch)
    # Of shapes alone: where a config is checked the processes are not connected yet, and no device
    # may be asked.
    memory = jax.eval_shape(penalty.init, jax.ShapeDtypeStruct((1,), jnp.float32))
    if any(leaf.ndim for leaf in jax.tree.leaves(memory)):
        raise OptimizerError(
            f"gnp.method={config.gnp.method!r} remembers gradients, which a group or a micro-batch "
            "with a perturbation of its own cannot: set gnp.sync_perturbations=True and "
            "accumulate_penalty='batch'"
        )

    def at_step(grad_fn: Callable[[Any], Any], params: Any, grads: Any, step: Any) -> Any:
        count = jnp.asarray(step, jnp.int32)  # as the transformation counts
        # Without a memory all that the state holds is this count.
        state = jax.tree.map(lambda _: count, penalty.init(params))
        return penalty.update(grads, state, params, grad_fn=grad_fn)[0]

    return at_step


def build_schedules(config: Any, steps_per_epoch: int) -> Schedules:
    """Build the schedules of a config: learning rate, and r and alpha after their warmup.

    Args:
        config: Read are base_lr, total_epochs, warmup_epochs, lr_schedule_type,
          lr_schedule_params, gr_warmup_strategy, gnp and opt.
        steps_per_epoch: Steps in one epoch.

    Returns:
        Schedules of the step; r is 0 at every step without a penalty. alpha is gnp.every times as
        large where gnp.every_scales_alpha says so; GSAM's r follows the learning rate down to
        gnp.method_params.rho_min.

    Raises:
        OptimizerError: a value is unknown or out of range.
    """
    count_steps("total_epochs", config.total_epochs, steps_per_epoch)
    learning_rate = _learning_rate(config, config.base_lr, steps_per_epoch)
    check_choice("gr_warmup_strategy", config.gr_warmup_strategy, STRATEGIES)
    gnp, warmup_steps = config.gnp, penalty_warmup_steps(config, steps_per_epoch)
    check_number("gnp.r", gnp.r)
    check_number("gnp.alpha", gnp.alpha)
    often = gnp.every if getattr(gnp, "every_scales_alpha", False) else 1
    r, alpha = gnp_warmup(config.gr_warmup_strategy, gnp.r, gnp.alpha * often, warmup_steps)
    rho_min = gnp_method_params(gnp).get("rho_min")
    if gnp.r > 0 and rho_min is not None:
        r = _following(learning_rate, config.base_lr, rho_min, gnp.r, r)
    grassmann = None
    if config.opt.opt_type in GRASSMANN_OPTIMIZERS:
        grassmann = _learning_rate(config, config.opt.learning_rate_grassmann, steps_per_epoch)
    return Schedules(learning_rate, r, alpha, grassmann)


def opt_param_names(opt_type: str) -> tuple[str, ...]:
    """Return the names that `opt.opt_params` may hold for an optimizer.

    Args:
        opt_type: One of `OPTIMIZERS`.

    Raises:
        OptimizerError: the type is unknown.

    Example:
        >>> from optimizer import opt_param_names
        >>> opt_param_names("Adam")
        ('b1', 'b2', 'eps', 'eps_root', 'nesterov', 'weight_decay', 'eps_uncorrected')
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
        period=given.period,
    )


def _following(
    learning_rate: optax.Schedule, base_lr: float, low: float, high: float, r: optax.Schedule
) -> optax.Schedule:
    """Return a radius that follows the learning rate, with the warmup of r, which rises to high."""
    if low > high:
        raise OptimizerError(
            f"gnp.method_params.rho_min={low!r} must be at most gnp.r={high!r}, the radius where "
            "the learning rate is base_lr"
        )
    follows = proportional_radius(learning_rate, low, high, 0.0, base_lr)
    return lambda step: follows(step) * (r(step) / high)


def _with_reuse(gnp: Any, penalty: Any) -> optax.GradientTransformationExtraArgs:
    """Return LookSAM around a penalty where a config asks for it."""
    check_number("gnp.reuse", gnp.reuse)
    for name, off in {"reuse": 0, "ascent_share": 1}.items():
        value = getattr(gnp, name, off)
        if value != off and gnp_gradients(gnp) == 1:
            raise OptimizerError(
                f"gnp.{name}={value!r} needs a second gradient, and gnp.method={gnp.method!r} "
                f"takes one alone: set gnp.{name}={off}"
            )
    return looksam(penalty, gnp.reuse) if gnp.reuse > 0 else penalty


def _check_decoupled(config: Any) -> None:
    if config.opt.opt_type in GRASSMANN_OPTIMIZERS:
        raise OptimizerError(
            "gnp.method_params.decouple=True adds a step beside the optimizer's, which would leave "
            f"the manifold of opt.opt_type={config.opt.opt_type!r}"
        )


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
    if opt.centralize_at == "perturbation":
        return base  # it is in the penalty
    if opt.centralize_at == "gradient":
        return optax.chain(_centralization(opt), base)
    # The update holds the decoupled weight decay: the authors centralize both together.
    return optax.chain(base, _centralization(opt))


def _centralization(opt: Any) -> optax.GradientTransformation:
    return centralize(is_convolution if opt.centralize == "conv" else None)


def _defaults(opt_type: str) -> dict[str, Any]:
    """Return the parameters of an optimizer that a config may set, with their defaults."""
    if opt_type in _GRASSMANN:
        return {**_GRASSMANN[opt_type][1], **_EUCLIDEAN}
    return dict(_BASE[opt_type][1])
