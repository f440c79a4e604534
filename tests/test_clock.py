"""The clock of simulated engines: nothing is missed, and nothing is moved by a loop that is late."""

from __future__ import annotations

import asyncio
import time

import pytest

from scheduler.engines.clock import SETTLE_TURNS, PlannedClock


def block(real_s: float) -> None:
    """Keep the loop busy: what the clock must bear."""
    time.sleep(real_s)


async def fire_all(clock: PlannedClock, *whens: float) -> list[tuple[float, float]]:
    """(planned, shown when called) of callbacks asked for at these instants, in the order of the calls."""
    seen: list[tuple[float, float]] = []
    over = asyncio.Event()
    for when in whens:
        clock.call_at(when, lambda when=when: seen.append((when, clock.now())))
    clock.call_at(max(whens), over.set)
    await over.wait()
    return seen


@pytest.fixture
async def clock() -> PlannedClock:
    clock = PlannedClock(asyncio.get_running_loop(), speed=100.0)
    clock.start()
    for _ in range(SETTLE_TURNS + 1):  # it stands at 0 until what begins with the run is done
        await asyncio.sleep(0)
    return clock


async def test_a_busy_loop_moves_no_instant(clock: PlannedClock) -> None:
    asyncio.get_running_loop().call_soon(block, 0.1)  # 10 s of the run
    soon = clock.now() + 5.0
    seen = await fire_all(clock, soon, soon + 2.0, soon + 1.0)
    assert seen == [(soon, soon), (soon + 1.0, soon + 1.0), (soon + 2.0, soon + 2.0)]


async def test_time_does_not_pass_what_is_due(clock: PlannedClock) -> None:
    soon = clock.now() + 5.0
    clock.call_at(soon, lambda: None)
    block(0.1)
    assert clock.now() == soon


async def test_time_stands_still_until_what_follows_is_done(clock: PlannedClock) -> None:
    shown: list[float] = []
    done = asyncio.Event()

    async def follow(more: int) -> None:
        shown.append(clock.now())
        if more:
            asyncio.get_running_loop().create_task(follow(more - 1))
        else:
            done.set()

    soon = clock.now() + 5.0
    clock.call_at(soon, lambda: asyncio.ensure_future(follow(2)))
    clock.call_at(soon + 1e-9, lambda: None)
    block(0.1)
    await done.wait()
    assert shown == [soon] * 3


async def test_the_past_is_now(clock: PlannedClock) -> None:
    block(0.02)
    before = clock.now()
    ((_, shown),) = await fire_all(clock, 0.5)
    assert shown >= before > 0.5


async def test_a_cancelled_callback_neither_comes_nor_holds_up_time(clock: PlannedClock) -> None:
    called: list[str] = []
    clock.call_at(0.5, called.append, "no").cancel()
    block(0.02)
    assert clock.now() > 0.5
    await fire_all(clock, 3.0)
    assert called == []


async def test_what_was_cancelled_is_forgotten(clock: PlannedClock) -> None:
    soon = clock.now() + 5.0
    whens = [soon + at / 100 for at in range(100)]
    for when in whens:
        for _ in range(30):  # as a session whose next timer moves at each of its turns
            clock.call_at(soon + 1e6, lambda: None).cancel()
        clock.call_at(when, lambda: None)
    assert len(clock._planned) <= 2 * len(whens) + 1
    assert await fire_all(clock, *reversed(whens)) == [(when, when) for when in whens]


async def test_time_goes_on_by_itself_at_its_speed(clock: PlannedClock) -> None:
    began_s = time.monotonic()
    began = clock.now()
    block(0.03)
    passed = clock.now() - began
    assert 3.0 <= passed <= 100.0 * (time.monotonic() - began_s)
