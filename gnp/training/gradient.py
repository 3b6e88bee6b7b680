"""The loss of a batch, as a pure function of the parameters."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from gnp.training.mesh import gathered, split
from gnp.training.objective import Objective
from gnp.training.regularizer import Regularizer, summarize, total
from gnp.training.state import Apply, ModelState, Params

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Loss = Callable[
    [Params, ModelState, Batch, jax.Array], tuple[jax.Array, tuple[Metrics, ModelState]]
]
Gradient = Callable[
    [Params, ModelState, Batch, jax.Array], tuple[Params, tuple[Metrics, ModelState]]
]


def build_loss(
    apply: Apply,
    objective: Objective,
    regularize: Regularizer | None = None,
    costs_per_layer: bool = False,
) -> Loss:
    """loss(params, model_state, batch, key) -> (L + costs, (metrics, new model_state)).

    The metrics are means over the batch: "loss" (L alone), the objective's, and the costs'.

    Args:
        apply: the model.
        objective: what is minimised.
        regularize: costs of the parameters; inside the loss, so that the penalty sees them.
        costs_per_layer: each parameter's part of the costs is a metric too.
    """

    def loss(
        params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, ModelState]]:
        outputs, new_state = apply(params, model_state, batch["input"], True, key)
        data_loss = objective.loss(outputs, batch["label"]).mean()
        costs = regularize(params) if regularize else {}
        metrics = {
            "loss": data_loss,
            **{
                name: metric(outputs, batch["label"]).mean()
                for name, metric in objective.metrics.items()
            },
            **summarize(costs, costs_per_layer),
        }
        return (data_loss + total(costs) if costs else data_loss), (metrics, new_state)

    return loss


def build_gradient(loss: Loss, mesh: Mesh | None = None) -> Gradient:
    """gradient(params, model_state, batch, key) -> (grads, (metrics, new model_state)).

    Args:
        loss: of a batch.
        mesh: parameters that are split over it are made whole for the loss, and the gradients split
            as they are; None: they are not.
    """

    def gradient(
        params: Params, model_state: ModelState, batch: Batch, key: jax.Array
    ) -> tuple[Params, tuple[Metrics, ModelState]]:
        # Not differentiated through: the devices' parts of a gradient are added up where they stay.
        whole = gathered(params, mesh)
        grads, kept = jax.grad(loss, has_aux=True)(whole, model_state, batch, key)
        return split(grads, mesh), kept

    # A step takes two gradients of one function: the model is traced once.
    return jax.jit(gradient, inline=True)
