"""When a step is penalized: rules that the host knows before it starts the step.

Plain Python: no device is asked, and none is waited for.
"""

import math
import random
from collections.abc import Callable
from typing import Any

from ._checks import OptimizerError, check_choice, check_number
from .perturbation import METHODS
from .schedules import STRATEGIES, count_steps


class UnusualNorm:
    r"""Penalize where the gradient's norm is unusually large, by the norms that are known (AE-SAM).

    With running moments of the squared norms n = ‖g‖²,

    .. math::
        \mu \leftarrow \delta\mu + (1 - \delta)\, n, \qquad
        \sigma^2 \leftarrow \delta\sigma^2 + (1 - \delta)(n - \mu)^2,

    a step is penalized where :math:`n \ge \mu + c\,\sigma`. The paper takes n of the step itself,
    and so has to wait for it; here it is that of two steps before, which a loop knows that reads
    its metrics one step behind. Until there is one, steps are plain. The moments begin with the
    first norm; one that is not finite is left out.

    Args:
        start: c at step 0, in deviations; the paper's is 1.
        end: c at step `total_steps`, between them it is linear; the paper's is -1.
        total_steps: Length of the run.
        decay: δ in [0, 1).

    Example:
        >>> from optimizer import UnusualNorm
        >>> rule, penalized = UnusualNorm(1.0, 1.0, total_steps=6), []
        >>> for step, norm in enumerate([1.0, 1.0, 3.0, 1.0, 1.0, 1.0]):
        ...     penalized.append(rule(step))  # for update(..., penalize=rule(step))
        ...     rule.observe(step, norm)  # the norm that this step logs
        >>> penalized  # step 4, as the norm of step 2 is large
        [False, False, True, True, True, False]

    References:
        Jiang et al., `An Adaptive Policy to Employ Sharpness-Aware Minimization
        <https://arxiv.org/abs/2304.14647>`_, 2023.
    """

    def __init__(self, start: float, end: float, total_steps: int, decay: float = 0.9) -> None:
        for name, value in {"start": start, "end": end}.items():
            check_number(name, value, low=-math.inf)
        check_number("total_steps", total_steps, low=1)
        check_number("decay", decay, high=1.0, below=True)
        self._start, self._end, self._total, self._decay = start, end, total_steps, decay
        self._moments: tuple[float, float, float] | None = None  # n, its mean, its variance
        self._unread: list[tuple[int, float]] = []  # (step, norm), not yet in the moments

    def __call__(self, step: int) -> bool:
        """Return whether to penalize a step; ask for each in its turn."""
        while self._unread and self._unread[0][0] <= step - 2:
            self._take(self._unread.pop(0)[1])
        if self._moments is None:
            return False
        square, mean, variance = self._moments
        share = min(1.0, step / self._total)
        threshold = (1.0 - share) * self._start + share * self._end
        return square >= mean + threshold * math.sqrt(variance)

    def observe(self, step: int, norm: float) -> None:
        """Take in the norm of a step's gradient, once it is known."""
        self._unread.append((step, norm))

    def _take(self, norm: float) -> None:
        square, d = norm * norm, self._decay
        if math.isfinite(square):
            _, mean, variance = self._moments or (square, square, 0.0)
            mean = d * mean + (1.0 - d) * square
            self._moments = square, mean, d * variance + (1.0 - d) * (square - mean) ** 2

    def to_json(self) -> dict[str, Any]:
        """Return what it remembers, as JSON values for a checkpoint."""
        return {"moments": self._moments, "unread": [*self._unread]}

    def restore(self, saved: Any) -> None:
        """Go on from what `to_json` gave; None: begin again.

        Raises:
            OptimizerError: `saved` is nothing that it gives.
        """
        if saved is None:
            self._moments, self._unread = None, []
            return
        known = saved if isinstance(saved, dict) else {}
        moments, unread = known.get("moments"), known.get("unread")
        is_of_numbers = moments is None or _is_row(moments, 3)
        if not (is_of_numbers and isinstance(unread, list) and all(_is_row(x, 2) for x in unread)):
            raise OptimizerError(
                "the gradient norms that gnp.unusual_norm has seen are not in what was saved, or "
                "not as they were written: go on from another checkpoint"
            )
        self._moments = None if moments is None else (moments[0], moments[1], moments[2])
        self._unread = [(step, norm) for step, norm in unread]


def _is_row(value: Any, length: int) -> bool:
    """Return whether a JSON value is so many numbers."""
    is_row = isinstance(value, (list, tuple)) and len(value) == length
    return is_row and all(type(each) in (int, float) for each in value)


class StepRule:
    """All conditions that a penalized step has to meet.

    Args:
        condition: step -> whether it may be penalized, by its number alone.
        unusual: The condition on the norms before; None: there is none.
    """

    def __init__(
        self, condition: Callable[[int], bool], unusual: UnusualNorm | None = None
    ) -> None:
        self._condition, self._unusual = condition, unusual

    def __call__(self, step: int) -> bool:
        """Return whether a step is penalized, for the `penalize` of `update`."""
        is_unusual = self._unusual is None or self._unusual(step)
        return is_unusual and self._condition(step)

    def observe(self, step: int, norm: float) -> None:
        """Take in the norm of a step's gradient, where the rule is one of norms."""
        if self._unusual is not None:
            self._unusual.observe(step, norm)

    def to_json(self) -> dict[str, Any]:
        """Return what it remembers, as JSON values for a checkpoint; empty: nothing."""
        return {} if self._unusual is None else self._unusual.to_json()

    def restore(self, saved: Any) -> None:
        """Go on from what `to_json` gave, where there is something to remember; None: begin."""
        if self._unusual is not None:
            self._unusual.restore(saved)


def build_step_rule(config: Any, steps_per_epoch: int) -> StepRule:
    """Build the rule for penalized steps, which the host knows before it starts them.

    A step whose penalized gradient would be the plain one (r = 0 or α = 0 unless `normalize`) is
    plain; so are all but every `gnp.every`-th step, counted from step 0; those before the last
    `gnp.tail_epochs`; in hybrid training, those that a draw from (seeds, step) leaves out with
    probability 1 - p; and, with `gnp.unusual_norm`, those that `UnusualNorm` leaves out, to which
    `observe` tells the norms.

    Args:
        config: Read are seeds, total_epochs, warmup_epochs, gr_warmup_strategy, gnp,
          use_hybrid_training and hybrid_config.p.
        steps_per_epoch: Steps in one epoch.

    Returns:
        A function step -> bool, for the `penalize` of `update`.

    Raises:
        OptimizerError: a value is unknown or out of range.
    """
    gnp, hybrid = config.gnp, config.use_hybrid_training
    every, seed, p = gnp.every, config.seeds, config.hybrid_config.p
    check_choice("gr_warmup_strategy", config.gr_warmup_strategy, STRATEGIES)
    check_number("gnp.every", every, low=1)
    if every != int(every):
        raise OptimizerError(f"gnp.every={every!r} must be a whole number")
    check_number("hybrid_config.p", p, high=1.0)
    total_steps = count_steps("total_epochs", config.total_epochs, steps_per_epoch)
    first = _first_penalized_step(config, steps_per_epoch)
    tail, thresholds = getattr(gnp, "tail_epochs", None), getattr(gnp, "unusual_norm", None)
    if first is not None and tail is not None:
        steps_of_tail = count_steps("gnp.tail_epochs", tail, steps_per_epoch)
        first = max(first, total_steps - steps_of_tail)

    def may_be_penalized(step: int) -> bool:
        if first is None or step < first or step % every != 0:
            return False
        return not hybrid or _draw(seed, step) < p

    if thresholds is None:
        return StepRule(may_be_penalized)
    start, end = thresholds
    return StepRule(may_be_penalized, UnusualNorm(start, end, total_steps))


def penalty_warmup_steps(config: Any, steps_per_epoch: int) -> int:
    """Return how many steps gr_warmup_strategy has."""
    epochs: float | None = config.gnp.warmup_epochs
    if epochs is None:
        epochs = config.warmup_epochs
    return count_steps("gnp.warmup_epochs", epochs, steps_per_epoch)


def mixes_without_radius(config: Any) -> bool:
    """Return whether a step of radius 0, the first of an r-warmup, is penalized all the same.

    It is where g/‖g‖ is mixed in, as published: such a step is no plain one. The relatives mix
    nothing.
    """
    gnp = config.gnp
    is_mixing = gnp.method in METHODS and gnp.norm_perturbations
    return config.gr_warmup_strategy == "r" and is_mixing


def _first_penalized_step(config: Any, steps_per_epoch: int) -> int | None:
    """Return the first step at which the penalty is on, but for every and hybrid; None: never."""
    gnp, strategy = config.gnp, config.gr_warmup_strategy
    # With normalize, alpha = 0 is no plain step: it follows g/‖g‖. The relatives have no alpha.
    is_plain_without_alpha = gnp.method in METHODS and not gnp.norm_perturbations
    if gnp.r == 0 or (gnp.alpha == 0 and is_plain_without_alpha):
        return None
    warmup_steps = penalty_warmup_steps(config, steps_per_epoch)
    if strategy == "zero":
        return warmup_steps
    starts_at_zero = (strategy == "r" and not mixes_without_radius(config)) or (
        strategy == "lambda" and is_plain_without_alpha
    )
    return 1 if starts_at_zero and warmup_steps > 0 else 0


def _draw(seed: int, step: int) -> float:
    """Draw from [0, 1), by the seed and the step only."""
    return random.Random(f"hybrid training, seed {seed}, step {step}").random()
