"""Adam-G: Adam on the Grassmann manifold G(1, n)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import geometry
from ._checks import ScalarOrSchedule, check_scalar
from ._tree import number_at, wide_dtype
from .axes import Axes, AxesOrFunction
from .grassmann import additive_update, check_points, map_columns, zeros_of_floats


class ScaleByAdamgState(NamedTuple):
    """State of `adamg`."""

    count: jax.Array  # type: ignore[assignment]  # shape=(), dtype=int32: steps taken
    mu: Any  # like params, in float32 or wider: tangents at the columns of params
    nu: Any  # like mu, with 1 for the axes of a column: one scalar a column


def adamg(
    learning_rate: ScalarOrSchedule,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.99,
    eps: float | jax.Array = 1e-8,
    grad_clip: float | jax.Array | None = None,
    axes: AxesOrFunction = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformation:
    r"""Make Adam-G: Adam on the sphere of each column, with one second moment a column.

    Each column of a kernel of shape (..., out), all axes but the last flattened, is a point of
    G(1, n). With p a column of the parameters and g its gradient, step t = 1, 2, … is

    .. math::
        y &= p / |p|, \qquad h = \mathrm{clip}(g - (y^\top g)\, y) \\
        m &\leftarrow \beta_1 m + (1 - \beta_1)\, h, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2)\, h^\top h \\
        d &= -\eta\, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}\, \frac{m}{\sqrt{v + \epsilon}} \\
        p &\leftarrow y \cos|d| + \tfrac{d}{|d|} \sin|d|, \qquad
        m \leftarrow \text{m transported along } d

    (see `optimizer.geometry`: project, exp, transport). As v is one number a column, d points along
    m and is tangent. The state's `nu` has leaves of shape (1, …, 1, out), so shardings made for
    parameters by `optax.tree.map_params` do not fit it. Otherwise as `sgdg`, which says what holds
    for the place in the chain, for bfloat16 and for the choice of parameters.

    Args:
        learning_rate: η, in radians; >= 0. A float, an array or a schedule of the step. A column
          whose gradient keeps its direction turns by about η a step.
        b1: Decay of the first moment, in [0, 1).
        b2: Decay of the second moment, in [0, 1).
        eps: Added to v, inside the root; >= 0. It shortens the steps of columns for which v is
          not much larger: with the defaults, where |h| is some 1e-3 at first and 1e-4 later.
        grad_clip: Largest length of a column of h, after the projection; > 0. None: no clipping.
        axes: As in `sgdg`.
        axis_name: As in `sgdg`.

    Returns:
        An `optax.GradientTransformation` with the state `ScaleByAdamgState`. `update` needs params.

    Raises:
        OptimizerError: an argument is out of range. In `init`: a leaf is no kernel. In `update`:
          params are missing.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from optimizer import adamg
        >>> opt = adamg(jnp.pi / 6)
        >>> y = jnp.array([[1.0], [0.0]])
        >>> updates, state = opt.update(jnp.array([[0.0], [-5.0]]), opt.init(y), y)
        >>> print(optax.apply_updates(y, updates).round(4))  # turned by 30 degrees
        [[0.866]
         [0.5  ]]

    References:
        Cho and Lee, `Riemannian approach to batch normalization
        <https://arxiv.org/abs/1709.09603>`_, 2017.
    """
    check_scalar("learning_rate", learning_rate, schedule=True)
    check_scalar("b1", b1, high=1.0, below=True)
    check_scalar("b2", b2, high=1.0, below=True)
    check_scalar("eps", eps)
    if grad_clip is not None:
        check_scalar("grad_clip", grad_clip, positive=True)

    def init_fn(params: optax.Params) -> ScaleByAdamgState:
        def one_a_column(p: Any, its: Axes | None) -> Any:
            if its is None:
                return None
            sizes = [1 if axis in its.input else size for axis, size in enumerate(p.shape)]
            return jnp.zeros(sizes, wide_dtype(p))

        nu = jax.tree.map(one_a_column, params, check_points("adamg", params, axes))
        return ScaleByAdamgState(jnp.zeros([], jnp.int32), zeros_of_floats(params), nu)

    def update_fn(
        updates: optax.Updates, state: ScaleByAdamgState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAdamgState]:
        rate = number_at("learning_rate", learning_rate, state.count)
        count = optax.safe_increment(state.count)

        def step(
            on: geometry.Columns, p: Any, g: Any, m: jax.Array, v: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            eta, decay1, decay2, t = (jnp.asarray(x, m.dtype) for x in (rate, b1, b2, count))
            y = geometry.unit(p, on)
            h = geometry.project(y, g, on)
            if grad_clip is not None:
                h = geometry.clip(h, grad_clip, on)
            m = decay1 * m + (1 - decay1) * h
            v = decay2 * v + (1 - decay2) * geometry.dot(h, h, on)
            correction = jnp.sqrt(1 - decay2**t) / (1 - decay1**t)
            # The maximum only matters for eps = 0 and a gradient of zeros.
            root = jnp.sqrt(jnp.maximum(v + jnp.asarray(eps, v.dtype), jnp.finfo(v.dtype).tiny))
            d = m * (-eta * correction / root)
            return additive_update(p, geometry.exp(y, d, on)), geometry.transport(y, m, d, on), v

        updates, mu, nu = map_columns(
            "adamg", step, axes, axis_name, params, updates, state.mu, state.nu
        )
        return updates, ScaleByAdamgState(count, mu, nu)

    return optax.GradientTransformation(init_fn, update_fn)
