"""Looks after every tenant and says once when its answers change or it begins to miss its objectives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from scheduler.core.drift import ChangeDetector
from scheduler.core.events import Event, Kind
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import Request, Slo

MIN_ENDED = 10
SLO_OUT, SLO_BACK = 0.90, 0.95  # share of requests that meet their objectives: two, so that none flaps


class Watch:
    """Told of every request that has ended; asked for missed objectives every so often."""

    def __init__(self) -> None:
        self._detectors: defaultdict[str, ChangeDetector] = defaultdict(ChangeDetector)
        self._missing: set[str] = set()

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
        """Who has begun to miss its objectives since the last look."""
        if scheduler.metrics is None:
            return
        for name, window in scheduler.metrics.tenants.items():
            if window.ended < MIN_ENDED or scheduler.books.tenant(name).config.slo == Slo():
                continue
            share = window.slo_share
            if share < SLO_OUT and name not in self._missing:
                self._missing.add(name)
                yield Event(now, Kind.SLO, None, {"tenant": name, "share": share})
            elif share > SLO_BACK:
                self._missing.discard(name)
