"""A recorder that sums up the gradients of each epoch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._checks import OptimizerError
from ._tree import wide_dtype


class GradientEvolutionState(NamedTuple):
    """State of `record_gradient_evolution`; the trees are like params, in float32 or wider."""

    epoch: optax.Updates  # the sum of this epoch's updates so far
    running: optax.Updates  # the sum of the updates of all epochs that have ended
    absolute: optax.Updates  # the sum of the ended epochs' |epoch|
    steps: jax.Array  # steps of this epoch so far; shape=(), dtype=int32


class GradientEvolution(NamedTuple):
    """Result of `end_epoch`; the trees are like params, in float32 or wider."""

    epoch: optax.Updates  # G(e), the sum of the epoch's updates
    running: optax.Updates  # A(e) = G(1) + ... + G(e)
    absolute: optax.Updates  # |G(1)| + ... + |G(e)|
    steps: jax.Array  # steps of the epoch; shape=(), dtype=int32


def record_gradient_evolution() -> optax.GradientTransformation:
    r"""Pass updates through unchanged and sum them up on the device, for each epoch.

    With g(t) the updates that reach it at step t, for each epoch e and each element,

    .. math::
        G(e) = \sum_{t \in e} g(t), \quad A(e) = \sum_{i \le e} G(i), \quad
        \sum_{i \le e} |G(i)|.

    A step adds g to G; `end_epoch` does the rest. The memory is three times that of the parameters
    and does not grow with steps or epochs. The sums are in float32 (float64 for float64
    parameters).

    First in the chain it records the raw gradient. One recorder a chain. Inside `optax.masked` it
    records the selected leaves, the others are holes; inside `optax.MultiSteps` it records the
    accumulated gradients and counts those.

    Returns:
        An `optax.GradientTransformation` with the state `GradientEvolutionState`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from optimizer import end_epoch, record_gradient_evolution
        >>> opt = optax.chain(record_gradient_evolution(), optax.sgd(0.1))
        >>> params = jnp.zeros(2)
        >>> state = opt.init(params)
        >>> for epoch in range(2):
        ...     for step in range(3):
        ...         grads = jnp.array([1.0, (-1.0) ** epoch])
        ...         updates, state = opt.update(grads, state, params)
        ...     evolution, state = end_epoch(state)
        >>> print(evolution.epoch, evolution.running, evolution.absolute, evolution.steps)
        [ 3. -3.] [6. 0.] [6. 6.] 3
    """

    def init_fn(params: optax.Params) -> GradientEvolutionState:
        def zeros() -> optax.Updates:
            return jax.tree.map(lambda p: jnp.zeros_like(p, wide_dtype(p)), params)

        return GradientEvolutionState(
            epoch=zeros(),
            running=zeros(),
            absolute=jax.tree.map(jnp.real, zeros()),
            steps=jnp.zeros([], jnp.int32),
        )

    def update_fn(
        updates: optax.Updates, state: GradientEvolutionState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, GradientEvolutionState]:
        del params

        def add(total: Any, g: Any) -> Any:
            return total if g is None else total + jnp.asarray(g, total.dtype)

        # A parameter whose gradient is None adds nothing.
        epoch = jax.tree.map(add, state.epoch, updates, is_leaf=lambda x: x is None)
        return updates, state._replace(epoch=epoch, steps=optax.safe_increment(state.steps))

    return optax.GradientTransformation(init_fn, update_fn)


def end_epoch(opt_state: Any) -> tuple[GradientEvolution, Any]:
    """Read the recorder at an epoch's end and make it ready for the next epoch.

    Pure, so that it may be jitted and vmapped; the recorder may lie anywhere in the state.

    Args:
        opt_state: State of an optimizer with one `record_gradient_evolution` in it.

    Returns:
        The `GradientEvolution` of the epoch, in buffers of its own (the state may be donated), and
        the state with the epoch's sum and steps at zero.

    Raises:
        OptimizerError: the state has no recorder, or more than one.

    Example:
        >>> import jax.numpy as jnp
        >>> from optimizer import end_epoch, record_gradient_evolution
        >>> opt = record_gradient_evolution()
        >>> _, state = opt.update(jnp.array([2.0, -1.0]), opt.init(jnp.zeros(2)))
        >>> evolution, state = end_epoch(state)
        >>> print(evolution.epoch, evolution.absolute, state.epoch)
        [ 2. -1.] [2. 1.] [0. 0.]
    """

    def is_recorder(node: Any) -> bool:
        return isinstance(node, GradientEvolutionState)

    nodes, structure = jax.tree.flatten(opt_state, is_leaf=is_recorder)
    found = [index for index, node in enumerate(nodes) if is_recorder(node)]
    if len(found) != 1:
        raise OptimizerError(
            f"end_epoch needs one record_gradient_evolution in the optimizer, not {len(found)}"
        )
    state = nodes[found[0]]
    running = jax.tree.map(jnp.add, state.running, state.epoch)
    absolute = jax.tree.map(lambda total, g: total + jnp.abs(g), state.absolute, state.epoch)
    evolution = GradientEvolution(
        epoch=state.epoch,
        running=jax.tree.map(jnp.copy, running),
        absolute=jax.tree.map(jnp.copy, absolute),
        steps=state.steps,
    )
    nodes[found[0]] = GradientEvolutionState(
        epoch=jax.tree.map(jnp.zeros_like, state.epoch),
        running=running,
        absolute=absolute,
        steps=jnp.zeros_like(state.steps),
    )
    return evolution, jax.tree.unflatten(structure, nodes)
