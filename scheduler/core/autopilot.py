"""The autopilot: previews several policies and says when one is clearly enough better to swap to it.

It does not soon return to a policy that was left: near a bound two policies may each look better while the
other one orders, and what a guard rolls back may look better to previews for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from scheduler.core.bounds import Bound, Figures

BAR_S = 120.0
"""How long it does not return to a policy that was left, whoever left it; twice as long each time."""

MAX_BAR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Goal:
    """What an autopilot is to do, and how sure it must be."""

    minimise: str  # a figure, as ``twin.outlook`` has them
    subject_to: tuple[Bound, ...] = ()
    candidates: tuple[str, ...] = ()  # full names
    every_s: float = 30.0  # between two previews
    gain: float = 0.10  # share by which another policy must be better


class Forecast(NamedTuple):
    """What a policy is predicted to do, over several futures."""

    usual: Figures  # the mean of each figure
    cautious: Figures  # the worse quarter: what a bound is held against


def best(forecasts: Mapping[str, Forecast], goal: Goal) -> str:
    """The policy with the least of what is to be minimised, of those within all bounds; where none is, the
    one that is least beyond them. Of equals, the first.
    """
    return min(forecasts, key=lambda name: _rank(forecasts[name], goal))


def _rank(forecast: Forecast, goal: Goal) -> tuple[float, float]:
    excess = max((bound.excess(forecast.cautious) for bound in goal.subject_to), default=0.0)
    return excess, forecast.usual.get(goal.minimise, inf)  # nobody was served


class Autopilot:
    """Swaps when two previews in a row name the same policy, clearly better than the one in force."""

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self._favourite = ""  # of the preview before
        self._bar_s: dict[str, float] = {}  # by policy, the latest
        self._until_s: dict[str, float] = {}  # when that is over

    def on_switch(self, source: str, now: float) -> None:
        """The policy is no longer ``source``, whoever asked for it."""
        bar_s = self._bar_s[source] = min(2 * self._bar_s.get(source, BAR_S / 2), MAX_BAR_S)
        self._until_s[source] = now + bar_s
        self._favourite = ""

    def choose(self, current: str, forecasts: Mapping[str, Forecast], now: float) -> str | None:
        """The policy to swap to now; None to stay. ``forecasts`` has the current policy, too."""
        barred = {name for name, until_s in self._until_s.items() if now < until_s} - {current}
        allowed = {name: forecast for name, forecast in forecasts.items() if name not in barred}
        found = best({current: forecasts[current], **allowed}, self.goal)
        if found == current or not self._clear(forecasts[current], forecasts[found]):
            self._favourite = ""
            return None
        if found != self._favourite:
            self._favourite = found
            return None
        return found

    def _clear(self, now: Forecast, then: Forecast) -> bool:
        """Whether a swap is worth it: back within the bounds, or ``gain`` better."""
        beyond, value = _rank(now, self.goal)
        beyond_then, value_then = _rank(then, self.goal)
        if beyond > 0:
            return beyond_then <= beyond * (1 - self.goal.gain)
        return value_then <= value * (1 - self.goal.gain)
