"""Looks after every tenant and says when its answers change, how far it falls short of its objectives, and
from when to when its requests are rejected or expire.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from scheduler.core.drift import ChangeDetector
from scheduler.core.events import Event, Kind
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import EXPIRED, REJECTED, Request, Slo

MIN_ENDED = 10
SLO_OUT = (0.90, 0.50, 0.10)  # shares of requests that meet their objectives: each is told of once,
SLO_BACK = 0.95  # until it is above this again; higher than the first, so that none flaps
QUIET_S = 60.0
"""So long no request is rejected, or expires, once that is over; limits by the minute come and go faster."""
AGAIN_S = 600.0
"""What comes back sooner than this must have been quiet for twice as long as before, and this at most."""


@dataclass(slots=True)
class _Episode:
    """A time in which requests of a tenant are rejected, or in which they expire."""

    reason: str  # of the first
    since_s: float
    last_s: float
    quiet_s: float  # after the last so long, it is over
    requests: int = 1
    over: bool = False


class Watch:
    """Told of every request that has ended; asked every so often for what only time shows."""

    def __init__(self) -> None:
        self._detectors: defaultdict[str, ChangeDetector] = defaultdict(ChangeDetector)
        # The latest, by tenant and what becomes of its requests.
        self._episodes: dict[tuple[str, str], _Episode] = {}
        self._worst: dict[str, float] = {}  # of those who miss their objectives: the lowest share yet

    def on_ended(self, request: Request) -> Event | None:
        """The change point that it completes, or that it is the first of its tenant to be rejected or to
        expire. An answer that was cut by max_tokens counts as it is: a change is seen as far as it goes.
        """
        if request.state is REJECTED or request.state is EXPIRED:
            return self._on_unserved(request)
        estimate = request.estimate
        if request.finish not in ("stop", "length") or not request.output_tokens or not estimate.uncorrected:
            return None
        ratio = request.output_tokens / estimate.uncorrected
        change = self._detectors[request.tenant].add(estimate.category, ratio)
        if change is None:
            return None
        detail = {"tenant": request.tenant, "before": change.before, "after": change.after}
        return Event(request.ended_s or 0.0, Kind.DRIFT, None, detail)

    def _on_unserved(self, request: Request) -> Event | None:
        now, what = request.ended_s or 0.0, request.state.value
        episode = self._episodes.get((request.tenant, what))
        if episode is not None and not episode.over:
            episode.last_s = now
            episode.requests += 1
            return None
        quiet_s = QUIET_S
        if episode is not None and now - episode.last_s < AGAIN_S:
            quiet_s = min(2 * episode.quiet_s, AGAIN_S)
        self._episodes[request.tenant, what] = _Episode(request.reason, now, now, quiet_s)
        detail = {"tenant": request.tenant, "what": what, "reason": request.reason}
        return Event(now, Kind.UNSERVED, None, detail)

    def look(self, scheduler: Scheduler, now: float) -> Iterator[Event]:
        """Who has begun to miss its objectives since the last look, misses more, or meets them again; whose
        requests are no longer rejected, or no longer expire.
        """
        for (name, what), episode in list(self._episodes.items()):
            if not episode.over and now - episode.last_s >= episode.quiet_s:
                episode.over = True
                detail = {"tenant": name, "what": what, "reason": episode.reason}
                told = {"requests": episode.requests, "over_s": episode.last_s - episode.since_s}
                yield Event(now, Kind.UNSERVED, None, {**detail, **told})
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
