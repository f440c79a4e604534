"""Help, made from the command registry and the columns of the table."""

from __future__ import annotations

from textual.widget import Widget

from driftui.commands import bindings, on_screen
from driftui.screens.dialog import plain
from driftui.screens.reader import Reader
from driftui.widgets.columns import COLUMNS

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
_SHOWN = (
    "Columns, over the last 60 s, and charts",
    *(f" {column.title:<8} {column.about}" for column in COLUMNS if column.about),
    f" {'┊':<8} In charts: an event, in the colour of its kind.",
)


def help_text(main: str) -> str:
    """What is shown, and every command of every screen that there is with this first one."""
    parts = [
        (heading, *(f" {c.key_label:<8} {c.title:<16} {c.help}" for c in on_screen(where)))
        for where, heading in _HEADINGS[main].items()
    ]
    parts.insert(1, _SHOWN)
    return "\n\n".join(map("\n".join, parts))


class HelpScreen(Reader):
    """Every column and every key there is."""

    BINDINGS = bindings("help")
    WHERE = "help"
    HEADING = "Help"

    def __init__(self, main: str) -> None:
        super().__init__()
        self._main = main

    def content(self) -> list[Widget]:
        return [plain(help_text(self._main), id="help-text")]
