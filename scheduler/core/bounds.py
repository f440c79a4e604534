"""Figures by their names, and bounds on them: what guards, autopilots and expectations speak of."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

from scheduler.core.types import TIERS

Figures = Mapping[str, float]

COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

PERCENTILES = ("p50", "p95", "p99")
COSTS = (
    *(f"{group}e2e.{p}" for group in ("", *(f"tiers.{tier}." for tier in TIERS)) for p in PERCENTILES),
    "longest_wait_s",
)
FIGURES = (*COSTS, "goodput.requests_per_s")
"""What a rule may name: figures over a span of time, see ``twin.outlook``. Of ``COSTS`` less is better."""


class Bound(NamedTuple):
    """``tiers.premium.e2e.p99 < 12``: a figure by its name, as ``twin.outlook`` has them."""

    figure: str
    op: str  # one of COMPARE
    limit: float

    def holds(self, figures: Figures) -> bool:
        """A figure that is not there is within every bound."""
        value = figures.get(self.figure)
        return value is None or COMPARE[self.op](value, self.limit)

    def excess(self, figures: Figures) -> float:
        """How far the figure is past the limit, as a share of it; 0 within."""
        if self.holds(figures):
            return 0.0
        return abs(figures[self.figure] - self.limit) / (abs(self.limit) or 1.0)
