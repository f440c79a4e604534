"""``tenant``: what each tenant's answers of each category were like lately, shrunk to the category."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from scheduler.core.conformal import Margin
from scheduler.core.estimate import (
    BASE_TOKENS,
    Counter,
    classify,
    count_words,
    input_factor,
    reading_once,
)
from scheduler.core.types import CATEGORIES, Estimate, Outcome, Request

SHRINKAGE = 10.0  # observations of its own that weigh as much as the category's
GAIN = 0.02  # what an answer counts for; the first ones, as many as they are
TREND_GAIN = 0.1
DRIFT_GAIN = 0.6  # when a tenant's answers are all on one side of what was believed
MAX_TENANTS = 2500  # beyond that the category speaks for newcomers


class Cell:
    """Answers over the formula's estimate: how many, and what they are like."""

    __slots__ = ("count", "value")

    def __init__(self, value: float = 1.0, count: int = 0) -> None:
        self.value = value
        self.count = count


class MedianCell(Cell):
    """Comes to rest where as many answers are longer as are shorter."""

    __slots__ = ()

    def add(self, ratio: float, gain: float) -> None:
        """One step towards it, at most onto it."""
        self.count = count = self.count + 1
        step = 1 + (gain if gain * count > 1 else 1 / count)
        value = self.value
        if value < ratio:
            value *= step
            self.value = value if value < ratio else ratio
        else:
            value /= step
            self.value = value if value > ratio else ratio


class MeanCell(Cell):
    """The mean at first, then an EMA."""

    __slots__ = ()

    def add(self, ratio: float, gain: float) -> None:
        self.count = count = self.count + 1
        self.value += (ratio - self.value) * (gain if gain * count > 1 else 1 / count)


STATISTICS: Mapping[str, type[MedianCell | MeanCell]] = {"median": MedianCell, "mean": MeanCell}


class _Tenant:
    """What sets one tenant apart."""

    __slots__ = ("cells", "trend")

    def __init__(self) -> None:
        self.cells: dict[str, MedianCell | MeanCell] = {}  # by category
        self.trend = 0.0  # 1 where all answers are longer than believed, -1 where they are shorter


class TenantEstimator:
    """base x input factor x the cell's ratio, never above max_tokens; no safety factor.

    The median is the better guess for the absolute error, the mean for the squared one. What is believed
    moves faster while a tenant's answers are nearly all longer, or shorter, than that: Trigg and Leach's
    tracking signal (1967), of signs. An answer that was cut counts with what it had where that is more than
    was believed, else it says nothing.
    """

    meanings = None

    def __init__(self, *, counter: Counter = count_words, statistic: str = "median") -> None:
        if statistic not in STATISTICS:
            raise ValueError(f"unknown statistic {statistic!r}; allowed: {', '.join(STATISTICS)}")
        self.statistic = statistic
        self.name = "tenant" if statistic == "median" else f"tenant ({statistic})"
        self.margin = Margin()
        self._read = reading_once(lambda prompt: _formula(classify(prompt), counter(prompt)))
        self._cell = STATISTICS[statistic]
        self._categories = {category: self._cell() for category in CATEGORIES}
        self._tenants: dict[str, _Tenant] = {}

    def estimate(self, request: Request) -> Estimate:
        """O(prompt length), once per prompt that is remembered."""
        if request.prompt:
            category, input_tokens, uncorrected = self._read(request.prompt)
        else:
            category, input_tokens, uncorrected = _formula(
                request.category or "short_qa", request.prompt_tokens
            )
        believed, cap = uncorrected * self.bias(request.tenant, category), request.max_tokens
        upper = believed * self.margin.factor
        point = int(believed if believed < cap else cap) or 1
        return Estimate(
            input_tokens,
            point,
            upper if upper < cap else cap,
            category,
            uncorrected,
        )

    def observe(self, request: Request, outcome: Outcome) -> None:
        estimate, tokens, finish = request.estimate, outcome.output_tokens, outcome.finish
        # What was cut at max_tokens needed no more room.
        self.margin.observe(estimate.upper, tokens, finish not in ("stop", "length"))
        tenant, category = request.tenant, estimate.category
        ratio = tokens / (estimate.uncorrected or 1)
        if tokens < 1 or (finish != "stop" and ratio <= self.bias(tenant, category)):
            return
        common = self._categories[category]
        common.add(ratio, GAIN)
        own = self._tenants.get(tenant)
        if own is None:
            if len(self._tenants) == MAX_TENANTS:
                return
            own = self._tenants[tenant] = _Tenant()
        cell = own.cells.get(category)
        if cell is None:
            cell = own.cells[category] = self._cell(common.value)
        trend = own.trend
        own.trend = trend = trend + TREND_GAIN * ((1.0 if ratio > cell.value else -1.0) - trend)
        gain = DRIFT_GAIN * trend**4
        cell.add(ratio, gain if gain > GAIN else GAIN)

    def bias(self, tenant: str, category: str) -> float:
        """The tenant's own ratio, drawn to the category's while there are few answers."""
        common, own = self._categories[category].value, self._tenants.get(tenant)
        cell = None if own is None else own.cells.get(category)
        if cell is None:
            return common
        count = cell.count
        return (count * cell.value + SHRINKAGE * common) / (count + SHRINKAGE)

    def state(self) -> dict[str, Any]:
        return {
            "kind": "tenant",
            "statistic": self.statistic,
            "margin": self.margin.log_margin,
            "categories": {name: [cell.count, cell.value] for name, cell in self._categories.items()},
            "tenants": [
                [tenant, category, [cell.count, cell.value]]
                for tenant, own in self._tenants.items()
                for category, cell in own.cells.items()
            ],
            "trends": {tenant: own.trend for tenant, own in self._tenants.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        try:
            if state["kind"] != "tenant" or state["statistic"] != self.statistic:
                raise ValueError
            categories = {name: self._restored(state["categories"][name]) for name in CATEGORIES}
            tenants: dict[str, _Tenant] = {}
            for tenant, category, cell in state["tenants"]:
                tenants.setdefault(str(tenant), _Tenant()).cells[str(category)] = self._restored(cell)
            for tenant, own in tenants.items():
                own.trend = _finite(state["trends"][tenant], -1.0)
            margin = Margin(_finite(state["margin"]))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"not a state of the tenant estimator by {self.statistic}") from None
        self._categories, self._tenants, self.margin = categories, tenants, margin

    def _restored(self, state: list[float]) -> MedianCell | MeanCell:
        count, value = map(_finite, state)
        if not value:
            raise ValueError  # no answer is of no length
        return self._cell(value, int(count))


def _formula(category: str, input_tokens: int) -> tuple[str, int, int]:
    """With the estimate before anything was learned."""
    return category, input_tokens, int(BASE_TOKENS[category] * input_factor(input_tokens))


def _finite(value: object, least: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < inf:
        raise ValueError
    return float(value)
