"""The dashboard over a made-up feed, for tests that press its keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fake_feed import FakeFeed
from textual.pilot import Pilot

from driftui.app import DriftApp

Run = tuple[DriftApp, Pilot[None], FakeFeed]


@asynccontextmanager
async def running(
    feed: FakeFeed | None = None, size: tuple[int, int] = (160, 48), seconds: float = 3.0
) -> AsyncIterator[Run]:
    feed = feed or FakeFeed()
    app = DriftApp(feed, on_quit=_stay, auto_refresh=False)
    async with app.run_test(size=size, notifications=True) as pilot:
        for _ in range(int(4 * seconds)):
            feed.advance(0.25)
            app.tick()
        await pilot.pause()
        yield app, pilot, feed


async def _stay() -> None:
    raise AssertionError("the run was stopped")


def text_of(app: DriftApp) -> str:
    """The composed screen, as a terminal would show it."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())
