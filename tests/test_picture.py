"""A picture taken in slices is of one instant, whatever happens between them; and it survives being sent."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import chain
from random import Random

import pytest
from core_kit import TENANTS, Guess, crowd, make_request, make_scheduler
from test_preview import packed_whole, picture

from scheduler.core.policies import policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import QUEUED, RUNNING, Limits, Outcome, Request
from scheduler.live.players import pack
from scheduler.twin.packing import unpacked
from scheduler.twin.picture import Exposure, Pending, Picture, Recent
from scheduler.twin.preview import horizon_of
from scheduler.twin.profile_file import load_profile

PROFILE = load_profile("l4", "qwen1.5-1.8b-chat")


class Busy:
    """A scheduler to which all that can happen does, at random."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = 100.0
        self.scheduler = make_scheduler("priority", estimator=Guess(50), capacities=(4, 4))
        self.recent = Recent()
        self._come = 0
        for request in crowd(60):
            self._submit(request)

    def _submit(self, request: Request) -> None:
        self._come += 1
        self.scheduler.submit(request, self.now)
        self.recent.arrived(request)

    def one_of(self, queued: bool) -> Request:
        return self.rng.choice([r for r in self.scheduler.active() if (r.state is QUEUED) == queued])

    def go_on(self) -> None:
        """One thing more happens."""
        scheduler, rng, now = self.scheduler, self.rng, self.now
        self.now += 0.01
        match rng.randrange(12):
            case 0:
                ttl_s = rng.choice([None, 0.5])
                self._submit(make_request(f"late {self._come}", arrival_s=now, tokens=9, ttl_s=ttl_s))
            case 1 | 2:
                scheduler.next_dispatch(now)
            case 3 | 4 if scheduler.in_flight:
                request = self.one_of(queued=False)
                if request.state is RUNNING and not request.output_tokens:
                    scheduler.on_prompt_counted(request.id, rng.randrange(1, 50))
                    scheduler.on_first_token(request.id, now)
                scheduler.on_tokens(request.id, 3, now)
            case 5 if scheduler.in_flight:
                ended = self.one_of(queued=False)
                scheduler.on_complete(ended.id, now, Outcome("stop", ended.output_tokens))
                self.recent.ended(ended)
            case 6:
                scheduler.cancel(self.one_of(queued=rng.random() < 0.5 or not scheduler.in_flight).id, now)
            case 7 | 8:
                replica = rng.choice(scheduler.slots.replicas)
                if replica.up:
                    scheduler.on_engine_lost(replica.index, now)
                else:
                    scheduler.on_engine_up(replica.index)
            case 9:
                scheduler.begin_swap(policy_from(rng.choice(["priority", "fair", "lottery"])), now)
            case 10:
                scheduler.set_estimator(Guess(rng.randrange(1, 900)), now)
                scheduler.set_tenant(
                    replace(TENANTS[0], limits=Limits(max_in_flight=rng.randrange(1, 9))), now
                )
            case _:
                scheduler.swap_step(now, rng.randrange(30))
                scheduler.expire(now)
        scheduler.check()


@pytest.mark.parametrize("seed", range(40))
def test_a_picture_in_slices_is_of_one_instant(seed: int) -> None:
    busy = Busy(seed)
    for _ in range(100):
        busy.go_on()
    seen = (busy.scheduler, busy.recent, PROFILE, busy.now)
    at_once, exposure = Exposure(*seen).whole(), Exposure(*seen)
    slices: list[list[Pending]] = []
    for waiting in exposure.queued(7):
        slices.append(waiting)
        for _ in range(10):
            busy.go_on()
    assert replace(exposure.picture, queued=tuple(chain(*slices))) == at_once
    assert Exposure(busy.scheduler, busy.recent, PROFILE, busy.now).whole() != at_once
    assert len(at_once.queued) + len(at_once.running) > 20


def test_what_waits_again_after_a_crash_waits() -> None:
    scheduler = make_scheduler(capacities=(2,))
    for request in crowd(5):
        scheduler.submit(request, 10.0)
    first = scheduler.next_dispatch(10.0)
    assert first is not None
    scheduler.on_first_token(first.id, 11.0)
    scheduler.on_tokens(first.id, 5, 11.0)
    (running,) = taken(scheduler).running
    assert (running.generated, running.first_token_s) == (5, 11.0)
    scheduler.on_engine_lost(0, 12.0)
    again = taken(scheduler).queued
    assert [request.arrival_s for request in again] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert {(request.generated, request.first_token_s) for request in again} == {(0, None)}


def taken(scheduler: Scheduler) -> Picture:
    return Exposure(scheduler, Recent(), PROFILE, 20.0).whole()


async def test_the_loop_turns_between_the_parts_of_a_picture() -> None:
    what, turns = picture(queued=1200, ratios={("acme", "summary", 9): (0.5, 2.0)}), 0

    async def spin() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    spinning = asyncio.create_task(spin())
    slices = [what.queued[first : first + 500] for first in (0, 500, 1000)]
    packed = await pack(what, slices, 10.0)
    spinning.cancel()
    assert turns >= len(packed.parts) == 6, "what is small, who runs, who came, and three slices"
    assert unpacked(packed.parts) == what
    assert (packed.horizon_s, packed.step_s) == (horizon_of(what), 10.0)
    assert unpacked(packed_whole(what)) == what


def test_an_empty_picture_survives_being_sent() -> None:
    what = picture(queued=0, running=0, arrivals=())
    assert unpacked(packed_whole(what)) == what
