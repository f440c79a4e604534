"""Lines drawn in braille: two by four dots to a cell, one colour to a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, isfinite, log10

import numpy as np

from driftui.feed import Floats

# Row, column and bit of each dot of a braille cell.
_DOTS = (
    (0, 0, 0x01),
    (1, 0, 0x02),
    (2, 0, 0x04),
    (3, 0, 0x40),
    (0, 1, 0x08),
    (1, 1, 0x10),
    (2, 1, 0x20),
    (3, 1, 0x80),
)
_BRAILLE = 0x2800
_BLANK, _DASH, _BAR = (ord(char) for char in " ╌┊")
GROUND = -1  # the owner of cells that no line touches
MARKER = -2  # and below: the markers, in order


class Raster:
    """A field of ``width`` x ``height`` cells; a cell belongs to the last line that touches it."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self._rows = np.arange(4 * height)[:, None]
        self.dots = np.zeros((4 * height, 2 * width), dtype=bool)
        self._owner = np.full((height, width), GROUND)

    def plot(self, series: int, values: Floats, low: float, high: float) -> None:
        """Join the values, one per dot column, ``low`` at the bottom, ``high`` at the top; NaN is a gap."""
        top = 4 * self.height - 1
        known = np.isfinite(values)
        rows = np.rint((high - np.where(known, values, low)) / (high - low) * top)
        rows = np.clip(rows, 0, top).astype(int)
        # A column starts next to where the one before ended, so that steep lines hold together.
        before = np.concatenate((rows[:1], rows[:-1]))
        joined = known & np.concatenate(((False,), known[:-1]))
        first = np.where(joined & (before < rows), before + 1, rows)
        last = np.where(joined & (before > rows), before - 1, rows)
        drawn = (self._rows >= first) & (self._rows <= last) & known
        pairs = drawn[:, 0::2] | drawn[:, 1::2]
        cells = pairs[0::4] | pairs[1::4] | pairs[2::4] | pairs[3::4]
        self._owner[cells] = series
        # It hides what lay in its cells before: a cell has one colour, and no dot may show in another's.
        self.dots &= ~cells.repeat(4, axis=0).repeat(2, axis=1)
        self.dots |= drawn

    def lines(self, dashed: Sequence[int], markers: Mapping[int, int]) -> list[list[tuple[str, int]]]:
        """Each row of cells as runs of (text, owner).

        ``dashed`` rows have a grid line behind them; ``markers`` maps a column to a number k: its bar is
        owned by ``MARKER - k``. A blank has no colour, and belongs to the run before it.
        """
        codes = np.full((self.height, self.width), _BRAILLE, dtype=np.uint32)
        dots = self.dots.view(np.uint8)
        for y, x, bit in _DOTS:
            codes += dots[y::4, x::2] * np.uint32(bit)
        free = self._owner == GROUND
        ground = np.full(self.height, _BLANK, dtype=np.uint32)
        ground[list(dashed)] = _DASH
        codes = np.where(free, ground[:, None], codes)
        owner = self._owner.copy()
        for column, number in markers.items():
            codes[free[:, column], column] = _BAR
            owner[free[:, column], column] = MARKER - number
        columns = np.arange(self.width)
        inked = np.maximum.accumulate(np.where(codes == _BLANK, 0, columns), axis=1)
        owner = np.take_along_axis(owner, inked, axis=1)
        starts = np.ones((self.height, self.width), dtype=bool)
        starts[:, 1:] = owner[:, 1:] != owner[:, :-1]
        text = codes.astype("<u4").tobytes().decode("utf-32-le")
        begins = np.flatnonzero(starts)
        runs: list[list[tuple[str, int]]] = [[] for _ in range(self.height)]
        owners = owner.ravel()[begins].tolist()
        places = begins.tolist()
        for begin, end, who in zip(places, [*places[1:], len(text)], owners, strict=True):
            runs[begin // self.width].append((text[begin:end], who))
        return runs


def nice_step(span: float, parts: int) -> float:
    """The smallest of 1, 2, 2.5, 5 x 10^k that cuts ``span`` into at most ``parts`` pieces."""
    raw = span / max(1, parts)
    power = 10.0 ** floor(log10(raw))
    return next(power * step for step in (1, 2, 2.5, 5, 10) if power * step >= raw * 0.999)


def scale(values: Sequence[Floats], low: float, high: float, rows: int) -> tuple[float, float, list[float]]:
    """Bottom, top and ticks of an axis that holds all values and at least ``low`` to ``high``."""
    for series in values:
        finite = series[np.isfinite(series)]
        if len(finite):
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    step = nice_step(high - low, max(1, rows // 3))
    bottom = floor(low / step + 1e-9) * step
    ticks = [bottom + step * k for k in range(ceil((high - bottom) / step + 1e-9) + 1)]
    ticks = [tick for tick in ticks if tick <= high + step * 0.05]
    top = max(high, ticks[-1])
    return bottom, top + 0.02 * (top - bottom), [tick for tick in ticks if isfinite(tick)]
