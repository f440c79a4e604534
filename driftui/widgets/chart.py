"""A braille chart over time: several series, dashed grid, vertical markers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from rich.cells import cell_len
from rich.segment import Segment
from textual import events

from driftui import figures, palette
from driftui.clean import clean
from driftui.history import Floats, Grid, History
from driftui.palette import ink
from driftui.widgets.canvas import Panel
from driftui.widgets.raster import GROUND, MARKER, Raster, scale

LABEL_CELLS = 5  # of the vertical axis
_LINES_AROUND = 2  # legend above, time axis below
_LEGEND_INDENT = LABEL_CELLS - 2
_LEGEND_GAP = 2
_LEGEND_MARK = 2  # cells: the stroke and a blank
_DASHES = (0, 4, 1)  # of each stroke: dot columns drawn, and as many left out
_UNSEEN = 50  # a line so many times lower than the highest is not to be told from the axis
_SHORTEST_NAME, _LONGEST_NAME = 9, 18  # rather than cut names further, a legend leaves some tenants out


class Series(NamedTuple):
    """What to draw: a series of the history (of one tenant or of all), under a name, in a colour."""

    key: str
    tenant: str | None
    name: str  # as in the legend
    colour: str
    stroke: int = 0  # of ``palette.STROKES``
    strong: bool = False  # of the tenant under the cursor


class Marker(NamedTuple):
    """A vertical line at an instant of the run's clock."""

    at_s: float
    colour: str


class Moment(NamedTuple):
    """The stretch of time that all charts share."""

    now: float
    window_s: float
    markers: tuple[Marker, ...]


@lru_cache(256)
def name_cells(lengths: tuple[int, ...], room: int) -> int:
    """How long names may be so that all fit into ``room``; where they cannot, as long as is of use."""
    longest = max(lengths, default=0)
    for most in range(longest, _SHORTEST_NAME - 1, -1):
        if sum(min(length, most) for length in lengths) <= room:
            return most
    return min(longest, _LONGEST_NAME)


class Chart(Panel):
    """One pane. ``show`` compares what is asked with what is drawn, and redraws only for a new dot column."""

    def __init__(
        self,
        title: str,
        hotkey: str,
        low: float,
        high: float,
        unit: Callable[[float], str],
        *,
        decades: bool = False,
        id: str,
    ) -> None:
        """``decades``: a logarithmic axis where one line would flatten the others."""
        super().__init__(id=id)
        self.title = self._what = title
        self._may_be_log, self._log = decades, False
        self.hotkey, self.click = hotkey, f"chart({int(hotkey) - 1})"
        self._least = (low, high)  # the axis never spans less
        self._unit = unit
        self._history: History | None = None
        self._series: Sequence[Series] = ()
        self._moment = Moment(0.0, 60.0, ())
        self._drawn: object = None
        self._frame: object = None
        self._lines: list[list[Segment]] = []

    def show(self, history: History, series: Sequence[Series], moment: Moment) -> None:
        """Draw this from now on."""
        if not self.display:
            self._drawn = None
            return
        self._history, self._series, self._moment = history, series, moment
        cells = self._plot_width
        if cells <= 0:
            return
        grid = Grid.ending(moment.now, moment.window_s, 2 * cells)
        # A window of minutes has seconds to a column; the newest column and the legend still follow.
        asked = (history, grid, self.cells, tuple(series), moment.markers, int(moment.now), self.title)
        if asked != self._drawn:
            self._drawn = asked
            self._paint(history, grid)

    def on_resize(self, event: events.Resize) -> None:
        super().on_resize(event)
        if self._history is not None:
            self.show(self._history, self._series, self._moment)

    @property
    def _plot_width(self) -> int:
        return self.inner_width - LABEL_CELLS - 2

    def body(self, y: int, width: int) -> Sequence[Segment]:
        if y < len(self._lines):
            return self._lines[y]
        return [Segment(" " * width, ink(palette.TEXT))]

    def _paint(self, history: History, grid: Grid) -> None:
        """Draw all lines of the pane anew; those that look as before are not painted."""
        width = self._plot_width
        height = max(0, self.inner_height - _LINES_AROUND)
        values = np.array([history.buckets(s.key, grid, s.tenant) for s in self._series])
        values = values.reshape(len(self._series), grid.buckets)  # also of no series
        if self._may_be_log:
            self._log = _flattens(values, 0.5 if self._log else 1.0)  # or it would go back and forth
            self.title = self._what + ", log scale" * self._log
        lines = [self._legend(history.latest([(s.key, s.tenant) for s in self._series], grid))]
        if height:
            lines += self._plot(values, grid, width, height)
            lines.append(self._time_axis(width))
        frame = self.title, self.subtitle, self.cells
        if frame != self._frame or len(lines) != len(self._lines):
            self._frame, self._lines = frame, lines
            self.redraw()
            return
        changed = [1 + y for y, (old, new) in enumerate(zip(self._lines, lines, strict=True)) if old != new]
        self._lines = lines
        self.redraw(changed)

    def _plot(self, values: Floats, grid: Grid, width: int, height: int) -> list[list[Segment]]:
        if self._log:
            values = 1 + np.log10(np.maximum(values, 0.1))  # 0 and 1 lie as far apart as 1 and 10
            low, high, ticks = scale(values, 0.0, 1.0, rows=height, whole=True)
        else:
            low, high, ticks = scale(values, *self._least, rows=height)
        columns = np.arange(grid.first, grid.first + grid.buckets)
        for line, series in zip(values, self._series, strict=True):
            if dash := _DASHES[series.stroke]:
                line[columns // dash % 2 == 1] = np.nan
        raster = Raster(width, height)
        raster.plot(values, low, high)
        labels: dict[int, str] = {}
        for tick in ticks:
            row = round((high - tick) / (high - low) * (4 * height - 1)) // 4
            labels[row] = figures.plain(tick if not self._log else 10 ** (tick - 1) if tick else 0.0)
        places = [(grid.place(marker.at_s), marker.colour) for marker in self._moment.markers]
        colours = list(dict.fromkeys(colour for _, colour in places))
        markers = {place // 2: colours.index(colour) for place, colour in places if place is not None}
        inks = {GROUND: ink(palette.GRID)}
        inks.update({MARKER - number: ink(colour) for number, colour in enumerate(colours)})
        inks.update({index: ink(series.colour) for index, series in enumerate(self._series)})
        lines: list[list[Segment]] = []
        for row, runs in enumerate(raster.rows(list(labels), markers)):
            label = labels.get(row)
            # Blanks have no colour of their own, so they share a segment with whatever is beside them.
            line = [Segment(" " * LABEL_CELLS + "│", ink(palette.GRID))]
            if label is not None:
                line = [
                    Segment(label.rjust(LABEL_CELLS), ink(palette.FAINT)),
                    Segment("┤", ink(palette.GRID)),
                ]
            *others, (text, owner) = runs
            line += [Segment(text, inks[owner]) for text, owner in others]
            line.append(Segment(text + " ", inks[owner]))
            lines.append(line)
        return lines

    def _legend(self, latest: Sequence[float]) -> list[Segment]:
        width = self.inner_width
        line: list[Segment] = []
        used, gap = 0, _LEGEND_INDENT
        # The tenant under the cursor is drawn last and named first.
        pairs = sorted(zip(self._series, latest, strict=True), key=lambda pair: not pair[0].strong)
        names = [clean(series.name) for series, _ in pairs]
        shown = [self._unit(value) for _, value in pairs]
        around = _LEGEND_GAP + _LEGEND_MARK + 1
        room = width - _LEGEND_INDENT + _LEGEND_GAP - sum(len(figure) + around for figure in shown)
        most = name_cells(tuple(map(cell_len, names)), room)
        for at, ((series, _), name, figure) in enumerate(zip(pairs, names, shown, strict=True)):
            text = f"{clean(name, most)} {figure}"
            cells = gap + _LEGEND_MARK + cell_len(text)
            more = f"  +{len(names) - at}"
            left = len(names) - at - 1  # after this one
            if used + cells + (len(more) if left else 0) > width:
                more = more[: width - used]
                line.append(Segment(more, ink(palette.FAINT)))
                used += len(more)
                break
            mark = palette.STROKES[series.stroke]
            line.append(Segment(f"{' ' * gap}{mark} ", ink(series.colour)))
            line.append(Segment(text, ink(palette.BRIGHT if series.strong else palette.FAINT)))
            used, gap = used + cells, _LEGEND_GAP
        line.append(Segment(" " * (width - used), ink(palette.FAINT)))
        return line

    def _time_axis(self, width: int) -> list[Segment]:
        most = 3 if self._moment.window_s % 4 else 4  # whole seconds apart
        parts = most if width >= 40 else 2 if width >= 20 else 1
        text = [" "] * (width + 1)
        for part in range(parts):
            label = "-" + figures.span(self._moment.window_s * (parts - part) / parts)
            at = round(width * part / parts)
            if at:
                at -= len(label) // 2
            text[at : at + len(label)] = label
        text[width - 3 : width] = "now"
        axis = " " * LABEL_CELLS + "└"
        return [Segment(axis, ink(palette.GRID)), Segment("".join(text)[: width + 1], ink(palette.FAINT))]


def _flattens(values: Floats, ease: float) -> bool:
    """Whether one line is so high that another, of ten or more, lies on the axis."""
    peaks = np.fmax.reduce(values, axis=1, initial=0.0)
    return bool(((peaks >= 10 * ease) & (peaks * _UNSEEN * ease < peaks.max(initial=0.0))).any())
