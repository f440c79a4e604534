"""``driftsched replay``: the dashboard on a recorded run. Its keys move in time; none changes the run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from textual.pilot import Pilot
from ui_kit import text_of

from driftui.app import DriftApp
from driftui.commands import on_screen
from driftui.history import Grid
from driftui.screens.replay import ReplayScreen
from scheduler.cli import main
from scheduler.live.replay import FASTEST, ReplayFeed
from scheduler.live.view import CommandError
from scheduler.load.scenario import load_scenario
from scheduler.plan import make_plan, run_header
from scheduler.record.playback import Playback
from scheduler.record.recording import Recording, read_recording
from scheduler.virtual import VirtualRun


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("replayed") / "run"
    VirtualRun(make_plan(load_scenario("demo"), clock="virtual"), out=where).run()
    return where


@pytest.fixture(scope="module")
def recording(folder: Path) -> Recording:
    return read_recording(folder)


class Wall:
    """A clock that is set by hand, and may go on by a little whenever it is looked at."""

    now_s = 100.0
    step_s = 0.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


Replay = tuple[DriftApp, Pilot[None], ReplayFeed, Wall]


@asynccontextmanager
async def replaying(recording: Recording, size: tuple[int, int] = (160, 48)) -> AsyncIterator[Replay]:
    wall = Wall()
    feed = ReplayFeed(recording, clock=wall)
    app = DriftApp(feed, auto_refresh=False)
    async with app.run_test(size=size, notifications=True) as pilot:
        app.tick()
        await pilot.pause()
        yield app, pilot, feed, wall


@pytest.mark.parametrize(
    ("scenario", "policy", "armed"),
    [("demo", None, (False, False)), ("autopilot", None, (True, True)), ("autopilot", "sjf", (True, False))],
)
def test_run_json_says_what_was_armed(scenario: str, policy: str | None, armed: tuple[bool, bool]) -> None:
    header = run_header(make_plan(load_scenario(scenario), policy=policy, clock="virtual"), "", 1, "virtual")
    assert (header["guarded"], header["autopilot"]) == armed


def test_it_tells_what_was_armed(recording: Recording) -> None:
    for armed in ({}, {"guarded": True}, {"autopilot": True}):
        document = {**recording.document, **armed}
        view = ReplayFeed(replace(recording, document=document), clock=Wall()).view()
        assert (view.guarded, view.autopilot) == ("guarded" in armed, "autopilot" in armed)


def test_a_run_of_a_version_that_did_not_tell_what_was_armed(recording: Recording) -> None:
    document = {k: v for k, v in recording.document.items() if k not in ("guarded", "autopilot")}
    view = ReplayFeed(replace(recording, document=document), clock=Wall()).view()
    assert (view.guarded, view.autopilot) == (False, False)


def test_it_plays_at_its_pace_holds_and_ends(recording: Recording) -> None:
    wall = Wall()
    feed = ReplayFeed(recording, speed=4.0, clock=wall)
    wall.now_s += 5
    assert feed.view().snapshot.now == 20.0
    feed.play(False)
    wall.now_s += 5
    assert feed.view().snapshot.now == 20.0
    assert feed.view().replay == "held"
    feed.play(True)
    feed.set_speed(1e9)
    assert feed.speed == FASTEST
    wall.now_s += 5
    view = feed.view()
    assert (view.replay, view.scenario_done, view.snapshot.now) == ("over", True, recording.duration_s)


async def test_at_high_speed_the_charts_have_more_than_the_frames(recording: Recording) -> None:
    async with replaying(recording) as (app, _, feed, wall):
        feed.set_speed(16.0)
        for _ in range(10):
            wall.now_s += 0.25
            app.tick()
        assert len(app.history) == 1 + 10 * 4
        feed.set_speed(1.0)
        wall.now_s += 0.25
        app.tick()
        assert len(app.history) == 1 + 10 * 4 + 1


def test_a_seek_shows_the_same_wherever_it_comes_from(recording: Recording) -> None:
    feeds = [ReplayFeed(recording, clock=Wall()) for _ in range(2)]
    list(feeds[0].seek(95.0, 35.0))
    for at_s in (140.0, 10.0, 95.0):
        views = list(feeds[1].seek(at_s, at_s - 60.0))
        assert len(views) == 240
    one, other = (feed.view().snapshot for feed in feeds)
    assert (one.now, one.counts, one.queued, one.e2e) == (other.now, other.counts, other.queued, other.e2e)
    assert [notice.text for notice in feeds[0].notices()] == [notice.text for notice in feeds[1].notices()]
    assert {notice.kind for notice in feeds[0].notices()} == {"scenario", "policy", "drift", "slo"}


def test_a_recorded_run_cannot_be_changed(recording: Recording) -> None:
    feed = ReplayFeed(recording)
    verbs: tuple[Callable[[], object], ...] = (
        feed.pause,
        feed.resume,
        feed.undo_policy,
        lambda: feed.switch_policy("sjf"),
        lambda: feed.switch_estimator("learned"),
        lambda: feed.inject("demo"),
        lambda: feed.burst("a", 1, 1),
        feed.stop_loads,
        lambda: feed.set_tenant("a", weight=2),
        feed.preview,
    )
    for verb in verbs:
        with pytest.raises(CommandError, match="watched, not changed"):
            verb()
    actions = {command.action for command in on_screen("replay")}
    assert not actions & {"policy", "undo", "estimator", "inject", "pause", "freeze"}
    assert actions >= {"play", "seek(-10)", "seek(10)", "tenant", "help", "app.quit"}


async def test_seeking_by_keys_fills_the_charts_and_the_events(recording: Recording) -> None:
    async with replaying(recording) as (app, pilot, feed, wall):
        assert isinstance(app.screen, ReplayScreen)
        assert "REPLAY" in text_of(app)
        await pilot.press("end")
        await pilot.pause()
        shown = text_of(app)
        assert "REPLAY OVER" in shown
        assert "1:30 ◆ policy" in shown
        assert "fifo → sjf: " in shown
        assert " by timeline" in shown
        await pilot.press("left", "left", "left", "left", "left", "left")
        await pilot.pause()
        assert feed.position_s == recording.duration_s - 60
        shown = text_of(app)
        assert "fifo → sjf" not in shown
        assert "policy fifo" in shown
        queue = app.history.buckets("queue", Grid.ending(feed.position_s, 60, 60), "checkout-assistant")
        assert np.isfinite(queue).all()
        wall.now_s += 4
        app.tick()
        assert feed.position_s == recording.duration_s - 56
        await pilot.press("space", "right_square_bracket", "right")
        await pilot.pause()
        wall.now_s += 4
        app.tick()
        assert feed.position_s == recording.duration_s - 46
        assert "REPLAY HELD" in text_of(app)
        assert "×2" in text_of(app).splitlines()[0]


async def test_going_on_does_not_begin_anew(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    async with replaying(recording) as (app, pilot, feed, wall):
        for _ in range(60):
            wall.now_s += 0.5
            app.tick()
        monkeypatch.setattr(Playback, "restart", None)
        await pilot.press("space", "right", "right")
        assert feed.position_s == 50.0
        queue = app.history.buckets("queue", Grid.ending(50.0, 48.0, 48), "checkout-assistant")
        assert np.isfinite(queue).all()
        while feed.state != "over":  # past the end, too
            await pilot.press("right")
        assert feed.position_s == recording.duration_s


async def test_going_on_while_it_plays_keeps_the_charts(recording: Recording) -> None:
    async with replaying(recording) as (app, pilot, feed, wall):
        for _ in range(60):
            wall.now_s += 0.5
            app.tick()
        wall.step_s = 1e-4
        await pilot.press("right")
        queue = app.history.buckets("queue", Grid.ending(feed.position_s, 38.0, 38), "checkout-assistant")
        assert np.isfinite(queue).all()


async def test_two_hours_are_drawn_at_once_and_no_thinner(recording: Recording) -> None:
    *before, last = recording.steps
    long = replace(recording, steps=(*before, last._replace(at_s=5000.0)))
    async with replaying(long) as (app, pilot, feed, _):
        await pilot.press(*["equals_sign"] * 9, "end")
        await pilot.pause()
        assert feed.position_s == 5000.0
        assert "└-2h -1h30 -1h -30m now " in " ".join(text_of(app).split())
        assert len(app.history) > 5000 / 600 * 240


async def test_a_narrow_screen_shows_where_a_held_replay_is(recording: Recording) -> None:
    async with replaying(recording, size=(80, 24)) as (app, pilot, _, wall):
        wall.now_s += 53
        await pilot.press("right_square_bracket", "right_square_bracket", "space")
        await pilot.pause()
        assert "REPLAY HELD" in text_of(app)
        assert "0:53/2:20 ×4" in text_of(app)


async def test_the_machine_is_in_the_status_line(recording: Recording) -> None:
    rows = ({"elapsed_s": 5.0, "cpu_share": 0.42, "engine_kv_use": 0.31, "loop_lag_p99_ms": 7.0},)
    async with replaying(replace(recording, telemetry=rows)) as (app, pilot, _, wall):
        assert "cpu" not in text_of(app).splitlines()[0]
        wall.now_s += 6
        app.tick()
        await pilot.pause()
        line = text_of(app).splitlines()[0]
        assert "kv 31%" in line
        assert "lag  7ms" in line
        assert "cpu 42%" in line


async def test_playing_again_from_the_end_and_leaving_at_once(recording: Recording) -> None:
    async with replaying(recording) as (app, pilot, feed, wall):
        await pilot.press("end", "space")
        assert feed.position_s == 0.0
        wall.now_s += 30
        app.tick()
        assert feed.view().snapshot.in_flight > 0
        await pilot.press("p", "s", "P", "u")
        assert isinstance(app.screen, ReplayScreen)
        await pilot.press("t")
        await pilot.pause()
        assert "submitted" in text_of(app)
        assert "max queued" not in text_of(app)  # nothing to be changed
        assert "apply" not in text_of(app)
        await pilot.press("enter")
        assert app.screen is app.main
        await pilot.press("question_mark")
        await pilot.pause()
        assert "Half the speed." in text_of(app)
        assert "Switch the policy" not in text_of(app), "of what does nothing here"
        await pilot.press("escape", "q")
        assert app.leaving


def test_the_command_names_what_it_cannot_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(folder)]) == 2
    assert "replay needs a terminal" in capsys.readouterr().err
    monkeypatch.setattr("scheduler.cli._on_terminal", lambda *_: True)
    assert main(["replay", str(tmp_path)]) == 2
    assert "no run folder" in capsys.readouterr().err
    (tmp_path / "run.json").write_text((folder / "run.json").read_text())
    (tmp_path / "events.jsonl").write_text('{"t":0.0,"e":"scenario","what":"x"}\nnonsense\n')
    assert main(["replay", str(tmp_path)]) == 2
    assert "events.jsonl:2: not a line of an event log" in capsys.readouterr().err
