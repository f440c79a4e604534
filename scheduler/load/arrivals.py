"""When requests come: each process yields arrival times in seconds since its stream began.

The times never decrease, come from the ``random.Random`` handed in and nothing else, and go on for ever
unless the rate falls to zero for good: the stream's ``for`` and ``count`` end it. ``closed`` is not here,
because its arrivals depend on completions: ``workload.py`` runs those clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, repeat
from math import cos, inf, log, pi, sqrt
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
    return _piecewise(rng, cycle(((busy_s, rate), (idle_s, base))))


def step(rng: Random, before: float, after: float, at_s: float) -> Iterator[float]:
    """Poisson at one rate until ``at_s``, at another from then on."""
    return _piecewise(rng, ((at_s, before), (inf, after)))


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


def _piecewise(rng: Random, segments: Iterable[tuple[float, float]]) -> Iterator[float]:
    """Poisson over (seconds, rate) pieces: a unit-rate process, stretched by the rate in force."""
    random, began = rng.random, 0.0
    need = -log(1.0 - random())  # expected arrivals still to pass before the next one
    for seconds, rate in segments:
        at, ends = began, began + seconds
        while need < (ends - at) * rate:
            at += need / rate
            yield at
            need = -log(1.0 - random())
        if ends == inf:
            return  # only a rate of zero gets through the last piece
        need -= (ends - at) * rate
        began = ends
