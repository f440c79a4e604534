"""Ways out of the dashboard: what is asked, what is shown meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fake_feed import FakeFeed
from textual.worker import WorkerFailed
from ui_kit import running, text_of

from driftui.app import DriftApp
from driftui.screens.main import MainScreen
from driftui.screens.quit import QuitScreen


async def test_the_question_before_leaving_follows_the_run() -> None:
    async with running() as (app, pilot, feed):
        feed.changes["snapshot"] = replace(feed.view().snapshot, in_flight=1, queued=0)
        await pilot.press("q")
        await pilot.pause()
        assert "1 request in flight, 0 queued" in text_of(app)
        feed.changes["snapshot"] = replace(feed.view().snapshot, in_flight=2, queued=3)
        screen = app.screen
        assert isinstance(screen, QuitScreen)
        screen._follow()
        await pilot.pause()
        assert "2 requests in flight, 3 queued" in text_of(app)


async def test_quit_asks_while_requests_wait_for_a_paused_dispatch() -> None:
    async with running() as (app, pilot, feed):
        feed.changes["snapshot"] = replace(feed.view().snapshot, in_flight=0, queued=7, paused=True)
        await pilot.press("q")
        await pilot.pause()
        assert "7 queued" in text_of(app)
        assert "what is queued is cancelled" in text_of(app)
        await pilot.press("escape")
        assert isinstance(app.screen, MainScreen)


async def test_leaving_a_run_that_goes_on_elsewhere_asks_nothing() -> None:
    feed = FakeFeed()
    feed.advance(5)
    app = DriftApp(feed, auto_refresh=False)
    async with app.run_test() as pilot:
        assert feed.view().snapshot.in_flight
        await pilot.press("q")
        await app.workers.wait_for_complete()
    assert app.return_code == 0


@pytest.mark.parametrize("keys", [("q", "y"), ("ctrl+c", "y"), ("ctrl+c", "ctrl+c")])
async def test_quit_asks_while_requests_are_in_flight(keys: tuple[str, str]) -> None:
    stopped = []

    async def stop() -> None:
        stopped.append(True)

    feed = FakeFeed()
    feed.advance(5)
    app = DriftApp(feed, on_quit=stop, auto_refresh=False)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("q")
        await pilot.pause()
        assert "requests in flight" in text_of(app)
        await pilot.press("n")
        assert not stopped
        await pilot.press(*keys)
        await app.workers.wait_for_complete()
    assert stopped == [True]
    assert app.return_code == 0


async def test_quit_asks_nothing_when_nothing_runs_and_hurries_when_asked_again() -> None:
    said: list[str] = []
    release = asyncio.Event()

    async def stop() -> None:
        said.append("draining")
        await release.wait()

    app = DriftApp(FakeFeed([]), on_quit=stop, on_hurry=release.set, auto_refresh=False)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("q")
        await pilot.pause()
        assert said == ["draining"]
        assert "STOPPING" in text_of(app).splitlines()[0]
        await pilot.press("ctrl+c")
        await app.workers.wait_for_complete()
    assert app.return_code == 0


async def test_the_way_out_is_seen_though_the_display_was_frozen() -> None:
    release = asyncio.Event()

    async def stop() -> None:
        await release.wait()

    feed = FakeFeed()
    app = DriftApp(feed, on_quit=stop, auto_refresh=False)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("space", "q")
        await pilot.pause()
        feed.advance(20)
        app.tick()
        assert app.main.shown.frozen is None
        assert app.main.tenants.selected in feed.view().snapshot.tenants
        release.set()
        await app.workers.wait_for_complete()


async def test_a_run_that_cannot_be_stopped_is_seen() -> None:
    async def stop() -> None:
        raise OSError("the engine does not stop")

    app = DriftApp(FakeFeed([]), on_quit=stop, auto_refresh=False)

    async def leave() -> None:
        async with app.run_test() as pilot:
            await pilot.press("q")
            await pilot.pause()

    with pytest.raises(WorkerFailed, match="the engine does not stop"):
        await leave()
    assert app.return_code == 1
