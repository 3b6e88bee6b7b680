"""Numbers of a run on the host: how far it is, the epoch's means, its row, the evaluation."""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from gnp.training.files import FileFormatError
from gnp.training.state import TrainState
from gnp.training.step import EvalStep
from gnp.training.tasks import metric

_AVERAGED = "ema_"
# Of a step's metrics, those that are not of its examples.
_NORMS = ("gradient_norm", "param_norm")


class NonFiniteError(ArithmeticError):
    """A loss, gradient or update was NaN or infinite; one line with step and epoch."""


class Progress:
    """Record how far a run is, and the sums of the epoch that runs, in float64.

    They are part of a checkpoint, so that an epoch that was interrupted ends with the same means.

    Args:
        saved: A dict that `to_json` gave; None: the beginning.

    Raises:
        FileFormatError: `saved` is another.

    Attributes:
        step: Steps taken so far.
        data_seconds: Seconds of the epoch so far in which the loop waited for data.
        has_learned: A step of the run was finite, and so not skipped.

    Example:
        >>> progress = Progress()
        >>> progress.add({"loss": 1.0}, finite=True), progress.add({"loss": 7.0}, finite=False)
        (True, False)
        >>> progress.means(), progress.step
        ({'loss': 1.0}, 0)
    """

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        if saved is None:
            saved = {"step": 0, "sums": {}, "count": 0, "seconds": 0.0, "skipped": 0}
        elif not _is_progress(saved):
            raise FileFormatError(
                f"checkpoints/{saved.get('step', 'STEP')}/progress/metadata is not what a run "
                "writes; move the checkpoint away to go on from the one before"
            )
        self.step: int = saved["step"]
        self._seconds: float = saved["seconds"]
        self._started: float | None = None
        self.data_seconds: float = saved.get("data_seconds", 0.0)
        self._sums: dict[str, float] = dict(saved["sums"])
        self._count: float = saved["count"]
        self._skipped: int = saved["skipped"]
        self.has_learned: bool = saved.get("has_learned", self.step > 0)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values for a checkpoint."""
        return {
            "step": self.step,
            "sums": dict(self._sums),  # it is written while the next steps add to them
            "count": self._count,
            "seconds": self.seconds,
            "data_seconds": self.data_seconds,
            "skipped": self._skipped,
            "has_learned": self.has_learned,
        }

    def start_epoch(self) -> None:
        """Forget the last epoch."""
        self._sums, self._count, self._skipped = {}, 0, 0
        self._seconds = self.data_seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training in the epoch so far."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._seconds + running

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        """Count the seconds within it to the epoch's."""
        self._started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds, self._started = self.seconds, None

    def next_batch(self, batches: Iterator[Any]) -> Any:
        """Return the next batch; count the seconds that the loop waits for it."""
        started = time.perf_counter()
        batch = next(batches)
        self.data_seconds += time.perf_counter() - started
        return batch

    def add(self, values: dict[str, float], finite: bool, weight: float = 1) -> bool:
        """Take a step's metrics into the means, unless it was not finite; return `finite`.

        Args:
            values: Of the step.
            finite: Whether its loss, gradient and update were.
            weight: Of the step in the means: its examples, as a share of a full batch.
        """
        if finite:
            for name, value in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + weight * value
            self._count += weight
        self.has_learned |= finite
        self._skipped += not finite
        return finite

    def means(self) -> dict[str, float]:
        """Return the means so far; empty before the first value."""
        return {name: value / self._count for name, value in self._sums.items()}

    def postfix(self, batch_size: int) -> str:
        """Return the text behind the progress bar."""
        rate = self._count * batch_size / self.seconds if self.seconds > 0 else 0.0
        return f"{_show(self.means())}, {rate:,.0f} examples/s"

    def row(
        self, epoch: int, examples: int, measured: dict[str, float], scalars: dict[str, float]
    ) -> dict[str, Any]:
        """Return the epoch's object in metrics.jsonl.

        Args:
            epoch: From 1 on.
            examples: Training examples of an epoch.
            measured: At the epoch's end, metrics of the evaluation set, and, of a run that records
                them, of the training set and sharpness.
            scalars: Learning rate, alpha and r of its last step.
        """
        means = self.means()
        norms = {name: means.pop(name) for name in _NORMS if name in means}
        values = {f"train_{name}": v for name, v in means.items()} | measured | scalars | norms
        row: dict[str, Any] = {"epoch": epoch, "step": self.step}
        # JSON has no NaN: a value that is not finite is left out.
        row |= {name: value for name, value in values.items() if math.isfinite(value)}
        if self._skipped:
            row["skipped_steps"] = self._skipped
        row["epoch_seconds"] = round(self.seconds, 3)
        row["data_seconds"] = round(self.data_seconds, 3)
        row["examples_per_second"] = round(examples / self.seconds, 1)
        return row


def _is_progress(saved: dict[str, Any]) -> bool:
    """Return whether a JSON object is one that `Progress.to_json` gave."""
    counts = [saved.get(name) for name in ("step", "skipped")]
    # The count of steps has fractions where an epoch's last batch is smaller.
    numbers = [saved.get("count"), saved.get("seconds"), saved.get("data_seconds", 0.0)]
    sums = saved.get("sums")
    return (
        isinstance(sums, dict)
        and all(type(value) in (int, float) for value in (*numbers, *sums.values()))
        and all(type(value) is int for value in counts)
        and all(0 <= value < math.inf for value in (*counts, *numbers))
        and (saved["count"] > 0 or not sums)
    )


def to_floats(metrics: dict[str, jax.Array]) -> dict[str, float]:
    """Wait for a step's metrics and return them, the loss first."""
    # Leaving a compiled function, a dict is sorted by name.
    values = jax.device_get(metrics)
    return {name: float(values[name]) for name in sorted(values, key=lambda x: x != "loss")}


def non_finite_error(step: int, epoch: int, values: dict[str, float]) -> NonFiniteError:
    """Return the error of a step whose loss, gradient or update is not finite."""
    advice = "lower base_lr, clip with gradient_clipping, check the data"
    if step == 1 and not math.isfinite(values["loss"]):  # no update has been made yet
        advice = "check the data and their scale (python -m gnp.analysis.data shows them)"
    return NonFiniteError(
        f"step {step} (epoch {epoch}): loss {values['loss']:g}, gradient norm "
        f"{values['gradient_norm']:g}, or the update, is not finite; {advice}, or set "
        "--config.on_nonfinite=skip"
    )


def row_line(row: dict[str, Any], epochs: int) -> str:
    """Return the line that a person reads of an epoch's row."""
    skipped = f", {row['skipped_steps']} steps skipped" if "skipped_steps" in row else ""
    return (
        f"epoch {row['epoch']}/{epochs}: {_show(row)}{skipped}, "
        f"{row['epoch_seconds']:.1f} s, {row['examples_per_second']:,.0f} examples/s"
    )


def evaluate(
    eval_step: EvalStep, state: TrainState, batches: Iterable[Any]
) -> tuple[dict[str, float], int]:
    """Return the means over every unmasked example of the batches, and how many there were.

    Where the state has an average of the parameters, its means are there too, named `ema_...`; it
    is given the same batch statistics.

    Args:
        eval_step: Compiled.
        state: On the devices.
        batches: On the devices, with "mask".
    """
    sums: list[dict[str, Any]] = []
    unread: list[dict[str, jax.Array]] = []
    for batch in batches:
        unread.append(_sums(eval_step, state, batch))
        if len(unread) > 1:  # the device has its next batch, and no more of them
            sums.append(jax.device_get(unread.pop(0)))
    sums += jax.device_get(unread)
    names = sorted(
        sums[0], key=lambda name: (name.startswith(_AVERAGED), not name.endswith("loss"))
    )
    totals = {name: math.fsum(float(each[name]) for each in sums) for name in names}
    count = totals.pop("count")
    return {name: value / count for name, value in totals.items()}, round(count)


def _sums(eval_step: EvalStep, state: TrainState, batch: Any) -> dict[str, jax.Array]:
    sums = eval_step(state.params, state.model_state, batch)
    if state.ema is None:
        return sums
    averaged = eval_step(state.ema, state.model_state, batch)
    return sums | {f"{_AVERAGED}{k}": value for k, value in averaged.items() if k != "count"}


def _show(values: dict[str, float]) -> str:
    """Return `loss 0.123, error rate 4.56 %`, without the gradient norm."""
    return ", ".join(
        f"{name.replace('_', ' ')} {number(name, value)}"
        for name, value in values.items()
        if name.endswith("loss") or metric(name)
    )


def number(name: str, value: float | None) -> str:
    """Return a number of a run as people read it; None is one that is not finite.

    Example:
        >>> number("test_error_rate", 0.0084), number("test_loss", 0.5), number("examples", 10000)
        ('0.84%', '0.5000', '10,000')
    """
    if value is None:
        return "not finite"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2%}" if (metric(name) or "").endswith("_rate") else f"{value:.4f}"
