"""Predicted beside observed: what each switch of the policy was expected to bring, and what it brought."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from scheduler.core.bounds import Figures
from scheduler.core.guard import CHECK_S, Beside
from scheduler.core.types import Request, Tenant
from scheduler.twin.outlook import Outlook

KEPT = 1000
"""The last predictions that are remembered: an endless run may switch for ever."""


class Prediction:
    """One switch. The predictions themselves may come later than the switch does."""

    def __init__(
        self, at_s: float, source: str, target: str, horizon_s: float, tenants: Iterable[Tenant]
    ) -> None:
        self.at_s = at_s
        self.source = source
        self.target = target
        self.horizon_s = horizon_s
        self.stay: Figures | None = None  # predicted without the switch
        self.predicted: Figures | None = None
        self.course: Sequence[float] = ()  # predicted P50 of E2E so far, after each CHECK_S
        self.observed: Figures | None = None
        self.observed_s = 0.0
        self._outlook: Outlook | None = Outlook(tenants, at_s, horizon_s)

    def on_ended(self, request: Request) -> None:
        if self._outlook is not None:
            self._outlook.ended((request,))

    def beside(self, now: float, active: Iterable[Request]) -> Beside | None:
        """As far as it has come, by the same rule over the same span; None where nothing is predicted."""
        checks = round((now - self.at_s) / CHECK_S)
        if self._outlook is None or not 1 <= checks <= len(self.course):
            return None
        return Beside(self._outlook.p50_s(active, now), self.course[checks - 1])

    def close(self, now: float, active: Iterable[Request]) -> None:
        """The span is over, or as much of it as there will be."""
        if self._outlook is not None:
            self.observed_s = self._outlook.span_s = now - self.at_s
            self._outlook.still_here(active, now)
            self.observed, self._outlook = self._outlook.figures(), None

    def line(self) -> str | None:
        """For the list of events: "sjf: predicted p50 8.1 s, observed 8.6 s"; None where there is nothing."""
        if self.predicted is None or self.observed is None or not self.observed_s:
            return None
        expected, found = self.predicted.get("e2e.p50"), self.observed.get("e2e.p50")
        if expected is None or found is None:
            return None
        span = f"E2E over {self.observed_s:.0f} s"
        return f"{self.target}: predicted p50 {expected:.1f} s, observed {found:.1f} s ({span})"

    def document(self) -> dict[str, Any]:
        """As run.json has it."""
        return {
            "at_s": self.at_s,
            "from": self.source,
            "to": self.target,
            "horizon_s": self.horizon_s,
            "stay": self.stay,
            "predicted": self.predicted,
            "observed": self.observed,
            "observed_s": self.observed_s,
        }


class Predictions:
    """Those of one run; a switch ends the span of the one before, and so does a pause."""

    def __init__(self) -> None:
        self._all: deque[Prediction] = deque(maxlen=KEPT)

    def begin(self, prediction: Prediction, active: Iterable[Request]) -> None:
        self.close(prediction.at_s, active)
        self._all.append(prediction)

    def close(self, now: float, active: Iterable[Request]) -> None:
        """What is still to come says nothing of the latest switch."""
        if self._all:
            self._all[-1].close(now, active)

    @property
    def latest(self) -> Prediction | None:
        return self._all[-1] if self._all else None

    def beside(self, now: float, active: Iterable[Request]) -> Beside | None:
        """What is observed since the latest switch, beside its prediction."""
        return self._all[-1].beside(now, active) if self._all else None

    def on_ended(self, request: Request) -> None:
        if self._all:
            self._all[-1].on_ended(request)

    def document(self, now: float, active: Iterable[Request]) -> list[dict[str, Any]]:
        self.close(now, active)
        return [prediction.document() for prediction in self._all]
