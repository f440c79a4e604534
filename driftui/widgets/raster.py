"""Lines drawn in braille: two by four dots to a cell, one colour to a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import ceil, floor, log10

import numpy as np
import numpy.typing as npt

from driftui.history import Floats, Ints

_BRAILLE = 0x2800
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a cell's left and right dots, from the top
# The bits of the dots from ``start`` to before ``end``, at 25 x side + 5 x start + end.
_PATTERNS = np.array(
    [sum(bits[start:end]) for bits in _BITS for start in range(5) for end in range(5)], dtype=np.uint8
)
_BLANK, _DASH, _BAR = (ord(char) for char in " ╌┊")
GROUND = -1  # the owner of cells that no line touches
MARKER = -2  # and below: the markers, in order


@cache
def _field(width: int, height: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int16], Ints]:
    """Rows of dots above each row of cells; each dot column's side in ``_PATTERNS``; the cells, numbered."""
    above = 4 * np.arange(height, dtype=np.int16)[:, None]
    side = np.tile(np.array([0, 25], dtype=np.int16), width)
    return above, side, np.arange(height * width).reshape(height, width)


class Raster:
    """A field of ``width`` x ``height`` cells; a cell belongs to the last line that touches it."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self._above, self._side, self._places = _field(width, height)
        self.dots = np.zeros((height, width), dtype=np.uint8)  # as in U+2800 to U+28FF
        self._owner = np.full((height, width), GROUND, dtype=np.int16)

    def plot(self, lines: Floats, low: float, high: float) -> None:
        """Draw each row of ``lines``, a value per dot column; ``low`` is at the bottom, NaN is a gap.

        The first row has owner 0, and so on.
        """
        top = 4 * self.height - 1
        known = np.isfinite(lines)
        rows = np.rint((high - np.where(known, lines, low)) * (top / (high - low)))
        rows = np.minimum(np.maximum(rows, 0), top).astype(np.int16)
        # A column starts next to where the one before ended, so that steep lines hold together.
        first, last = rows.copy(), rows.copy()
        here, before = rows[:, 1:], rows[:, :-1]
        joined = known[:, 1:] & known[:, :-1]
        np.copyto(first[:, 1:], before + 1, where=joined & (before < here))
        np.copyto(last[:, 1:], before - 1, where=joined & (before > here))
        last[~known] = -1
        # How many of a cell's four dots lie above the first that is drawn, and above the end of the last.
        start = np.minimum(np.maximum(first[:, None] - self._above, 0), 4)
        end = np.minimum(np.maximum(last[:, None] + 1 - self._above, 0), 4)
        sides = _PATTERNS.take(5 * start + end + self._side)
        cells = sides[:, :, 0::2] | sides[:, :, 1::2]
        touched = cells != 0
        for number, (mine, where) in enumerate(zip(cells, touched, strict=True)):
            # It hides what lay in its cells before: a cell has one colour, and no dot may show in another's.
            np.copyto(self.dots, mine, where=where)
            self._owner[where] = number

    def rows(self, dashed: Sequence[int], markers: Mapping[int, int]) -> list[list[tuple[str, int]]]:
        """Each row of cells as runs of (text, owner).

        ``dashed`` rows have a grid line behind them; ``markers`` maps a column to a number k: its bar is
        owned by ``MARKER - k``. A blank has no colour, and belongs to the run before it.
        """
        free = self._owner == GROUND
        ground = np.full((self.height, self.width), _BLANK, dtype="<u4")
        owner = self._owner.copy()
        for row in dashed:
            ground[row] = _DASH
        for column, number in markers.items():
            ground[:, column] = _BAR
            owner[:, column][free[:, column]] = MARKER - number
        codes = np.where(free, ground, self.dots + np.uint32(_BRAILLE))
        inked = np.where(codes == _BLANK, self._places[:, :1], self._places)
        owner = owner.take(np.maximum.accumulate(inked, axis=1))
        starts = np.ones((self.height, self.width), dtype=bool)
        np.not_equal(owner[:, 1:], owner[:, :-1], out=starts[:, 1:])
        begins = np.flatnonzero(starts)
        owners = owner.take(begins).tolist()
        places = begins.tolist()
        text = codes.tobytes().decode("utf-32-le")
        runs: list[list[tuple[str, int]]] = [[] for _ in range(self.height)]
        for begin, end, who in zip(places, [*places[1:], len(text)], owners, strict=True):
            runs[begin // self.width].append((text[begin:end], who))
        return runs


def nice_step(span: float, parts: int) -> float:
    """The smallest of 1, 2, 2.5, 5 x 10^k that cuts ``span`` into at most ``parts`` pieces."""
    raw = span / max(1, parts)
    power = 10.0 ** floor(log10(raw))
    return next(power * step for step in (1, 2, 2.5, 5, 10) if power * step >= raw * 0.999)


def scale(
    values: Floats, low: float, high: float, rows: int, *, whole: bool = False
) -> tuple[float, float, list[float]]:
    """Bottom, top and ticks of an axis that holds all values and at least ``low`` to ``high``.

    Ticks lie a whole number of ``rows`` apart; of such axes it is the one that leaves least room unused.
    ``whole``: at whole numbers only.
    """
    finite = values[np.isfinite(values)]
    if len(finite):
        low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    span_rows = max(rows, 2) - 0.5  # from the third dot of the last row, where its dash is, to the topmost
    least, closest = 1.02 * (high - low), max(1, (rows + 1) // 5)
    axes = []
    for apart in range(closest, closest + 3):
        step = bottom = span = 0.0
        while bottom + span < low + least:
            raw = max(least * apart / span_rows, step * 1.01)
            step = ceil(raw) if whole else nice_step(raw, 1)
            bottom = floor(low / step + 1e-9) * step
            span = step * span_rows / apart
        axes.append((span, bottom, step, 0.25 * step / apart))
    span, bottom, step, dot = min(axes)
    return bottom - dot, bottom + span, [bottom + step * k for k in range(int(span / step + 1e-9) + 1)]
