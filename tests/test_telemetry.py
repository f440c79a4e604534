"""How late the loop was: percentiles out of a histogram that does not grow."""

from __future__ import annotations

import asyncio
import random
from math import isnan

import pytest

from scheduler.core.metrics import nearest_rank
from scheduler.live.telemetry import LoopLag


async def test_percentiles_are_the_exact_ones_within_a_bucket() -> None:
    lag = LoopLag(asyncio.get_running_loop())
    assert isnan(lag.figures()["p99"])
    assert isnan(lag.recent_p99_ms())
    chance = random.Random(3)
    lags_s = [chance.lognormvariate(-8, 1.5) for _ in range(50_000)]
    for lag_s in lags_s:
        lag.note(lag_s)
    ordered, figures = sorted(lags_s), lag.figures()
    assert figures["p50"] == pytest.approx(nearest_rank(ordered, 0.5) * 1e3, rel=0.026)
    assert figures["p99"] == pytest.approx(nearest_rank(ordered, 0.99) * 1e3, rel=0.026)
    assert figures["max"] == ordered[-1] * 1e3
    assert lag.recent_p99_ms() == nearest_rank(sorted(lags_s[-1000:]), 0.99) * 1e3
    assert len(lag._counts) < 300
    assert len(lag._recent_s) == 1000


async def test_it_sees_a_loop_that_was_held_up_and_only_while_requests_run() -> None:
    loop = asyncio.get_running_loop()
    lag = LoopLag(loop, period_s=0.001)

    def hold_up() -> None:
        until_s = loop.time() + 0.05
        while loop.time() < until_s:
            pass

    lag.start()
    hold_up()
    await asyncio.sleep(0.005)
    assert isnan(lag.figures()["max"]), "nothing was dispatched"
    lag.begin()
    hold_up()
    await asyncio.sleep(0.005)
    lag.end()
    lag.stop()
    assert lag.figures()["max"] > 40
