"""An upper bound that covers a set share of what comes, whatever the distribution does.

Adaptive conformal inference on the log scale: the margin grows by a step at each miss and shrinks a little
at each hit, so over a long run the share of misses is the one asked for (Gibbs and Candès 2021).
"""

from __future__ import annotations

from math import exp

TARGET = 0.9
STEP = 0.08
GROW, SHRINK = STEP * TARGET, STEP * (1 - TARGET)
MOST = 5.0  # of the log margin


class Margin:
    """The upper bound is the value x ``factor``."""

    __slots__ = ("factor", "log_margin")

    def __init__(self, start: float = 0.8) -> None:
        self.log_margin = min(start, MOST)
        self.factor = exp(self.log_margin)

    def observe(self, upper: float, actual: float, censored: bool) -> None:
        """``upper`` was promised for an answer of ``actual`` tokens, or more where it was ``censored``."""
        margin = self.log_margin
        if actual > upper:
            margin += GROW
            margin = margin if margin < MOST else MOST
        elif censored:
            return  # it might have gone on past the bound
        else:
            margin -= SHRINK
            margin = margin if margin > 0.0 else 0.0
        self.log_margin = margin
        self.factor = exp(margin)
