"""Looks after every tenant and says when its answers change, and how far it falls short of its objectives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from math import inf

from scheduler.core.drift import ChangeDetector
from scheduler.core.events import Event, Kind
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import Request, Slo

MIN_ENDED = 10
SLO_OUT = (0.90, 0.50, 0.10)  # shares of requests that meet their objectives: each is told of once,
SLO_BACK = 0.95  # until it is above this again; higher than the first, so that none flaps


class Watch:
    """Told of every request that has ended; asked for missed objectives every so often."""

    def __init__(self) -> None:
        self._detectors: defaultdict[str, ChangeDetector] = defaultdict(ChangeDetector)
        self._worst: dict[str, float] = {}  # of those who miss their objectives: the lowest share yet

    def on_ended(self, request: Request) -> Event | None:
        """The change point that it completes. What was cut by max_tokens counts as it is: a change is seen as
        far as it goes.
        """
        estimate = request.estimate
        if request.finish not in ("stop", "length") or not request.output_tokens or not estimate.uncorrected:
            return None
        ratio = request.output_tokens / estimate.uncorrected
        change = self._detectors[request.tenant].add(estimate.category, ratio)
        if change is None:
            return None
        detail = {"tenant": request.tenant, "before": change.before, "after": change.after}
        return Event(request.ended_s or 0.0, Kind.DRIFT, None, detail)

    def look(self, scheduler: Scheduler, now: float) -> Iterator[Event]:
        """Who has begun to miss its objectives since the last look, misses more, or meets them again."""
        if scheduler.metrics is None:
            return
        for name, window in scheduler.metrics.tenants.items():
            if window.ended < MIN_ENDED or scheduler.books.tenant(name).config.slo == Slo():
                continue
            share, worst = window.slo_share, self._worst.get(name, inf)
            if any(share < level <= worst for level in SLO_OUT):
                yield Event(now, Kind.SLO, None, {"tenant": name, "share": share})
            if share < min(worst, SLO_OUT[0]):
                self._worst[name] = share
            elif share > SLO_BACK and name in self._worst:
                del self._worst[name]
                yield Event(now, Kind.SLO, None, {"tenant": name, "share": share, "worst": worst})
