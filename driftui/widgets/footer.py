"""The keys that fit into the last line, from the command registry."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment

from driftui import palette
from driftui.commands import on_screen
from driftui.palette import ink
from driftui.widgets.canvas import Canvas

_RIGHT = " │ ^p palette "


class KeyLine(Canvas):
    """The bottom line of the main screen."""

    @property
    def background(self) -> str:
        return palette.SURFACE

    def draw(self, y: int) -> Sequence[Segment]:
        key, word = ink(palette.ORANGE, on=palette.SURFACE, bold=True), ink(palette.TEXT, on=palette.SURFACE)
        room = self.cells.width - len(_RIGHT)
        line: list[Segment] = []
        used = 0
        for command in on_screen("main"):
            label = command.keys[0] if len(command.keys[0]) == 1 else command.key_label
            cells = len(label) + len(command.title) + 3
            if not command.footer or used + cells > room:
                continue
            line += [Segment(f" {label} ", key), Segment(f"{command.title} ", word)]
            used += cells
        if room >= 0:
            line.append(Segment(" " * (room - used) + " │ ", ink(palette.FRAME, on=palette.SURFACE)))
            line += [Segment("^p ", key), Segment("palette ", word)]
        return line
