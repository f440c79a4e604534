"""The dashboard's parts that need no running app."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from fake_feed import FakeFeed, latency, many
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from driftui import figures, layout
from driftui.clean import clean, pad
from driftui.commands import COMMANDS, on_screen
from driftui.history import MAX_TENANTS, Grid, History
from driftui.screens.help import help_text
from driftui.screens.parse import FieldError, bound, positive, seconds_bound
from driftui.screens.tenant import facts
from driftui.widgets import columns
from driftui.widgets.chart import name_cells
from driftui.widgets.raster import Raster, nice_step, scale
from driftui.widgets.status import Cost, Field, fields, fit

HOSTILE = (
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b31mC1",
    "\u202eevil\u202c",
    "zero\u200bwidth\u200djoin",
    "line\u2028para\u2029",
    "\ue000private",
    "[/]",
    "[bold]x[/bold]",
    "漢字漢字漢字漢字漢字漢字",
    "a" + "\u0301" * 500,
    "❤\ufe0f" * 20,
    "\ud800",
    "",
    "\n\r\t",
)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("width", [0, 1, 2, 7, 40])
def test_clean_leaves_nothing_a_terminal_obeys_and_fits(text: str, width: int) -> None:
    shown = clean(text, width)
    assert cell_len(shown) <= width
    assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in shown)
    assert not set(shown) & set("\u202e\u202c\u200b\u200d\u2028\u2029\ue000\ud800\ufe0f")
    assert len(shown) <= 4 * width + 1
    for align in "<>":
        assert cell_len(pad(text, width, align)) == width


def test_clean_keeps_what_is_harmless() -> None:
    assert clean("Ünïcode 漢字 [/]") == "Ünïcode 漢字 [/]"
    assert clean("abcdef", 4) == "abc…"
    assert clean("漢字漢", 4) == "漢…"


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (figures.seconds(0.0031), "0.003"),
        (figures.seconds(0.0996), "0.10"),
        (figures.seconds(0.504), "0.50"),
        (figures.seconds(9.996), "10.0"),
        (figures.seconds(526.7), "527"),
        (figures.seconds(math.nan), "–"),
        (figures.count(999.6), "1.0k"),
        (figures.count(4210), "4.2k"),
        (figures.count(999_999), "1.0M"),
        (figures.count(2.04e9), "2.0G"),
        (figures.ratio(1.036), "×1.04"),
        (figures.percent(math.nan), "–"),
        (figures.weight(5.0), "5"),
        (figures.weight(12.25), "12.2"),
        (figures.weight(123456.0), "123k"),
        (figures.weight(1 / 3), "0.33"),
        (figures.weight(0.999), "1"),
        (figures.weight(0.0012), "1e-3"),
        (figures.weight(1e-6), "1e-6"),
        (figures.clock(3723), "1:02:03"),
        (figures.size(2_100_000), "2.1 MB"),
        (figures.span(60), "60s"),
        (figures.span(450), "7m30"),
        (figures.span(2700), "45m"),
        (figures.span(3600), "1h"),
        (figures.span(6300), "1h45"),
        (figures.plain(2.5), "2.5"),
        (figures.plain(1000.0), "1k"),
        (figures.plain(2500.0), "2.5k"),
        (figures.plain(0.0), "0"),
    ],
)
def test_figures(shown: str, wanted: str) -> None:
    assert shown == wanted


def sampled(seconds: float, feed: FakeFeed | None = None, history: History | None = None) -> History:
    feed = FakeFeed() if feed is None else feed
    history = History() if history is None else history
    for _ in range(int(seconds * 4)):
        feed.advance(0.25)
        history.sample(feed.view())
    return history


def test_history_gives_the_latest_values_and_a_gap_before_the_first() -> None:
    feed = FakeFeed()
    feed.advance(40)
    history = sampled(20, feed)
    grid = Grid.ending(feed.now, 60, 120)
    values = history.buckets("queue", grid, "acme-chat")
    known = np.flatnonzero(np.isfinite(values))
    assert known[0] == pytest.approx(80, abs=2)
    assert values[-1] == feed.view().snapshot.tenants[0].queued


def test_a_past_bucket_never_changes_while_time_goes_on() -> None:
    feed, history = FakeFeed(), History()
    sampled(30, feed, history)
    before = Grid.ending(feed.now, 20, 40)
    old = history.buckets("queue", before, "acme-chat")
    sampled(5, feed, history)
    after = Grid.ending(feed.now, 20, 40)
    shift = after.first - before.first
    np.testing.assert_array_equal(history.buckets("queue", after, "acme-chat")[: 39 - shift], old[shift:39])


def test_the_latest_value_is_no_larger_one_of_its_dot() -> None:
    feed, history = FakeFeed(), History()
    sampled(10, feed, history)
    feed.paused = True
    for queued in (500.0, 3.0):
        feed.lanes[0].queued = queued
        feed.lanes[0].rate = 0.0
        feed.advance(0.25)
        history.sample(feed.view())
    grid = Grid.ending(feed.now, 600, 60)
    assert history.buckets("queue", grid, "acme-chat")[-1] == 500
    known, unknown = history.latest([("queue", "acme-chat"), ("queue", "nobody")], grid)
    assert known == 3
    assert math.isnan(unknown)


def test_a_burst_between_two_dots_is_still_drawn() -> None:
    feed, history = FakeFeed(), History()
    sampled(10, feed, history)
    feed.lanes[0].queued += 500
    history.sample(feed.view())  # the same instant is dropped
    feed.paused = True
    feed.advance(0.25)
    history.sample(feed.view())
    feed.lanes[0].queued -= 500
    sampled(10, feed, history)
    grid = Grid.ending(feed.now, 600, 60)  # ten seconds to a bucket
    assert np.nanmax(history.buckets("queue", grid, "acme-chat")) >= 500


def test_history_stays_bounded_and_right_across_its_end() -> None:
    feed, history = FakeFeed(), History(samples=64)
    sampled(60, feed, history)  # 240 samples: wraps several times
    assert len(history) == 64
    whole = sampled(60)
    grid = Grid.ending(feed.now, 10, 20)
    np.testing.assert_array_equal(history.buckets("e2e_p99", grid), whole.buckets("e2e_p99", grid))


def test_history_bounds_the_number_of_tenants() -> None:
    history = History(samples=16)
    history.sample(FakeFeed(many(MAX_TENANTS + 20)).view())
    assert not np.isfinite(
        history.buckets("queue", Grid.ending(0, 10, 4), f"tenant-{MAX_TENANTS + 10}")
    ).any()


def test_a_run_that_starts_over_clears_the_history() -> None:
    history = sampled(20)
    history.listen(FakeFeed())
    assert any(notice.marker for notice in history.notices)
    history.sample(FakeFeed().view())
    assert len(history) == 1
    assert len(history.notices) == 2
    assert not any(notice.marker for notice in history.notices), "they would stand at the new run's times"


def dots(raster: Raster) -> list[str]:
    """The raster as text, one character per dot."""
    bits = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
    return [
        "".join(".#"[bool(cell & bit)] for cell in row for bit in pair)
        for row in raster.dots
        for pair in bits
    ]


def test_raster_joins_values_and_leaves_gaps() -> None:
    raster = Raster(3, 1)
    raster.plot(np.array([[0.0, 3.0, 3.0, np.nan, 0.0, 1.0]]), 0.0, 3.0)
    assert dots(raster) == [".##...", ".#....", ".#...#", "#...#."]


def test_raster_rows_are_runs_of_one_owner() -> None:
    raster = Raster(5, 2)
    nan = math.nan
    lines = [7.0, 7.0, *[nan] * 8], [*[nan] * 5, 0.0, 0.0, *[nan] * 3]
    raster.plot(np.array(lines), 0.0, 7.0)
    top, bottom = raster.rows(dashed=[1], markers={3: 0, 4: 1})
    assert top == [("\u2809  ", 0), ("┊", -2), ("┊", -3)]
    assert bottom == [("╌╌", -1), ("\u2880\u2840", 1), ("┊", -3)]


def test_a_later_line_hides_the_cells_below_it() -> None:
    raster = Raster(2, 1)
    raster.plot(np.array([[0.0, 0.0, 0.0, 0.0], [np.nan, 3.0, np.nan, np.nan]]), 0.0, 3.0)
    assert dots(raster) == [".#..", "....", "....", "..##"]
    assert [owner for _, owner in raster.rows([], {})[0]] == [1, 0]


def test_raster_clips_to_its_field() -> None:
    raster = Raster(1, 1)
    raster.plot(np.array([[-5.0, 50.0]]), 0.0, 3.0)
    assert dots(raster)[0][1] == "#"
    assert dots(raster)[3][0] == "#"


@pytest.mark.parametrize(
    ("span", "parts", "step"), [(100, 4, 25), (7, 3, 2.5), (1, 4, 0.25), (3000, 3, 1000)]
)
def test_nice_step(span: float, parts: int, step: float) -> None:
    assert nice_step(span, parts) == pytest.approx(step)


def test_scale_holds_every_value_and_survives_nan_and_huge() -> None:
    for values in ([], [math.nan], [0.0, 1e12], [-3.0, 2.0], [1.0]):
        low, high, ticks = scale(np.array([values]), 0.0, 4.0, 9)
        finite = [value for value in values if math.isfinite(value)]
        assert low <= min([*finite, 0.0])
        assert high >= max([*finite, 4.0])
        assert 1 <= len(ticks) <= 6
        assert all(low <= tick <= high for tick in ticks)


@pytest.mark.parametrize("rows", [2, 5, 11, 40])
def test_a_line_at_a_tick_lies_where_its_dash_does(rows: int) -> None:
    low, high, ticks = scale(np.array([[0.0, 7.0]]), 0.0, 4.0, rows)
    for tick in ticks:
        raster = Raster(1, rows)
        raster.plot(np.array([[tick, tick]]), low, high)
        assert {y % 4 for y, row in enumerate(dots(raster)) if "#" in row} == {2}  # of a cell's dots


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(1, 40))
def test_ticks_lie_whole_rows_apart_and_the_axis_is_used(least: float, span: float, rows: int) -> None:
    low, high, ticks = scale(np.array([[least, least + span]]), 0.0, 1.0, rows)
    unseen = 1e-6 + 1e-8 * (high - low)
    assert low - unseen <= min(least, 0) <= max(least + span, 1) <= high + unseen
    apart = (ticks[-1] - ticks[0]) / max(1, len(ticks) - 1) / (high - low) * (rows - 0.25)
    assert rows < 2 or apart == pytest.approx(round(apart), abs=1e-6)
    assert rows < 8 or len(ticks) >= 2


@pytest.mark.parametrize("tenants", [0, 3, 50])
def test_plan_always_adds_up(tenants: int) -> None:
    for width, height in product((1, 40, 80, 95, 96, 160, 250), range(1, 100)):
        plan = layout.plan(width, height, tenants)
        charts = max(0, height - 2) - plan.tenants - plan.events
        assert charts >= 0
        assert plan.tenants >= 0
        assert plan.charts <= 4
        assert plan.rows == 0 or charts // plan.rows >= 7


def test_plan_of_the_two_sizes_that_matter() -> None:
    wide, small = layout.plan(160, 48, 8), layout.plan(80, 24, 8)
    assert (wide.columns, wide.rows, wide.tenants) == (2, 2, 11)
    assert (small.columns, small.rows, small.events) == (1, 1, 3)


def status_text(line: Sequence[Field], width: int) -> str:
    return "".join(gap + "".join(part.text for part in variant) for gap, variant in fit(line, width))


def test_a_bar_stands_before_every_group_whatever_is_left_out() -> None:
    view = FakeFeed().view()
    for width in range(80, 260):
        text = status_text(fields(view, False, "", Cost(6, 0.02)), width)
        groups = text.split(" │ ")
        assert "simulated" in groups[1]
        assert all("demo" not in group for group in groups if "lag" in group or "ui" in group), text


def test_the_scenario_s_time_ends_with_it() -> None:
    feed = FakeFeed()
    feed.advance(133.0)
    view = replace(feed.view(), scenario_elapsed_s=133.0)
    text = status_text(fields(view, False, "", Cost(6, 0.02)), 160)
    assert "DONE" in text
    assert "demo 2:00/2:00" in text


def test_a_server_that_nobody_has_asked_is_idle_and_not_done() -> None:
    view = replace(FakeFeed().view(), scenario_done=True)
    assert "● IDLE" in status_text(fields(view, False, "", Cost(6, 0.02)), 80)


def test_a_gpu_s_heat_stands_beside_its_load_where_there_is_room() -> None:
    view = FakeFeed().view()
    loaded = replace(view.health, gpu_share=0.87, gpu_temperature_c=71.4, gpu_power_w=68.2)
    hot = replace(view, health=loaded)
    assert "gpu 87% 71°C 68W cpu" in status_text(fields(hot, False, "", Cost(6, 0.02)), 220)
    assert "gpu 87% lag" in status_text(fields(hot, False, "", Cost(6, 0.02)), 160)
    unread = replace(view, health=replace(loaded, gpu_temperature_c=None, gpu_power_w=None))
    assert "gpu 87% cpu" in status_text(fields(unread, False, "", Cost(6, 0.02)), 220)


def test_status_never_overflows_and_says_simulated() -> None:
    view = FakeFeed().view()
    hostile = replace(
        view, scenario="漢" * 40, engine_detail="x" * 300, engine_state="restarting", speed=1000.0
    )
    for width in range(60, 260):
        for shown in (view, hostile, replace(view, snapshot=replace(view.snapshot, paused=True))):
            text = status_text(fields(shown, True, "", Cost(6.1, 0.024)), width)
            assert cell_len(text) <= width
            if width >= 80:
                assert "simulated" in text
    for width in (80, 160):
        text = status_text(fields(view, False, "", Cost(6, 0.02)), width)
        for word in ("driftsched", "LIVE", "fifo", "simulated", "run", "wait"):
            assert word in text


@pytest.mark.parametrize(
    ("width", "said"), [(80, "rej 1.2k exp 7 fail 1"), (160, "rejected 1.2k expired 7 failed 1")]
)
def test_who_gets_no_answer_is_counted(width: int, said: str) -> None:
    view = FakeFeed().view()
    assert "rej" not in status_text(fields(view, False, "", Cost(6, 0.02)), width)
    counts = {**view.snapshot.counts, "rejected": 1234, "expired": 7, "failed": 1}
    view = replace(view, snapshot=replace(view.snapshot, counts=counts))
    assert said in status_text(fields(view, False, "", Cost(6, 0.02)), width)


@pytest.mark.parametrize(
    ("total_s", "shown"), [(120.0, " 0:24/2:00"), (20.0, " 0:20/0:20"), (0.0, " 0:24 "), (None, " 0:24 ")]
)
def test_a_run_s_time_goes_on_where_its_load_came_at_once(total_s: float | None, shown: str) -> None:
    view = replace(FakeFeed().view(), scenario_elapsed_s=24.0, scenario_total_s=total_s)
    assert shown in status_text(fields(view, False, "", Cost(6, 0.02)), 160) + " "


def test_a_recording_is_told_of_on_a_small_screen_too() -> None:
    view = replace(FakeFeed().view(), scenario_elapsed_s=24.0, scenario_total_s=120.0)
    text = status_text(fields(view, False, "", Cost(6, 0.02)), 80)
    assert text.endswith("LIVE policy fifo │ simulated run  0/32 wait   0 │ ● REC")


def test_a_policy_s_parameters_give_way_before_figures_do() -> None:
    feed = FakeFeed()
    feed.policy = "fair+two-class credit=2000 q=0.55"
    wide = status_text(fields(feed.view(), False, "", Cost(6, 0.02)), 160)
    assert "policy fair+two-class credit=2000 q=0.55" in wide
    for total_s, where in ((120.0, "0:00/2:00"), (7200.0, "0:00")):
        recorded = replace(feed.view(), replay="over", scenario_total_s=total_s)
        small = status_text(fields(recorded, False, "", Cost(6, 0.02)), 80)
        assert f"REPLAY OVER fair+two-class │ simulated run  0/32 wait   0 │ {where}" in small


def test_who_else_may_switch_the_policy_is_said_beside_it() -> None:
    view = FakeFeed().view()
    for armed, words in (
        (replace(view, guarded=True), "guarded: "),
        (replace(view, autopilot=True), "auto: "),
        (replace(view, autopilot=True, guarded=True), "auto, guarded: "),
        (view, ""),
    ):
        wide = status_text(fields(armed, False, "", Cost(6, 0.02)), 160)
        assert f"LIVE policy {words}fifo since 0:00 │ " in wide
        small = status_text(fields(armed, False, "", Cost(6, 0.02)), 80)
        assert f" {words}fifo │ simulated run  0/32 wait   0" in small


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("state", ["starting", "restarting", "dead", "stopping"])
def test_the_engine_s_state_is_said_plainly(state: str, width: int) -> None:
    view = replace(FakeFeed().view(), engine_state=state)
    text = status_text(fields(view, False, "", Cost(6, 0.02)), width)
    assert f"ENGINE {state.upper()}" in text
    assert "simulated" in text


def test_sorting_by_p99_means_the_latency_that_is_shown() -> None:
    tenant = FakeFeed().view().snapshot.tenants[0]
    tenant = replace(tenant, e2e=latency(3.0), ttft=latency(1.0))
    (order,) = (column.order for column in columns.SORTABLE if column.title == "p99")
    assert order is not None
    assert (order(tenant, "e2e"), order(tenant, "ttft")) == (tenant.e2e.p99, tenant.ttft.p99)


def test_columns_fit_and_the_dearest_stay() -> None:
    for width in range(1, 300):
        chosen = columns.choose(width)
        assert sum(w for _, w in chosen) + len(chosen) - 1 <= width
        titles = {column.title for column, _ in chosen}
        if width >= 62:
            assert {"tenant", "queue", "run", "p50", "p95", "p99", "drift", "bias"} <= titles
        if width >= 155:
            assert len(chosen) == len(columns.COLUMNS)


@pytest.mark.parametrize(("width", "name", "shown"), [(155, 18, 18), (155, 99, 23), (300, 99, 32)])
def test_a_long_name_gets_the_room_there_is(width: int, name: int, shown: int) -> None:
    assert {column.title: cells for column, cells in columns.choose(width, name)}["tenant"] == shown


def test_a_usual_name_is_whole_where_what_is_dear_has_room() -> None:
    for width in range(66, 160):
        chosen = {column.title: cells for column, cells in columns.choose(width, 18)}
        assert chosen["tenant"] >= 18, width
        assert {"queue", "run", "p50", "p95", "p99", "drift", "bias"} <= chosen.keys()


def test_names_in_a_legend_are_cut_evenly_or_not_at_all() -> None:
    assert name_cells((17, 14, 15), 50) == 17
    assert name_cells((17, 4, 15), 30) == 13
    assert name_cells((17, 14, 15), 27) == 9
    assert name_cells((17, 14, 15), 26) == 17
    assert name_cells((64, 14, 15), 26) == 18
    assert name_cells((), 10) == 0


def test_spark_and_bar() -> None:
    assert columns.spark(np.array([math.nan, 0.0, 4.0, 8.0]), 8) == " ▁▄█"
    assert columns.spark(np.array([math.inf, 1.0, 20.0]), 8) == " ▁█"
    assert columns.bar(0.5, 4) == "██  "
    assert columns.bar(math.nan, 3) == "   "


def test_no_key_is_used_twice_on_a_screen() -> None:
    for where in {command.where for command in COMMANDS}:
        keys = [key for command in on_screen(where) for key in command.keys]
        assert len(keys) == len(set(keys)), where
    assert len({command.id for command in COMMANDS}) == len(COMMANDS)


def test_every_command_is_in_the_help() -> None:
    live, recorded = help_text("main"), help_text("replay")
    for command in COMMANDS:
        line = f" {command.key_label:<8} {command.title:<16} {command.help}"
        assert (line in live) == (command.where != "replay"), command.id
        there = (*on_screen("replay"), *on_screen("events"), *on_screen("help"))
        assert (line in recorded) == (command in there), command.id
    for text in (live, recorded):
        assert " drift    Actual / estimated tokens." in text
        assert max(map(len, text.splitlines())) <= 71  # no line wraps in a terminal of 80


def test_numbers_in_forms() -> None:
    assert positive("weight", "2.5") == 2.5
    assert bound("max", "") is None
    assert bound("max", " 12 ") == 12
    assert seconds_bound("ttl", "") is None
    for text in ("", "0", "-1", "nan", "inf", "1e999", "x"):
        with pytest.raises(FieldError, match="weight: a number above 0"):
            positive("weight", text)
    for text in ("-1", "1.5", "x", "9" * 40, "²"):
        with pytest.raises(FieldError, match="max: a whole number"):
            bound("max", text)
    with pytest.raises(FieldError, match="ttl: seconds above 0"):
        seconds_bound("ttl", "0")


def test_an_empty_queue_has_no_oldest_request() -> None:
    tenant = FakeFeed().view().snapshot.tenants[0]
    assert "queue     nothing waits\n" in facts(replace(tenant, queued=0))
    waits = replace(tenant, queued=3, queued_tokens=1500.0, oldest_wait_s=2.5)
    assert "queue     3 requests, 1.5k tokens, oldest waits 2.50 s\n" in facts(waits)
