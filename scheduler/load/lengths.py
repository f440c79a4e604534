"""How long answers get on the simulated engine: a draw in tokens per category.

A draw is the length the answer would have if nothing cut it; the engine cuts it at ``max_tokens``. Under
the profile `heavy` that cap must not be the category's small base, or there would be no heavy tail:
there, unless a stream says otherwise, ``max_tokens`` is HEAVY_MAX_TOKENS.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import exp
from statistics import NormalDist

from scheduler.core.types import CATEGORIES

LogNormal = tuple[float, float]
"""Median in tokens, and sigma: the standard deviation of the logarithm."""

HEAVY_MAX_TOKENS = 1536  # what a context of 2048 leaves after a prompt of up to 512 tokens
QUANTILES = 4096  # a distribution as that many equally likely values: one look-up a draw


def _profile(sigma: float, *medians: float) -> Mapping[str, LogNormal]:
    return {name: (median, sigma) for name, median in zip(CATEGORIES, medians, strict=True)}


PROFILES: Mapping[str, Mapping[str, LogNormal]] = {
    "sat": _profile(0.45, 150, 330, 700, 1100),
    "near": _profile(0.4, 85, 210, 400, 520),
    "mod": _profile(0.5, 45, 140, 290, 400),
    "short": _profile(0.55, 25, 90, 200, 300),
    "heavy": _profile(0.9, 40, 180, 350, 500),
}


@cache
def _normal_quantiles() -> tuple[float, ...]:
    inverse = NormalDist().inv_cdf
    return tuple(inverse((i + 0.5) / QUANTILES) for i in range(QUANTILES))


def length_table(median: float, sigma: float) -> list[float]:
    """The log-normal's quantiles in tokens, evenly spaced in probability; draw one at random."""
    return [median * exp(sigma * z) for z in _normal_quantiles()]
