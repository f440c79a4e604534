"""Charts whose lines differ a lot, or are many."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_feed import EIGHT, FakeFeed, many
from ui_kit import running, text_of

from driftui import palette
from driftui.app import DriftApp
from driftui.widgets.raster import scale


async def chart_with(*depths: int) -> str:
    feed = FakeFeed(EIGHT[: len(depths)])
    queued = replace(feed.view()).snapshot
    tenants = tuple(replace(t, queued=depth) for t, depth in zip(queued.tenants, depths, strict=True))
    feed.changes["snapshot"] = replace(queued, tenants=tenants)
    async with running(feed, seconds=1) as (app, _, _):
        return "\n".join(text_of(app).splitlines()[5:20])


@pytest.mark.parametrize(
    ("depths", "log"),
    [
        ((40_000, 30), True),
        ((40_000, 30_000, 12), True),
        ((400, 30), False),
        ((40_000, 3), False),
        ((7,), False),
    ],
)
async def test_where_one_queue_would_flatten_another_the_axis_is_logarithmic(
    depths: tuple[int, ...], log: bool
) -> None:
    shown = await chart_with(*depths)
    assert ("Queue depth by tenant, log scale" in shown) == log


async def test_the_scale_does_not_go_back_and_forth() -> None:
    feed = FakeFeed(EIGHT[:2])
    async with running(feed, seconds=0) as (app, _, _):
        chart = app.main.charts[0]
        for at_s, depth, log in ((1.0, 9, False), (2.0, 10, True), (70.0, 6, True), (140.0, 4, False)):
            queue(app, feed, at_s, 40_000, depth)
            assert ("log scale" in chart.title) == log, depth


def queue(app: DriftApp, feed: FakeFeed, at_s: float, *depths: int) -> None:
    """One frame with these queues, the only one in its minute."""
    feed.changes.clear()
    feed.now = at_s
    snapshot = feed.view().snapshot
    tenants = tuple(replace(t, queued=depth) for t, depth in zip(snapshot.tenants, depths, strict=True))
    feed.changes["snapshot"] = replace(snapshot, tenants=tenants)
    app.tick()


@pytest.mark.parametrize("rows", [3, 5, 11, 40])
def test_a_logarithmic_axis_has_ticks_at_whole_powers(rows: int) -> None:
    low, high, ticks = scale(np.array([[0.0, 5.6]]), 0.0, 1.0, rows, whole=True)
    assert ticks == [round(tick) for tick in ticks]
    assert low <= 0
    assert high >= 5.6
    assert 1 <= len(ticks) <= 7


async def test_of_thirty_tenants_no_two_are_drawn_alike() -> None:
    looks = {(palette.tenant(place), palette.stroke(place)) for place in range(30)}
    assert len(looks) == 30
    async with running(FakeFeed(many(30)), seconds=3) as (app, pilot, _):
        await pilot.press("1", *["down"] * 15)
        await pilot.pause()
        assert "╍ tenant-15" in text_of(app)
        await pilot.press(*["down"] * 10)
        await pilot.pause()
        assert "┅ tenant-25" in text_of(app)
