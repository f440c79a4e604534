"""The list of events, newest first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice

from rich.segment import Segment

from driftui import figures, palette
from driftui.clean import pad
from driftui.palette import ink
from driftui.widgets.canvas import Panel
from scheduler.live.view import Notice

KIND_CELLS = 9


def time_of(notice: Notice, run_clock: bool) -> str:
    """When it was: the time of day, or the run's clock in as many cells."""
    at = time.strftime("%H:%M:%S", time.localtime(notice.wall))
    return figures.clock(notice.at_s).rjust(len(at)) if run_clock else at


class EventList(Panel):
    """As many of the latest notices as fit, by the time of day or by the run's clock."""

    def __init__(self, *, run_clock: bool, id: str) -> None:
        super().__init__(id=id)
        self._run_clock = run_clock
        self.title = "Events"
        self.hotkey, self.click = "5", "events"
        self._notices: list[Notice] = []
        self._hint = ""

    def show(self, notices: Sequence[Notice], hint: str) -> None:
        """``notices`` oldest first; ``hint`` stands there while there is none."""
        latest = list(islice(reversed(notices), 64))
        if (latest, hint) != (self._notices, self._hint):
            self._notices, self._hint = latest, hint
            self.redraw()

    def body(self, y: int, width: int) -> Sequence[Segment]:
        if y >= len(self._notices):
            text = "" if y else f"  {self._hint}"
            return [Segment(pad(text, width), ink(palette.FAINT))]
        notice = self._notices[y]
        symbol, colour = palette.kind(notice.kind)
        at = time_of(notice, self._run_clock)
        text_cells = max(0, width - 12 - KIND_CELLS - 1)
        return [
            Segment(f" {at} ", ink(palette.FAINT)),
            Segment(f"{symbol} {pad(notice.kind, KIND_CELLS)}", ink(colour, bold=True)),
            Segment(pad(notice.text, text_cells) + " ", ink(palette.TEXT if y else palette.BRIGHT)),
        ]
