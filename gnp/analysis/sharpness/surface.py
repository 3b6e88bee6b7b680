"""The loss over a fixed set of examples as a function of one flat vector of parameters."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.flatten_util import ravel_pytree

from gnp.training.gradients import Batch
from gnp.training.regularizer import Regularizer, total
from gnp.training.state import Apply, ModelState, Params
from gnp.training.tasks import Objective

Vector = npt.NDArray[np.float64]
Function = Callable[..., jax.Array]


class SharpnessError(ArithmeticError):
    """A checkpoint that cannot be measured; one line."""


class Derivatives(NamedTuple):
    """A function of the parameters and its derivatives, compiled.

    Attributes:
        value: (flat, *rest) -> [].
        gradient: (flat, *rest) -> [p].
        hessian: (flat, direction, *rest) -> [p], the derivative of the gradient in a direction,
            (d/dt) g(theta + t v) at t = 0: exact, for about two gradients.
    """

    value: Function
    gradient: Function
    hessian: Function


class Products(NamedTuple):
    """What a surface is computed from.

    Attributes:
        data: sums over a batch (not means), of (flat, model_state, batch).
        costs: of the parameters, of (flat).
        unravel: [p] -> params.
    """

    data: Derivatives
    costs: Derivatives
    unravel: Callable[[jax.Array], Params]


def build_products(
    apply: Apply,
    objective: Objective,
    regularize: Regularizer | None,
    params: Params,
    compiler_options: Any = None,
) -> Products:
    """Build loss, gradient and Hessian-vector product of a batch, in evaluation mode.

    Batch norm has its running statistics, dropout is off.

    Args:
        apply: the model.
        objective: its loss is summed over the batch's examples whose mask is not 0.
        regularize: costs of the parameters; None: the data's loss alone.
        params: parameters, or their shapes.
        compiler_options: for jax.jit.
    """
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params))

    def loss(flat: jax.Array, model_state: ModelState, batch: Batch) -> jax.Array:
        outputs, _ = apply(unravel(flat), model_state, batch["input"], False, None)
        losses = objective.loss(outputs, batch["label"])
        return jnp.sum(jnp.where(batch["mask"] > 0, losses, 0.0))

    def costs(flat: jax.Array) -> jax.Array:
        return total(regularize(unravel(flat)) if regularize else {})

    def derivatives(function: Function) -> Derivatives:
        gradient = jax.grad(function)

        def hessian(flat: jax.Array, direction: jax.Array, *rest: Any) -> jax.Array:
            return jax.jvp(lambda x: gradient(x, *rest), (flat,), (direction,))[1]

        three = (function, gradient, hessian)
        return Derivatives(*(jax.jit(each, compiler_options=compiler_options) for each in three))

    return Products(derivatives(loss), derivatives(costs), unravel)


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

    def data_loss(self) -> float:
        """Return L(theta), without the costs of the parameters."""
        return float(self._sum(self.products.data.value, None, self.flat))

    def loss(self, offset: Vector | float = 0.0) -> float:
        """Return L(theta + offset), costs included."""
        data, costs, _ = self.products
        return float(self._sum(data.value, costs.value, self.flat + offset))

    def gradient(self, offset: Vector | float = 0.0) -> Vector:
        """Return the gradient [p] at theta + offset."""
        data, costs, _ = self.products
        return self._sum(data.gradient, costs.gradient, self.flat + offset)

    def hessian(self, direction: Vector) -> Vector:
        """Return H v [p], at theta."""
        data, costs, _ = self.products
        return self._sum(data.hessian, costs.hessian, self.flat, direction)

    def _sum(self, of_batch: Function, costs: Function | None, *vectors: Vector) -> Vector:
        inputs = [self.to_devices(vector.astype(np.float32)) for vector in vectors]
        total, running = np.zeros(()), jnp.zeros(())
        for batch in self.batches():
            started = of_batch(*inputs, self.model_state, batch)
            # The last batch's is read now that the device has its next, and no more of them.
            total, running = total + np.asarray(running, np.float64), started
        total = total + np.asarray(running, np.float64)
        self.passed()
        return total / self.examples + np.asarray(costs(*inputs) if costs else 0.0, np.float64)


def flatten(params: Params) -> Vector:
    """Return parameters as one vector [p], in the order of the leaves.

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
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(host)])
