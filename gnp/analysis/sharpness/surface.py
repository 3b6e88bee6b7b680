"""The loss over a fixed set of examples as a function of one flat vector of parameters."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.flatten_util import ravel_pytree

from gnp.training.gradients import Batch
from gnp.training.objective import Objective
from gnp.training.regularizer import Regularizer, total
from gnp.training.state import Apply, ModelState, Params

Vector = npt.NDArray[np.float64]
Function = Callable[..., jax.Array]
Unravel = Callable[[jax.Array], Params]


class SharpnessError(ArithmeticError):
    """A checkpoint that cannot be measured; one line."""


class Products(NamedTuple):
    """Sums over a batch (not means), compiled; they are added up over batches.

    Attributes:
        value: (flat, model_state, batch) -> [].
        gradient: (flat, model_state, batch) -> [p].
        hessian: (flat, direction, model_state, batch) -> [p].
        cost, cost_gradient, cost_hessian: the same of the regularizer, without state and batch;
            None where there is none.
        unravel: [p] -> params.
    """

    value: Function
    gradient: Function
    hessian: Function
    cost: Function | None
    cost_gradient: Function | None
    cost_hessian: Function | None
    unravel: Unravel


def build_products(
    apply: Apply,
    objective: Objective,
    regularize: Regularizer | None,
    params: Params,
    compiler_options: Any = None,
) -> Products:
    """Build loss, gradient and Hessian-vector product of a batch, in evaluation mode.

    Batch norm has its running statistics, dropout is off. The product is the derivative of the
    gradient in a direction, (d/dt) g(theta + t v) at t = 0: exact, for about two gradients.

    Args:
        apply: the model.
        objective: its loss is summed over the batch's examples whose mask is not 0.
        regularize: costs of the parameters; None: the data's loss alone.
        params: parameters, or their shapes.
        compiler_options: for jax.jit.
    """
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    _, unravel = ravel_pytree(zeros)

    def value(flat: jax.Array, model_state: ModelState, batch: Batch) -> jax.Array:
        outputs, _ = apply(unravel(flat), model_state, batch["input"], False, None)
        losses = objective.loss(outputs, batch["label"])
        return jnp.sum(jnp.where(batch["mask"] > 0, losses, 0.0))

    def cost(flat: jax.Array) -> jax.Array:
        assert regularize is not None
        return total(regularize(unravel(flat)))

    def compiled(function: Function) -> Function:
        return jax.jit(function, compiler_options=compiler_options)

    def three(function: Function) -> tuple[Function, Function, Function]:
        gradient = jax.grad(function)

        def hessian(flat: jax.Array, direction: jax.Array, *rest: Any) -> jax.Array:
            return jax.jvp(lambda x: gradient(x, *rest), (flat,), (direction,))[1]

        return compiled(function), compiled(gradient), compiled(hessian)

    value_of, gradient_of, hessian_of = three(value)
    cost_of, cost_gradient, cost_hessian = three(cost) if regularize else (None, None, None)
    return Products(
        value_of, gradient_of, hessian_of, cost_of, cost_gradient, cost_hessian, unravel
    )


class Surface(NamedTuple):
    """The mean loss of the examples, costs of the parameters included, around a checkpoint.

    Vectors are float64 on the host. A batch's sum is float32 on the device; batches are added up
    in float64, so that neither their size nor their number shows beyond float32's rounding, and
    memory does not grow with the number of examples.

    Attributes:
        products: compiled.
        flat: [p], the checkpoint.
        model_state: batch statistics, on the devices.
        batches: () -> every example once, on the devices, with "mask".
        examples: how many.
        to_devices: puts an array onto the devices.
        passed: called after each pass over the examples.
    """

    products: Products
    flat: Vector
    model_state: ModelState
    batches: Callable[[], Iterable[Batch]]
    examples: int
    to_devices: Callable[[Any], Any] = jnp.asarray
    passed: Callable[[], Any] = lambda: None

    def data_loss(self, offset: Vector | None = None) -> float:
        """Return L(theta + offset), without the costs of the parameters."""
        return float(self._mean(self.products.value, self._at(offset)))

    def loss(self, offset: Vector | None = None) -> float:
        """Return L(theta + offset), costs included."""
        here = self._at(offset)
        return float(self._mean(self.products.value, here) + self._cost(self.products.cost, here))

    def gradient(self, offset: Vector | None = None) -> Vector:
        """Return the gradient [p] at theta + offset."""
        here = self._at(offset)
        return self._mean(self.products.gradient, here) + self._cost(
            self.products.cost_gradient, here
        )

    def hessian(self, direction: Vector) -> Vector:
        """Return H v [p], at theta."""
        both = self._at(None), self.to_devices(direction.astype(np.float32))
        return self._mean(self.products.hessian, *both) + self._cost(
            self.products.cost_hessian, *both
        )

    def _at(self, offset: Vector | None) -> Any:
        flat = self.flat if offset is None else self.flat + offset
        return self.to_devices(flat.astype(np.float32))

    def _mean(self, function: Function, *vectors: Any) -> Vector:
        total = np.zeros(())
        unread: list[jax.Array] = []
        for batch in self.batches():
            unread.append(function(*vectors, self.model_state, batch))
            if len(unread) > 1:  # the device has its next batch, and no more of them
                total = total + np.asarray(unread.pop(0), np.float64)
        for last in unread:
            total = total + np.asarray(last, np.float64)
        self.passed()
        return total / self.examples

    def _cost(self, function: Function | None, *vectors: Any) -> Any:
        return 0.0 if function is None else np.asarray(function(*vectors), np.float64)


def at_checkpoint(
    products: Products,
    params: Params,
    model_state: ModelState,
    batches: Callable[[], Iterable[Batch]],
    examples: int,
    to_devices: Callable[[Any], Any] = jnp.asarray,
) -> Surface:
    """Return the surface around parameters.

    Raises:
        SharpnessError: a parameter is NaN or infinite.
    """
    host = jax.device_get(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(host):
        wrong = np.size(leaf) - np.isfinite(leaf).sum()
        if wrong:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise SharpnessError(
                f"{wrong} of {np.size(leaf)} values of {name} are NaN or infinite: the run had "
                "diverged; choose an earlier step with --checkpoint"
            )
    flat = np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(host)])
    return Surface(products, flat, model_state, batches, examples, to_devices)
