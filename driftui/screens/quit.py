"""The question before leaving a run that has requests in flight or queued."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

from driftui import figures
from driftui.commands import bindings
from driftui.screens.dialog import FOLLOW_S, Dialog, plain
from scheduler.core.types import Snapshot


class QuitScreen(Dialog):
    """``y`` leaves, anything else that is bound stays."""

    BINDINGS = bindings("quit")
    WHERE = "quit"
    HEADING = "Stop the run?"

    def content(self) -> list[Widget]:
        self.what = plain(_what(self.drift.feed.view().snapshot))
        return [self.what]

    def on_mount(self) -> None:
        self.set_interval(FOLLOW_S, self._follow)

    def _follow(self) -> None:
        self.what.update(Content(_what(self.drift.feed.view().snapshot)))

    def action_yes(self) -> None:
        self.drift.leave()


def _what(snapshot: Snapshot) -> str:
    what = f"{figures.number(snapshot.in_flight, 'request')} in flight, {snapshot.queued} queued."
    if snapshot.paused and snapshot.queued:
        what += "\nDispatch is paused: what is queued is cancelled."
    return what
