"""Lines drawn in braille: two by four dots to a cell, one colour to a cell."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, isfinite, log10

import numpy as np

from driftui.feed import Floats

# Bit of the dot in row y (0..3) and column x (0..1) of a braille cell.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
BRAILLE = 0x2800


class Raster:
    """A field of ``width`` x ``height`` cells; a cell has the colour of the last line that touches it."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self.bits = [[0] * width for _ in range(height)]
        self.owner = [[-1] * width for _ in range(height)]

    def plot(self, series: int, values: Floats, low: float, high: float) -> None:
        """Join the values, one per dot column, ``low`` at the bottom, ``high`` at the top; NaN is a gap."""
        top = 4 * self.height - 1
        scaled = np.rint((high - values) / (high - low) * top)
        rows = np.where(np.isfinite(scaled), np.clip(scaled, 0, top), -1).astype(int).tolist()
        before = -1
        for column, row in enumerate(rows):
            if row >= 0:
                if before < 0 or before == row:
                    self._dots(series, column, row, row)
                elif before < row:
                    self._dots(series, column, before + 1, row)
                else:
                    self._dots(series, column, row, before - 1)
            before = row

    def _dots(self, series: int, column: int, first: int, last: int) -> None:
        x, side = divmod(column, 2)
        for row in range(first, last + 1):
            y = row >> 2
            bits, owner = self.bits[y], self.owner[y]
            owner[x] = series
            bits[x] |= _DOTS[row & 3][side]


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
