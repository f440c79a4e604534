"""Widgets that draw whole lines themselves, and only those lines that changed.

Textual's border and padding machinery restyles every segment of every line. A ``Canvas`` hands its own
strips straight to the compositor and keeps them until told otherwise: a screen of charts then costs a few
milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from driftui import palette
from driftui.clean import clean
from driftui.palette import ink


class Canvas(Widget, inherit_bindings=False):
    """A widget drawn by ``draw(y)``, one strip per line, kept until ``redraw``."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._strips: dict[int, Strip] = {}
        self.cells = Size(0, 0)  # our size; Textual works its own out anew at every question

    def draw(self, y: int) -> Sequence[Segment]:
        """The segments of line ``y``; cut or filled to the width by the caller."""
        raise NotImplementedError

    @property
    def background(self) -> str:
        return palette.BACKGROUND

    def redraw(self, lines: Iterable[int] | None = None) -> None:
        """These lines (or all) are out of date. Costs nothing while the widget is hidden."""
        if lines is None:
            self._strips.clear()
            if self.display:
                self.refresh()
            return
        width = self.cells.width
        regions = []
        for y in lines:
            self._strips.pop(y, None)
            regions.append(Region(0, y, width, 1))
        if regions and self.display:
            self.refresh(*regions)

    def render_lines(self, crop: Region) -> list[Strip]:
        self._measure(self.size)
        width = self.cells.width
        strips = [self._strip(y, width) for y in crop.line_range]
        if self.app.no_color:
            _, background = self.background_colors
            for line_filter in self.app.get_line_filters():
                strips = [strip.apply_filter(line_filter, background) for strip in strips]
        if crop.column_span != (0, width):
            strips = [strip.crop(*crop.column_span) for strip in strips]
        return strips

    def on_resize(self, event: events.Resize) -> None:
        self._measure(event.size)

    def _measure(self, size: Size) -> None:
        if size != self.cells:
            self.cells = size
            self._strips.clear()

    def _strip(self, y: int, width: int) -> Strip:
        strip = self._strips.get(y)
        if strip is None:
            segments = self.draw(y)
            # Lines are drawn to measure, and counting characters shows it for much less than counting cells.
            # Those that are not (a tiny screen, wide characters) are cut or filled.
            if sum([len(segment.text) for segment in segments]) == width:
                strip = Strip(segments, width)
            else:
                blank = ink(palette.TEXT, on=self.background)
                strip = Strip(segments).adjust_cell_length(width, blank)
            self._strips[y] = strip
        return strip


class Panel(Canvas):
    """A canvas in a thin frame with a title, a key at the top right and a subtitle at the bottom right."""

    title = ""
    hotkey = ""
    subtitle = ""

    def body(self, y: int, width: int) -> Sequence[Segment]:
        """The segments of line ``y`` inside the frame, exactly ``width`` cells of them."""
        raise NotImplementedError

    @property
    def inner_height(self) -> int:
        return max(0, self.cells.height - 2)

    @property
    def inner_width(self) -> int:
        return max(0, self.cells.width - 2)

    def draw(self, y: int) -> Sequence[Segment]:
        frame = ink(palette.FRAME)
        width, height = self.inner_width, self.cells.height
        if y == 0:
            return self._edge("╭", "╮", width, left=self.title, right=self.hotkey)
        if y == height - 1:
            return self._edge("╰", "╯", width, left="", right=self.subtitle)
        return [Segment("│", frame), *self.body(y - 1, width), Segment("│", frame)]

    def _edge(self, start: str, end: str, width: int, *, left: str, right: str) -> list[Segment]:
        frame = ink(palette.FRAME)
        left = clean(left, max(0, width - 4))
        right = clean(right, max(0, width - 6 - cell_len(left)))
        line = [Segment(start + "─", frame)]
        used = 1
        if left:
            line.append(Segment(f" {left} ", ink(palette.TITLE)))
            used += cell_len(left) + 2
        tail = cell_len(right) + 3 if right else 0
        line.append(Segment("─" * max(0, width - used - tail), frame))
        if right:
            colour = palette.ORANGE if right == self.hotkey else palette.FAINT
            line += [Segment(f" {right} ", ink(colour)), Segment("─", frame)]
        line.append(Segment(end, frame))
        return line
