"""The question before leaving a run that has requests in flight."""

from __future__ import annotations

from textual.widget import Widget

from driftui.commands import bindings
from driftui.screens.dialog import Dialog, plain
from scheduler.live.view import View


class QuitScreen(Dialog):
    """``y`` leaves, anything else that is bound stays."""

    BINDINGS = bindings("quit")
    WHERE = "quit"
    HEADING = "Stop the run?"

    def __init__(self, view: View) -> None:
        super().__init__()
        self._snapshot = view.snapshot

    def content(self) -> list[Widget]:
        snapshot = self._snapshot
        return [plain(f"{snapshot.in_flight} requests are in flight and {snapshot.queued} are queued.")]

    def action_yes(self) -> None:
        self.drift.leave()
