"""When requests come: each process yields arrival times in seconds since its stream began.

The times never decrease, come from the ``random.Random`` handed in and nothing else, and go on for ever
unless the rate falls to zero for good: the stream's ``for`` and ``count`` end it. ``closed`` is not here,
because its arrivals depend on completions: ``sources.Clients`` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from math import cos, log, pi, sqrt
from random import Random

Process = Callable[[Random], Iterator[float]]


def poisson(rng: Random, rate: float) -> Iterator[float]:
    """Independent arrivals, ``rate`` per second on average."""
    random, at = rng.random, 0.0
    while True:
        at -= log(1.0 - random()) / rate
        yield at


def uniform(rng: Random, min_s: float, max_s: float) -> Iterator[float]:
    """Gaps drawn evenly between two bounds."""
    random, at, width = rng.random, 0.0, max_s - min_s
    while True:
        at += min_s + width * random()
        yield at


def gamma(rng: Random, rate: float, cv: float) -> Iterator[float]:
    """Gamma-distributed gaps; ``cv``, their coefficient of variation, is 1 for Poisson, more for bursts."""
    shape, at = 1.0 / (cv * cv), 0.0
    scale = 1.0 / (rate * shape)
    while True:
        at += rng.gammavariate(shape, scale)
        yield at


def bursts(rng: Random, rate: float, base: float, busy_s: float, idle_s: float) -> Iterator[float]:
    """Poisson at ``rate`` for ``busy_s``, then at ``base`` for ``idle_s``, and again."""
    random, cycle_s, in_burst = rng.random, busy_s + idle_s, busy_s * rate
    in_cycle = in_burst + idle_s * base  # expected arrivals
    expected = 0.0
    while True:
        expected -= log(1.0 - random())
        cycles, left = divmod(expected, in_cycle)
        within_s = left / rate if left < in_burst else busy_s + (left - in_burst) / base
        yield cycles * cycle_s + within_s


def step(rng: Random, before: float, after: float, at_s: float) -> Iterator[float]:
    """Poisson at one rate until ``at_s``, at another from then on."""
    first = before * at_s  # expected arrivals until then
    expected = 0.0
    while True:
        expected -= log(1.0 - rng.random())
        if expected < first:
            yield expected / before
        elif after == 0.0:
            return
        else:
            yield at_s + (expected - first) / after


def ramp(rng: Random, start: float, end: float, over_s: float) -> Iterator[float]:
    """Poisson whose rate goes straight from ``start`` to ``end`` over ``over_s``, and stays there."""
    slope = (end - start) / over_s
    total = 0.5 * (start + end) * over_s  # expected arrivals on the ramp
    expected = 0.0
    while True:
        expected -= log(1.0 - rng.random())
        if expected > total:
            if end == 0.0:
                return
            yield over_s + (expected - total) / end
        else:
            # Invert the integral of the rate, in the form that has no cancellation for a flat ramp.
            yield 2.0 * expected / (start + sqrt(max(0.0, start * start + 2.0 * slope * expected)))


def diurnal(rng: Random, low: float, high: float, period_s: float) -> Iterator[float]:
    """Poisson whose rate swings as a cosine between ``low`` (at the start) and ``high``, by thinning."""
    middle, swing, turn = (low + high) / 2.0, (high - low) / 2.0, 2.0 * pi / period_s
    for at in poisson(rng, high):
        if rng.random() * high < middle - swing * cos(turn * at):
            yield at


def at_once(_: Random) -> Iterator[float]:
    """Everything at the stream's start; ``count`` says how much that is."""
    return repeat(0.0)
