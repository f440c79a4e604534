"""``tenant``: what each tenant's answers of each category were like lately, shrunk to the category."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from math import isfinite, log, sqrt
from typing import Any

from scheduler.core.conformal import Margin
from scheduler.core.drift import Cusum
from scheduler.core.estimate import (
    BASE_TOKENS,
    Counter,
    classify,
    count_words,
    input_factor,
    reading_once,
    runtime_class,
)
from scheduler.core.types import CATEGORIES, Estimate, Outcome, Request

SHRINKAGE = 10.0  # observations of its own that weigh as much as the category's
MEMORY = 20  # answers that the mean goes back, as an EMA; before so many a plain mean
SPAN = 32  # answers that the median goes back
KEPT = 4  # answers that count after a change point
ALARM, CLIP = 8.0, 2.0  # of the change points, in standard deviations
MAX_TENANTS = 2500  # beyond that the category speaks for newcomers


class Cell:
    """Answers over the formula's estimate: how many, and what they are like."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.count = 0
        self.value = 1.0

    def shrunk(self, common: float) -> float:
        """The value, drawn to the category's while there are few answers."""
        count = self.count
        return (count * self.value + SHRINKAGE * common) / (count + SHRINKAGE)


class MedianCell(Cell):
    """Of the last answers."""

    __slots__ = ("_last", "_sorted")

    def __init__(self) -> None:
        super().__init__()
        self._last: deque[float] = deque(maxlen=SPAN)
        self._sorted: list[float] = []

    def add(self, ratio: float) -> None:
        last, ordered = self._last, self._sorted
        if len(last) == SPAN:
            del ordered[bisect_left(ordered, last[0])]
        last.append(ratio)
        insort(ordered, ratio)
        half = len(ordered) // 2
        self.value = (ordered[half] + ordered[~half]) / 2  # the middle one twice where there is one
        self.count += 1

    def changed(self) -> None:
        """What was before hardly counts any more."""
        while len(self._last) > KEPT:
            self._last.popleft()
        self._sorted = sorted(self._last)

    def state(self) -> list[float]:
        return [self.count, self.value, *self._last]

    def restore(self, state: list[float]) -> None:
        count, self.value, *last = state
        self.count = int(count)
        self._last.extend(last)
        self._sorted = sorted(self._last)


class MeanCell(Cell):
    """Of all answers at first, then an EMA."""

    __slots__ = ("_recent",)

    def __init__(self) -> None:
        super().__init__()
        self._recent = 0  # since the last change point

    def add(self, ratio: float) -> None:
        self._recent = recent = self._recent + 1
        self.value += (ratio - self.value) * (1 / recent if recent < MEMORY else 1 / MEMORY)
        self.count += 1

    def changed(self) -> None:
        """What was before hardly counts any more."""
        self._recent = min(self._recent, KEPT)

    def state(self) -> list[float]:
        return [self.count, self.value, self._recent]

    def restore(self, state: list[float]) -> None:
        count, self.value, recent = state
        self.count, self._recent = int(count), int(recent)


STATISTICS: Mapping[str, type[MedianCell | MeanCell]] = {"median": MedianCell, "mean": MeanCell}


class TenantEstimator:
    """base x input factor x the cell's ratio, never above max_tokens; no safety factor.

    The median is the better guess for the absolute error, the mean for the squared one. An answer that was
    cut counts with what it had where that is more than was believed, else it says nothing.
    """

    name = "tenant"
    meanings = None

    def __init__(self, *, counter: Counter = count_words, statistic: str = "median") -> None:
        if statistic not in STATISTICS:
            raise ValueError(f"unknown statistic {statistic!r}; allowed: {', '.join(STATISTICS)}")
        self.statistic = statistic
        self.margin = Margin()
        self._read = reading_once(lambda prompt: _formula(classify(prompt), counter(prompt)))
        self._cell = STATISTICS[statistic]
        self._categories = {category: self._cell() for category in CATEGORIES}
        self._cells: dict[tuple[str, str], MedianCell | MeanCell] = {}  # by tenant and category
        self._cusums: dict[str, Cusum] = {}  # by tenant: the changes of its answers, over all categories
        self._variance = 0.25  # of the log of actual over believed

    @property
    def coverage(self) -> float:
        """Share of the last answers within their upper estimate; NaN before the first."""
        return self.margin.coverage

    def estimate(self, request: Request) -> Estimate:
        """O(prompt length), once per prompt that is remembered."""
        if request.prompt:
            category, input_tokens, uncorrected = self._read(request.prompt)
        else:
            category, input_tokens, uncorrected = _formula(
                request.category or "short_qa", request.prompt_tokens
            )
        cap = request.max_tokens
        believed = uncorrected * self.bias(request.tenant, category)
        upper = self.margin.upper(believed)
        point = int(believed if believed < cap else cap) or 1
        return Estimate(
            input_tokens,
            point,
            upper if upper < cap else cap,
            category,
            runtime_class(input_tokens + point),
            int(uncorrected),
        )

    def observe(self, request: Request, outcome: Outcome) -> None:
        estimate, tokens, finish = request.estimate, outcome.output_tokens, outcome.finish
        tenant, category, censored = request.tenant, estimate.category, finish != "stop"
        # What was cut at max_tokens needed no more room.
        self.margin.observe(estimate.upper, tokens, censored and finish != "length")
        ratio = tokens / (estimate.uncorrected or 1)
        common = self._categories[category]
        cell = self._cells.get((tenant, category))
        bias = common.value if cell is None else cell.shrunk(common.value)
        if ratio <= 0 or (censored and ratio <= bias):
            return
        common.add(ratio)
        if cell is None:
            if tenant not in self._cusums:
                if len(self._cusums) == MAX_TENANTS:
                    return
                self._cusums[tenant] = Cusum(ALARM)
            cell = self._cells[tenant, category] = self._cell()
        if self._cusums[tenant].add(self._deviation(ratio / bias)):  # its answers have changed for good
            for each in CATEGORIES:
                if (tenant, each) in self._cells:
                    self._cells[tenant, each].changed()
        cell.add(ratio)

    def _deviation(self, off: float) -> float:
        """In standard deviations, which this answer counts towards."""
        variance = self._variance
        z = log(off) / sqrt(variance)
        z = CLIP if z > CLIP else -CLIP if z < -CLIP else z
        square = z * z * variance
        self._variance = variance + 0.02 * ((square if square > 0.01 else 0.01) - variance)
        return z

    def bias(self, tenant: str, category: str) -> float:
        common, cell = self._categories[category].value, self._cells.get((tenant, category))
        return common if cell is None else cell.shrunk(common)

    def state(self) -> dict[str, Any]:
        return {
            "kind": "tenant",
            "statistic": self.statistic,
            "margin": self.margin.log_margin,
            "categories": {name: cell.state() for name, cell in self._categories.items()},
            "tenants": [[*of, cell.state()] for of, cell in self._cells.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        try:
            if state["kind"] != "tenant" or state["statistic"] != self.statistic:
                raise ValueError
            categories = {name: self._restored(state["categories"][name]) for name in CATEGORIES}
            cells = {
                (str(tenant), str(category)): self._restored(cell)
                for tenant, category, cell in state["tenants"]
            }
            margin = Margin(_finite(state["margin"]))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"not a state of the tenant estimator by {self.statistic}") from None
        self._categories, self._cells, self.margin = categories, cells, margin
        self._cusums = {tenant: Cusum(ALARM) for tenant, _ in cells}

    def _restored(self, state: list[float]) -> MedianCell | MeanCell:
        cell = self._cell()
        cell.restore([_finite(value) for value in state])
        if not cell.value:
            raise ValueError  # what comes is divided by it
        return cell


def _formula(category: str, input_tokens: int) -> tuple[str, int, float]:
    """With the estimate before anything was learned."""
    return category, input_tokens, BASE_TOKENS[category] * input_factor(input_tokens)


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (isfinite(value) and value >= 0):
        raise ValueError
    return float(value)
