"""Help, made from the command registry."""

from __future__ import annotations

from textual.widget import Widget

from driftui.commands import bindings, on_screen
from driftui.screens.dialog import plain
from driftui.screens.reader import Reader

_LIVE = {
    "main": "Main screen",
    "policy": "Policy switcher",
    "estimator": "Estimator switcher",
    "inject": "Injector",
    "tenant": "Tenant",
    "events": "Events",
    "quit": "Leaving",
    "help": "This help",
}
_HEADINGS = {
    "main": _LIVE,
    "replay": {"replay": "Recorded run", "events": "Events", "help": "This help"},
}  # by the first screen


def help_text(main: str) -> str:
    """Every command of every screen that there is with this first one."""
    lines: list[str] = []
    for where, heading in _HEADINGS[main].items():
        lines += [*([""] if lines else []), heading]
        lines += [
            f" {command.key_label:<8} {command.title:<16} {command.help}" for command in on_screen(where)
        ]
    return "\n".join(lines)


class HelpScreen(Reader):
    """Every key there is."""

    BINDINGS = bindings("help")
    WHERE = "help"
    HEADING = "Keys"

    def __init__(self, main: str) -> None:
        super().__init__()
        self._main = main

    def content(self) -> list[Widget]:
        return [plain(help_text(self._main), id="help-text")]
