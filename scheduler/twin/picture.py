"""A picture of a run as it is now: all that a preview may know, and small enough to be sent elsewhere.

It holds what is queued and in flight with its estimates, who came lately, and how answers lately compared
with their estimates. No prompt, no text, and nothing of what an answer is going to be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from math import inf
from operator import attrgetter
from typing import NamedTuple

from scheduler.core.scheduler import Scheduler
from scheduler.core.slots import MicroBatch
from scheduler.core.types import QUEUED, Estimate, Limits, Request, Tenant
from scheduler.twin.profile import Profile

RECENT_S = 120.0
"""How far back arrivals count as recent."""
MIN_RECENT_S = 10.0
"""A shorter past than this says little about a rate."""
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
make_pending = partial(tuple.__new__, Pending)
"""``Pending._make`` at half its cost: one is made of every request that comes."""


def pending(requests: Iterable[Request]) -> Iterator[Pending]:
    """What is known of requests now."""
    return map(make_pending, map(_known, requests))


Ratios = Mapping[tuple[str, str, int], Sequence[float]]
"""(tenant, category, size of max_tokens) -> answers over their estimates; inf for what was cut."""


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
        return {key: tuple(ratios) for key, ratios in self._ratios.items()}


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything that a preview starts from; ``queued`` in the order in which they came."""

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


class Exposure:
    """One instant of a scheduler that goes on. What may change is read at once, and is little of each
    request: 10 to 20 ms for 100,000 that wait. The rest is read later, in slices.

    ``max_num_seqs`` is what the engine batches where that is not the scheduler's capacity. ``generated``
    counts the tokens of a running request in virtual time, where requests themselves know neither them nor
    when the first one came.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        recent: Recent,
        profile: Profile,
        now: float,
        *,
        max_num_seqs: int | None = None,
        generated: Callable[[Request], int] | None = None,
    ) -> None:
        self._active = active = list(scheduler.active())
        running = [r for r in active if r.attempts and r.state is not QUEUED]
        self._running = set(running)
        # A swap of the estimator may replace the one, and an engine count the other anew.
        self._estimates = [r.estimate for r in active]
        self._prompts = [r.prompt_tokens for r in active]
        known = list(pending(running))
        if generated is not None:
            for index, request in enumerate(running):
                if not request.finish:
                    known[index] = known[index]._replace(generated=generated(request), first_token_s=None)
        recent_s, arrivals = recent.arrivals(now)
        capacities = tuple(replica.capacity for replica in scheduler.slots.replicas)
        self.picture = Picture(  # all but what is queued
            now=now,
            policy=scheduler.policy.describe(),
            tenants=tuple(scheduler.books.configs.values()),
            queued=(),
            running=tuple(known),
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

    def queued(self, max_items: int) -> Iterator[list[Pending]]:
        """Those who waited at that instant, whatever has become of them. To be read once: each slice is freed
        when it has been read, since freeing 100,000 in one go takes as long as several slices.
        """
        active, prompts, estimates, running = self._active, self._prompts, self._estimates, self._running
        while active:
            part = zip(active[:max_items], prompts[:max_items], estimates[:max_items], strict=True)
            yield [
                make_pending(
                    (r.tenant, r.tier, r.arrival_s, prompt, r.max_tokens, estimate, r.ttl_s, 0, None, "")
                )
                for r, prompt, estimate in part
                if r not in running
            ]
            del active[:max_items], prompts[:max_items], estimates[:max_items]

    def whole(self) -> Picture:
        """All of it, at once."""
        queued = chain.from_iterable(self.queued(len(self._active)))
        return replace(self.picture, queued=tuple(queued))
