"""Previews beside a live run: the loop stays free, nothing is left behind, and it works from afar."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from math import ceil, inf
from pathlib import Path

import psutil
import pytest
from gateway_kit import serving
from processes import running_children
from test_preview import packed_whole, picture
from waiting import until

from scheduler.core.bounds import Figures
from scheduler.core.guard import CHECK_S
from scheduler.core.policies import POLICIES, policy_from
from scheduler.gateway.remote import RemoteFeed
from scheduler.live.feed import LocalFeed
from scheduler.live.players import Packed, PlayerLost, Players
from scheduler.live.preview import _table
from scheduler.live.preview_child import LENGTH, Job
from scheduler.live.run import LiveRun
from scheduler.live.view import CommandError, Preview
from scheduler.load.scenario import load_scenario
from scheduler.plan import make_plan
from scheduler.twin.future import draw_future
from scheduler.twin.preview import Played, play

SCENARIO = """
name: busy
speed: 20
tenants: [{name: acme, tier: premium}, {name: lab, tier: batch}]
load: [{tenant: {acme: 1, lab: 1}, arrivals: {poisson: 9}, for: 400s}]
"""


@pytest.fixture(autouse=True)
def few_futures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.live.preview.BANDS_S", 0.3)
    monkeypatch.setattr("scheduler.live.preview.MIN_FUTURES", 2)


@asynccontextmanager
async def running(folder: Path, text: str = SCENARIO) -> AsyncIterator[LiveRun]:
    (folder / "s.yaml").write_text(text, encoding="utf-8")
    run = LiveRun(make_plan(load_scenario(str(folder / "s.yaml"))))
    await run.start()
    try:
        yield run
    finally:
        await run.stop()


def children() -> list[psutil.Process]:
    return [child for child, line in running_children() if "preview_child" in line]


async def test_what_the_processes_play_is_what_the_twin_plays() -> None:
    what, found = picture(), {}

    def keep(policy: str, seed: int, played: Played) -> None:
        found[policy, seed] = played

    players = Players()
    jobs = [(policy, seed) for policy in ("fifo", "sjf", "fair") for seed in (0, 3)]
    try:
        await players.play(Packed(packed_whole(what), 30.0, 10.0), jobs, keep)
    finally:
        await players.stop()
    assert found == {
        (policy, seed): play(what, policy, draw_future(what, 30.0, seed), 30.0, 10.0) for policy, seed in jobs
    }
    assert children() == []


def test_a_process_is_soon_up() -> None:
    """What takes long to import is left to those who need it."""
    code = "import sys, scheduler.live.preview_child; print(*sys.modules)"
    imported = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "scheduler.twin.preview" in imported
    assert {"numpy", "pydantic", "yaml", "aiohttp", "textual", "asyncio"}.isdisjoint(imported)


async def test_a_killed_process_is_told_and_replaced() -> None:
    players, packed = Players(), Packed(packed_whole(picture()), 30.0)
    try:
        await players.play(packed, [("fifo", 0), ("sjf", 0)], lambda *_: None)
        for child in children():
            child.kill()
        with pytest.raises(PlayerLost):
            await players.play(packed, [("fifo", 0), ("sjf", 0)], lambda *_: None)
        await players.play(packed, [("fifo", 0), ("sjf", 0)], lambda *_: None)
    finally:
        await players.stop()


async def test_a_play_that_is_cancelled_waits_for_nothing() -> None:
    """Not for a process that is starting, nor for the end of its job."""
    players = Players()
    packed = Packed(packed_whole(picture()), 30.0)
    playing = asyncio.create_task(players.play(packed, [("fifo", 0)], lambda *_: None))
    await until(lambda: len(children()) > 0)
    (child,) = children()
    child.suspend()  # it will not be done before it is told to go on
    try:
        playing.cancel()
        async with asyncio.timeout(10.0):
            with pytest.raises(asyncio.CancelledError):
                await playing
    finally:
        with suppress(psutil.NoSuchProcess):
            child.resume()
        await players.stop()


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 6, 10])
async def test_a_play_may_be_left_while_its_process_starts(turns: int) -> None:
    players, packed = Players(), Packed(packed_whole(picture()), 30.0)
    playing = asyncio.create_task(players.play(packed, [("fifo", 0), ("sjf", 0)], lambda *_: None))
    for _ in range(turns):
        await asyncio.sleep(0)
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    await players.stop()
    assert children() == []


async def test_a_process_ends_with_its_stdin_in_the_middle_of_a_job() -> None:
    """As it does when whoever started it is killed: the pipe closes."""
    players = Players()
    try:
        await players.play(Packed(packed_whole(picture()), 1.0), [("fifo", 0)], lambda *_: None)
        (child,) = children()
        parts = packed_whole(picture(queued=50_000))
        job = pickle.dumps(Job(len(parts), "fair+two-class", 0, 480.0, inf))
        process = players._players[0]._process or players._players[1]._process
        assert process is not None
        assert process.stdin is not None
        for data in (job, *parts):
            process.stdin.write(LENGTH.pack(len(data)) + data)
        await process.stdin.drain()
        process.stdin.close()
        await until(lambda: child not in children())
    finally:
        await players.stop()


async def test_an_operator_gets_points_then_bands(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        feed = LocalFeed(run)
        assert feed.previewed() is None
        await until(lambda: run.scheduler.books.totals.queued > 20)
        with pytest.raises(CommandError, match="unknown policy 'sjx'"):
            feed.preview(["sjx"])
        feed.preview(["sjf", "two-class q=0.4"])
        await until(lambda: (preview := feed.previewed()) is not None and preview.done)
        preview = feed.previewed()
        assert preview is not None
        assert preview.error == ""
        assert list(preview.policies) == ["fifo", "sjf", "two-class q=0.4"]
        for row in preview.policies.values():
            assert row.low["e2e.p50"] <= row.figures["e2e.p50"] <= row.high["e2e.p50"]
        assert preview.policies["sjf"].figures["e2e.p50"] < preview.policies["fifo"].figures["e2e.p50"]
    assert children() == []


async def test_predicted_beside_observed_after_a_switch(tmp_path: Path) -> None:
    async with running(tmp_path, SCENARIO.replace("speed: 20", "speed: 40")) as run:
        await until(lambda: run.scheduler.books.totals.queued > 20)
        await run.previewer.forecasts(["fifo"], 2)  # the processes are up: they have 3 s for what follows
        run.session.switch_policy(policy_from("fifo"), by="me")
        run.session.switch_policy(policy_from("sjf"), by="me")
        told = "sjf: predicted p50 "
        await until(lambda: any(told in notice.text for notice in run.notices.after(0)))
        (found,) = run.previewer.document(run.clock.now())
        assert found["observed_s"] == pytest.approx(found["horizon_s"], abs=1.0)
        assert found["predicted"]["e2e.p50"] < found["stay"]["e2e.p50"]
        latest = run.previewer._predictions.latest
        assert latest is not None
        checks = ceil(
            found["horizon_s"] / CHECK_S
        )  # by rounding, the last one falls on the horizon or before it
        assert len(latest.course) in (checks - 1, checks), "for the guard to go by"


async def test_a_switch_that_cannot_be_predicted_ends_the_span_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as run:
        await until(lambda: run.scheduler.books.totals.queued > 20)
        run.session.switch_policy(policy_from("sjf"), by="me")
        monkeypatch.setattr("scheduler.live.preview.MAX_PICTURED", 10)
        await asyncio.sleep(0)
        run.session.switch_policy(policy_from("fair"), by="me")
        assert run.previewer.beside(run.clock.now() + 60.0) is None
        first, second = run.previewer.document(run.clock.now())
    assert (first["to"], second["from"]) == ("sjf", "sjf")
    assert first["observed"]["here"] > 20
    assert first["observed_s"] == pytest.approx(second["at_s"] - first["at_s"])
    assert (second["stay"], second["predicted"]) == (None, None)


async def test_guard_and_autopilot_steer_a_live_run(tmp_path: Path) -> None:
    text = SCENARIO + (
        "policy: {auto: {candidates: [sjf], every: 10s, gain: 5%}}\n"
        "guard: {when: e2e.p50 > 0.1s, over: 10s, hold: 0s, cooldown: 1s}\n"
    )
    async with running(tmp_path, text) as run:
        await until(lambda: len(run.session.switches) >= 2)
        looked_again_s = run.session.switches[1]["at_s"] + 3 * CHECK_S
        await until(lambda: run.clock.now() > looked_again_s)
        done = [(switch["to"], switch["by"]) for switch in run.session.switches]
        assert done == [("sjf", "autopilot"), ("fifo", "guard")], "what the guard did is not undone by it"


async def test_a_pause_is_not_the_fault_of_the_switch_before_it(tmp_path: Path) -> None:
    guard = "guard: {when: e2e.p50 > 0.1s, over: 10s, hold: 0s, cooldown: 1s}\n"
    async with running(tmp_path, SCENARIO + guard) as run:
        await until(lambda: run.scheduler.books.totals.queued > 20)
        run.session.switch_policy(policy_from("sjf"), by="me")
        run.session.pause(by="me")
        resumed_s = run.clock.now() + 1.5 * CHECK_S
        await until(lambda: run.clock.now() > resumed_s)
        run.session.resume(by="me")
        await until(lambda: run.clock.now() > resumed_s + 3 * CHECK_S)
        assert [switch["by"] for switch in run.session.switches] == ["me"]


async def test_what_is_observed_of_a_switch_ends_with_a_pause(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        await until(lambda: run.scheduler.books.totals.queued > 20)
        run.session.switch_policy(policy_from("sjf"), by="me")
        await until(lambda: run.clock.now() > run.session.switches[0]["at_s"] + 1.0)
        run.session.pause(by="me")
        paused_s = run.clock.now()
        await until(lambda: run.clock.now() > paused_s + 1.0)
        run.session.switch_policy(policy_from("fair"), by="me")
        run.session.resume(by="me")
        first, second = run.previewer.document(run.clock.now() + 10.0)
    assert first["observed_s"] == pytest.approx(paused_s - first["at_s"], abs=0.5)
    assert first["observed"]["ended"] > 0
    assert second["observed_s"] == 0.0, "begun while nothing was dispatched"


async def test_from_afar() -> None:
    async with serving() as served, RemoteFeed(served.url) as feed:

        def latest() -> Preview | None:
            return feed.previewed()

        feed.preview(["sjx"])
        await until(lambda: (preview := latest()) is not None and "unknown policy" in preview.error)
        feed.preview()
        await until(lambda: (preview := latest()) is not None and preview.done)
        preview = latest()
        assert preview is not None
        assert set(preview.policies) >= {policy_from(name).describe() for name in POLICIES}


def test_a_table_shows_the_mean_over_the_futures_that_all_have_met() -> None:
    def figures(*p50s: float) -> dict[int, Figures]:
        return {seed: {"e2e.p50": p50, "tenants.lab.e2e.mean": p50} for seed, p50 in enumerate(p50s)}

    assert _table({"fifo": {}, "sjf": figures(4.0)})["sjf"].figures["e2e.p50"] == 4.0
    both = _table({"fifo": figures(1.0, 3.0, 9.0), "sjf": figures(4.0, 5.0)})
    assert [row.figures["e2e.p50"] for row in both.values()] == [2.0, 4.5]
    assert [(row.low["e2e.p50"], row.high["e2e.p50"]) for row in both.values()] == [(1.0, 3.0), (4.0, 5.0)]
    assert [row.longer for row in both.values()] == [(), ("lab",)]
