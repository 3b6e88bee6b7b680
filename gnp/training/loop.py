"""The order of events in a run: steps, epochs, evaluations, checkpoints, and how it can end."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gnp.training.checkpoint import Checkpoints
from gnp.training.distributed import Interrupt
from gnp.training.metrics import Log, Means
from gnp.training.profile import TakeStep
from gnp.training.seeds import apart, stacked
from gnp.training.state import TrainState
from gnp.training.step import EvaluationStep, TrainStep

_AVERAGED = "ema_"


class NonFiniteError(ArithmeticError):
    """A loss, gradient or update was NaN or infinite; one line with step and epoch."""


class Plan(NamedTuple):
    """The numbers that order a run; all are whole and at least 1."""

    batch_size: int
    steps_per_epoch: int
    total_epochs: int
    evaluate_every: int
    save_every: int
    log_every: int

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.total_epochs


class Steps(NamedTuple):
    """The two compiled steps, and which one a step number takes."""

    plain: TrainStep
    penalized: TrainStep
    is_penalized: Callable[[int], bool]

    def __call__(
        self, state: TrainState, batch: Any, key: jax.Array, number: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Dispatches step `number`, decided on the host; does not wait for the device."""
        step = self.penalized if self.is_penalized(number) else self.plain
        return step(state, batch, key, np.uint32(number))


class Progress:
    """What the host knows of a run: the step, and the running epoch's means.

    Args:
        saved: what `to_json` gave; None: the beginning.

    Example:
        >>> Progress().to_json()["step"]
        0
    """

    def __init__(self, saved: dict[str, Any] | None = None) -> None:
        saved = saved or {"step": 0, "sums": {}, "count": 0, "seconds": 0.0, "skipped": 0}
        self.step: int = saved["step"]
        self.means = Means(saved["sums"], saved["count"])
        self.seconds: float = saved["seconds"]
        self.data_seconds: float = saved.get("data_seconds", 0.0)
        self.skipped: int = saved["skipped"]

    def to_json(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {
            "step": self.step,
            "sums": dict(self.means.sums),  # it is written while the next steps add to them
            "count": self.means.count,
            "seconds": self.seconds,
            "data_seconds": self.data_seconds,
            "skipped": self.skipped,
        }

    def start_epoch(self) -> None:
        """Forgets the last epoch."""
        self.means, self.skipped = Means(), 0
        self.seconds = self.data_seconds = 0.0


class Member(NamedTuple):
    """What a seed has of its own. A run has one member, or several that train at once.

    Attributes:
        progress: updated in place; the steps of all members are the same.
        evaluate: state -> named metrics of the evaluation set.
        log: rows, events and bar.
        checkpoints: where to save.
        name: for messages; empty where there is one member.
        end_epoch: (state, epoch) -> the state that begins the next one; called after the epoch's
            last step, before it is evaluated.
        record: (steps taken so far, the last one's gradients), where the steps give them.
        probe: (state, epoch) -> named numbers for the epoch's row.
    """

    progress: Progress
    evaluate: Callable[[TrainState], dict[str, float]]
    log: Log
    checkpoints: Checkpoints
    name: str = ""
    end_epoch: Callable[[TrainState, int], TrainState] | None = None
    record: Callable[[int, Any], None] | None = None
    probe: Callable[[TrainState, int], dict[str, float]] | None = None

    def save(self, state: TrainState) -> None:
        """A checkpoint of where it stands."""
        self.checkpoints.save(self.progress.step, state, self.progress.to_json())


def train(
    state: TrainState,
    members: Sequence[Member],
    *,
    plan: Plan,
    steps: TakeStep,
    key: jax.Array,
    batches: Iterator[Any],
    scalars: Callable[[int], dict[str, float]],
    interrupt: Interrupt,
    skip_nonfinite: bool = False,
) -> TrainState:
    """Trains from where the members stand to the end of the plan, or until a signal.

    With several members, state, keys, batches and metrics have a leading axis of them.

    Args:
        state: on the devices; donated.
        members: one a seed.
        plan: lengths and intervals.
        steps: the compiled steps, such as `Steps`.
        key: the run's key; each step folds its number in.
        batches: on the devices, the first one for the step that comes next.
        scalars: step number -> learning rate, alpha and r at that step.
        interrupt: says when a signal came; the run then saves and returns.
        skip_nonfinite: count non-finite steps (the step has dropped their update), go on.

    Returns:
        The last state.

    Raises:
        NonFiniteError: where skip_nonfinite is False.
        CheckpointError: a checkpoint could not be written.
    """
    count, progress = len(members), members[0].progress
    while progress.step < plan.total_steps and not interrupt.reached(progress.step):
        epoch = progress.step // plan.steps_per_epoch + 1
        state = _train_epoch(
            state, members, epoch, plan, steps, key, batches, scalars, interrupt, skip_nonfinite
        )
        if progress.step == epoch * plan.steps_per_epoch:
            at_step = scalars(progress.step - 1)
            next_states = [
                _end_epoch(each, member, epoch, plan, at_step)
                for each, member in zip(apart(state, count), members, strict=True)
            ]
            if any(member.end_epoch for member in members):
                state = stacked(next_states)
    if interrupt.signal and progress.step:  # at whichever call it was heeded
        for each, member in zip(apart(state, count), members, strict=True):
            member.save(each)
    for member in members:
        member.log.close_bar()
        member.checkpoints.wait()
    return state


def _end_epoch(
    state: TrainState, member: Member, epoch: int, plan: Plan, scalars: dict[str, float]
) -> TrainState:
    """Evaluates, logs and saves; the state that begins the next epoch."""
    last = epoch == plan.total_epochs
    state = member.end_epoch(state, epoch) if member.end_epoch else state
    measured = member.evaluate(state) if last or epoch % plan.evaluate_every == 0 else {}
    measured |= member.probe(state, epoch) if member.probe else {}
    row = _row(epoch, plan, member.progress, measured, scalars)
    member.log.end_epoch(row, _line(row, plan))
    member.progress.start_epoch()
    if last or epoch % plan.save_every == 0:
        member.save(state)
    return state


def _train_epoch(
    state: TrainState,
    members: Sequence[Member],
    epoch: int,
    plan: Plan,
    steps: TakeStep,
    key: jax.Array,
    batches: Iterator[Any],
    scalars: Callable[[int], dict[str, float]],
    interrupt: Interrupt,
    skip_nonfinite: bool,
) -> TrainState:
    """Steps until the epoch ends or a signal came; metrics are read while the next step runs."""
    progress, end = members[0].progress, epoch * plan.steps_per_epoch
    done_before = plan.steps_per_epoch - end + progress.step
    for member in members:
        member.log.start_epoch(epoch, plan.total_epochs, plan.steps_per_epoch, done_before)
    before, started = progress.seconds, time.perf_counter()
    unread: tuple[int, dict[str, Any]] | None = None
    batch = _next_batch(batches, members)
    while True:
        state, metrics = steps(state, batch, key, progress.step)
        for member in members:
            member.progress.step += 1
        done = progress.step == end or interrupt.reached(progress.step)
        if not done:
            batch = _next_batch(batches, members)
        if unread is not None:
            _read(unread, epoch, members, plan, scalars, skip_nonfinite)
        unread = (progress.step, metrics)
        _set_seconds(members, before + time.perf_counter() - started)
        if done:
            _read(unread, epoch, members, plan, scalars, skip_nonfinite)
            _set_seconds(members, before + time.perf_counter() - started)
            return state


def _next_batch(batches: Iterator[Any], members: Sequence[Member]) -> Any:
    """The next batch; counts the seconds that it lets the loop wait."""
    started = time.perf_counter()
    batch = next(batches)
    waited = time.perf_counter() - started
    for member in members:
        member.progress.data_seconds += waited
    return batch


def _set_seconds(members: Sequence[Member], seconds: float) -> None:
    for member in members:
        member.progress.seconds = seconds


def _read(
    unread: tuple[int, dict[str, Any]],
    epoch: int,
    members: Sequence[Member],
    plan: Plan,
    scalars: Callable[[int], dict[str, float]],
    skip_nonfinite: bool,
) -> None:
    """Waits for a step's metrics and hands each member its own."""
    step, metrics = unread
    gradients = apart(metrics.pop("gradients", None), len(members))
    read = apart(jax.device_get(metrics), len(members))
    at_step = scalars(step - 1) if step % plan.log_every == 0 else None
    for member, values, grads in zip(members, read, gradients, strict=True):
        _take(member, step, epoch, values, plan, at_step, skip_nonfinite)
        if member.record and grads is not None:
            member.record(step, grads)


def _take(
    member: Member,
    step: int,
    epoch: int,
    read: dict[str, Any],
    plan: Plan,
    scalars: dict[str, float] | None,
    skip_nonfinite: bool,
) -> None:
    """Takes a step's metrics into the epoch's means, the bar and, with scalars, TensorBoard."""
    progress, log = member.progress, member.log
    # The loss first: leaving a compiled function, a dict is sorted by name.
    values = {name: float(read[name]) for name in sorted(read, key=lambda name: name != "loss")}
    finite = values.pop("finite") > 0
    if finite:
        progress.means.add(values)
    elif skip_nonfinite:
        progress.skipped += 1
    else:
        whose = f"{member.name}, " if member.name else ""
        raise NonFiniteError(
            f"{whose}step {step} (epoch {epoch}): loss {values['loss']:g}, gradient norm "
            f"{values['gradient_norm']:g}, or the update, is not finite; lower base_lr, clip with "
            "gradient_clipping, check the data, or set --config.on_nonfinite=skip"
        )
    log.step(lambda: _postfix(progress, plan))
    if scalars is not None:
        log.points(step, {f"train/{name}": value for name, value in values.items()})
        log.points(step, scalars)


def evaluate(
    step: EvaluationStep, state: TrainState, batches: Iterable[Any]
) -> tuple[dict[str, float], int]:
    """Means over every unmasked example of the batches, and how many there were.

    Where the state has an average of the parameters, its means are there too, named `ema_...`; it
    is given the same batch statistics.

    Args:
        step: the compiled evaluation step.
        state: on the devices.
        batches: on the devices, with "mask".
    """
    sums: list[dict[str, Any]] = []
    unread: list[dict[str, jax.Array]] = []
    for batch in batches:
        unread.append(_sums(step, state, batch))
        if len(unread) > 1:  # the device has its next batch, and no more of them
            sums.append(jax.device_get(unread.pop(0)))
    sums += jax.device_get(unread)
    names = sorted(
        sums[0], key=lambda name: (name.startswith(_AVERAGED), not name.endswith("loss"))
    )
    totals = {name: math.fsum(float(each[name]) for each in sums) for name in names}
    count = totals.pop("count")
    return {name: value / count for name, value in totals.items()}, round(count)


def _sums(step: EvaluationStep, state: TrainState, batch: Any) -> dict[str, jax.Array]:
    sums = step(state.params, state.model_state, batch)
    if state.ema is None:
        return sums
    averaged = step(state.ema, state.model_state, batch)
    return sums | {f"{_AVERAGED}{k}": value for k, value in averaged.items() if k != "count"}


def _postfix(progress: Progress, plan: Plan) -> str:
    count = progress.means.count
    rate = count * plan.batch_size / progress.seconds if progress.seconds > 0 else 0.0
    return f"{_show(progress.means.mean())}, {rate:,.0f} examples/s"


def _row(
    epoch: int,
    plan: Plan,
    progress: Progress,
    measured: dict[str, float],
    scalars: dict[str, float],
) -> dict[str, Any]:
    means = progress.means.mean()
    norm = {name: means.pop(name) for name in ("gradient_norm",) if name in means}
    values = {f"train_{name}": value for name, value in means.items()} | measured | scalars | norm
    row: dict[str, Any] = {"epoch": epoch, "step": progress.step}
    # JSON has no NaN: a value that is not finite is left out.
    row |= {name: value for name, value in values.items() if math.isfinite(value)}
    if progress.skipped:
        row["skipped_steps"] = progress.skipped
    row["epoch_seconds"] = round(progress.seconds, 3)
    row["data_seconds"] = round(progress.data_seconds, 3)
    examples = plan.steps_per_epoch * plan.batch_size
    row["examples_per_second"] = round(examples / progress.seconds, 1)
    return row


def _show(values: dict[str, float]) -> str:
    """`loss 0.123, error rate 4.56 %`, without the gradient norm."""
    shown = []
    for name, value in values.items():
        words = name.replace("_", " ")
        if name.endswith("error_rate"):
            shown.append(f"{words} {value:.2%}")
        elif name.endswith(("loss", "absolute_error")):
            shown.append(f"{words} {value:.4f}")
    return ", ".join(shown)


def _line(row: dict[str, Any], plan: Plan) -> str:
    skipped = f", {row['skipped_steps']} steps skipped" if "skipped_steps" in row else ""
    return (
        f"epoch {row['epoch']}/{plan.total_epochs}: {_show(row)}{skipped}, "
        f"{row['epoch_seconds']:.1f} s, {row['examples_per_second']:,.0f} examples/s"
    )
