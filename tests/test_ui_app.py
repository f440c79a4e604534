"""The dashboard as an operator sees it: keys in, lines on the screen."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from fake_feed import EIGHT, FakeFeed, many
from rich.cells import cell_len
from textual.command import DiscoveryHit
from textual.widgets import Input
from ui_kit import running, text_of
from waiting import until

from driftui.app import DriftApp
from driftui.commands import DriftCommands, on_screen
from driftui.screens.reader import EventsScreen


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
        await pilot.press("5")
        events = app.screen
        assert isinstance(events, EventsScreen)
        assert str(events.text.content) == "nothing yet"


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
        for keys, labels in (
            (["minus"], "-30s -20s -10s now"),
            (["equals_sign"] * 2, "-2m -90s -60s -30s now"),
            (["equals_sign"] * 5, "-10m -7m30 -5m -2m30 now"),
        ):
            await pilot.press(*keys)
            await pilot.pause()
            axis = next(line for line in text_of(app).splitlines() if "now" in line)
            assert f"└{labels} " in " ".join(axis.split())


def shown_charts(app: DriftApp) -> list[str]:
    return [chart.id or "" for chart in app.main.charts if chart.display and app.main.panes.display]


async def test_a_wide_screen_maximises_and_restores() -> None:
    async with running() as (app, pilot, _):
        assert len(shown_charts(app)) == 4
        await pilot.press("3")
        await pilot.pause()
        assert shown_charts(app) == ["chart-drift"]
        assert app.main.charts[2].size.width == 160
        assert "esc: all charts" in text_of(app)
        await pilot.press("2")
        assert shown_charts(app) == ["chart-latency"]
        await pilot.press("2")
        assert len(shown_charts(app)) == 4
        await pilot.press("1", "escape")
        assert len(shown_charts(app)) == 4
        assert "charts ─╯" not in text_of(app)


async def test_a_narrow_screen_chooses() -> None:
    async with running(size=(80, 24)) as (app, pilot, _):
        assert shown_charts(app) == ["chart-queue"]
        for key, chart in zip("4321", ("bias", "drift", "latency", "queue"), strict=True):
            await pilot.press(key)
            await pilot.pause()
            assert shown_charts(app) == [f"chart-{chart}"]
            assert app.main.charts[int(key) - 1].title in text_of(app)
            assert "1–4: other charts" in text_of(app)


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
        assert "p50–p99: E2E, s" in text_of(app)
        await pilot.press("l")
        await pilot.pause()
        assert "Latency, all tenants (TTFT, s)" in text_of(app)
        assert "p50–p99: TTFT, s" in text_of(app)


async def test_the_mouse_does_as_the_keys() -> None:
    async with running(seconds=40) as (app, pilot, feed):
        keys = text_of(app).splitlines()[-1]
        header = text_of(app).splitlines()[2]
        for column in ("queue", "queue", "p95", "drift"):
            await pilot.click(offset=(header.index(column), 2))
        await pilot.pause()
        assert "sort drift ▼" in text_of(app)
        await pilot.click("#chart-drift")
        assert shown_charts(app) == ["chart-drift"]
        await pilot.click("#chart-drift")
        assert len(shown_charts(app)) == 4
        await pilot.click(offset=(keys.index("pause"), 47))
        await pilot.click(offset=(keys.index("pause") + 20, 47))  # between two
        assert feed.calls == [("pause",)]
        await pilot.click("#events")
        await pilot.pause()
        assert "demo started" in text_of(app)
        assert app.screen is not app.main


@pytest.mark.parametrize("size", [(160, 48), (80, 24)])
async def test_all_events_are_read_whole(size: tuple[int, int]) -> None:
    feed = FakeFeed()
    for number in range(40):
        feed.notice("error", f"number {number}: {'so it went on ' * 12}and ended")
    async with running(feed, size, seconds=1) as (app, pilot, _):
        await pilot.press("5")
        await pilot.pause()
        assert "number 39: so it" in text_of(app)
        assert "and ended" in text_of(app)
        events = app.screen
        assert isinstance(events, EventsScreen)
        await pilot.press("end")
        await until(lambda: events.box.scroll_offset.y)
        feed.notice("engine", "meanwhile")
        app.tick()
        events._follow()
        assert "meanwhile" not in str(events.text.content)
        await pilot.press("home")
        await until(lambda: not events.box.scroll_offset.y)
        events._follow()
        assert "meanwhile" in str(events.text.content).splitlines()[0]
        await pilot.press("5")
        assert app.screen is app.main


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
        await pilot.press("2", "p", "down", "enter")
        assert feed.calls == [("switch_policy", "priority")]
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
            styles = [segment.style for row in rows for segment in row if "┊" in segment.text]
            colours = {style.color.name for style in styles if style and style.color}
            assert colours >= {"#ff9f1c", "#b388ff"}, chart.id


async def test_every_main_command_is_in_the_palette() -> None:
    async with running(seconds=1) as (app, pilot, feed):
        hits = [hit async for hit in DriftCommands(app.screen).discover()]
        titles = [str(hit.display) for hit in hits if isinstance(hit, DiscoveryHit)]
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
            ["escape", "5"],
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


@pytest.mark.parametrize(
    ("target", "shown"), [("sjf", "policy fifo → sjf 43%"), ("fifo", "policy fifo re-estimating 43%")]
)
async def test_the_frame_of_a_view_with_a_swap_under_way(target: str, shown: str) -> None:
    feed = FakeFeed()
    feed.changes["snapshot"] = replace(feed.view().snapshot, swap=(target, 0.43))
    async with running(feed, seconds=1) as (app, _, _):
        assert shown in text_of(app).splitlines()[0]


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


@pytest.mark.parametrize("width", [60, 100, 160])
async def test_a_long_name_leaves_room_in_the_legend(width: int) -> None:
    tenants = [("checkout-assistant-for-the-european-storefront-" * 2, *EIGHT[0][1:]), *EIGHT[1:]]
    async with running(FakeFeed(tenants), size=(width, 30), seconds=1) as (app, _, _):
        legend = "".join(segment.text for segment in app.main.charts[0].draw(1))
        assert "━ checkout" in legend, legend


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
