"""Widgets that draw whole lines themselves, and only those lines that changed.

Textual's border and padding machinery restyles every segment of every line, and its compositor cuts every
line at the edges of every widget. A ``Canvas`` hands its own strips to the compositor and keeps them until
told otherwise; and while nothing lies over the canvases, ``paint`` writes the changed lines past the
compositor, for a third of the cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment
from textual import events
from textual._compositor import CompositorUpdate
from textual.geometry import NULL_REGION, Region, Size
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget

from driftui import palette
from driftui.clean import clean
from driftui.palette import ink

# A shade off the frame's colours, which no eye sees, so that the next line begins with a change of both: a
# copy of a terminal (tmux capture-pane -e) names a colour where it changes, and is often read line by line.
_RIGHT_EDGE = ink(palette.FRAME_AGAIN, on=palette.BACKGROUND_AGAIN)


class Canvas(Widget, inherit_bindings=False):
    """A widget drawn by ``draw(y)``, line by line; ``redraw`` says which lines are out of date."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._strips: dict[int, Strip] = {}
        self._stale: set[int] = set()  # lines that the terminal shows as they were
        self.cells = Size(0, 0)  # our size; Textual works its own out anew at every question

    def draw(self, y: int) -> Sequence[Segment]:
        """The segments of line ``y``; cut or filled to the width by the caller."""
        raise NotImplementedError

    @property
    def background(self) -> str:
        return palette.BACKGROUND

    def redraw(self, lines: Iterable[int] | None = None) -> None:
        """These lines (or all) are out of date; ``paint`` or ``flush`` brings them to the terminal."""
        if lines is None:
            self._strips.clear()
            self._stale.update(range(self.cells.height))
            return
        for y in lines:
            self._strips.pop(y, None)
            self._stale.add(y)

    def take_stale(self) -> list[tuple[int, Sequence[Segment]]]:
        """The lines that are out of date, as they should look; from now on they count as painted."""
        lines = [(y, self._fitted(y, self.cells.width)) for y in sorted(self._stale)]
        self._stale.clear()
        return lines

    def flush(self) -> None:
        """Let Textual repaint the lines that are out of date. Costs nothing while the widget is hidden."""
        if self._stale and self.display:
            self.refresh(*[Region(0, y, self.cells.width, 1) for y in self._stale])
        self._stale.clear()

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
            self._stale.clear()  # a new size is painted whole

    def _strip(self, y: int, width: int) -> Strip:
        strip = self._strips.get(y)
        if strip is None:
            strip = self._strips[y] = Strip(self._fitted(y, width), width)
        return strip

    def _fitted(self, y: int, width: int) -> Sequence[Segment]:
        segments = self.draw(y)
        # Lines are drawn to measure, and counting characters shows it for much less than counting cells.
        # Those that are not (a tiny screen, wide characters) are cut or filled.
        if sum([len(segment.text) for segment in segments]) == width:
            return segments
        return list(Strip(segments).adjust_cell_length(width, ink(palette.TEXT, on=self.background)))


class Lines(CompositorUpdate):
    """Whole lines of canvases, each with the place of its first cell."""

    def __init__(self, lines: Sequence[tuple[int, int, Sequence[Segment]]]) -> None:
        self._lines = lines

    def render_segments(self, console: Console) -> str:
        colours = console._color_system or ColorSystem.TRUECOLOR
        parts = []
        for x, y, segments in self._lines:
            parts.append(f"\x1b[{y + 1};{x + 1}H")
            parts += [style.render(text, color_system=colours) for text, style, _ in segments if style]
        return "".join(parts)


def paint(screen: Screen[None], canvases: Sequence[Canvas], others: Sequence[Widget]) -> None:
    """Bring what is out of date to the terminal: at once and past the compositor, where that is safe.

    It is while no widget but these canvases, and ``others`` of which none lies over a canvas, is to be seen:
    no dialog, no toast. Else Textual repaints the lines, as of any widget.
    """
    app = screen.app
    visible = screen._compositor.visible_widgets
    alone = app.screen is screen and visible.keys() <= {screen, *canvases, *others}
    if not alone or app._batch_count or app.no_color:
        for canvas in canvases:
            canvas.flush()
        return
    lines: list[tuple[int, int, Sequence[Segment]]] = []
    for canvas in canvases:
        region, clip = visible.get(canvas, (NULL_REGION, NULL_REGION))
        if region.size == canvas.cells and clip.contains_region(region):
            lines += [(region.x, region.y + y, segments) for y, segments in canvas.take_stale()]
        else:  # hidden, cut off, or about to change its size
            canvas.flush()
    if lines:
        app._display(screen, Lines(lines))  # type: ignore[arg-type]  # it takes what its compositor makes


class Panel(Canvas):
    """A canvas in a thin frame with a title, a key at the top right and a subtitle at the bottom right."""

    title = ""
    hotkey = ""
    subtitle = ""
    click = ""  # the screen's action that a click runs

    async def on_click(self, event: events.Click) -> None:
        if self.click:
            await self.app.run_action(self.click, self.screen)

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
        width, height = self.inner_width, self.cells.height
        if y == 0:
            return self._edge("╭", "╮", width, left=self.title, right=self.hotkey)
        if y == height - 1:
            return self._edge("╰", "╯", width, left="", right=self.subtitle)
        return [Segment("│", ink(palette.FRAME)), *self.body(y - 1, width), Segment("│", _RIGHT_EDGE)]

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
        line.append(Segment(end, _RIGHT_EDGE))
        return line
