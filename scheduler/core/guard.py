"""The guard: rolls a switch back when what follows is worse than it may be, and never flaps.

It acts only after a switch that somebody else made, at most once for each, when a violation has lasted, and
then not again before the cooldown is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from scheduler.core.bounds import Bound, Figures

CHECK_S = 5.0
"""From a switch to a guard's first look, and from each look to the next."""

MIN_ENDED = 10
"""Requests that must have ended before figures say something."""


class Beside(NamedTuple):
    """P50 of E2E since the last switch, and what was predicted of as long a time; nan where nobody is."""

    observed_s: float
    predicted_s: float


@dataclass(frozen=True, slots=True)
class GuardRule:
    """When to roll back. At least one of ``when`` and ``worse_than_predicted`` is set."""

    when: Bound | None = None  # holds for what must not be
    worse_than_predicted: float | None = None  # share by which the P50 of E2E may exceed its prediction
    over_s: float = 60.0  # figures are over this span, and never from before the last switch
    hold_s: float = 30.0  # a violation must last this long
    cooldown_s: float = 120.0  # shortest time between two roll backs
    roll_back: str = ""  # to this policy; "" is the one before the switch


class Guard:
    """Told of every switch and, every now and then, of the figures since; says when to roll back."""

    def __init__(self, rule: GuardRule) -> None:
        self.rule = rule
        self.switched_s = -inf
        self._target: str | None = None  # what a roll back goes to; None when there is nothing to undo
        self._violated_since_s = inf
        self._acted_s = -inf

    def on_switch(self, source: str, now: float) -> None:
        """The policy is no longer ``source``, whoever asked for it."""
        self._target = self.rule.roll_back or source
        self._violated_since_s = inf
        self.switched_s = now

    def let_go(self) -> None:
        """What comes of the last switch cannot be told any more: it is not undone."""
        self._target = None

    def check(self, current: str, figures: Figures, now: float, beside: Beside | None = None) -> str | None:
        """The policy to go back to, now; None to leave things as they are. ``figures`` are over the last
        ``over_s`` seconds, or since the last switch if that is later; ``beside`` is None where nothing is
        predicted of so long a time after it. Once it has named a policy the switch to it is taken as made.
        """
        if not self._violated(figures, beside):
            self._violated_since_s = inf
            return None
        self._violated_since_s = min(self._violated_since_s, now)
        rule, target = self.rule, self._target
        lasted = now - self._violated_since_s >= rule.hold_s
        if not lasted or target in (None, current) or now - self._acted_s < rule.cooldown_s:
            return None
        self._acted_s = self.switched_s = now
        self._target = None  # what the guard did is not undone by it
        return target

    def _violated(self, figures: Figures, beside: Beside | None) -> bool:
        if figures.get("ended", 0.0) < MIN_ENDED:
            return False
        rule = self.rule
        if rule.when is not None and rule.when.figure in figures and rule.when.holds(figures):
            return True
        if rule.worse_than_predicted is None or beside is None:
            return False
        return beside.observed_s > beside.predicted_s * (1 + rule.worse_than_predicted)
