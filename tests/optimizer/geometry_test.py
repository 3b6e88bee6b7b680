"""The geometry of unit columns: properties and limits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer import geometry
from tests.marks import quick_first

# A dense kernel, a convolution, a depthwise one, and a single column.
SHAPES = [(7, 3), (3, 3, 2, 4), (2, 2, 1, 5), (2, 1)]

Arrays = dict[str, np.ndarray]


@st.composite
def kernels(draw: st.DrawFn, largest: float = 2.0) -> Arrays:
    """Draw points y, columns a, tangents h, h1, h2 at y in float64; |h| from 1e-6 to `largest`."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.sampled_from(SHAPES))
    inner = tuple(range(len(shape) - 1))
    dot = lambda x, z: np.sum(x * z, axis=inner, keepdims=True)  # noqa: E731
    unit = lambda x: x / np.sqrt(dot(x, x))  # noqa: E731
    y, a, *rest = random.normal(size=(5, *shape))
    y = unit(y)
    arrays = {"y": y, "a": a * 10.0 ** draw(st.integers(-3, 3))}
    for name, x in zip(("h", "h1", "h2"), rest, strict=True):
        size = np.exp(random.uniform(np.log(1e-6), np.log(largest), size=shape[-1]))
        arrays[name] = size * unit(x - dot(x, y) * y)
    return arrays


def dot(x: Any, y: Any) -> np.ndarray:
    """Return the inner product of each column."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.sum(x * y, axis=tuple(range(x.ndim - 1)))


def length(x: Any) -> np.ndarray:
    return np.sqrt(dot(x, x))


def f32(arrays: Arrays) -> dict[str, jax.Array]:
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}


norm, unit, clip, project, exp, transport, transport_self = map(
    jax.jit,
    (
        geometry.norm,
        geometry.unit,
        geometry.clip,
        geometry.project,
        geometry.exp,
        geometry.transport,
        geometry.transport_self,
    ),
)


@settings(max_examples=200, deadline=None)
@given(kernels())
def test_norm_and_unit(arrays: Arrays) -> None:
    a = f32(arrays)["a"]
    assert norm(a).shape == (1,) * (a.ndim - 1) + a.shape[-1:]
    np.testing.assert_allclose(norm(a).ravel(), length(a), rtol=1e-6)
    np.testing.assert_allclose(length(unit(a)), 1, rtol=1e-6)
    np.testing.assert_allclose(unit(a) * norm(a), a, rtol=2e-6)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(kernels())
def test_project_is_idempotent_and_tangent(arrays: Arrays) -> None:
    x = f32(arrays)
    once = project(x["y"], x["a"])
    size = np.max(length(x["a"]))
    np.testing.assert_allclose(dot(x["y"], once), 0, atol=1e-6 * size)
    np.testing.assert_allclose(project(x["y"], once), once, atol=1e-6 * size)
    # Tangents stay, multiples of y vanish.
    np.testing.assert_allclose(project(x["y"], x["h"]), x["h"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(project(x["y"], 3 * x["y"]), 0 * x["y"], atol=2e-6)


@settings(max_examples=200, deadline=None)
@given(kernels(largest=20.0))
def test_exp_stays_on_the_sphere_at_the_angle(arrays: Arrays) -> None:
    x = f32(arrays)
    new = exp(x["y"], x["h"])
    np.testing.assert_allclose(length(new), 1, atol=1e-6)
    np.testing.assert_allclose(dot(x["y"], new), np.cos(length(x["h"])), atol=3e-6)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(kernels())
def test_exp_of_two_steps_is_exp_of_their_sum(arrays: Arrays) -> None:
    """Follow a geodesic: h, transported to its end, continues it."""
    x = f32(arrays)
    middle, onward = exp(x["y"], x["h"]), transport_self(x["y"], x["h"])
    np.testing.assert_allclose(exp(middle, onward), exp(x["y"], 2 * x["h"]), atol=3e-6)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(kernels())
def test_transport_keeps_norms_and_inner_products(arrays: Arrays) -> None:
    with jax.enable_x64(True):
        y, h, h1, h2 = (jnp.asarray(arrays[name]) for name in ("y", "h", "h1", "h2"))
        moved1, moved2 = transport(y, h1, h), transport(y, h2, h)
        # 1e-8 is added to |h|, which here goes down to 1e-6.
        np.testing.assert_allclose(length(moved1), length(h1), rtol=1e-7)
        np.testing.assert_allclose(length(moved2), length(h2), rtol=1e-7)
        np.testing.assert_allclose(dot(moved1, moved2), dot(h1, h2), atol=2e-7)
        np.testing.assert_allclose(dot(moved1, exp(y, h)), 0, atol=2e-7)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(kernels())
def test_transport_keeps_norms_in_float32(arrays: Arrays) -> None:
    x = f32(arrays)
    moved = transport(x["y"], x["h1"], x["h"])
    np.testing.assert_allclose(length(moved), length(x["h1"]), rtol=2e-6, atol=1e-6)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(kernels(largest=20.0))
def test_transport_self_is_transport_along_itself(arrays: Arrays) -> None:
    x = f32(arrays)
    along = transport_self(x["y"], x["h"])
    size = max(1.0, float(np.max(length(x["h"]))))
    np.testing.assert_allclose(along, transport(x["y"], x["h"], x["h"]), atol=1e-6 * size)
    np.testing.assert_allclose(length(along), length(x["h"]), rtol=2e-6, atol=2e-8)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(kernels())
def test_exp_differs_from_the_straight_line_by_a_square(arrays: Arrays) -> None:
    with jax.enable_x64(True):
        y, h = jnp.asarray(arrays["y"]), jnp.asarray(arrays["h"] / length(arrays["h"]))
        t = np.array([1e-2, 1e-3])
        error = [length(np.asarray(exp(y, s * h)) - np.asarray(y + s * h)) for s in t]
        slope = np.log(error[0] / error[1]) / np.log(t[0] / t[1])
        # Adding 1e-8 to |h| costs 1e-8 of the straight term.
        np.testing.assert_allclose(slope, 2, atol=0.05)
        np.testing.assert_allclose(error[0], t[0] ** 2 / 2, rtol=1e-3)


@settings(max_examples=200, deadline=None)
@given(kernels(), st.sampled_from([0.1, 1.0, 5.0]))
def test_clip_shortens_long_columns_only(arrays: Arrays, max_norm: float) -> None:
    a = np.asarray(arrays["a"], np.float32)
    clipped = np.asarray(clip(a, max_norm))
    before = length(a)
    np.testing.assert_allclose(length(clipped), np.minimum(before, max_norm), rtol=1e-6)
    np.testing.assert_allclose(clipped * np.maximum(before / max_norm, 1), a, rtol=1e-5)
    kept = before < max_norm
    np.testing.assert_array_equal(clipped[..., kept], a[..., kept])


@pytest.mark.slow
def test_ten_thousand_steps_do_not_drift() -> None:
    """Take the steps of sgdg with a random gradient each, from columns of different lengths."""
    shape, steps = (3, 3, 4, 16), 10_000
    key = jax.random.key(0)

    def step(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        y, m, worst = carry
        g = jax.random.normal(jax.random.fold_in(key, i), shape)
        y = geometry.unit(y)
        m = 0.9 * m - 0.1 * geometry.project(y, g)
        y, m = geometry.exp(y, m), geometry.transport_self(y, m)
        return y, m, jnp.maximum(worst, jnp.max(jnp.abs(geometry.norm(y) - 1)))

    start = (jax.random.normal(key, shape), jnp.zeros(shape), jnp.zeros([]))
    y, m, worst = jax.jit(lambda carry: jax.lax.fori_loop(0, steps, step, carry))(start)
    assert worst <= 1e-6
    np.testing.assert_allclose(length(y), 1, atol=1e-6)
    np.testing.assert_allclose(dot(y, m) / length(m), 0, atol=1e-5)


OPERATIONS: list[Callable[[jax.Array], jax.Array]] = [
    geometry.norm,
    geometry.unit,
    lambda x: geometry.clip(x, 0.1),
    lambda x: geometry.project(x, x),
    lambda x: geometry.exp(x, x),
    lambda x: geometry.transport(x, x, x),
    lambda x: geometry.transport_self(x, x),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_zeros_give_zeros(operation: Callable[[jax.Array], jax.Array]) -> None:
    np.testing.assert_array_equal(operation(jnp.zeros((4, 2))), 0)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_narrow_types_are_widened(operation: Callable[[jax.Array], jax.Array], dtype: Any) -> None:
    x = jnp.array([[0.25, 0.5], [0.75, -0.5], [0.5, 0.125]], dtype)
    actual = operation(x)
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, operation(x.astype(jnp.float32)))


def test_exp_and_transport_of_no_step() -> None:
    y, h = jnp.array([[0.6], [0.8]]), jnp.array([[0.8], [-0.6]])
    np.testing.assert_allclose(geometry.exp(y, 0 * h), y, rtol=1e-7)
    np.testing.assert_allclose(geometry.transport(y, h, 0 * h), h, rtol=1e-7)


def test_quarter_and_half_circle() -> None:
    y, h = jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [1.0]])
    np.testing.assert_allclose(geometry.exp(y, jnp.pi / 2 * h), h, atol=1e-7)
    np.testing.assert_allclose(geometry.exp(y, jnp.pi * h), -y, atol=1e-6)
    np.testing.assert_allclose(geometry.transport(y, h, jnp.pi / 2 * h), -y, atol=1e-7)
    np.testing.assert_allclose(geometry.transport(y, h, jnp.pi * h), -h, atol=1e-6)


@pytest.mark.slow
def test_orthogonality() -> None:
    assert geometry.orthogonality(jnp.eye(5)[:, :3]) == 0
    y = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
    v = np.asarray(y, np.float64).reshape(18, 4)
    expected = 0.5 * np.sum((v.T @ v - np.eye(4)) ** 2)
    np.testing.assert_allclose(geometry.orthogonality(y), expected, rtol=1e-5)


# What float32 holds, lengths of columns are computed for; none overflows or vanishes on the way.


@pytest.mark.parametrize("size", [1e-25, 1e-12, 5e-9, 1e-4, 1.0, 1e12, 1e20, 1e25])
def test_columns_of_any_size(size: float) -> None:
    direction = np.array([[3.0], [4.0]]) / 5.0
    y = jnp.asarray(size * direction, jnp.float32)
    np.testing.assert_allclose(norm(y), size, rtol=1e-6)
    np.testing.assert_allclose(unit(y), direction, rtol=1e-6)
    shortened = clip(y, 0.1)
    np.testing.assert_allclose(shortened, min(size, 0.1) * direction, rtol=1e-6)


@pytest.mark.parametrize("max_norm", [1e-10, 0.1, 1e10])
@pytest.mark.parametrize("size", [1e-37, 1e-20, 1e28, 1e33, 1e38])
def test_clip_of_any_size(size: float, max_norm: float) -> None:
    direction = np.array([[3.0], [4.0]]) / 5.0
    shortened = clip(jnp.asarray(size * direction, jnp.float32), max_norm)
    np.testing.assert_allclose(shortened, min(size, max_norm) * direction, rtol=1e-6)


def test_units_of_columns_of_all_sizes_at_once() -> None:
    sizes = 10.0 ** np.arange(-25, 26)
    y = jnp.asarray(np.array([[0.6], [-0.8]]) * sizes, jnp.float32)
    np.testing.assert_allclose(unit(y), np.array([[0.6], [-0.8]]) * np.ones(51), rtol=1e-6)
    np.testing.assert_allclose(norm(y).ravel(), sizes, rtol=1e-6)


@pytest.mark.parametrize("size", [1e20, 1e25])
def test_huge_tangents_leave_no_point_off_the_sphere(size: float) -> None:
    y, h = jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [size]])
    np.testing.assert_allclose(length(exp(y, h)), 1, atol=1e-6)
    np.testing.assert_allclose(length(transport_self(y, h)), size, rtol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-10, 1e-5, 0.9e-3, 1.1e-3, 1e-2, 1.0])
def test_short_steps_are_exact(size: float) -> None:
    """The published 1e-8 halves a step of that length; it stays for what training makes."""
    with jax.enable_x64(True):
        y, h = jnp.array([[1.0], [0.0]]), jnp.array([[0.0], [size]])
        tolerance = 0.0 if size < 1e-3 else 1.1e-8  # of what is added to the length
        np.testing.assert_allclose(exp(y, h)[1, 0], np.sin(size), 2e-15, tolerance)
        np.testing.assert_allclose(exp(y, h)[0, 0], np.cos(size), 2e-15)
        expected = [[-size * np.sin(size)], [size * np.cos(size)]]
        np.testing.assert_allclose(transport_self(y, h), expected, 2e-15, tolerance)
        other = jnp.array([[0.0], [1.0]])
        expected = [[-np.sin(size)], [np.cos(size)]]
        np.testing.assert_allclose(transport(y, other, h), expected, 2e-15, 2 * tolerance)


# Derivatives, at steps of zero too, which unrolled loops go through.


@pytest.mark.slow
@pytest.mark.parametrize("mode", quick_first([jax.jacfwd, jax.jacrev]))
def test_derivatives_at_a_step_of_zero(mode: Callable[..., Any]) -> None:
    y, zero, h1 = jnp.array([0.6, 0.8, 0.0]), jnp.zeros(3), jnp.array([0.8, -0.6, 2.0])
    column = lambda f: lambda h: f(y[:, None], h[:, None])[:, 0]  # noqa: E731
    np.testing.assert_allclose(mode(column(geometry.exp))(zero), np.eye(3), atol=1e-7)
    np.testing.assert_allclose(mode(column(geometry.transport_self))(zero), np.eye(3), atol=1e-7)
    # d/dh of h1 - (h1ᵀh)·y
    moved = lambda y, h: geometry.transport(y, h1[:, None], h)  # noqa: E731
    np.testing.assert_allclose(mode(column(moved))(zero), -np.outer(y, h1), atol=1e-7)
    for f in (geometry.norm, geometry.unit, lambda h: geometry.clip(h, 0.1)):
        assert np.all(np.isfinite(mode(f)(jnp.zeros((3, 1)))))
    np.testing.assert_allclose(
        mode(lambda h: geometry.clip(h, 0.1))(jnp.zeros((3, 1))).reshape(3, 3), np.eye(3)
    )


@pytest.mark.slow
def test_second_derivatives_at_a_step_of_zero() -> None:
    """The geodesic bends by -y·hᵀh: its Hessian along h is -y."""
    y = jnp.array([0.6, 0.8, 0.0])
    hessian = jax.hessian(lambda h: geometry.exp(y[:, None], h[:, None])[:, 0])(jnp.zeros(3))
    np.testing.assert_allclose(hessian, -np.multiply.outer(y, np.eye(3)), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1e-6, 5e-4, 2e-3, 0.3, 2.0])
def test_derivatives_are_those_of_the_geodesic(size: float) -> None:
    with jax.enable_x64(True):
        y, u = jnp.array([[1.0], [0.0], [0.0]]), jnp.array([[0.0], [0.6], [0.8]])
        h = size * u
        derivative = jax.jvp(lambda h: geometry.exp(y, h), (h,), (u,))[1]
        np.testing.assert_allclose(derivative, u * np.cos(size) - y * np.sin(size), atol=2e-5)


# The axes of a column.


@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    [(0, 1, 2, 3), (2, 3, 0, 1)]
    + [pytest.param(order, marks=pytest.mark.slow) for order in ((3, 0, 1, 2), (0, 3, 1, 2))],
)
def test_a_column_may_run_over_any_axes(order: tuple[int, ...], key: jax.Array) -> None:
    y, h, h1 = jax.random.normal(key, (3, 2, 3, 4, 5))
    y = geometry.unit(y)
    h, h1 = geometry.project(y, h), geometry.project(y, h1)
    on = geometry.Columns(tuple(i for i, source in enumerate(order) if source != 3))
    move = lambda x: jnp.transpose(x, order)  # noqa: E731
    for f, *x in (
        (geometry.norm, h),
        (geometry.unit, h),
        (geometry.dot, h, h1),
        (geometry.project, y, h),
        (lambda h, *on: geometry.clip(h, 0.5, *on), h),
        (geometry.exp, y, h),
        (geometry.transport, y, h1, h),
        (geometry.transport_self, y, h),
    ):
        actual = f(*map(move, x), on)
        np.testing.assert_allclose(actual, move(f(*x)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        geometry.orthogonality(move(y), on), geometry.orthogonality(y), rtol=1e-5
    )
