"""A picture of a run as it is now: all that a preview may know, and small enough to be sent elsewhere.

It holds what is queued and in flight with its estimates, who came lately, and how answers lately compared
with their estimates. No prompt, no text, and nothing of what an answer is going to be.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from operator import attrgetter
from typing import Any, NamedTuple

from scheduler.core.scheduler import Scheduler
from scheduler.core.slots import MicroBatch
from scheduler.core.types import QUEUED, Estimate, Limits, Request, Tenant
from scheduler.twin.profile import Profile

RECENT_S = 120.0
"""How far back arrivals count as recent."""
MIN_RECENT_S = 10.0
"""Whoever came in less time than this says little about a rate."""
MAX_ARRIVALS = 4096
MAX_RATIOS = 128
"""Finished answers that are remembered of a tenant and category."""


class Pending(NamedTuple):
    """A request that waits, runs or came lately, as far as it is known now."""

    tenant: str
    tier: str
    arrival_s: float
    prompt_tokens: int
    max_tokens: int
    estimate: Estimate
    ttl_s: float | None
    generated: int  # output tokens so far
    first_token_s: float | None = None
    finish: str = ""  # set where its answer is there, but its micro-batch is not over


_known = attrgetter(
    *("tenant", "tier", "arrival_s", "prompt_tokens", "max_tokens", "estimate", "ttl_s"),
    *("output_tokens", "first_token_s", "finish"),
)
_made = partial(tuple.__new__, Pending)


def pending(requests: Iterable[Request]) -> Iterator[Pending]:
    """What is known of requests; no step in Python for each, for the event loop waits for thousands."""
    return map(_made, map(_known, requests))


Ratios = Mapping[tuple[str, str, int], Sequence[float]]
"""(tenant, category, size of max_tokens) -> answers over their estimates, ascending; inf for what was cut."""


class Recent:
    """What came and what ended lately."""

    def __init__(self) -> None:
        self.since_s = 0.0  # nothing is known of before
        self._arrivals: deque[Pending] = deque(maxlen=MAX_ARRIVALS)
        self._ratios: dict[tuple[str, str, int], deque[float]] = {}

    def arrived(self, request: Request) -> None:
        """A request came, whether it was let in or not; its estimate is made."""
        arrivals = self._arrivals
        if len(arrivals) == MAX_ARRIVALS:
            self.since_s = arrivals[0].arrival_s
        (came,) = pending((request,))
        arrivals.append(came._replace(generated=0) if came.generated else came)

    def ended(self, request: Request) -> None:
        """A request finished."""
        key = (request.tenant, request.estimate.category, request.max_tokens.bit_length())
        ratios = self._ratios.get(key)
        if ratios is None:
            ratios = self._ratios[key] = deque(maxlen=MAX_RATIOS)
        cut = request.finish == "length"
        ratios.append(inf if cut else request.output_tokens / max(1.0, request.estimate.point))

    def arrivals(self, now: float) -> tuple[float, tuple[Pending, ...]]:
        """Seconds looked back, and who came in them, oldest first."""
        start_s = max(self.since_s, now - RECENT_S)
        arrivals = self._arrivals
        while arrivals and arrivals[0].arrival_s <= start_s:
            arrivals.popleft()
        return max(MIN_RECENT_S, now - start_s), tuple(arrivals)

    @property
    def ratios(self) -> Ratios:
        return {key: sorted(ratios) for key, ratios in self._ratios.items()}


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything that a preview starts from; ``queued`` in the order in which they were enqueued."""

    now: float
    policy: str
    tenants: tuple[Tenant, ...]
    queued: tuple[Pending, ...]
    running: tuple[Pending, ...]
    recent_s: float
    arrivals: tuple[Pending, ...]
    ratios: Ratios
    capacities: tuple[int, ...]
    max_num_seqs: int  # what one engine batches
    batch: MicroBatch | None
    limits: Limits
    max_inflight_tokens: float | None
    max_model_len: float  # tokens; inf where nothing bounds it
    profile: Profile

    def packed(self) -> bytes:
        """For another process; requests by column, which is several times faster than one by one."""
        rows = (self.queued, self.running, self.arrivals)
        bare = replace(self, queued=(), running=(), arrivals=())
        return pickle.dumps((bare, tuple(map(_columns, rows))), pickle.HIGHEST_PROTOCOL)


def unpacked(data: bytes) -> Picture:
    """What ``Picture.packed`` gave, and nobody else: it is a pickle."""
    bare, columns = pickle.loads(data)
    queued, running, arrivals = map(_rows, columns)
    picture: Picture = replace(bare, queued=queued, running=running, arrivals=arrivals)
    return picture


Columns = list[Sequence[Any]]

_ESTIMATE = Pending._fields.index("estimate")


def _columns(requests: Sequence[Pending]) -> tuple[Columns, Columns]:
    """All but the estimates, and those."""
    columns: Columns = list(zip(*requests, strict=True))
    made: Sequence[Estimate] = columns.pop(_ESTIMATE) if columns else ()
    estimates: Columns = [
        [estimate.input_tokens for estimate in made],
        [estimate.point for estimate in made],
        [estimate.upper for estimate in made],
        [estimate.category for estimate in made],
        [estimate.uncorrected for estimate in made],
    ]
    return columns, estimates


def _rows(packed: tuple[Columns, Columns]) -> tuple[Pending, ...]:
    columns, estimates = packed
    if not columns:
        return ()
    columns.insert(_ESTIMATE, list(map(Estimate, *estimates)))
    return tuple(map(_made, zip(*columns, strict=True)))


def take_picture(
    scheduler: Scheduler,
    recent: Recent,
    profile: Profile,
    now: float,
    *,
    max_num_seqs: int | None = None,
    generated: Callable[[Request], int] | None = None,
) -> Picture:
    """O(active + recent); 5,000 queued requests take some milliseconds. ``max_num_seqs`` is what the engine
    batches where that is not the scheduler's capacity; ``generated`` tells the tokens of a running request
    where the requests themselves do not say, nor when the first one came.
    """
    queued, running = [], []
    replicas = scheduler.slots.replicas
    for request in scheduler.active():
        if request.state is QUEUED:
            queued.append(request)
        else:
            (known,) = pending((request,))
            if generated is not None and not known.finish:
                known = known._replace(generated=generated(request), first_token_s=None)
            running.append(known)
    queued.sort(key=attrgetter("ticket"))
    recent_s, arrivals = recent.arrivals(now)
    capacities = tuple(replica.capacity for replica in replicas)
    return Picture(
        now=now,
        policy=scheduler.policy.describe(),
        tenants=tuple(scheduler.books.configs.values()),
        queued=tuple(pending(queued)),
        running=tuple(running),
        recent_s=recent_s,
        arrivals=arrivals,
        ratios=recent.ratios,
        capacities=capacities,
        max_num_seqs=max_num_seqs or max(capacities),
        batch=scheduler.slots.batch,
        limits=scheduler.limits,
        max_inflight_tokens=scheduler.slots.max_inflight_tokens,
        # A real engine refuses what its cache cannot hold; the twin's would raise NeverFits.
        max_model_len=min(scheduler.max_model_len, profile.max_model_len, profile.kv_tokens),
        profile=profile,
    )
