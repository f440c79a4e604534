"""The keys that fit into the last line, from the command registry."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment

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
        width = self.cells.width
        palette_word = "" if width < _NARROW else "palette "
        shown = {c.id: (f" {_label(c)} ", c.title) for c in on_screen(self._where) if c.footer}
        room = width - len(" │ ^p ") - len(palette_word)
        for command_id in _GIVES_WAY:
            if _cells(shown) > room:
                shown.pop(command_id, None)
        line: list[Segment] = []
        for label, title in shown.values():
            line += [Segment(label, key), Segment(f"{title} ", word)]
        line.append(Segment(" " * (room - _cells(shown)) + " │ ", ink(palette.FRAME, on=palette.SURFACE)))
        return [*line, Segment("^p ", key), Segment(palette_word, word)]


def _label(command: Command) -> str:
    return command.keys[0] if len(command.keys[0]) == 1 else command.key_label


def _cells(shown: dict[str, tuple[str, str]]) -> int:
    return sum(len(label) + len(title) + 1 for label, title in shown.values())
