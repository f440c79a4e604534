"""An upper bound that covers a set share of what comes, whatever the distribution does.

Adaptive conformal inference on the log scale: the margin grows by a step at each miss and shrinks a little
at each hit, so over a long run the share of misses is the one asked for (Gibbs and Candès 2021).
"""

from __future__ import annotations

from collections import deque
from math import exp, nan

TARGET = 0.9
STEP = 0.08
GROW, SHRINK = STEP * TARGET, STEP * (1 - TARGET)
WINDOW = 512
MOST = 5.0  # of the log margin


class Margin:
    """``upper`` = value x exp(margin)."""

    def __init__(self, start: float = 0.8) -> None:
        self.log_margin = start
        self._hits: deque[bool] = deque(maxlen=WINDOW)

    @property
    def coverage(self) -> float:
        """Share of the last answers at or below their upper bound; NaN before the first."""
        return sum(self._hits) / len(self._hits) if self._hits else nan

    def upper(self, value: float) -> float:
        return value * exp(self.log_margin)

    def observe(self, upper: float, actual: float, censored: bool) -> None:
        """``upper`` was promised for an answer of ``actual`` tokens, or more where it was ``censored``."""
        if actual > upper:
            self._hits.append(False)
            margin = self.log_margin + GROW
            self.log_margin = margin if margin < MOST else MOST
        elif not censored:  # else it might have gone on past the bound
            self._hits.append(True)
            margin = self.log_margin - SHRINK
            self.log_margin = margin if margin > 0.0 else 0.0
