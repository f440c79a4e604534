"""Dialogs that are only read: all events, and what the keys do."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

from driftui import palette
from driftui.clean import clean, pad
from driftui.commands import bindings
from driftui.screens.dialog import FOLLOW_S, Dialog, plain
from driftui.widgets.events import KIND_CELLS, time_of
from scheduler.live.view import Notice


class Reader(Dialog):
    """Arrows and page keys scroll it."""

    @property
    def box(self) -> Widget:
        return self.query_one("#box")

    def on_mount(self) -> None:
        self.box.can_focus = True
        self.box.focus()


class EventsScreen(Reader):
    """All that the dashboard remembers, newest first, each text whole."""

    BINDINGS = bindings("events")
    WHERE = "events"
    HEADING = "Events"

    def __init__(self, *, run_clock: bool) -> None:
        super().__init__()
        self._run_clock = run_clock
        self._shown: list[Notice] = []

    def content(self) -> list[Widget]:
        self.text = plain("nothing yet")
        return [self.text]

    def on_mount(self) -> None:
        self._follow()
        self.set_interval(FOLLOW_S, self._follow)

    def _follow(self) -> None:
        """Whoever has scrolled down is reading: what comes then waits."""
        notices = list(self.drift.history.notices)
        if notices != self._shown and not self.box.scroll_offset.y:
            self._shown = notices
            self.text.update(Content("\n").join(map(self._line, reversed(notices))))

    def _line(self, notice: Notice) -> Content:
        symbol, colour = palette.kind(notice.kind)
        return Content.assemble(
            (f"{time_of(notice, self._run_clock)} ", palette.FAINT),
            (f"{symbol} {pad(notice.kind, KIND_CELLS)}", f"bold {colour}"),
            clean(notice.text),
        )
