"""A deep queue: how long its preview holds up the loop, and an operator waits (part of ``bench preview``)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from scheduler.bench.result import Claim
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import Request
from scheduler.live.players import Packed, Players, longest_first, pack
from scheduler.load.schema import Scenario
from scheduler.plan import Plan, make_plan
from scheduler.twin.future import POINT_SEED
from scheduler.twin.packing import SLICE
from scheduler.twin.picture import Exposure, Recent
from scheduler.twin.preview import Played

T = TypeVar("T")

DEEP = 5000
FUTURES = 4
TURN_MS, POINTS_S, BANDS_S = 20.0, 1.0, 5.0

SPEED_PROTOCOL = (
    f"Speed: {DEEP} queued, 8 policies, two processes that are up; "
    "the longest turn of the loop while the picture is taken and packed, in slices; seconds from then on."
)


async def speed_claims(rush: Scenario, policies: Sequence[str]) -> list[Claim]:
    """``rush`` is a load that fills a deep queue."""
    plan = make_plan(rush, engine="sim", policy="fifo", clock="virtual")
    profile = plan.profile
    assert profile is not None
    scheduler, recent, now = _deep_queue(plan)

    async def taken() -> Packed:
        exposure = Exposure(scheduler, recent, profile, now)
        return await pack(exposure.picture, exposure.queued(SLICE))

    players = Players()
    seeds = range(POINT_SEED, POINT_SEED + FUTURES)
    jobs = [(policy, seed) for seed in seeds for policy in longest_first(policies)]
    done_s: dict[int, float] = {}  # by future, when its last policy is played
    try:
        warm = await pack(Exposure(scheduler, Recent(), profile, now).picture, ())
        await players.play(warm, [("fifo", POINT_SEED)] * 2, lambda *_: None)
        began = time.perf_counter()
        packed, turn_s = await _longest_turn(taken())

        def keep(policy: str, seed: int, played: Played) -> None:
            done_s[seed] = time.perf_counter() - began

        await players.play(packed, jobs, keep)
    finally:
        await players.stop()
    return [
        Claim.at_most("picture of 5,000 queued, longest turn of the loop, ms", TURN_MS, turn_s * 1e3),
        Claim.at_most("point table, 5,000 queued, 8 policies, s", POINTS_S, done_s[POINT_SEED]),
        Claim.at_most("the same with bands of 4 futures, s", BANDS_S, max(done_s.values())),
    ]


def _deep_queue(plan: Plan) -> tuple[Scheduler, Recent, float]:
    """The run at the moment when so many wait for full slots, and that moment."""
    scheduler, recent, workload = plan.scheduler(), Recent(), plan.workload()
    now = 0.0
    while scheduler.books.totals.queued < DEEP:
        now = workload.next_time()
        for action in workload.take(now):
            if type(action) is Request:
                scheduler.submit(action, now)
                recent.arrived(action)
    while scheduler.next_dispatch(now) is not None:
        pass
    return scheduler, recent, now


async def _longest_turn(work: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """What comes of it, and for how long (s) it kept everybody else from the loop at most, at a time."""
    doing, longest_s = asyncio.ensure_future(work), 0.0
    while not doing.done():
        began = time.perf_counter()
        await asyncio.sleep(0)
        longest_s = max(longest_s, time.perf_counter() - began)
    return await doing, longest_s
