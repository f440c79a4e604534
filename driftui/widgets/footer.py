"""The keys that fit into the last line, from the command registry."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from textual import events

from driftui import palette
from driftui.commands import Command, on_screen
from driftui.palette import ink
from driftui.widgets.canvas import Canvas

# What a narrow line leaves out first.
_GIVES_WAY = ("filter", "slower", "faster", "undo", "tenant", "freeze", "pause", "inject")
_NARROW = 100


class KeyLine(Canvas):
    """The bottom line: the commands of the screen that ``where`` names."""

    def __init__(self, where: str, *, id: str) -> None:
        super().__init__(id=id)
        self._where = where

    @property
    def background(self) -> str:
        return palette.SURFACE

    def draw(self, y: int) -> Sequence[Segment]:
        key, word = ink(palette.ORANGE, on=palette.SURFACE, bold=True), ink(palette.TEXT, on=palette.SURFACE)
        shown, room = self._shown()
        line: list[Segment] = []
        for command in shown:
            line += [Segment(f" {_label(command)} ", key), Segment(f"{command.title} ", word)]
        line.append(Segment(" " * (room - _cells(shown)) + " │ ", ink(palette.FRAME, on=palette.SURFACE)))
        return [*line, Segment("^p ", key), Segment(self._palette_word, word)]

    def _shown(self) -> tuple[list[Command], int]:
        """The commands that there is room for, and that room."""
        shown = [command for command in on_screen(self._where) if command.footer]
        room = self.cells.width - len(" │ ^p ") - len(self._palette_word)
        for command_id in _GIVES_WAY:
            if _cells(shown) > room:
                shown = [command for command in shown if command.id != command_id]
        return shown, room

    @property
    def _palette_word(self) -> str:
        return "" if self.cells.width < _NARROW else "palette "

    async def on_click(self, event: events.Click) -> None:
        """As the key that is clicked."""
        shown, room = self._shown()
        end = 0
        for command in shown:
            end += _cells([command])
            if event.x < end:
                await self.app.run_action(command.action, self.screen)
                return
        if event.x >= room:
            await self.app.run_action("app.command_palette")


def _label(command: Command) -> str:
    return command.keys[0] if len(command.keys[0]) == 1 else command.key_label


def _cells(shown: Sequence[Command]) -> int:
    return sum(len(f" {_label(command)} {command.title} ") for command in shown)
