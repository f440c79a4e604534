"""``driftsched bench core``: the Scheduler alone, beside a bare heapq of the same depth in the same run."""

from __future__ import annotations

import gc
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from statistics import median
from typing import Any

from scheduler.bench.result import Claim, Result
from scheduler.core.estimate import PaperEstimator
from scheduler.core.policies import PAPER_POLICIES, POLICIES, policy_from
from scheduler.core.queue import ReadyQueue
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import TIERS, Outcome, Request, Tenant
from scheduler.live.heap import calm_collector
from scheduler.live.hot_swap import SWAP_SLICE

PROTOCOL = (
    "One process, one core, garbage collector as live runs set it, {rounds} rounds, medians of wall time. "
    "cycle: submit (keyword classification and estimate of a prompt of about 12 words included) + dispatch + "
    "complete with feedback, {cycles:,} times with {queued:,} queued, 3 tenants, 32 slots; what has ended is "
    "forgotten, as in a live run. Each round goes through all policies, so that they meet the same fast and "
    "slow minutes of the machine. yardstick: heapq "
    "push+pop of (float, int, object) at the same depth, right before each round. swap: every queued request "
    "re-ranked to sjf in slices of {slice}, the longest slice; begin_swap, which copies the list, counts as "
    "a slice, and so does each part of freeing the old queue."
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured; the targets hold for the defaults."""

    rounds: int = 9
    cycles: int = 20_000  # of each round
    queued: int = 10_000  # under the cycles
    deep: int = 1_000_000  # queued under push+pop
    swapped: int = 100_000  # queued at a swap


DEFAULT_SIZES = Sizes()


def bench_core(tell: Callable[[str], None], *, sizes: Sizes = DEFAULT_SIZES) -> Result:
    """About two minutes. ``tell`` hears the progress."""
    calm_collector()
    result = Result(
        "core",
        PROTOCOL.format(rounds=sizes.rounds, cycles=sizes.cycles, queued=sizes.queued, slice=SWAP_SLICE),
    )
    cycles: dict[str, list[tuple[float, float]]] = {policy: [] for policy in POLICIES}
    for round_ in range(sizes.rounds):
        tell(f"cycle, round {round_ + 1} of {sizes.rounds}")
        for policy, rounds in cycles.items():
            rounds.append(_cycle(policy, sizes))
    for policy, rounds in cycles.items():
        row = _row("cycle", policy, sizes.queued, *zip(*rounds, strict=True))
        result.rows.append(row | {"requests_per_s": 1e6 / row["us_per_request"]})
    # The others are shown beside them.
    slowest = min(row["requests_per_s"] for row in result.rows if row["policy"] in PAPER_POLICIES)
    result.claims.append(Claim.at_least("cycle_requests_per_s", 100_000, slowest))
    pushes: list[float] = []
    for policy in ("fifo", "sjf"):
        tell(f"push+pop at {sizes.deep:,}, {policy}")
        row = _push_pop(policy, sizes)
        pushes.append(row["push_pop_us"])
        result.rows.append(row)
    result.claims.append(Claim.at_most("push_pop_us_at_1m", 8.0, max(pushes)))
    tell(f"swap at {sizes.swapped:,}")
    row = _swap(sizes)
    result.rows.append(row)
    result.claims.append(Claim.at_most("swap_longest_slice_ms", 20.0, row["longest_slice_ms"]))
    return result


def requests(count: int) -> list[Request]:
    """Unlike one another in every way that a policy looks at; arrivals 10 ms apart."""
    rng = random.Random(1)
    subjects = [f"Summarize how caching helps service number {n} under load" for n in range(50)]
    subjects += [f"What is DNS and why does service number {n} need it today" for n in range(50)]
    subjects += [f"Write a detailed report on the logs of service {n}" for n in range(50)]
    return [
        Request(str(n), tier := rng.choice(TIERS), tier, n * 0.01, 12, 512, rng.choice(subjects))
        for n in range(count)
    ]


def _scheduler(policy: str) -> Scheduler:
    tenants = [Tenant(tier, tier) for tier in TIERS]
    return Scheduler(policy_from(policy), PaperEstimator(), tenants, capacities=(32,))


def _cycle(policy: str, sizes: Sizes) -> tuple[float, float]:
    """Microseconds a request, and beside them the yardstick's."""
    queued, cycles = sizes.queued, sizes.cycles
    scheduler, arrivals = _scheduler(policy), requests(queued + cycles)
    for request in arrivals[:queued]:
        scheduler.submit(request, 0.0)
    flying: deque[Request] = deque()
    while (ready := scheduler.next_dispatch(0.0)) is not None:
        flying.append(ready)
    coming = deque(arrivals[queued:])
    del arrivals, request  # as in a live run, nobody holds on to what has ended
    yardstick = _heap_us(queued, cycles)
    gc.collect()
    started = time.perf_counter()
    while coming:
        request = coming.popleft()
        now = request.arrival_s
        scheduler.submit(request, now)
        scheduler.on_complete(flying.popleft().id, now, Outcome("stop", 100))
        while (ready := scheduler.next_dispatch(now)) is not None:
            flying.append(ready)
    ours = (time.perf_counter() - started) / cycles * 1e6
    scheduler.check()
    return ours, yardstick


def _push_pop(policy: str, sizes: Sizes) -> dict[str, Any]:
    queued, cycles = sizes.deep, sizes.cycles
    arrivals = requests(queued + cycles)
    estimator = PaperEstimator()
    for ticket, request in enumerate(arrivals):
        request.estimate = estimator.estimate(request)
        request.ticket = ticket
    queue = ReadyQueue(policy_from(policy), {})
    for request in arrivals[:queued]:
        queue.push(request)
    ours, yardstick = [], []
    fresh: deque[Request] = deque(arrivals[queued:])
    for round_ in range(sizes.rounds):
        yardstick.append(_heap_us(queued, cycles))
        started = time.perf_counter()
        for step in range(cycles):
            request = fresh.popleft()
            request.ticket = queued + cycles * (round_ + 1) + step
            queue.push(request)
            popped = queue.pop()
            assert popped is not None
            fresh.append(popped)
        ours.append((time.perf_counter() - started) / cycles * 1e6)
    return _row("push+pop", policy, queued, ours, yardstick) | {"push_pop_us": median(ours)}


def _swap(sizes: Sizes) -> dict[str, Any]:
    queued = sizes.swapped
    longest, whole, yardstick = [], [], []
    for _ in range(sizes.rounds):
        scheduler = _scheduler("fifo")
        for request in requests(queued):
            scheduler.submit(request, 0.0)
        yardstick.append(_heap_us(queued, sizes.cycles))
        gc.collect()
        slices = []
        started = time.perf_counter()
        scheduler.begin_swap(policy_from("sjf"), 0.0)
        slices.append(time.perf_counter() - started)
        for part in (
            partial(scheduler.swap_step, 0.0, SWAP_SLICE),
            partial(scheduler.waiting.retire, SWAP_SLICE * 10),
        ):
            done = False
            while not done:
                at = time.perf_counter()
                done = part()
                slices.append(time.perf_counter() - at)
        longest.append(max(slices) * 1e3)
        whole.append(sum(slices) * 1e3)
    row = _row("swap", "fifo > sjf", queued, [ms * 1e3 / queued for ms in whole], yardstick)
    return row | {"longest_slice_ms": median(longest), "whole_ms": median(whole)}


def _heap_us(depth: int, steps: int) -> float:
    """Microseconds for one heapq push+pop of (float, int, object) at ``depth``."""
    rng = random.Random(2)
    heap: list[tuple[float, int, object]] = []
    for n in range(depth):
        heappush(heap, (rng.random(), n, None))
    keys = [rng.random() for _ in range(steps)]
    started = time.perf_counter()
    for n, key in enumerate(keys, start=depth):
        heappush(heap, (key, n, None))
        heappop(heap)
    return (time.perf_counter() - started) / steps * 1e6


def _row(
    what: str, policy: str, queued: int, ours: Sequence[float], yardstick: Sequence[float]
) -> dict[str, Any]:
    heap_us = median(yardstick)
    us = median(ours)
    return {
        "what": what,
        "policy": policy,
        "queued": queued,
        "us_per_request": us,
        "heapq_us": heap_us,
        "times_heapq": us / heap_us,
    }
