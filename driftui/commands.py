"""Every command of the dashboard, once: keys, palette, footer and help are all made from ``COMMANDS``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from textual.binding import Binding
from textual.command import DiscoveryHit, Hit, Hits, Provider

if TYPE_CHECKING:
    from driftui.app import DriftApp


@dataclass(frozen=True, slots=True)
class Command:
    """One thing the operator can do on one screen."""

    key: str  # as Textual names it; several separated by commas
    id: str
    title: str  # a word or two, for the footer and the palette
    help: str  # one sentence
    where: str  # the screen it works on
    action: str  # the Textual action it runs
    footer: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.key.split(","))

    @property
    def key_label(self) -> str:
        """The keys as printed on a keyboard."""
        return " ".join(_LABELS.get(key, key) for key in self.keys)


_LABELS = {
    "enter": "⏎",
    "escape": "esc",
    "minus": "-",
    "equals_sign": "=",
    "slash": "/",
    "question_mark": "?",
    "ctrl+p": "^p",
    "ctrl+c": "^c",
    "ctrl+q": "^q",
    "ctrl+s": "^s",
    "up": "↑",
    "down": "↓",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "left": "←",
    "right": "→",
    "home": "Home",
    "end": "End",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
}

COMMANDS: tuple[Command, ...] = (
    Command("p", "policy", "policy", "Switch the policy; the queue is kept.", "main", "policy", True),
    Command("u", "undo", "undo", "Back to the policy before the last switch.", "main", "undo", True),
    Command("e", "estimator", "estimator", "Switch how lengths are estimated.", "main", "estimator"),
    Command("s", "inject", "inject", "Inject a scenario, or a burst of one tenant.", "main", "inject", True),
    Command("space", "freeze", "freeze", "Freeze the display; the run goes on.", "main", "freeze", True),
    Command("P", "pause", "pause", "Pause or resume dispatch; what runs goes on.", "main", "pause", True),
    Command("t,enter", "tenant", "tenant", "Inspect a tenant, change its limits.", "main", "tenant", True),
    Command("up", "up", "row up", "Move to the tenant above.", "main", "row(-1)"),
    Command("down", "down", "row down", "Move to the tenant below.", "main", "row(1)"),
    Command("pageup", "page_up", "page up", "Move ten tenants up.", "main", "row(-10)"),
    Command("pagedown", "page_down", "page down", "Move ten tenants down.", "main", "row(10)"),
    Command("slash", "filter", "filter", "Show tenants whose name holds a text.", "main", "filter", True),
    Command("o", "sort", "sort", "Sort the tenants by the next column.", "main", "sort"),
    Command("l", "latency", "latency", "TTFT or E2E, in table and chart.", "main", "latency"),
    Command("1", "chart_1", "queue chart", "Queue depth: choose or maximise.", "main", "chart(0)"),
    Command("2", "chart_2", "latency chart", "Latency percentiles: choose or maximise.", "main", "chart(1)"),
    Command("3", "chart_3", "drift chart", "Drift: choose or maximise.", "main", "chart(2)"),
    Command("4", "chart_4", "bias chart", "Bias: choose or maximise.", "main", "chart(3)"),
    Command("5", "events", "events", "Read all events, whole.", "main", "events"),
    Command("escape", "restore", "restore", "All charts again, no filter.", "main", "restore"),
    Command("minus", "narrow", "shorter window", "Charts show less time.", "main", "window(-1)"),
    Command("equals_sign", "widen", "longer window", "Charts show more time.", "main", "window(1)"),
    Command("question_mark", "help", "help", "Show every command.", "main", "help", True),
    Command("ctrl+p", "palette", "palette", "Find a command by its name.", "main", "app.command_palette"),
    Command(
        "q,ctrl+c,ctrl+q", "quit", "quit", "Leave; stops the run unless attached.", "main", "app.quit", True
    ),
    Command("enter", "policy_apply", "apply", "Switch to the policy under the cursor.", "policy", "apply"),
    Command("escape", "policy_cancel", "cancel", "Leave the policy as it is.", "policy", "dismiss"),
    Command("enter", "estimator_apply", "apply", "Switch to the one under the cursor.", "estimator", "apply"),
    Command("escape", "estimator_cancel", "cancel", "Leave it as it is.", "estimator", "dismiss"),
    Command("enter", "inject_apply", "inject", "Inject the scenario, or send the burst.", "inject", "apply"),
    Command(
        "ctrl+s", "stop_loads", "stop all load", "Stop all load; what is here goes on.", "inject", "stop"
    ),
    Command("escape", "inject_cancel", "cancel", "Inject nothing.", "inject", "dismiss"),
    Command("enter", "tenant_apply", "apply", "Set weight and limits as written.", "tenant", "apply"),
    Command("escape", "tenant_cancel", "close", "Leave the tenant as it is.", "tenant", "dismiss"),
    Command("escape,q,5", "events_close", "close", "Back to the run.", "events", "dismiss"),
    Command("y", "quit_yes", "yes, quit", "Stop the run and leave.", "quit", "yes"),
    Command("n,escape", "quit_no", "stay", "Keep the run going.", "quit", "dismiss"),
    Command("space", "replay_play", "play/hold", "Play, or hold the run.", "replay", "play", True),
    Command("left", "replay_back", "10 s back", "Ten seconds back.", "replay", "seek(-10)", True),
    Command("right", "replay_on", "10 s on", "Ten seconds on.", "replay", "seek(10)", True),
    Command("home", "replay_start", "start", "To the start of the run.", "replay", "go(0)"),
    Command("end", "replay_end", "end", "To the end of the run.", "replay", "go(1)"),
    Command("left_square_bracket", "slower", "slower", "Half the speed.", "replay", "speed(0.5)", True),
    Command("right_square_bracket", "faster", "faster", "Twice the speed.", "replay", "speed(2)", True),
    Command("escape,q,question_mark", "help_close", "close", "Back to the run.", "help", "dismiss"),
)


# A recorded run is watched as a live one is, but for what would change it.
_LIVE_ONLY = frozenset({"policy", "undo", "estimator", "inject", "freeze", "pause"})


def on_screen(where: str) -> tuple[Command, ...]:
    own = tuple(command for command in COMMANDS if command.where == where)
    if where == "replay":
        own += tuple(command for command in on_screen("main") if command.id not in _LIVE_ONLY)
    return own


def bindings(where: str) -> list[Binding | tuple[str, str] | tuple[str, str, str]]:
    """Textual bindings of one screen."""
    return [
        Binding(command.key, command.action, command.title, id=command.id, show=False)
        for command in on_screen(where)
    ]


def hints(where: str, *without: str) -> str:
    """The commands of a dialog in one line, for its frame; ``without`` those of these ids."""
    shown = [command for command in on_screen(where) if command.id not in without]
    return " · ".join(f"{command.key_label} {command.title}" for command in shown)


class DriftCommands(Provider):
    """The registry as the palette sees it: everything that can be done on the first screen."""

    def _hits(self) -> Iterator[tuple[str, partial[None], str]]:
        app = cast("DriftApp", self.app)
        for command in on_screen(app.main.WHERE):
            if command.id == "palette":
                continue
            yield f"{command.title} ({command.key_label})", partial(app.run_command, command), command.help

    async def discover(self) -> Hits:
        for title, run, help_text in self._hits():
            yield DiscoveryHit(title, run, help=help_text)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for title, run, help_text in self._hits():
            score = max(matcher.match(title), 0.9 * matcher.match(help_text))
            if score > 0:
                yield Hit(score, matcher.highlight(title), run, help=help_text)
