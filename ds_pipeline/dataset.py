"""A data set: two splits, what they hold, and what changes a training batch."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from ds_pipeline.augment import Augment, Mix
from ds_pipeline.decode import DecodedSource
from ds_pipeline.source import (
    Indices,
    InMemorySource,
    Source,
    SubsetSource,
    channel_statistics,
)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, split and described for training and evaluation.

    Args:
        name: as in the config.
        train: examples to train on.
        evaluation: examples to evaluate on.
        evaluation_name: 'test' or 'validation'.
        shape: of an input: (h, w, c), (length, c) or (d,).
        task: what is learned: "classification", "regression" or "forecasting".
        class_names: one a class; () where labels are no classes.
        mean: float64 [c], in the units of the raw values (0 to 255 for uint8 photographs).
        std: likewise.
        dtype: of the raw values.
        columns: names of a table's inputs, in their order; (): they have none.
        standardized: the sources give (x - mean) / std already, as float32 does not hold the raw
            values.
        augment: changes training batches; None: nothing does.
        mix: mixes each of them with a second one, after that.
        erase: changes them after that.
        shuffle: each epoch has an order of its own; False: that of `train`.
        keep_last_batch: examples that are left over make a smaller last batch; False: they rest.
        workers: processes that read and augment; 0: threads.
        warnings: what the user should know of the data, a line each.
        target_shape: of a label; (): a class or a number.
        validation: examples to choose the best epoch by, where that is not `evaluation`.
        wrong_labels: indices of the examples of `train` to which label noise, or a file of labels,
            gave another label than the data set's own.
    """

    name: str
    train: Source
    evaluation: Source
    evaluation_name: str
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    dtype: np.dtype
    columns: tuple[str, ...] = ()
    standardized: bool = False
    augment: Augment | None = None
    mix: Mix | None = None
    erase: Augment | None = None
    shuffle: bool = True
    keep_last_batch: bool = False
    workers: int = 0
    warnings: tuple[str, ...] = ()
    task: str = "classification"
    target_shape: tuple[int, ...] = ()
    validation: Source | None = None
    wrong_labels: Indices = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def num_classes(self) -> int:
        """Labels are 0 to num_classes - 1; 1 where they are no classes."""
        return len(self.class_names) or 1

    @property
    def train_as_evaluated(self) -> Source:
        """The training examples as those of the evaluation set are read: not augmented."""
        if isinstance(self.evaluation, DecodedSource) and not isinstance(self.train, DecodedSource):
            return DecodedSource(self.train, self.evaluation.change)
        return self.train

    @property
    def mislabeled(self) -> Source | None:
        """The training examples with wrong labels, read as those of the evaluation set; or None.

        A network that predicts these labels has learned them by heart.
        """
        if not len(self.wrong_labels):
            return None
        return SubsetSource(self.train_as_evaluated, self.wrong_labels)

    def normalize(self, inputs: npt.ArrayLike | jax.Array) -> jax.Array:
        """Return (x - mean) / std; called in the compiled step, so that raw bytes go to the device.

        Args:
            inputs: [b, ..., c], uint8 or float32, as the sources give them.

        Returns:
            float32 [b, ..., c].
        """
        dtype = jnp.result_type(float)  # float64 where JAX_ENABLE_X64=1 asks for it
        values = jnp.asarray(inputs).astype(dtype)
        if self.standardized:
            return values
        channels = (1,) * (values.ndim - 1) + (-1,)
        mean, std = (x.astype(dtype).reshape(channels) for x in (self.mean, self.std))
        return (values - mean) / std


def from_arrays(
    name: str,
    train: tuple[np.ndarray, npt.ArrayLike],
    evaluation: tuple[np.ndarray, npt.ArrayLike],
    augment: Augment | None = None,
) -> Dataset:
    """Build a data set from arrays in memory, with the training inputs' mean and deviation.

    Args:
        name: for messages.
        train: (inputs [n, ..., c], labels [n]): whole numbers from 0 for classes, else numbers
            to predict.
        evaluation: the same of the examples to evaluate on.
        augment: changes training batches; None: nothing does.
    """
    source, held_out = InMemorySource(*train), InMemorySource(*evaluation)
    class_names: tuple[str, ...] = ()
    if source.labels().dtype == np.int32:
        highest = max(source.labels().max(), held_out.labels().max())
        class_names = tuple(map(str, range(highest + 1)))
    mean, std = channel_statistics(source)
    return Dataset(
        name=name,
        train=source,
        evaluation=held_out,
        evaluation_name="test",
        shape=source.inputs.shape[1:],
        class_names=class_names,
        mean=mean,
        std=std,
        dtype=source.inputs.dtype,
        augment=augment,
        task="classification" if class_names else "regression",
    )
