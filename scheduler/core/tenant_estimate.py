"""``tenant``: what each tenant's answers of each category were like lately, shrunk to the category."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from math import isfinite
from statistics import median
from typing import Any

from scheduler.core.conformal import Margin
from scheduler.core.estimate import (
    BASE_TOKENS,
    Counter,
    count_words,
    input_factor,
    prompt_reader,
    runtime_class,
)
from scheduler.core.types import CATEGORIES, Estimate, Outcome, Request

STATISTICS = ("median", "mean")
SHRINKAGE = 10.0  # observations of its own that weigh as much as the category's
MEMORY = 0.05  # of the mean, an EMA; before 1 / MEMORY observations a plain mean
SPAN = 32  # of the median
MAX_CELLS = 10_000  # tenants x categories; beyond that the category speaks for newcomers


class Cell:
    """Answers over the formula's estimate, as a running mean or median."""

    __slots__ = ("_by_median", "_last", "_sorted", "count", "value")

    def __init__(self, by_median: bool) -> None:
        self.count = 0
        self.value = 1.0
        self._by_median = by_median
        self._last: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, ratio: float) -> None:
        self.count += 1
        if not self._by_median:
            self.value += (ratio - self.value) * max(MEMORY, 1 / self.count)
            return
        self._last.append(ratio)
        insort(self._sorted, ratio)
        if len(self._last) > SPAN:
            del self._sorted[bisect_left(self._sorted, self._last.popleft())]
        self.value = median(self._sorted)

    def state(self) -> list[float]:
        return [self.count, self.value, *self._last]

    def restore(self, state: list[float]) -> None:
        self.count, self.value = int(state[0]), float(state[1])
        self._last = deque(state[2:])
        self._sorted = sorted(self._last)


class TenantEstimator:
    """base x input factor x the cell's ratio, never above max_tokens; no safety factor.

    The median is the better guess for the absolute error, the mean for the squared one. An answer that was
    cut counts with what it had where that is more than was believed, else it says nothing.
    """

    name = "tenant"

    def __init__(self, *, counter: Counter = count_words, statistic: str = "median") -> None:
        if statistic not in STATISTICS:
            raise ValueError(f"unknown statistic {statistic!r}; allowed: {', '.join(STATISTICS)}")
        self.statistic = statistic
        self.margin = Margin()
        self._read = prompt_reader(counter)
        self._categories = {category: self._cell() for category in CATEGORIES}
        self._tenants: dict[tuple[str, str], Cell] = {}

    def _cell(self) -> Cell:
        return Cell(self.statistic == "median")

    @property
    def coverage(self) -> float:
        """Share of the last answers within their upper estimate; NaN before the first."""
        return self.margin.coverage

    def estimate(self, request: Request) -> Estimate:
        """O(prompt length), once per prompt that is remembered."""
        if request.prompt:
            category, input_tokens = self._read(request.prompt)
        else:
            category, input_tokens = request.category or "short_qa", request.prompt_tokens
        cap = request.max_tokens
        uncorrected = BASE_TOKENS[category] * input_factor(input_tokens)
        believed = uncorrected * self.bias(request.tenant, category)
        point = int(min(cap, believed)) or 1
        upper = min(cap, self.margin.upper(believed))
        return Estimate(
            input_tokens, point, upper, category, runtime_class(input_tokens + point), int(uncorrected)
        )

    def observe(self, request: Request, outcome: Outcome) -> None:
        estimate, tokens = request.estimate, outcome.output_tokens
        censored = outcome.finish != "stop"
        if outcome.finish in ("stop", "length"):
            self.margin.observe(estimate.upper, tokens, censored=False)  # what was cut needs no more room
        else:
            self.margin.observe(estimate.upper, tokens, censored=True)
        ratio = tokens / max(1.0, estimate.uncorrected)
        category = estimate.category
        if ratio <= 0 or (censored and ratio <= self.bias(request.tenant, category)):
            return
        self._categories[category].add(ratio)
        key = (request.tenant, category)
        if key not in self._tenants and len(self._tenants) < MAX_CELLS:
            self._tenants[key] = self._cell()
        if key in self._tenants:
            self._tenants[key].add(ratio)

    def bias(self, tenant: str, category: str) -> float:
        common = self._categories[category].value
        own = self._tenants.get((tenant, category))
        if own is None:
            return common
        return (own.count * own.value + SHRINKAGE * common) / (own.count + SHRINKAGE)

    def state(self) -> dict[str, Any]:
        return {
            "kind": "tenant",
            "statistic": self.statistic,
            "margin": self.margin.log_margin,
            "categories": {name: cell.state() for name, cell in self._categories.items()},
            "tenants": [[*key, cell.state()] for key, cell in self._tenants.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        try:
            if state["kind"] != "tenant" or state["statistic"] != self.statistic:
                raise ValueError
            categories = {name: self._restored(state["categories"][name]) for name in CATEGORIES}
            tenants = {(str(t), str(c)): self._restored(cell) for t, c, cell in state["tenants"]}
            margin = Margin(_finite(state["margin"]))
        except (KeyError, TypeError, ValueError, IndexError):
            raise ValueError(f"not a state of the tenant estimator by {self.statistic}") from None
        self._categories, self._tenants, self.margin = categories, tenants, margin

    def _restored(self, state: list[float]) -> Cell:
        cell = self._cell()
        cell.restore([_finite(value) for value in state])
        return cell


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (isfinite(value) and value >= 0):
        raise ValueError
    return float(value)
