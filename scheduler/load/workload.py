"""A scenario's load over time, for both drivers: what is due, and when the next thing is.

No clock and no IO of its own but the trace that is being read: the driver passes ``now`` and carries out the
actions. A heap holds one entry per source, timeline item and waiting client, so a million requests are never
in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from heapq import heappop, heappush, heapreplace
from itertools import count
from math import inf
from typing import Any, NamedTuple

from scheduler.core.estimate import Estimator, count_words
from scheduler.core.types import Request, Tenant
from scheduler.load.content import Setting, Shift
from scheduler.load.schema import Drift, EstimatorOptions, Scenario, TimelineItem
from scheduler.load.sources import Clients, Source, source_from
from scheduler.load.stream import Arrivals, Stream


class Cancel(NamedTuple):
    """A client's patience is at its end."""

    request_id: str


class SwitchPolicy(NamedTuple):
    """Swap to the policy of this spec, as ``policy_from`` reads it."""

    spec: str
    by: str = "timeline"


class SwitchEstimator(NamedTuple):
    """Estimate by this one from now on."""

    estimator: Estimator
    by: str = "timeline"


class ChangeTenant(NamedTuple):
    """A new weight, unless it is None, and of the limits those that are named."""

    name: str
    weight: float | None
    limits: Mapping[str, Any]

    def to(self, tenant: Tenant) -> Tenant:
        """The tenant as it is now, whoever has changed it since the start, with this change made."""
        return tenant.changed(self.weight, replace(tenant.limits, **self.limits))


class Fault(NamedTuple):
    """Break this of the engine: "crash"."""

    engine: str


class Mark(NamedTuple):
    """Something that the workload did to itself, for the list of events."""

    text: str


Action = Request | Cancel | SwitchPolicy | SwitchEstimator | ChangeTenant | Fault | Mark  # a Request arrives

# At the same instant the timeline goes first, then cancels, then arrivals.
_TIMELINE, _CANCEL, _ARRIVAL = 0, 1, 2
# (when, rank, sequence number, TimelineItem | SwitchEstimator | request id | Source)
_Entry = tuple[float, int, int, Any]


class Workload:
    """The load of one scenario from ``start_s`` on. Same scenario and seed, same requests.

    ``estimator`` makes those that the timeline switches to: here and now, so that none fails in mid-run.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        seed: int,
        start_s: float = 0.0,
        prefix: str = "",
        count_tokens: Callable[[str], int] | None = None,
        estimator: Callable[[EstimatorOptions], Estimator] | None = None,
    ) -> None:
        self._prefix = prefix
        self._numbers = count()
        self._tenants: dict[str, Tenant] = {tenant.name: tenant.to_core() for tenant in scenario.tenants}
        self._shifts: dict[str, Shift] = {}
        self._setting = Setting(
            seed, self._tenants, self._shifts, count_tokens or count_words, scenario.paper
        )
        self._streams = scenario.load
        self._sequence = count()
        self._bursts = 0
        self._heap: list[_Entry] = []
        self._sources: dict[int, Source] = {}  # by place in the file; those that are not over
        self._clients: list[Clients] = []
        self._patience = any(stream.patience_s is not None for stream in scenario.load)
        self._patient: set[str] = set()  # ids of live requests with a patience timer
        self._to_come: dict[int, Stream] = {}  # streams that wait for another's end or for a drain
        self.total_s = total_s(scenario)
        for item in scenario.timeline:
            what: TimelineItem | SwitchEstimator = item
            if item.estimator is not None:
                assert estimator is not None
                what = SwitchEstimator(estimator(item.estimator))
            heappush(self._heap, (start_s + item.at_s, _TIMELINE, next(self._sequence), what))
        for place, stream in enumerate(self._streams):
            if stream.after is None:
                self._start(place, stream, start_s)
            else:
                self._to_come[place] = stream
        self._start_followers(start_s)
        self.on_drained(start_s)  # a stream with nothing above it waits for nothing of this load

    def next_time(self) -> float:
        """When something is due next; inf when nothing is, though a drain or a completion may change that."""
        return self._heap[0][0] if self._heap else inf

    def take(self, now: float) -> list[Action]:
        """Everything due at or before ``now``, in order."""
        actions: list[Action] = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            at_s, rank, sequence, what = heap[0]
            if rank == _ARRIVAL:
                if what.next_s != at_s:
                    heappop(heap)  # a client came back sooner than this one; its own entry is another
                    continue
                number = next(self._numbers)
                request = what.take(number, f"{self._prefix}{number}")
                actions.append(request)
                if (next_s := what.next_s) < inf:
                    heapreplace(heap, (next_s, _ARRIVAL, sequence, what))
                else:
                    heappop(heap)
                    self._settle(what, at_s)
                if self._patience and what.stream.patience_s is not None:
                    self._patient.add(request.id)
                    entry = (at_s + what.stream.patience_s, _CANCEL, next(self._sequence), request.id)
                    heappush(heap, entry)
                continue
            heappop(heap)
            if rank == _TIMELINE:
                actions.extend(self._apply(what, at_s))
            elif what in self._patient:
                self._patient.remove(what)
                actions.append(Cancel(what))
        if self._patience:
            self._drop_forgotten()
        return actions

    def on_ended(self, request: Request, now: float) -> None:
        """A request of any workload reached its end: its patience is forgotten, its client goes on."""
        if self._patient:
            self._patient.discard(request.id)
            self._drop_forgotten()
        for source in self._clients:
            next_s = source.next_s
            if source.on_ended(request, now):
                if source.next_s < next_s:
                    heappush(self._heap, (source.next_s, _ARRIVAL, next(self._sequence), source))
                self._settle(source, now)
                return

    def _drop_forgotten(self) -> None:
        """Nothing is due when a patience would have ended that is forgotten."""
        heap, patient = self._heap, self._patient
        while heap and heap[0][1] == _CANCEL and heap[0][3] not in patient:
            heappop(heap)

    def on_drained(self, now: float) -> None:
        """Nothing is queued or in flight: ``after: drained`` streams start once all above them are over."""
        for place, stream in list(self._to_come.items()):
            above = [other for other in (*self._sources, *self._to_come) if other < place]
            if stream.after == "drained" and not above:
                del self._to_come[place]
                self._start(place, stream, now)
                self._start_followers(now)

    def burst(self, tenant: str, rate: float, seconds: float, now: float) -> None:
        """Extra Poisson arrivals of one tenant, made like those of its first stream. Raises ValueError."""
        if tenant not in self._tenants:
            raise ValueError(f"unknown tenant; allowed: {', '.join(self._tenants)}")
        like = next((s for s in self._streams if s.arrivals and tenant in (s.tenant or ())), None)
        changes = {
            "name": f"burst-{self._bursts}",
            "tenant": {tenant: 1.0},
            "arrivals": Arrivals(poisson=rate),
            "for_s": seconds,
            "count": None,
        }
        base = like or Stream.model_validate({"tenant": tenant, "arrivals": "at-once", "count": 1})
        place = len(self._streams) + self._bursts
        self._bursts += 1
        self._start(place, base.model_copy(update=changes), now - base.from_s)

    def stop(self) -> None:
        """Nothing of what was to come comes, nor the end of a patience; a burst may still be added."""
        self._heap.clear()
        self._sources.clear()
        self._clients.clear()
        self._to_come.clear()

    @property
    def exhausted(self) -> bool:
        """Nothing will ever come again."""
        return self.next_time() == inf and not self._to_come and not self._clients

    def _start(self, place: int, stream: Stream, at_s: float) -> None:
        source = source_from(stream, str(place), self._setting, at_s + stream.from_s)
        if source.over:
            return
        self._sources[place] = source
        if isinstance(source, Clients):
            self._clients.append(source)
        heappush(self._heap, (source.next_s, _ARRIVAL, next(self._sequence), source))

    def _settle(self, source: Source, now: float) -> None:
        """Forget a source that is over, and start what waited for it."""
        if not source.over:
            return
        if isinstance(source, Clients):
            self._clients.remove(source)
        self._sources = {place: other for place, other in self._sources.items() if other is not source}
        self._start_followers(now)

    def _start_followers(self, now: float) -> None:
        """Start the streams whose ``after`` names one that is over."""
        alive = {self._streams[place].name for place in self._to_come}
        alive |= {source.stream.name for source in self._sources.values()}
        for place, stream in list(self._to_come.items()):
            if stream.after != "drained" and stream.after not in alive:
                del self._to_come[place]
                self._start(place, stream, now)
                self._start_followers(now)
                return

    def _apply(self, item: TimelineItem | SwitchEstimator, now: float) -> Iterator[Action]:
        if isinstance(item, SwitchEstimator):
            yield item
        elif item.policy is not None:
            yield SwitchPolicy(item.policy)
        elif item.burst is not None:
            self.burst(item.burst.tenant, item.burst.rate, item.burst.for_s, now)
            yield Mark(f"burst: {item.burst.tenant} +{item.burst.rate:g}/s for {item.burst.for_s:g} s")
        elif item.drift is not None:
            yield self._drift(item.drift)
        elif item.tenant is not None:
            yield ChangeTenant(item.tenant.name, item.tenant.weight, item.tenant.named)
        elif item.fault is not None:
            yield Fault(item.fault.engine)

    def _drift(self, drift: Drift) -> Mark:
        for tenant in self._tenants if drift.tenant is None else (drift.tenant,):
            self._shifts[tenant] = Shift(drift.output_scale, drift.force)
        return Mark(f"drift: {drift.tenant or 'every tenant'}, answers ×{drift.output_scale:g}")


def total_s(scenario: Scenario) -> float | None:
    """Seconds until the last request comes; None where completions, a count or a trace decide that."""
    ends = [item.at_s + (item.burst.for_s if item.burst else 0.0) for item in scenario.timeline]
    for stream in scenario.load:
        at_once = stream.arrivals is not None and stream.arrivals.at_once
        if stream.after is not None or (stream.for_s is None and not at_once):
            return None
        ends.append(stream.from_s + (stream.for_s or 0.0))
    return max(ends) if ends else None
