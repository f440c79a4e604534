"""One frozen picture of the Scheduler for the faces above it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from math import nan
from typing import Protocol

from scheduler.core.books import Books
from scheduler.core.estimate import Learned
from scheduler.core.metrics import (
    NO_PERCENTILES,
    TenantWindow,
    WindowMetrics,
    coverage,
    drift_ratio,
    percentiles,
)
from scheduler.core.swap import Swap, SwapRecord
from scheduler.core.types import CATEGORIES, Request, Snapshot, State, TenantSnapshot


class Named(Protocol):
    def describe(self) -> str: ...


class Bounded(Protocol):
    @property
    def capacity(self) -> int: ...


class Source(Protocol):
    """What a picture is taken of: the Scheduler, or a recorded run that is played again."""

    books: Books
    paused: bool

    @property
    def metrics(self) -> WindowMetrics | None: ...
    @property
    def policy(self) -> Named: ...
    @property
    def slots(self) -> Bounded: ...
    @property
    def estimator(self) -> Learned: ...
    @property
    def swap(self) -> Swap | None: ...
    @property
    def swaps(self) -> Sequence[SwapRecord]: ...
    def active(self) -> Iterable[Request]: ...


def take_snapshot(scheduler: Source, now: float) -> Snapshot:
    """Counts as of ``now``, windows over the last ``metrics.window_s`` seconds; O(active + window)."""
    metrics = scheduler.metrics or WindowMetrics(scheduler.books.tenants)
    rates = metrics.rates(now)
    served_by_all = sum(served for _, served in rates.values())
    oldest: dict[str, float] = {}
    for request in scheduler.active():
        if request.state is State.QUEUED and request.tenant not in oldest:
            oldest[request.tenant] = request.arrival_s
    tenants = tuple(
        _tenant(
            scheduler, name, metrics.tenants[name], rates[name], served_by_all, oldest.get(name, now), now
        )
        for name in scheduler.books.tenants
    )
    completions = list(chain.from_iterable(w.completions for w in metrics.tenants.values()))
    totals = scheduler.books.totals
    swap = scheduler.swap
    return Snapshot(
        now=now,
        policy=scheduler.policy.describe(),
        policy_since_s=scheduler.swaps[-1].applied_s if scheduler.swaps else 0.0,
        swap=(swap.queue.policy.describe(), swap.share_done) if swap else None,
        paused=scheduler.paused,
        capacity=scheduler.slots.capacity,
        queued=totals.queued,
        in_flight=totals.in_flight,
        tenants=tenants,
        ttft=percentiles(c.ttft_s for c in completions),
        e2e=percentiles(c.e2e_s for c in completions),
        queue_wait=percentiles(c.queue_wait_s for c in completions),
        drift_ratio=drift_ratio(completions),
        tokens_per_s=sum(rate for rate, _ in rates.values()),
        counts=scheduler.books.counts(),
        category_bias={category: scheduler.estimator.bias("", category) for category in CATEGORIES},
        coverage=coverage(completions),
    )


def _tenant(
    scheduler: Source,
    name: str,
    window: TenantWindow,
    rate: tuple[float, float],
    served_by_all: float,
    oldest_arrival_s: float,
    now: float,
) -> TenantSnapshot:
    books = scheduler.books.tenants[name]
    config = books.config
    done = window.completions
    some = bool(done)
    return TenantSnapshot(
        name=name,
        tier=config.tier,
        weight=config.weight,
        limits=config.limits,
        slo=config.slo,
        queued=books.queued,
        queued_tokens=books.queued_tokens,
        in_flight=books.in_flight,
        submitted=books.submitted,
        finished=books.ended[State.FINISHED],
        ended_otherwise=sum(books.ended.values()) - books.ended[State.FINISHED],
        share=rate[1] / served_by_all if served_by_all else 0.0,
        tokens_per_s=rate[0],
        ttft=percentiles(c.ttft_s for c in done) if some else NO_PERCENTILES,
        e2e=percentiles(c.e2e_s for c in done) if some else NO_PERCENTILES,
        slo_share=window.slo_share,
        estimated_tokens=sum(c.estimated for c in done) / len(done) if some else nan,
        actual_tokens=sum(c.actual for c in done) / len(done) if some else nan,
        drift_ratio=drift_ratio(done),
        capped_share=sum(c.capped for c in done) / len(done) if some else nan,
        bias=window.bias,
        converged=window.converged,
        oldest_wait_s=now - oldest_arrival_s,
        coverage=coverage(done),
    )
