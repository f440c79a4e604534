"""Help, made from the command registry."""

from __future__ import annotations

from textual.widget import Widget

from driftui.commands import COMMANDS, bindings
from driftui.screens.dialog import Dialog, plain

_HEADINGS = {
    "main": "Main screen",
    "replay": "Recorded run (driftsched replay)",
    "policy": "Policy switcher",
    "estimator": "Estimator switcher",
    "inject": "Injector",
    "tenant": "Tenant",
    "quit": "Leaving",
    "help": "This help",
}


def help_text() -> str:
    """Every command of every screen."""
    lines: list[str] = []
    for where, heading in _HEADINGS.items():
        lines += [*([""] if lines else []), heading]
        lines += [
            f" {command.key_label:<8} {command.title:<16} {command.help}"
            for command in COMMANDS
            if command.where == where
        ]
    return "\n".join(lines)


class HelpScreen(Dialog):
    """Every key there is."""

    BINDINGS = bindings("help")
    WHERE = "help"
    HEADING = "Keys"

    def content(self) -> list[Widget]:
        return [plain(help_text(), id="help-text")]

    def on_mount(self) -> None:
        box = self.query_one("#box")
        box.can_focus = True
        box.focus()
