"""Where requests come from: a source knows when its next request is due, and makes it when it is taken.

Made only then, a request shows a drift that began in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from heapq import heappop, heappush
from itertools import islice, takewhile
from math import inf
from operator import gt
from random import Random

from scheduler.core.types import Request, State
from scheduler.load import arrivals as processes
from scheduler.load.content import Content, Setting
from scheduler.load.stream import Arrivals, Closed, Stream
from scheduler.load.traces import Row, rows, scan

TRACE_MAX_TOKENS = 1024  # or the longest answer: nothing of a trace tells of a cap that it was not under
TURNED_AWAY_S = 1.0  # a client without think time waits this long after a request that did not finish


def times(arrivals: Arrivals, rng: Random) -> Iterator[float]:
    """The arrival times, from the stream's start, of every process but ``closed``."""
    if arrivals.poisson is not None:
        return processes.poisson(rng, arrivals.poisson)
    if (u := arrivals.uniform) is not None:
        return processes.uniform(rng, u.min_s, u.max_s)
    if (g := arrivals.gamma) is not None:
        return processes.gamma(rng, g.rate, g.cv)
    if (b := arrivals.bursts) is not None:
        return processes.bursts(rng, b.rate, b.base, b.busy_s, b.idle_s)
    if (r := arrivals.ramp) is not None:
        return processes.ramp(rng, r.start, r.end, r.over_s)
    if (s := arrivals.step) is not None:
        return processes.step(rng, s.start, s.end, s.at_s)
    if (d := arrivals.diurnal) is not None:
        return processes.diurnal(rng, d.low, d.high, d.period_s)
    return processes.at_once(rng)


class Source:
    """The common part: one stream's next time, and its end."""

    __slots__ = ("_content", "_left", "_start_s", "_until_s", "next_s", "stream")

    def __init__(self, stream: Stream, key: str, setting: Setting, start_s: float) -> None:
        self.stream = stream
        self.next_s = inf
        """When the next request is due; inf when none is."""
        self._content = Content(stream, key, setting)
        self._start_s = start_s
        self._until_s = inf if stream.for_s is None else stream.for_s
        self._left = inf if stream.count is None else stream.count  # requests still to be scheduled

    @property
    def over(self) -> bool:
        """Nothing will ever come again."""
        return self.next_s == inf

    def take(self, number: int, request_id: str) -> Request:
        """The request that is due, the workload's ``number``-th; ``next_s`` moves on."""
        raise NotImplementedError


class Drawn(Source):
    """Arrivals drawn from a process."""

    __slots__ = ("_times",)

    def __init__(
        self, stream: Stream, arrivals: Arrivals, key: str, setting: Setting, start_s: float
    ) -> None:
        super().__init__(stream, key, setting, start_s)
        drawn = islice(times(arrivals, setting.rng(key, "arrivals")), stream.count)
        self._times = takewhile(partial(gt, self._until_s), drawn)
        self.next_s = start_s + next(self._times, inf)

    def take(self, number: int, request_id: str) -> Request:
        at_s, content = self.next_s, self._content
        self.next_s = self._start_s + next(self._times, inf)
        return content.request(next(content.drafts), number, request_id, at_s)


class Replayed(Source):
    """Arrivals of a trace."""

    __slots__ = ("_cap", "_row", "_rows")

    def __init__(self, stream: Stream, key: str, setting: Setting, start_s: float) -> None:
        super().__init__(stream, key, setting, start_s)
        assert stream.trace is not None, "only a stream with a trace is replayed"
        tenants = None if stream.tenant else frozenset(setting.tenants)
        self._cap = max(TRACE_MAX_TOKENS, scan(stream.trace, tenants).longest)
        self._rows = rows(stream.trace, tenants)
        self._row: Row | None = None
        self._advance()

    def _advance(self) -> None:
        row = next(self._rows, None) if self._left else None
        self._left -= 1
        self._row = row if row is not None and row.at_s < self._until_s else None
        self.next_s = inf if self._row is None else self._start_s + self._row.at_s

    def take(self, number: int, request_id: str) -> Request:
        assert self._row is not None, "taken after its end"
        draft = self._content.from_row(self._row, self._cap)
        request = self._content.request(draft, number, request_id, self.next_s)
        self._advance()
        return request


class Clients(Source):
    """A closed loop: each client asks, waits for the end of its request, thinks, and asks again."""

    __slots__ = ("_due", "_rng", "_think_s", "_waiting")

    def __init__(self, stream: Stream, closed: Closed, key: str, setting: Setting, start_s: float) -> None:
        super().__init__(stream, key, setting, start_s)
        self._think_s = closed.think_s
        self._rng = setting.rng(key, "arrivals")
        self._waiting: set[str] = set()  # ids of requests that a client waits for
        clients = int(min(closed.clients, self._left))
        self._left -= clients
        self._due = [start_s] * clients  # a heap
        self.next_s = start_s if clients else inf

    @property
    def over(self) -> bool:
        return not self._due and not self._waiting

    def take(self, number: int, request_id: str) -> Request:
        draft = next(self._content.drafts)
        request = self._content.request(draft, number, request_id, heappop(self._due))
        self._waiting.add(request_id)
        self.next_s = self._due[0] if self._due else inf
        return request

    def on_ended(self, request: Request, now: float) -> bool:
        """Whether this was one of ours; its client then thinks and comes back, if it may."""
        if request.id not in self._waiting:
            return False
        self._waiting.remove(request.id)
        pause_s = self._rng.expovariate(1.0 / self._think_s) if self._think_s else 0.0
        if request.state is not State.FINISHED:
            pause_s = max(pause_s, TURNED_AWAY_S)
        at_s = now + pause_s
        if self._left and at_s - self._start_s < self._until_s:
            self._left -= 1
            heappush(self._due, at_s)
            self.next_s = self._due[0]
        return True


def source_from(stream: Stream, key: str, setting: Setting, start_s: float) -> Source:
    """The source of one stream. ``key`` names it among the seeds: its place in the file."""
    if stream.arrivals is None:
        return Replayed(stream, key, setting, start_s)
    if stream.arrivals.closed is not None:
        return Clients(stream, stream.arrivals.closed, key, setting, start_s)
    return Drawn(stream, stream.arrivals, key, setting, start_s)
