r"""Methods whose perturbation is known before the gradient, so that a step takes one.

The gradient is taken at θ + ε from the start: ask `perturbed_params` where that is. Loss and batch
statistics are those of this one pass.
"""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._checks import OptimizerError, Scalar, check_axis_name, check_scalar
from ._tree import extend_prefix, fill, map_present, split_over, wide
from .axes import Axes, AxesOrFunction, axes_of
from .parameters import leaf_name
from .perturbation import (
    Metric,
    Penalty,
    Values,
    check_real,
    check_values,
    euclidean,
    mix,
    move,
    sharpness_aware,
    unnormalized,
    values_at,
)


class AheadState(NamedTuple):
    """State of a method that perturbs ahead of the gradient."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32
    direction: optax.OptState
    perturbation: optax.Updates  # the next step's ε, like params, float32 or wider


def perturbed_params(opt_state: optax.OptState, params: optax.Params) -> optax.Params:
    """Return θ + ε, at which the next step takes its gradient; θ where no method is one of these.

    Args:
        opt_state: Of a chain, or of a method itself.
        params: θ.

    Returns:
        A pytree like params, in float32 or wider where they are perturbed.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from optimizer import momentum_sam, perturbed_params
        >>> opt = optax.chain(momentum_sam(rho=1.0), optax.sgd(0.1, momentum=0.9))
        >>> params = jnp.array([3.0, 4.0])
        >>> state = opt.init(params)
        >>> for step in range(2):
        ...     at = perturbed_params(state, params)
        ...     print(at.round(2))
        ...     updates, state = opt.update(at, state, params)  # the gradient of ½‖θ‖²
        ...     params = optax.apply_updates(params, updates)
        [3. 4.]
        [2.1 2.8]
    """
    is_ahead = lambda node: isinstance(node, AheadState)  # noqa: E731
    for node in jax.tree.leaves(opt_state, is_leaf=is_ahead):
        if is_ahead(node):
            # Inside optax.partition and optax.masked it has holes.
            epsilon = jax.tree.map(
                lambda e: None if _is_hole(e) else e, node.perturbation, is_leaf=_is_hole
            )
            point = wide(params)
            params = fill(move(point, epsilon, 1.0), params)
    return params


def _is_hole(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def perturb_ahead(
    r: Values,
    direction: optax.GradientTransformation,
    metric: Metric | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Penalty:
    """Make a method that takes its one gradient at θ + ε, ε = r·metric(d) known from the past.

    Args:
        r: Radius; >= 0, see `sharpness_aware`.
        direction: An Optax transformation from the gradients up to the last step to d. It begins
          with a gradient of zeros.
        metric: See `sharpness_aware`; it is given the parameters before the last step.
        axis_name: See `sharpness_aware`; with one, call `init` inside of `jax.shard_map` too.

    Returns:
        An `optax.GradientTransformationExtraArgs` that hands the gradient on, with the state
        `AheadState`. It takes the arguments of `gradient_norm_penalty`'s update and needs none.
    """
    check_values("r", r)
    metric = euclidean() if metric is None else metric

    def next_state(count: jax.Array, grads: Any, memory: Any, params: Any) -> AheadState:
        check_axis_name("perturb_ahead", axis_name)
        point = wide(params)
        d, memory = direction.update(wide(grads), memory, point)
        radius = extend_prefix(values_at("r", r, count, params), point)
        epsilon = map_present(
            lambda e, r: jnp.asarray(r, e.dtype) * e, metric(d, point, axis_name), radius
        )
        return AheadState(count, memory, epsilon)

    def init_fn(params: optax.Params) -> AheadState:
        check_real("perturb_ahead", params)
        point = wide(params)
        zeros = map_present(jnp.zeros_like, point)
        return next_state(jnp.zeros([], jnp.int32), zeros, direction.init(point), params)

    def update_fn(
        updates: optax.Updates,
        state: AheadState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AheadState]:
        del extra_args
        if params is None:
            raise OptimizerError("the next perturbation needs params: update(grads, state, params)")
        new = next_state(optax.safe_increment(state.count), updates, state.direction, params)
        kept = fill(new.perturbation, state.perturbation)  # of parameters without a gradient
        return updates, new._replace(perturbation=kept)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def momentum_sam(
    rho: Values = 0.3,
    momentum: Scalar = 0.9,
    axis_name: str | tuple[str, ...] | None = None,
) -> Penalty:
    r"""Make MSAM: the gradient at θ - ρ·m/‖m‖, with m the momentum of the gradients so far.

    Args:
        rho: ρ, in the units of θ. It acts against the last steps' direction, so values are larger
          than SAM's.
        momentum: Decay of m, best that of the optimizer behind; in [0, 1).
        axis_name: See `perturb_ahead`.

    References:
        Becker et al., `Momentum-SAM <https://arxiv.org/abs/2401.12033>`_, 2024.
    """
    check_scalar("momentum", momentum, high=1.0, below=True)
    direction = optax.chain(optax.trace(momentum), optax.scale(-1.0))
    return perturb_ahead(rho, direction, axis_name=axis_name)


def random_weight_perturbation(
    sigma: Values = 0.01,
    lmbda: Scalar | None = None,
    seed: int = 0,
    axes: AxesOrFunction = None,
    axis_name: str | tuple[str, ...] | None = None,
    **options: Any,
) -> Penalty:
    r"""Make RWP: the gradient at θ + ε, ε normal with a deviation of σ·‖filter‖ an element.

    A filter is what one output unit reads; a leaf whose axes are not known, such as a bias, is one
    as a whole. With λ the gradient at θ is mixed in: g' = (1 - λ)·g + λ·g⁺, by two gradients.

    Args:
        sigma: σ, relative to the filter's norm, no unit.
        lmbda: λ, the share of g⁺, in [0, 1]. None: g⁺ alone, by one gradient at `perturbed_params`.
        seed: Of the noise; step and leaf choose the rest.
        axes: The axes of each leaf, see `axes_of`; None: those that are known.
        axis_name: Axis (or axes) of `jax.shard_map` over which the inputs of each filter are split,
          so that its norm is the whole filter's and each part has noise of its own. What is the
          same on all devices stays so, where shard_map keeps track of that (`check_vma=True`).
          None: each device holds all filters.
        **options: With λ: see `sharpness_aware`.

    References:
        Li et al., `Revisiting Random Weight Perturbation for Efficiently Improving Generalization
        <https://arxiv.org/abs/2404.00357>`_, 2024.
    """
    noise = filter_noise(seed, axes, axis_name)
    if lmbda is None:
        if options:
            raise OptimizerError(
                f"{', '.join(options)} needs lmbda: without it all parameters are perturbed, by a "
                "perturbation that is known before the gradient"
            )
        return perturb_ahead(sigma, noise, unnormalized(), axis_name)
    check_scalar("lmbda", lmbda, high=1.0)
    parts = {"direction": noise, "metric": unnormalized(), "axis_name": axis_name}
    return sharpness_aware(sigma, mix(lmbda), **parts, **options)


class NoiseState(NamedTuple):
    """State of `filter_noise`."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32


def filter_noise(
    seed: int, axes: AxesOrFunction = None, axis_name: str | tuple[str, ...] | None = None
) -> optax.GradientTransformation:
    """Make the direction that draws each element from a normal one of its filter's norm.

    Args:
        seed: Of the noise.
        axes: See `random_weight_perturbation`.
        axis_name: See `random_weight_perturbation`.
    """

    def update_fn(
        updates: optax.Updates, state: NoiseState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NoiseState]:
        check_axis_name("the noise", axis_name)
        if params is None:
            raise OptimizerError("the noise needs params: update(grads, state, params)")
        step_key = jax.random.fold_in(jax.random.key(seed), state.count)

        def draw(path: Any, g: jax.Array | None, p: jax.Array, axes: Axes | None) -> Any:
            if g is None:
                return None
            # By the leaf's name, so that which others there are changes nothing.
            key = jax.random.fold_in(step_key, zlib.crc32(leaf_name(path).encode()))
            squares = jnp.sum(jnp.square(p), axis=axes.input if axes else None, keepdims=True)
            if axes_of_parts := split_over(p, axis_name):
                squares = jax.lax.psum(squares, axes_of_parts)
                key = jax.random.fold_in(key, jax.lax.axis_index(axes_of_parts))
            # The root has no derivative at 0: there it is that of a constant.
            size = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
            return size * jax.random.normal(key, p.shape, jnp.float32).astype(g.dtype)

        noise = jax.tree_util.tree_map_with_path(
            draw, updates, params, axes_of(params, axes), is_leaf=lambda x: x is None
        )
        return noise, NoiseState(optax.safe_increment(state.count))

    return optax.GradientTransformation(
        lambda params: NoiseState(jnp.zeros([], jnp.int32)), update_fn
    )
