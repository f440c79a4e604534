"""Lines written past the compositor: the terminal shows what the compositor would have painted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from fake_feed import FakeFeed

from driftui.app import DriftApp
from driftui.widgets.canvas import Lines

_WRITES = re.compile(r"\x1b\[(\d+);(\d+)H|\x1b\[[\d;]*m|([^\x1b]+)")


class Terminal:
    """What a terminal shows of the direct writes, on top of what was painted before."""

    def __init__(self, app: DriftApp, monkeypatch: pytest.MonkeyPatch) -> None:
        self._app = app
        self.cells = [list(strip.text) for strip in app.screen._compositor.render_strips()]
        self.writes = 0
        monkeypatch.setattr(app, "_display", self._display)

    def _display(self, screen: Any, update: Any) -> None:
        if not isinstance(update, Lines):
            return
        self.writes += 1
        x = y = 0
        for row, column, text in _WRITES.findall(update.render_segments(self._app.console)):
            if row:
                x, y = int(column) - 1, int(row) - 1
            self.cells[y][x : x + len(text)] = text
            x += len(text)

    @property
    def lines(self) -> Sequence[str]:
        return ["".join(line) for line in self.cells]


@pytest.mark.parametrize("size", [(160, 48), (80, 24), (61, 19)])
async def test_the_terminal_shows_what_the_compositor_would_paint(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    feed = FakeFeed()
    app = DriftApp(feed, auto_refresh=False)
    async with app.run_test(size=size) as pilot:
        for _ in range(160):
            feed.advance(0.25)
            app.history.sample(feed.view())
        app.tick()
        await pilot.pause()
        terminal = Terminal(app, monkeypatch)
        for step in range(24):
            if step == 12:
                feed.switch_policy("sjf")
            feed.advance(0.5)
            app.tick()
        assert terminal.writes == 24
        assert terminal.lines == [strip.text for strip in app.screen._compositor.render_strips()]


async def test_nothing_is_written_past_a_dialog_or_a_toast(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = FakeFeed()
    app = DriftApp(feed, auto_refresh=False)
    async with app.run_test(size=(160, 48), notifications=True) as pilot:
        terminal = Terminal(app, monkeypatch)
        feed.refuse = "no"
        for key in ("p", "escape", "u"):  # a dialog, nothing, a toast
            await pilot.press(key)
            await pilot.pause()
            before = terminal.writes
            feed.advance(2)
            app.tick()
            assert terminal.writes - before == (key == "escape")
