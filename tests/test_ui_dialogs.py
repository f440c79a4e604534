"""What an operator does about a run: a dialog, its keys, and the command that reached the feed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from fake_feed import FakeFeed
from textual import events
from ui_kit import running, text_of

from driftui.app import DriftApp
from driftui.screens.dialog import Choices
from driftui.screens.main import MainScreen
from driftui.screens.policy import PolicyScreen
from driftui.screens.tenant import TenantScreen
from scheduler.core.policies import POLICIES, policy_from
from scheduler.core.types import Limits

CONTROL = "\x1b"


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


def type_ahead(app: DriftApp, *keys: str) -> None:
    """All keys in one read of the terminal."""
    for key in keys:
        app.post_message(events.Key(key, key if len(key) == 1 else None))


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("sjf", "sjf"),
        ("pr", "priority"),
        ("priority+sjf", "priority+sjf"),
        ("aging rate=0.5", "aging rate=0.5"),
    ],
)
async def test_a_typed_policy_is_switched_to(typed: str, expected: str, at_once: bool) -> None:
    async with running() as (app, pilot, feed):
        if at_once:
            type_ahead(app, "p", *typed, "enter")
        else:
            await pilot.press("p", *typed, "enter")
        async with asyncio.timeout(30):
            while not feed.calls:
                await pilot.pause()
        assert feed.calls == [("switch_policy", expected)]
        assert app.screen is app.main


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("ele", ("switch_estimator", "learned")),
        ("snoi", ("inject", "noisy-neighbour")),
        ("sxnoi", ("inject", "noisy-neighbour")),
    ],
)
async def test_typing_chooses_in_a_list(typed: str, expected: tuple[str, str], at_once: bool) -> None:
    async with running() as (app, pilot, feed):
        if at_once:
            type_ahead(app, *typed, "enter")
        else:
            await pilot.press(*typed, "enter")
        async with asyncio.timeout(30):
            while not feed.calls:
                await pilot.pause()
        assert feed.calls == [expected]


async def test_typing_moves_the_cursor_and_moving_the_cursor_gives_up_what_was_typed() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("p", *"we")
        screen = app.screen
        assert isinstance(screen, PolicyScreen)
        names = list(feed.policies())
        assert screen.options.highlighted == names.index("weighted")
        await pilot.press(*"ighted or so", "down")
        assert screen.typed.value == ""
        await pilot.press("enter")
        assert feed.calls == [("switch_policy", names[names.index("weighted") + 1])]


async def test_a_clicked_policy_goes_before_a_typed_one() -> None:
    async with running() as (_, pilot, feed):
        await pilot.press("p", *"two-class q=0.4")
        await pilot.click(Choices, offset=(4, 2))
        await pilot.pause()
        assert feed.calls == [("switch_policy", "weighted")]


async def test_the_policy_of_now_is_not_switched_to_again() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("p", "enter")
        await pilot.pause()
        assert feed.calls == []
        assert "fifo orders already" in text_of(app)
        assert app.screen is app.main


async def test_a_swap_under_way_can_be_taken_back() -> None:
    feed = FakeFeed()
    feed.changes["snapshot"] = replace(feed.view().snapshot, swap=("sjf", 0.4))
    async with running(feed) as (_, pilot, _):
        await pilot.press("p", *"fifo", "enter")
        assert feed.calls == [("switch_policy", "fifo")]


async def test_keys_typed_ahead_take_effect_one_after_another() -> None:
    async with running() as (app, pilot, feed):
        type_ahead(app, "p", *"sjf", "enter", "p", "up", "enter", "u", "s", "enter", "P", "t")
        async with asyncio.timeout(30):
            while not isinstance(app.screen, TenantScreen):
                await pilot.pause()
        assert [call[:2] for call in feed.calls] == [
            ("switch_policy", "sjf"),
            ("switch_policy", "weighted"),
            ("undo_policy",),
            ("inject", "demo"),
            ("pause",),
        ]


async def test_a_second_click_before_the_switcher_is_gone_changes_nothing() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("p")
        choices = app.screen.query_one(Choices)
        choices.highlighted = 1
        for _ in range(2):  # as both clicks of a double one call it, when the loop was busy meanwhile
            choices.action_select()
        await pilot.pause()
        assert feed.calls == [("switch_policy", "priority")]
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
            shown = text_of(app).partition("type a name")[2]
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


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
async def test_an_injected_scenario_is_told_whole(size: tuple[int, int]) -> None:
    feed = FakeFeed()
    summary = "what a scenario is, told at some length: so long that a narrow list cuts its end"
    feed.scenarios = lambda: {"one": "short", "two": summary}  # type: ignore[method-assign]
    async with running(feed, size) as (app, pilot, _):
        await pilot.press("s", "down")
        await pilot.pause()
        assert text_of(app).count("its end") == 1


async def test_undo() -> None:
    async with running() as (app, pilot, feed):
        feed.policies_before = ["sjf", "aging"]
        await pilot.press("u", "u")
        assert feed.calls == [("undo_policy",), ("undo_policy",)]
        assert isinstance(app.screen, MainScreen)


async def test_a_refusal_is_shown_and_keeps_the_dialog() -> None:
    async with running() as (app, pilot, feed):
        feed.refuse = "unknown \x1b[31mpolicy [/] 'x'"
        await pilot.press("p", "down", "enter")
        await pilot.pause()
        assert not isinstance(app.screen, MainScreen)
        assert "policy [/] 'x'" in text_of(app)
        assert "\x1b" not in text_of(app)


async def test_what_the_run_refuses_of_a_typed_policy_is_said_in_the_dialog() -> None:
    async with running(size=(80, 24)) as (app, pilot, feed):
        feed.refuse = f"unknown policy 'x'; allowed: {20 * 'some, '}and the last"
        await pilot.press("p", *"two-class q=2", "enter")
        await pilot.pause()
        assert feed.calls == []
        assert "and the last" in text_of(app)


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


async def test_a_file_in_the_list_goes_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"/a/b{CONTROL}/mine{CONTROL}.yaml": "the file"}
    async with running() as (app, pilot, feed):
        monkeypatch.setattr(feed, "scenarios", lambda: files)
        await pilot.press("s")
        await pilot.pause()
        assert "mine" in text_of(app)
        assert CONTROL not in text_of(app)
        await pilot.press("m", "enter")
        assert feed.calls == [("inject", *files)]


async def test_stopping_what_was_injected() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("s")
        assert "^s stop all load" in text_of(app)
        await pilot.press("ctrl+s")
        assert feed.calls == [("stop_loads",)]
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


async def test_what_nobody_edited_stays_as_it_is() -> None:
    feed = FakeFeed()
    feed.lanes[0].weight = 3.1415926
    async with running(feed) as (_, pilot, _):
        await pilot.press("t", "tab", "end", "0", "enter")
        assert feed.calls == [("set_tenant", "acme-chat", None, Limits(max_queued=5000))]


async def test_what_changes_under_an_open_form_is_not_taken_back() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("t", "tab", "end", "0")
        lane = feed.lanes[0]
        lane.weight, lane.limits = 9.0, replace(lane.limits, max_in_flight=12)
        form = app.screen
        assert isinstance(form, TenantScreen)
        form._follow()
        assert (form.inputs["weight"].value, form.inputs["max_queued"].value) == ("9", "5000")
        lane.limits = replace(lane.limits, ttl_s=30.0)  # since it looked last
        await pilot.press("enter")
        limits = Limits(max_queued=5000, max_in_flight=12, ttl_s=30.0)
        assert feed.calls == [("set_tenant", "acme-chat", None, limits)]


async def test_a_bad_limit_is_explained_and_not_sent() -> None:
    async with running() as (app, pilot, feed):
        await pilot.press("t", "tab", "end", "x", "enter")
        await pilot.pause()
        assert feed.calls == []
        assert "max queued: a whole number" in text_of(app)
        await pilot.press("escape")
        assert isinstance(app.screen, MainScreen)
