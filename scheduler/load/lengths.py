"""How long answers get on the simulated engine: a draw in tokens per category.

A draw is the length the answer would have if nothing cut it; the engine cuts it at ``max_tokens``. Under
the profile `heavy` that cap must not be the category's small base, or there would be no heavy tail:
there, unless a stream says otherwise, ``max_tokens`` is HEAVY_MAX_TOKENS.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, log
from random import Random

LogNormal = tuple[float, float]
"""Median in tokens, and sigma: the standard deviation of the logarithm."""

HEAVY_MAX_TOKENS = 1536  # what a context of 2048 leaves after a prompt of up to 512 tokens


def _profile(sigma: float, *medians: float) -> Mapping[str, LogNormal]:
    return dict(
        zip(("short_qa", "summary", "technical", "report"), ((m, sigma) for m in medians), strict=True)
    )


PROFILES: Mapping[str, Mapping[str, LogNormal]] = {
    "sat": _profile(0.45, 150, 330, 700, 1100),
    "near": _profile(0.4, 85, 210, 400, 520),
    "mod": _profile(0.5, 45, 140, 290, 400),
    "short": _profile(0.55, 25, 90, 200, 300),
    "heavy": _profile(0.9, 40, 180, 350, 500),
}


class LengthModel:
    """Draws answer lengths; ``of`` costs well under a microsecond."""

    __slots__ = ("_gauss", "_params")

    def __init__(self, params: Mapping[str, LogNormal], rng: Random) -> None:
        self._params = {category: (log(median), sigma) for category, (median, sigma) in params.items()}
        self._gauss = rng.gauss

    def of(self, category: str, scale: float = 1.0) -> int:
        """Tokens, at least 1."""
        mu, sigma = self._params[category]
        return max(1, round(scale * exp(mu + sigma * self._gauss(0.0, 1.0))))
