"""Change points: when a tenant's answers have become longer or shorter for good, told from noise."""

from __future__ import annotations

from math import exp, log, sqrt
from typing import NamedTuple

SLACK = 0.5  # standard deviations: shifts of less than twice that take long to be told
SETTLE = 16  # answers of a category before it is known what is usual
CONFIRM = 12  # answers that must say the same after the sums have
MEMORY = 200  # answers; before that many, a mean is a plain one
CLIP = 3.0  # standard deviations: one answer alone is no change
VARIANCE, WORTH = 0.5, 8  # of a log ratio before any was seen, and how many answers that weighs
LEAST_VARIANCE = 0.01


class Cusum:
    """Cumulative sums both ways of standardised deviations (Page 1954); O(1) each.

    With an ``alarm`` of 8 a shift by one standard deviation is told after about 14 values, and noise alone
    raises a false alarm about once in 9,000.
    """

    __slots__ = ("_alarm", "above", "below")

    def __init__(self, alarm: float) -> None:
        self._alarm = alarm
        self.above = self.below = 0.0

    def add(self, z: float) -> int:
        """1 where ``z`` completes a change upwards, -1 downwards, and the sums start anew; else 0."""
        above, below = self.above + z - SLACK, self.below - z - SLACK
        self.above = above = above if above > 0.0 else 0.0
        self.below = below = below if below > 0.0 else 0.0
        if above <= self._alarm and below <= self._alarm:
            return 0
        self.above = self.below = 0.0
        return 1 if above > below else -1


class Change(NamedTuple):
    """Actual over uncorrected estimate, as geometric means, before and after a change."""

    before: float
    after: float


class _Usual:
    """What the log ratios of one category are usually like. Each has a spread of its own: where the keywords
    take several kinds of prompts for one, it is wide.
    """

    __slots__ = ("count", "mean", "variance")

    def __init__(self, mean: float) -> None:
        self.count = 0
        self.mean = mean
        self.variance = VARIANCE

    def add(self, value: float) -> tuple[float, float]:
        """How far it is from what was usual, as it is and in standard deviations."""
        deviation, variance = value - self.mean, self.variance
        z = deviation / sqrt(variance)
        z = CLIP if z > CLIP else -CLIP if z < -CLIP else z
        self.count = count = self.count + 1
        self.mean += deviation / (count if count < MEMORY else MEMORY)
        variance += (z * z - 1) * variance / (count + WORTH if count + WORTH < MEMORY else MEMORY)
        self.variance = variance if variance > LEAST_VARIANCE else LEAST_VARIANCE
        return deviation, z


class ChangeDetector:
    """Watches one tenant's answers. Each change is told once: what it led to is the usual from then on.

    It is suspected by cumulative sums, and measured on the answers that come after, which were not chosen for
    being far off: a run of long answers, as an ordering by length makes it, ends before they do. Of the sums'
    false alarms 4 % stand that: noise alone is told as a change about once in 200,000 independent answers,
    be their log ratios normal, skewed, cut or a mixture.
    """

    def __init__(self) -> None:
        self._cusum = Cusum(8.0)
        self._usual: dict[str, _Usual] = {}  # by category
        self._answers = 0
        self._mean = 0.0  # log ratio, over all categories
        self._suspected = 0  # as the sums said it
        self._since: list[tuple[float, float]] = []  # the deviations since then

    def add(self, category: str, ratio: float) -> Change | None:
        """``ratio``: actual tokens over what was estimated with nothing learned, above 0."""
        value = log(ratio)
        self._answers = answers = self._answers + 1
        self._mean += (value - self._mean) / (answers if answers < MEMORY else MEMORY)
        usual = self._usual.get(category)
        if usual is None:
            usual = self._usual[category] = _Usual(value)
        deviation, z = usual.add(value)
        if usual.count <= SETTLE:
            return None
        if not self._suspected:
            self._suspected = self._cusum.add(z)
            return None
        since = self._since
        since.append((deviation, z))
        return self._confirmed() if len(since) == CONFIRM else None

    def _confirmed(self) -> Change | None:
        shift, z = (sum(values) / CONFIRM for values in zip(*self._since, strict=True))
        sign, self._suspected = self._suspected, 0
        self._since.clear()
        if z * sign < SLACK:
            return None
        before, self._mean = self._mean, self._mean + shift
        self._usual.clear()
        return Change(exp(before), exp(self._mean))
