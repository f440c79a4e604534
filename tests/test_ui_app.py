"""The dashboard as an operator uses it: keys in, commands at the feed, lines on the screen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
from fake_feed import EIGHT, FakeFeed, many
from rich.cells import cell_len
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input
from textual.worker import WorkerFailed

from driftui.app import DriftApp
from driftui.commands import DriftCommands, on_screen
from driftui.screens.dialog import Choices
from driftui.screens.main import MainScreen
from driftui.screens.policy import PolicyScreen
from driftui.screens.quit import QuitScreen
from driftui.screens.tenant import TenantScreen
from scheduler.core.policies import POLICIES, policy_from
from scheduler.core.types import Limits

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


async def test_switching_the_policy_reaches_the_feed() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("p", "down", "down", "down", "enter")
        await pilot.pause()
        assert feed.calls == [("switch_policy", "sjf")]
        assert isinstance(app.screen, MainScreen)
        app.tick()
        await pilot.pause()
        shown = text_of(app)
        assert "policy sjf" in shown
        assert "queued re-ranked in" in shown


@pytest.mark.parametrize("size", [(160, 48), (80, 24)])
async def test_an_engine_that_starts_says_so_where_events_will_be(size: tuple[int, int]) -> None:
    feed = FakeFeed()
    feed.changes |= {"engine_state": "starting", "simulated": False}
    feed._notices.clear()
    async with running(feed, size, seconds=0.25) as (app, pilot, _):
        assert "the engine starts; this takes half a minute or more" in text_of(app)
        feed.changes.clear()
        app.tick()
        await pilot.pause()
        assert "nothing yet" in text_of(app)


async def test_keys_typed_ahead_take_effect_one_after_another() -> None:
    async with running() as (app, pilot, feed):
        for key in ("p", "enter", "p", "down", "enter", "u", "s", "enter", "P", "t"):
            app.post_message(events.Key(key, key if len(key) == 1 else None))
        async with asyncio.timeout(10):
            while not isinstance(app.screen, TenantScreen):
                await pilot.pause()
        assert [call[:2] for call in feed.calls] == [
            ("switch_policy", "fifo"),
            ("switch_policy", "priority"),
            ("undo_policy",),
            ("inject", "demo"),
            ("pause",),
        ]


async def test_a_second_click_before_the_switcher_is_gone_changes_nothing() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("p")
        choices = app.screen.query_one(Choices)
        for _ in range(2):  # as both clicks of a double one call it, when the loop was busy meanwhile
            choices.action_select()
        await pilot.pause()
        assert feed.calls == [("switch_policy", "fifo")]
        assert app.screen is app.main


async def test_the_switcher_marks_the_running_policy_and_escape_changes_nothing() -> None:
    async with running() as (app, pilot, feed):
        feed.policy = "aging rate=0.05"
        await pilot.press("p")
        await pilot.pause()
        line = next(line for line in text_of(app).splitlines() if "● now" in line)
        assert "aging" in line
        await pilot.press("escape")
        assert feed.calls == []


async def test_an_open_switcher_follows_the_run() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("p")
        await pilot.pause()
        screen = app.screen
        assert isinstance(screen, PolicyScreen)
        asked = len(feed.asked)
        feed.policy = "sjf"  # somebody else's doing
        feed.advance(20.0)
        screen._follow()
        assert "as of 20 s ago" in str(screen.header.content)
        assert len(feed.asked) == asked + 1, "a preview against what orders now"
        screen._look()
        await pilot.pause()
        (line,) = (line for line in text_of(app).splitlines() if "● now" in line)
        assert "sjf" in line


async def test_an_old_preview_is_asked_anew_and_stands_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("p")
        screen = app.screen
        assert isinstance(screen, PolicyScreen)
        screen._look()
        table, asked = screen._rows(), len(feed.asked)
        for age_s in range(1, 32):
            feed.advance(1.0)
            screen._follow()
            assert len(feed.asked) == asked + age_s // 15
        there = feed.previewed()
        assert there is not None
        monkeypatch.setattr(feed, "previewed", lambda: replace(there, policies={}, done=False))
        screen._look()
        assert screen._rows() == table, "until the new one is there"
        assert "predicting" not in str(screen.header.content)


async def test_an_open_switcher_follows_the_run_without_a_preview(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as (app, pilot, feed):
        monkeypatch.setattr(feed, "previewed", lambda: None)
        feed.refuse = "no preview yet"
        await pilot.press("p")
        screen = app.screen
        assert isinstance(screen, PolicyScreen)
        for policy in ("sjf", "two-class q=0.4"):
            feed.policy = policy  # somebody else's doing
            screen._follow()
            await pilot.pause()
            (line,) = (line for line in text_of(app).splitlines() if "● now" in line)
            assert policy in line
        assert "no preview yet" in text_of(app)
        feed.refuse = ""
        screen._follow()
        await pilot.pause()
        assert len(feed.asked) == 1
        assert "no preview yet" not in text_of(app)
        screen._follow()
        assert len(feed.asked) == 1, "once it is taken, it is not asked anew"


async def test_a_preview_that_failed_says_why_until_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as (app, pilot, feed):
        there = feed.previewed()
        assert there is not None
        refused = replace(there, policies={}, error="no preview yet")
        monkeypatch.setattr(feed, "previewed", lambda: refused)
        await pilot.press("p")
        screen = app.screen
        assert isinstance(screen, PolicyScreen)
        await pilot.pause()
        assert "no preview yet" in text_of(app)
        assert "predict" not in text_of(app)
        monkeypatch.setattr(feed, "previewed", lambda: there)
        screen._look()
        await pilot.pause()
        assert "no preview yet" not in text_of(app)
        assert "E2E predicted" in text_of(app)


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
async def test_the_switcher_says_what_a_policy_does_and_to_whom(size: tuple[int, int]) -> None:
    longest = dict(sorted(POLICIES.items(), key=lambda policy: len(policy[1]))[-3:])
    feed = FakeFeed()
    there = feed.previewed()
    assert there is not None
    rows = {policy_from(name).describe(): there.policies["sjf"] for name in longest}
    feed.policies = lambda: longest  # type: ignore[method-assign]
    feed.previewed = lambda: replace(there, policies=rows)  # type: ignore[method-assign]
    async with running(feed, size) as (app, pilot, _):
        await pilot.press("p", "down")
        for name, summary in longest.items():
            await pilot.pause()
            shown = text_of(app).partition("to type one")[2]
            assert summary.split()[-1] in shown, name
            assert "longer for globex-batch, wayne-eval" in shown, name
            await pilot.press("down")


async def test_a_run_without_requests_has_nothing_to_predict() -> None:
    feed = FakeFeed()
    there = feed.previewed()
    assert there is not None
    rows = {
        name: replace(row, figures={"longest_wait_s": 0.0}, low={}) for name, row in there.policies.items()
    }
    feed.previewed = lambda: replace(there, policies=rows)  # type: ignore[method-assign]
    feed.changes["snapshot"] = replace(feed.view().snapshot, queued=0)
    async with running(feed) as (app, pilot, _):
        await pilot.press("p")
        await pilot.pause()
        assert "nothing to predict" in text_of(app)
        assert "nothing is queued" in text_of(app)


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


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
async def test_an_injected_scenario_is_told_whole(size: tuple[int, int]) -> None:
    feed = FakeFeed()
    summary = "what a scenario is, told at some length: so long that a narrow list cuts its end"
    feed.scenarios = lambda: {"one": "short", "two": summary}  # type: ignore[method-assign]
    async with running(feed, size) as (app, pilot, _):
        await pilot.press("s", "down")
        await pilot.pause()
        assert text_of(app).count("its end") == 1


async def test_undo_from_the_main_screen_and_from_the_switcher() -> None:
    async with running() as (app, pilot, feed):
        feed.policies_before = ["sjf", "aging"]
        await pilot.press("u")
        await pilot.press("p", "u")
        assert feed.calls == [("undo_policy",), ("undo_policy",)]
        assert isinstance(app.screen, MainScreen)


async def test_a_refusal_is_shown_and_keeps_the_dialog() -> None:
    async with running() as (app, pilot, feed):
        feed.refuse = "unknown \x1b[31mpolicy [/] 'x'"
        await pilot.press("p", "enter")
        await pilot.pause()
        assert not isinstance(app.screen, MainScreen)
        assert "policy [/] 'x'" in text_of(app)
        assert "\x1b" not in text_of(app)


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
async def test_switching_the_estimator(size: tuple[int, int]) -> None:
    async with running(size=size) as (app, pilot, feed):
        await pilot.press("e")
        await pilot.pause()
        assert "Now: tenant (mean)." in text_of(app)
        assert "were lately (median or" in text_of(app), "cut in a narrow list, but not below it"
        await pilot.press("down", "enter")
        assert feed.calls == [("switch_estimator", "learned")]
        assert isinstance(app.screen, MainScreen)


async def test_injecting_a_scenario() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("s", "down", "enter")
        assert feed.calls == [("inject", "noisy-neighbour")]
        assert isinstance(app.screen, MainScreen)


async def test_a_burst_of_the_tenant_under_the_cursor() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("down", "s", "tab", "end", "0", "tab", "enter")
        assert feed.calls == [("burst", "globex-batch", 400.0, 10.0)]
        assert isinstance(app.screen, MainScreen)


async def test_a_bad_burst_is_explained_and_not_sent() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("s", "tab", "end", "x", "enter")
        await pilot.pause()
        assert feed.calls == []
        assert "requests/s: a number above 0" in text_of(app)


async def test_pause_toggles() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("P")
        app.tick()
        await pilot.pause()
        assert "PAUSED" in text_of(app)
        await pilot.press("P")
        assert feed.calls == [("pause",), ("resume",)]


@pytest.mark.parametrize("key", ["t", "enter"])
async def test_editing_a_tenant(key: str) -> None:
    async with running() as (_, pilot, feed):
        await pilot.press("down", "down", key)
        await pilot.press("end", "backspace", "7", "tab", "end", "0", "tab", "4", "enter")
        limits = Limits(max_queued=5000, max_in_flight=4)
        assert feed.calls == [("set_tenant", "initech-rag", 7.0, limits)]


async def test_a_bad_limit_is_explained_and_not_sent() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("t", "tab", "end", "x", "enter")
        await pilot.pause()
        assert feed.calls == []
        assert "max queued: a whole number" in text_of(app)
        await pilot.press("escape")
        assert isinstance(app.screen, MainScreen)


async def test_freeze_stops_the_display_and_not_the_sampling() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("space")
        await pilot.pause()
        before = text_of(app).splitlines()
        samples = len(app.history)
        for _ in range(20):
            feed.advance(0.25)
            app.tick()
        await pilot.pause()
        after = text_of(app).splitlines()
        assert "FROZEN" in after[0]
        assert after[1:] == before[1:]
        assert len(app.history) == samples + 20
        await pilot.press("space")
        await pilot.pause()
        assert text_of(app).splitlines()[1:] != before[1:]


async def test_the_window_follows_its_keys() -> None:
    async with running() as (app, pilot, _):
        for keys, label in ((["minus"], "-30s"), (["equals_sign"] * 2, "-2m"), (["equals_sign"] * 5, "-10m")):
            await pilot.press(*keys)
            await pilot.pause()
            axis = next(line for line in text_of(app).splitlines() if "now" in line)
            assert f"└{label}" in axis


def shown_charts(app: DriftApp) -> list[str]:
    return [chart.id or "" for chart in app.main.charts if chart.display and app.main.panes.display]


async def test_a_wide_screen_maximises_and_restores() -> None:
    async with running() as (app, pilot, _):
        assert len(shown_charts(app)) == 4
        await pilot.press("3")
        await pilot.pause()
        assert shown_charts(app) == ["chart-drift"]
        assert app.main.charts[2].size.width == 160
        await pilot.press("2")
        assert shown_charts(app) == ["chart-latency"]
        await pilot.press("2")
        assert len(shown_charts(app)) == 4
        await pilot.press("1", "escape")
        assert len(shown_charts(app)) == 4


async def test_a_narrow_screen_chooses() -> None:
    async with running(size=(80, 24)) as (app, pilot, _):
        assert shown_charts(app) == ["chart-queue"]
        for key, chart in zip("4321", ("bias", "drift", "latency", "queue"), strict=True):
            await pilot.press(key)
            await pilot.pause()
            assert shown_charts(app) == [f"chart-{chart}"]
            assert app.main.charts[int(key) - 1].title in text_of(app)


async def test_hidden_charts_are_not_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(size=(80, 24)) as (app, _, feed):
        painted: list[str] = []
        for chart in app.main.charts:
            monkeypatch.setattr(chart, "_paint", lambda *args, name=chart.id: painted.append(name))
        for _ in range(8):
            feed.advance(0.25)
            app.tick()
        assert set(painted) == {"chart-queue"}


async def test_filter_shows_only_what_matches() -> None:
    async with running() as (app, pilot, _):
        await pilot.press("slash", *"OLI", "enter")
        await pilot.pause()
        shown = text_of(app)
        assert "Tenants (8) matching “OLI”: 1" in shown
        table = "\n".join(shown.splitlines()[1:5])
        assert "hooli-code" in table
        assert "acme-chat" not in table
        await pilot.press("escape")
        await pilot.pause()
        assert "matching" not in text_of(app)


async def test_keys_typed_into_the_filter_are_no_commands() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("slash", "P", "u", "space", "q")
        assert feed.calls == []
        assert app.main.query_one(Input).value == "Pu q"
        assert app.main.shown.frozen is None


async def test_sorting_and_the_cursor_stays_with_its_tenant() -> None:
    async with running(seconds=40) as (app, pilot, feed):
        await pilot.press("down", "o", "o")
        await pilot.pause()
        rows = text_of(app).splitlines()[3:11]
        queued = {tenant.name: tenant.queued for tenant in feed.view().snapshot.tenants}
        names = [row.strip("│▌ ").split()[0] for row in rows]
        assert [queued[name] for name in names] == sorted(queued.values(), reverse=True)
        assert app.main.tenants.cursor == "globex-batch"
        assert "sort queue ▼" in text_of(app)


async def test_latency_changes_table_and_chart() -> None:
    async with running() as (app, pilot, _):
        assert "Latency, all tenants (E2E, s)" in text_of(app)
        await pilot.press("l")
        await pilot.pause()
        assert "Latency, all tenants (TTFT, s)" in text_of(app)


async def test_fifty_tenants_scroll_under_the_cursor() -> None:
    async with running(FakeFeed(many(50))) as (app, pilot, _):
        assert "tenant-00" in text_of(app)
        await pilot.press(*["pagedown"] * 5)
        await pilot.pause()
        shown = text_of(app)
        assert "tenant-49" in shown
        assert "of 50" in shown
        assert app.main.tenants.cursor == "tenant-49"


async def test_no_tenant_at_all() -> None:
    async with running(FakeFeed([])) as (app, pilot, feed):
        await pilot.press("down", "t", "o", "1", "1", "s")
        await pilot.pause()
        await pilot.press("enter")
        assert feed.calls == [("inject", "demo")]
        assert "no tenant has sent a request yet" in text_of(app)


@pytest.mark.parametrize("size", [(40, 10), (1, 1), (100, 30), (80, 60), (240, 70)])
async def test_any_size_draws_and_obeys(size: tuple[int, int]) -> None:
    async with running(size=size, seconds=2) as (app, pilot, feed):
        lines = text_of(app).splitlines()
        assert len(lines) <= size[1]
        await pilot.press("2", "p", "enter")
        assert feed.calls == [("switch_policy", "fifo")]
        await pilot.press("escape")
        await pilot.resize_terminal(160, 48)
        await pilot.pause()
        assert "Bias: learned multiplier" in text_of(app)


async def test_at_the_end_of_a_scenario_the_screen_stays() -> None:
    feed = FakeFeed()
    feed.advance(130)
    async with running(feed, seconds=1) as (app, pilot, _):
        assert "DONE" in text_of(app).splitlines()[0]
        await pilot.press("s", "enter")
        assert feed.calls == [("inject", "demo")]


async def test_markers_stand_in_every_chart() -> None:
    async with running(seconds=20) as (app, pilot, feed):
        feed.switch_policy("sjf")
        for _ in range(20):
            feed.advance(0.25)
            app.tick()
        await pilot.pause()
        for chart in app.main.charts:
            rows = [chart.draw(y) for y in range(chart.size.height)]
            marked = [segment for row in rows for segment in row if "┊" in segment.text]
            assert {segment.style.color.name for segment in marked} >= {"#ff9f1c", "#b388ff"}, chart.id


async def test_every_main_command_is_in_the_palette() -> None:
    async with running(seconds=1) as (app, pilot, feed):
        titles = [str(hit.display) async for hit in DriftCommands(app.screen).discover()]
        for command in on_screen("main"):
            if command.id != "palette":
                assert any(title.startswith(f"{command.title} (") for title in titles), command.id
        await pilot.press("ctrl+p")
        await pilot.pause()
        await pilot.press(*"pause")
        await pilot.app.workers.wait_for_complete()
        await pilot.press("enter")
        await pilot.pause()
        assert feed.calls == [("pause",)]


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


async def test_the_pace_follows_the_cost() -> None:
    app = DriftApp(FakeFeed(), auto_refresh=False)
    for cpu_ms, interval_s in ((5.0, 0.25), (40.0, 0.8), (500.0, 2.0)):
        for _ in range(80):
            app._pace(cpu_ms / 1000)
        assert app._refresh_s == pytest.approx(interval_s, rel=0.02)


HOSTILE = (
    "[/]",
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b2Jc1",
    "\u202egnp.exe",
    "漢字漢字漢字漢字漢字漢字漢字漢字",
    "👩\u200d👩\u200d👧\u200d👦family",
    "a\u200bb\u2028c",
    "z" + "\u0308" * 300,
)


@pytest.mark.parametrize("size", [(160, 48), (80, 24)])
async def test_hostile_text_never_reaches_the_screen_raw(size: tuple[int, int]) -> None:
    text = "".join(HOSTILE)
    feed = FakeFeed([(name, *EIGHT[0][1:]) for name in (text, *HOSTILE)])
    for kind in ("policy", "error", text[:20]):
        feed.notice(kind, text, marker=True)
    feed.changes = {"engine_detail": text, "scenario": text, "recording": text, "engine_kind": text}
    feed.refuse = text
    async with running(feed, size=size, seconds=3) as (app, pilot, _):
        screens = [text_of(app)]
        for keys in (
            ["p", "enter"],
            ["escape", "s", "enter"],
            ["escape", "t"],
            ["escape", "down", "t"],
        ):
            await pilot.press(*keys)
            await pilot.pause()
            screens.append(text_of(app))
    for shown in screens:
        for char in shown:
            assert char == "\n" or char.isprintable(), hex(ord(char))
        assert "\u202e" not in shown
        assert "\u200d" not in shown


async def test_a_name_that_looks_like_markup_is_drawn_as_it_is() -> None:
    feed = FakeFeed([("[/]", *EIGHT[0][1:]), ("[bold]b", *EIGHT[1][1:])])
    async with running(feed, seconds=2) as (app, pilot, _):
        assert "[/]" in text_of(app)
        assert "[bold]b" in text_of(app)
        await pilot.press("t")
        await pilot.pause()
        assert "Tenant [/]" in text_of(app)


async def test_a_crash_is_seen_and_tells_no_tenant_s_text() -> None:
    feed = FakeFeed()
    app = DriftApp(feed, auto_refresh=False)

    async def crash() -> None:
        async with app.run_test() as pilot:
            app.call_later(lambda: 1 // 0)
            await pilot.pause()

    with pytest.raises(ZeroDivisionError):
        await crash()
    assert app.return_code == 1
    assert isinstance(app.crash, ZeroDivisionError)


async def test_the_frame_of_a_view_with_a_swap_under_way() -> None:
    feed = FakeFeed()
    feed.changes["snapshot"] = replace(feed.view().snapshot, swap=("sjf", 0.43))
    async with running(feed, seconds=1) as (app, _, _):
        assert "fifo → sjf 43%" in text_of(app).splitlines()[0]


@pytest.mark.parametrize("size", [(160, 48), (80, 24), (43, 20), (9, 9)])
async def test_every_line_is_as_wide_as_the_screen(size: tuple[int, int]) -> None:
    names = ("漢字漢字漢字", "zz\u0308\u0308", "❤️x", "plain")
    feed = FakeFeed([(name, *EIGHT[0][1:]) for name in names])
    feed.notice("漢字", "漢字" * 60, marker=True)
    async with running(feed, size=size, seconds=2) as (app, _, _):
        for strip in app.screen._compositor.render_strips():
            assert cell_len(strip.text) == size[0], strip.text


@pytest.mark.parametrize("width", [43, 57, 80])
async def test_a_legend_says_how_many_it_leaves_out(width: int) -> None:
    async with running(FakeFeed(many(8)), size=(width, 30), seconds=1) as (app, _, _):
        legend = "".join(segment.text for segment in app.main.charts[0].draw(1))
        named, _, more = legend.strip("│ ").partition("+")
        assert named.count("━") + int(more) == 8, legend


@pytest.mark.parametrize("size", [(160, 48), (80, 24)])
async def test_every_line_begins_with_a_change_of_both_colours(size: tuple[int, int]) -> None:
    async with running(size=size, seconds=2) as (app, _, _):
        lines = app.screen._compositor.render_strips()
        for above, line in pairwise(lines):
            last, first = above._segments[-1].style, line._segments[0].style
            assert last is not None
            assert first is not None
            assert last.color != first.color, line.text
            assert last.bgcolor != first.bgcolor, line.text
