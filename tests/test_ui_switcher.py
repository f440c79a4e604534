"""The policy switcher's table: what it has room for, and when it has nothing to say."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from fake_feed import FakeFeed
from ui_kit import running, text_of

from scheduler.live.view import Predicted, Preview

HERE = {"e2e.p50": 432.0, "e2e.p99": 432.2, "longest_wait_s": 432.2, "ended": 2_000.0, "here": 40_000.0}


def alike(feed: FakeFeed, **changes: float) -> Preview:
    """A preview that predicts the same of all policies, but ``changes`` of one."""
    there = feed.previewed()
    assert there is not None
    rows = dict.fromkeys(there.policies, Predicted(HERE))
    rows["sjf"] = Predicted({**HERE, **changes})
    return replace(there, policies=rows, horizon_s=420.0)


async def test_where_no_policy_makes_a_difference_the_switcher_says_so() -> None:
    feed = FakeFeed()
    preview = alike(feed)
    feed.previewed = lambda: preview  # type: ignore[method-assign]
    async with running(feed, (80, 24)) as (app, pilot, _):
        await pilot.press("p")
        await pilot.pause()
        shown = text_of(app)
        assert "no difference within the next 420 s (simulated)" in shown
        assert "432" not in shown
        assert feed.policies()["sjf"] in shown


async def test_a_preview_says_that_it_knows_no_pause() -> None:
    feed = FakeFeed()
    feed.changes["snapshot"] = replace(feed.view().snapshot, paused=True)
    async with running(feed, (80, 24)) as (app, pilot, _):
        await pilot.press("p")
        await pilot.pause()
        assert "E2E predicted for the next 120 s, if resumed (simulated)" in text_of(app)


async def test_it_is_not_said_before_all_are_predicted() -> None:
    feed = FakeFeed()
    preview = alike(feed)
    some = dict(list(preview.policies.items())[:3])
    feed.previewed = lambda: replace(preview, policies=some, done=False)  # type: ignore[method-assign]
    async with running(feed, (80, 24)) as (app, pilot, _):
        await pilot.press("p")
        await pilot.pause()
        assert "predicting what each policy would do" in text_of(app)
        assert "432" not in text_of(app)


@pytest.mark.parametrize("changes", [{"e2e.p99": 400.0}, {"ended": 41_000.0}])
async def test_a_difference_in_any_figure_or_answers_that_end_are_shown(changes: dict[str, float]) -> None:
    feed = FakeFeed()
    preview = alike(feed, **changes)
    feed.previewed = lambda: preview  # type: ignore[method-assign]
    async with running(feed, (80, 24)) as (app, pilot, _):
        await pilot.press("p")
        await pilot.pause()
        assert "no difference" not in text_of(app)
        assert "432 s" in text_of(app)


@pytest.mark.parametrize(
    ("width", "last"),
    [(60, "prem p99"), (67, "prem p99"), (79, "max wait"), (80, "max wait"), (100, "max wait")],
)
async def test_columns_that_there_is_no_room_for_are_left_out_whole(width: int, last: str) -> None:
    async with running(size=(width, 30)) as (app, pilot, _):
        await pilot.press("p")
        await pilot.pause()
        shown = text_of(app)
        titles = next(line for line in shown.splitlines() if "change" in line)
        assert re.search(rf"p50  change .*{last} ", titles), titles
        assert "● now" in shown
        assert ("p10-p90" in titles) == (width == 100)


async def test_the_table_follows_the_terminal_s_width() -> None:
    async with running(size=(120, 40)) as (app, pilot, _):
        await pilot.press("p")
        await pilot.pause()
        assert "p10-p90" in text_of(app)
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert "p10-p90" not in text_of(app)
