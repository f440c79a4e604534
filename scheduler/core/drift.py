"""Change points: when a tenant's answers have become longer or shorter for good, told from noise."""

from __future__ import annotations

from collections import deque
from math import exp, log, sqrt
from statistics import median
from typing import NamedTuple

SLACK = 0.5  # standard deviations: shifts of less than twice that take long to be told
SETTLE = 8  # answers of a category before its level means something
_MANY = 200  # answers; before that many, levels and spread are plain means
MEMORY = 1 / _MANY
LEAST_VARIANCE = 0.01
CLIP = 4.0  # standard deviations: one answer alone is no change


class Cusum:
    """Cumulative sums both ways of standardised deviations (Page 1954); O(1) each.

    With an ``alarm`` of 8 a shift by one standard deviation is told after about 14 values, and noise alone
    raises a false alarm about once in 9,000; with 10 after 17, once in 70,000.
    """

    __slots__ = ("_above", "_alarm", "_below", "_since_above", "_since_below")

    def __init__(self, alarm: float) -> None:
        self._alarm = alarm
        self._clear()

    def _clear(self) -> None:
        self._above = self._below = 0.0
        self._since_above = self._since_below = 0

    def add(self, z: float) -> int:
        """How many values ago the change began, where ``z`` completes one and the sums start anew; else 0."""
        above = self._above + z - SLACK
        if above > 0.0:
            self._above = above
            self._since_above = since = self._since_above + 1
            if above > self._alarm:
                self._clear()
                return since
        elif self._above:
            self._above = self._since_above = 0
        below = self._below - z - SLACK
        if below > 0.0:
            self._below = below
            self._since_below = since = self._since_below + 1
            if below > self._alarm:
                self._clear()
                return since
        elif self._below:
            self._below = self._since_below = 0
        return 0


class Change(NamedTuple):
    """Actual over uncorrected estimate, as geometric means, before and after a change."""

    before: float
    after: float


class ChangeDetector:
    """Watches one tenant's answers. Each change is told once: what it led to is the usual from then on."""

    def __init__(self) -> None:
        self._cusum = Cusum(10.0)
        self._levels: dict[str, tuple[int, float]] = {}  # by category: answers, mean log ratio
        self._answers = 0
        self._mean = 0.0  # log ratio, over all categories
        self._lately: deque[float] = deque(maxlen=64)  # deviations from the level
        self._variance = 0.5  # of the log ratio within a category

    def add(self, category: str, ratio: float) -> Change | None:
        """``ratio``: actual tokens over what was estimated with nothing learned, above 0."""
        value = log(ratio)
        seen, level = self._levels.get(category, (0, value))
        deviation = value - level
        seen += 1
        self._levels[category] = seen, level + deviation * (MEMORY if seen > _MANY else 1 / seen)
        self._answers = answers = self._answers + 1
        rate = MEMORY if answers > _MANY else 1 / answers
        self._mean += (value - self._mean) * rate
        if seen <= SETTLE:
            return None
        variance = self._variance
        spread = sqrt(variance)
        most = CLIP * spread
        bounded = most if deviation > most else -most if deviation < -most else deviation
        variance += (bounded * bounded - variance) * rate
        self._variance = variance if variance > LEAST_VARIANCE else LEAST_VARIANCE
        self._lately.append(deviation)
        since = self._cusum.add(bounded / spread)
        if not since:
            return None
        shift = median(list(self._lately)[-(since + 1) // 2 :])  # the sums may have begun to rise before it
        before = self._mean
        self._levels = {
            name: (min(count, SETTLE), level + shift) for name, (count, level) in self._levels.items()
        }
        self._mean += shift
        return Change(exp(before), exp(before + shift))
