"""Orderings: which request goes first inside a group.

Sizes are estimated token budgets, input + output, as in the paper's SJF.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import TYPE_CHECKING, ClassVar

from scheduler.core.metrics import nearest_rank
from scheduler.core.policy import Entry, Key, Policy
from scheduler.core.types import TIER_RANK, Request, Tenant

if TYPE_CHECKING:
    from scheduler.core.queue import ReadyQueue


@dataclass(slots=True)
class Fifo(Policy):
    """Oldest arrival over all tiers."""

    kind: ClassVar[str] = "fifo"
    summary: ClassVar[str] = "oldest arrival first, over all tenants"


@dataclass(slots=True)
class Priority(Policy):
    """Strict premium > standard > batch, FIFO inside."""

    kind: ClassVar[str] = "priority"
    summary: ClassVar[str] = "premium before standard before batch, oldest first inside"

    def key(self, request: Request) -> Key:
        return (TIER_RANK[request.tier], request.arrival_s)


@dataclass(slots=True)
class Sjf(Policy):
    """Smallest total token budget over all tiers, ties by arrival."""

    kind: ClassVar[str] = "sjf"
    summary: ClassVar[str] = "shortest job first: smallest estimated token budget"

    def key(self, request: Request) -> Key:
        estimate = request.estimate
        return (estimate.input_tokens + estimate.point, request.arrival_s)


@dataclass(slots=True)
class AgedSjf(Policy):
    """SJF with bounded overtaking: a request that came a second earlier may be ``rate`` tokens longer.

    Budget - rate x seconds waited, lowest first; the common -now is dropped, so the key is fixed.
    """

    kind: ClassVar[str] = "aged-sjf"
    summary: ClassVar[str] = "shortest job first, minus rate tokens per second waited"
    rate: float = 3.0

    def __post_init__(self) -> None:
        _check_rate(self.rate, "tokens per second waited")

    def key(self, request: Request) -> Key:
        estimate = request.estimate
        return (estimate.input_tokens + estimate.point + self.rate * request.arrival_s, request.arrival_s)


@dataclass(slots=True)
class Aging(Policy):
    """Lowest tier rank - rate x seconds waited (the paper: 0.01), as the static key arrival + rank / rate.

    All scores fall at the same rate, so their order never changes: dividing by the rate and dropping the
    common -now leaves a key fixed at arrival. Rate 0 is strict priority.
    """

    kind: ClassVar[str] = "aging"
    summary: ClassVar[str] = "tier rank minus rate x seconds waited, lowest first"
    rate: float = 0.01

    def __post_init__(self) -> None:
        _check_rate(self.rate, "tier ranks per second")

    def key(self, request: Request) -> Key:
        rank = TIER_RANK[request.tier]
        if self.rate == 0:
            return (rank, request.arrival_s)
        return (request.arrival_s + rank / self.rate, request.arrival_s)


class RecentSizes:
    """The last ``SPAN`` sizes in order, for their quantiles. O(SPAN) per size, in C."""

    SPAN = 512

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, size: float) -> None:
        self._recent.append(size)
        insort(self._sorted, size)
        if len(self._recent) > self.SPAN:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def quantile(self, q: float) -> float:
        return nearest_rank(self._sorted, q)


@dataclass(slots=True)
class TwoClass(Policy):
    """Short answers first, but only two sizes are told apart: FIFO inside a class bounds the waiting.

    A request is short if its budget is at or below the q-quantile of the last 512, its own included; the
    class is decided once, at enqueue or swap. q is a little above one half: at one half the median request
    is the last of the short ones, and where many budgets are nearly equal it just misses them.
    """

    kind: ClassVar[str] = "two-class"
    summary: ClassVar[str] = "the shorter share q before the rest, oldest first inside"
    q: float = 0.55
    sizes: RecentSizes = field(default_factory=RecentSizes, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_share("q", self.q)

    def key(self, request: Request) -> Key:
        estimate = request.estimate
        size = estimate.input_tokens + estimate.point
        self.sizes.add(size)
        return (0 if size <= self.sizes.quantile(self.q) else 1, request.arrival_s)


@dataclass(slots=True)
class ThreeClass(Policy):
    """Like two-class, with three: for lengths with a heavy tail."""

    kind: ClassVar[str] = "three-class"
    summary: ClassVar[str] = "three classes by size (low, high: quantiles), oldest first inside"
    low: float = 0.33
    high: float = 0.67
    sizes: RecentSizes = field(default_factory=RecentSizes, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_share("low", self.low)
        _check_share("high", self.high)
        if self.low >= self.high:
            raise ValueError(f"low: {self.low} is not allowed; it must be below high ({self.high})")

    def key(self, request: Request) -> Key:
        estimate = request.estimate
        size = estimate.input_tokens + estimate.point
        sizes = self.sizes
        sizes.add(size)
        rank = 0 if size <= sizes.quantile(self.low) else 1 if size <= sizes.quantile(self.high) else 2
        return (rank, request.arrival_s)


@dataclass(slots=True)
class Packed(TwoClass):
    """Micro-batches of like lengths: a blocking batch lasts as long as its longest answer.

    The oldest request of the short class (two-class with q) is the anchor; the batch is filled with the
    budgets nearest to its own, for which all that waits is sorted: O(n log n) per batch. Where requests are
    dispatched one by one there is nothing to pack, and it is two-class.
    """

    kind: ClassVar[str] = "packed"
    summary: ClassVar[str] = "micro-batches of like lengths around the oldest short request; else two-class"

    def take(self, queue: ReadyQueue, n: int) -> Iterable[Request]:
        while n > 0 and (anchor := queue.pop()) is not None:
            n -= 1
            retried = anchor.attempts > 0
            yield anchor
            if retried:
                continue  # what is retried goes first, and is no anchor
            size = anchor.estimate.budget
            for request in sorted(queue, key=lambda r: (abs(r.estimate.budget - size), r.ticket)):
                if n > 0 and queue.pick(request):
                    n -= 1
                    yield request
            return


DEFAULT_DEADLINE_S: Mapping[str, float] = {"premium": 30.0, "standard": 60.0, "batch": 300.0}
"""By tier, from arrival to the last token, where a tenant has no SLO for that."""


@dataclass(slots=True)
class Edf(Policy):
    """Earliest deadline first: arrival + the tenant's E2E SLO, or its tier's default.

    Once a deadline has passed, hurrying helps nobody and costs those that can still make it: plain EDF
    then misses everything. A missed deadline is demoted: its place has lapsed, and its new key puts it
    behind all that are in time, by arrival. That happens when it reaches the head, once per request.
    """

    kind: ClassVar[str] = "edf"
    summary: ClassVar[str] = "earliest deadline (SLO) first; a missed one goes behind those still in time"
    lapses: ClassVar[bool] = True
    now: float = field(default=-inf, init=False, compare=False, repr=False)
    tenants: Mapping[str, Tenant] = field(default_factory=dict, init=False, compare=False, repr=False)

    def bind(self, tenants: Mapping[str, Tenant]) -> None:
        self.tenants = tenants

    def key(self, request: Request) -> Key:
        slo_s = self.tenants[request.tenant].slo.e2e_s
        due_s = request.arrival_s + (slo_s if slo_s < inf else DEFAULT_DEADLINE_S[request.tier])
        return (0, due_s) if due_s >= self.now else (1, request.arrival_s)

    def lapsed(self, entry: Entry, now: float) -> bool:
        self.now = now
        return entry[0] == 0 and entry[1] < now


def _check_rate(rate: float, unit: str) -> None:
    if not (isfinite(rate) and rate >= 0):
        raise ValueError(f"rate: {rate} is not allowed; a number of {unit}, 0 or more")


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"{name}: {share} is not allowed; a quantile between 0 and 1")
