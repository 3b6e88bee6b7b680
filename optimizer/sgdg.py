"""SGD-G: gradient descent with momentum on the Grassmann manifold G(1, n)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import geometry
from ._checks import ScalarOrSchedule, check_scalar
from ._tree import number_at
from .axes import AxesOrFunction
from .grassmann import additive_update, check_points, map_columns, zeros_of_floats


class ScaleBySgdgState(NamedTuple):
    """State of `sgdg`."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32: the schedule's step
    momentum: Any  # like params, in float32 or wider: tangents at the columns of params


def sgdg(
    learning_rate: ScalarOrSchedule,
    momentum: float | jax.Array = 0.9,
    grad_clip: float | jax.Array | None = None,
    axes: AxesOrFunction = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformation:
    r"""Make SGD-G: gradient descent with momentum on the sphere of each column.

    For weights in front of a normalization, whose length does not matter. Each column of a kernel
    of shape (..., out), all axes but the last flattened, is a point of G(1, n). With p a column of
    the parameters and g its gradient, a step is

    .. math::
        y &= p / |p|, \qquad h = \mathrm{clip}(g - (y^\top g)\, y) \\
        m &\leftarrow \mu\, m - \eta\, h \\
        p &\leftarrow y \cos|m| + \tfrac{m}{|m|} \sin|m| \\
        m &\leftarrow m \cos|m| - y\, |m| \sin|m|

    (see `optimizer.geometry`: project, exp, transport_self). Optax adds updates, so the update is
    the new p minus the old one, and whatever follows in the chain would lead off the sphere: place
    `sgdg` last. After a step the columns have length 1 up to rounding, which does not add up: in
    float32 to some 1e-7, or 1e-7 times the length before the step where that was more than 1 (a
    column of length 1e5 has 1 ± 0.01 then, and the next step mends it). For parameters in bfloat16
    the step is computed in float32 and then rounded: lengths are 1 to about 0.4 %, and where a step
    changes an element by less than some 1/512 of it, that change is lost. A column of zeros is no
    point: its first step takes it to the length sin|m|, the next one to 1. `unit_norm` leaves such
    columns as they are, so start them at random.

    Every parameter must be a kernel; give it the right ones with `optax.partition` and
    `grassmann_labels`. Do not decay them: the length is fixed. A gradient of zeros with no momentum
    leaves unit columns where they are.

    Args:
        learning_rate: η, in radians per unit of gradient; >= 0. A float, an array or a schedule of
          the step. It enters the momentum, as in the paper.
        momentum: μ, in [0, 1); 0 is the plain geodesic step.
        grad_clip: Largest length of a column of h, after the projection; > 0. None: no clipping.
        axes: The axes of each leaf, see `axes_of`: a pytree of `Axes`, a function of params that
          makes one, or None for those that are known. `optax.partition` hides the biases that show
          them: if axes are not known inside, give `axes_of(params)` of the whole tree.
        axis_name: The mesh axis (or axes) of `jax.shard_map` that the length of all columns is
          split over. None: each device has whole columns, of which it may have its own.

    Returns:
        An `optax.GradientTransformation` with the state `ScaleBySgdgState`. `update` needs params.

    Raises:
        OptimizerError: an argument is out of range. In `init`: a leaf is no kernel. In `update`:
          params are missing.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from optimizer import grassmann_labels, sgdg, unit_norm
        >>> params = {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.zeros(8)}
        >>> labels = grassmann_labels(params)
        >>> labels
        {'bias': 'euclidean', 'kernel': 'grassmann'}
        >>> params = unit_norm(params, labels)
        >>> opt = optax.partition({"grassmann": sgdg(0.2), "euclidean": optax.sgd(0.01)}, labels)
        >>> state = opt.init(params)
        >>> updates, state = opt.update(params, state, params)  # some gradient

    References:
        Cho and Lee, `Riemannian approach to batch normalization
        <https://arxiv.org/abs/1709.09603>`_, 2017.
    """
    check_scalar("learning_rate", learning_rate, schedule=True)
    check_scalar("momentum", momentum, high=1.0, below=True)
    if grad_clip is not None:
        check_scalar("grad_clip", grad_clip, positive=True)

    def init_fn(params: optax.Params) -> ScaleBySgdgState:
        check_points("sgdg", params, axes)
        return ScaleBySgdgState(jnp.zeros([], jnp.int32), momentum=zeros_of_floats(params))

    def update_fn(
        updates: optax.Updates, state: ScaleBySgdgState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleBySgdgState]:
        rate = number_at("learning_rate", learning_rate, state.count)

        def step(on: geometry.Columns, p: Any, g: Any, m: Any) -> tuple[jax.Array, jax.Array]:
            y = geometry.unit(p, on)
            h = geometry.project(y, g, on)
            if grad_clip is not None:
                h = geometry.clip(h, grad_clip, on)
            m = jnp.asarray(momentum, m.dtype) * m - jnp.asarray(rate, m.dtype) * h
            return additive_update(p, geometry.exp(y, m, on)), geometry.transport_self(y, m, on)

        updates, new_momentum = map_columns(
            "sgdg", step, axes, axis_name, params, updates, state.momentum
        )
        return updates, ScaleBySgdgState(optax.safe_increment(state.count), new_momentum)

    return optax.GradientTransformation(init_fn, update_fn)
