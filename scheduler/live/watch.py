"""Looks after every tenant's window and says once when it leaves, or is back in, its bounds."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan

from scheduler.core.events import Event, Kind
from scheduler.core.metrics import drift_ratio
from scheduler.core.scheduler import Scheduler

MIN_COMPLETIONS = 10
DRIFT_OUT, DRIFT_BACK = 1.5, 1.25  # actual / estimated, or its inverse
SLO_OUT, SLO_BACK = 0.90, 0.95  # share of requests that meet their objectives


class Watch:
    """Two bounds each way, so that a value on the edge does not flap."""

    def __init__(self) -> None:
        self._drifting: set[str] = set()
        self._missing: set[str] = set()

    def look(self, scheduler: Scheduler, now: float) -> Iterator[Event]:
        """Events for tenants that have just left their bounds."""
        if scheduler.metrics is None:
            return
        for name, window in scheduler.metrics.tenants.items():
            done = window.completions
            if len(done) < MIN_COMPLETIONS:
                continue
            ratio = drift_ratio(done)
            apart = max(ratio, 1 / ratio) if ratio else 1.0
            if apart > DRIFT_OUT and name not in self._drifting:
                self._drifting.add(name)
                count = len(done)
                detail = {
                    "tenant": name,
                    "ratio": ratio,
                    "estimated": sum(c.estimated for c in done) / count,
                    "actual": sum(c.actual for c in done) / count,
                }
                yield Event(now, Kind.DRIFT, None, detail)
            elif apart < DRIFT_BACK:
                self._drifting.discard(name)
            share = window.slo_share
            if isnan(share):
                continue
            if share < SLO_OUT and name not in self._missing:
                self._missing.add(name)
                yield Event(now, Kind.SLO, None, {"tenant": name, "share": share})
            elif share > SLO_BACK:
                self._missing.discard(name)
