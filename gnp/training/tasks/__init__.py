"""Say what is learned: classes, a number, the future of a series.

A task is one file here and one line in TASKS. It decides the losses that a config may name, the
metrics, and the shape of a model's outputs; the data set says which task it is.
"""

import re

from gnp.training.tasks import classification, forecasting, regression
from gnp.training.tasks.task import Objective as Objective
from gnp.training.tasks.task import Task as Task

# Name, as a data set gives it -> task.
TASKS: dict[str, Task] = {
    "classification": classification.TASK,
    "regression": regression.TASK,
    "forecasting": forecasting.TASK,
}
_METRIC = re.compile(
    "|".join(dict.fromkeys(f"{name}$" for task in TASKS.values() for name in task.metrics))
)


def metric(name: str) -> str | None:
    """Return which metric a number of a run is a mean of; None: of none.

    Example:
        >>> metric("test_ema_error_rate"), metric("test_top_3_error_rate"), metric("test_loss")
        ('error_rate', 'top_3_error_rate', None)
    """
    found = _METRIC.search(name)
    return found[0] if found else None
