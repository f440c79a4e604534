"""Ways out of the dashboard: what is asked, what is shown meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_feed import FakeFeed
from textual.worker import WorkerFailed
from ui_kit import running, text_of
from waiting import until

from driftui import live
from driftui.app import DriftApp
from driftui.screens.main import MainScreen
from driftui.screens.quit import QuitScreen
from scheduler.engines.engine import EngineError, EngineLost
from scheduler.engines.simulated import SimulatedEngine
from scheduler.live.feed import LocalFeed
from scheduler.live.run import LiveRun
from scheduler.load.scenario import load_scenario
from scheduler.plan import make_plan


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


Leave = Callable[[], Awaitable[None]]


async def leave_by(
    monkeypatch: pytest.MonkeyPatch,
    way_out: Callable[[LocalFeed, Leave], Awaitable[int]],
    scenario: str = "demo",
    record: Path | None = None,
) -> int:
    """The exit code of a live run whose dashboard is this."""

    async def dashboard(feed: LocalFeed, *, on_quit: Leave, on_hurry: Callable[[], None]) -> int:
        return await way_out(feed, on_quit)

    monkeypatch.setattr(live, "run_dashboard", dashboard)
    return await live._run(make_plan(load_scenario(scenario)), speed=10.0, record=record, listen=None)


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> list[LiveRun]:
    """The runs that were stopped, each as often as it was."""
    stopped, stop = [], LiveRun.stop

    async def count(run: LiveRun, **how: Any) -> object:
        stopped.append(run)
        return await stop(run, **how)

    monkeypatch.setattr(LiveRun, "stop", count)
    return stopped


async def test_a_run_is_left_once_though_its_engine_dies_meanwhile(
    stops: list[LiveRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(feed: LocalFeed, leave: Leave) -> int:
        await leave()
        stops[0].session.fail(EngineLost("it died"))
        return 0

    with pytest.raises(EngineLost, match="it died"):
        await leave_by(monkeypatch, dies)
    assert len(stops) == 1


async def test_a_dashboard_that_crashes_on_its_way_out_leaves_no_engine(
    stops: list[LiveRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crashes(feed: LocalFeed, leave: Leave) -> int:
        leaving = asyncio.ensure_future(leave())
        async with asyncio.timeout(20):
            while not stops:  # noqa: ASYNC110 (to stop takes but a few turns of the loop)
                await asyncio.sleep(0)
        leaving.cancel()
        return 1

    assert await leave_by(monkeypatch, crashes) == 1
    assert stops[0].engine.telemetry().running is None, "it is down"
    assert len(stops) == 2


async def test_a_start_that_fails_whyever_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(engine: SimulatedEngine) -> None:
        raise KeyError("words of a prompt")

    async def waits(feed: LocalFeed, leave: Leave) -> int:
        await until(lambda: feed.view().engine_state == "dead")
        await leave()
        return 0

    monkeypatch.setattr(SimulatedEngine, "start", start)
    with pytest.raises(EngineError, match=r"^KeyError$"):
        await leave_by(monkeypatch, waits)


@pytest.mark.parametrize("early", [True, False])
async def test_a_run_that_is_left_before_its_load_is_done_was_interrupted(
    early: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = tmp_path / "one.yaml"
    scenario.write_text(
        "name: one\ntenants: [{name: acme}]\nload: [{tenant: acme, arrivals: at-once, count: 1}]\n"
    )

    async def leaves(feed: LocalFeed, leave: Leave) -> int:
        await until(lambda: feed.view().scenario_done or (early and feed.view().snapshot.in_flight > 0))
        await leave()
        return 0

    assert await leave_by(monkeypatch, leaves, str(scenario), tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["interrupted"] is early
