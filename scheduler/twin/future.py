"""A future of a run: one way in which things may go on from a picture of it.

Pure: the same picture and seed give the same future, so all policies can be played over the same one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from math import ceil, exp, log
from random import Random
from statistics import NormalDist, mean, variance
from typing import NamedTuple

from scheduler.core.types import NEW, Request
from scheduler.twin.picture import Pending, Picture, Ratios

POINT_SEED = 0
"""The future of a point prediction; every other seed is for bands."""

MIN_RATIOS = 16
"""Finished answers of a tenant and category that are needed to speak for it."""

BLOCKS = 12
"""Parts of the recent past by which is judged how evenly requests come."""

_NORMAL = NormalDist()
_UPPER_Z = _NORMAL.inv_cdf(0.9)  # an upper estimate covers 90 %
_UNKNOWN_SIGMA = 0.5  # of the log of a length, where nothing says how sure its estimate is


class Future(NamedTuple):
    """One way in which things may go on: the requests that are here and those that will come, each with the
    length of its answer. They are made once and serve one play after another.
    """

    running: Sequence[Request]  # in the picture's order
    queued: Sequence[Request]
    arrivals: Sequence[Request]  # in the order in which they come


def as_before(requests: Iterable[Request]) -> None:
    """Undo whatever a play has done to them."""
    for request in requests:
        request.state, request.ticket, request.cost = NEW, -1, 0.0
        if request.ended_s is not None:
            request.ended_s, request.reason = None, ""
        if request.attempts:
            request.attempts, request.replica, request.charged, request.backlogged = 0, -1, 0.0, False
            request.batch_id, request.batch_size = -1, 0
            request.dispatched_s = request.first_token_s = request.last_token_s = None
            request.output_tokens, request.finish = 0, ""


class AnswerLengths:
    """Draws the length of an answer from its estimate: the point times a ratio of answer to estimate that was
    seen lately, of the same tenant and category, else of the category, else of all with so large a
    max_tokens. Where there are too few, from a log-normal with the point as its median and the upper as its
    90 % quantile.

    The ratios are a sample: with ``rng`` another one is drawn from them, so that futures differ by as much as
    its size leaves open.
    """

    def __init__(self, ratios: Ratios, rng: Random | None = None) -> None:
        pools: dict[tuple[str, str, int], list[float]] = {}
        for (tenant, category, size), seen in ratios.items():
            values = seen if rng is None else rng.choices(sorted(seen), k=len(seen))
            for key in ((tenant, category, size), ("", category, size), ("", "", size)):
                pools.setdefault(key, []).extend(values)
        self._pools = {key: sorted(pool) for key, pool in pools.items() if len(pool) >= MIN_RATIOS}

    def draw(self, request: Pending, u: float) -> int:
        """Output tokens of an answer; ``u`` (0..1) is its quantile among those longer than it is already."""
        if request.finish:
            return request.generated
        done, estimate = request.generated, request.estimate
        point = max(1.0, estimate.point)
        pools, size = self._pools, request.max_tokens.bit_length()
        ratios = (
            pools.get((request.tenant, estimate.category, size))
            or pools.get(("", estimate.category, size))
            or pools.get(("", "", size))
        )
        if ratios is None:
            length = _lognormal(point, estimate.upper, done, u)
        else:
            first = bisect_right(ratios, done / point)
            rest = len(ratios) - first
            # Past everything that was seen: as much again as a long answer usually varies.
            length = point * ratios[first + int(u * rest)] if rest else done * (1 + _UNKNOWN_SIGMA * u)
        return max(done + 1, round(min(request.max_tokens, length)))


def _lognormal(point: float, upper: float, above: int, u: float) -> float:
    """The ``u``-quantile of those above ``above`` tokens."""
    sigma = log(upper / point) / _UPPER_Z if upper > point else _UNKNOWN_SIGMA
    low = _NORMAL.cdf(log(above / point) / sigma) if above else 0.0
    share = min(1 - 1e-9, max(1e-9, low + u * (1 - low)))
    return point * exp(sigma * _NORMAL.inv_cdf(share))


def draw_future(picture: Picture, horizon_s: float, seed: int) -> Future:
    """Who came lately comes again, with answers as they lately were. For POINT_SEED the past is taken as it
    was, for others as the sample that it is: who comes is drawn from it with replacement, and how many varies
    as much as two such spans would.
    """
    rng, point = Random(seed), seed == POINT_SEED
    lengths = AnswerLengths(picture.ratios, None if point else rng)
    numbers = count(1)

    def meet(known: Pending, arrival_s: float, acknowledged: bool) -> Request:
        return Request(
            str(next(numbers)),
            known.tenant,
            known.tier,
            arrival_s,
            known.prompt_tokens,
            known.max_tokens,
            intended_tokens=lengths.draw(known, rng.random()),
            ttl_s=known.ttl_s,
            acknowledged=acknowledged,
            estimate=known.estimate,
        )

    running = [meet(known, known.arrival_s, True) for known in picture.running]
    queued = [meet(known, known.arrival_s, True) for known in picture.queued]
    come = list(picture.arrivals)
    if come and not point:
        # The rate is known from this span only, and another span of the same rate would differ once more.
        variance_to_mean = _dispersion(picture) * (1 + picture.recent_s / horizon_s)
        come = rng.choices(come, k=round(rng.gammavariate(len(come) / variance_to_mean, variance_to_mean)))
        come.sort(key=lambda request: request.arrival_s)
    again = _again(come, picture.now, picture.recent_s, horizon_s)
    arrivals = [meet(known, at_s, False) for at_s, known in again]
    return Future(running, queued, arrivals)


def _dispersion(picture: Picture) -> float:
    """Variance over mean of how many came in each block of the recent past: 1 for a Poisson process, which is
    the least that is assumed, and the more the burstier.
    """
    counts = [0] * BLOCKS
    for request in picture.arrivals:
        ago = (picture.now - request.arrival_s) / picture.recent_s
        counts[min(BLOCKS - 1, int(ago * BLOCKS))] += 1
    return max(1.0, variance(counts) / mean(counts))


def _again(
    recent: Sequence[Pending], now: float, span_s: float, horizon_s: float
) -> Iterator[tuple[float, Pending]]:
    """The last ``span_s`` seconds backwards, then forwards, and so on: what came last is the best guess at
    what comes next, and a rush that is under way goes on for as long as it has lasted.
    """
    for lap in range(ceil(horizon_s / span_s) if recent else 0):
        start_s = now + lap * span_s
        for request in recent if lap % 2 else reversed(recent):
            ago_s = now - request.arrival_s
            at_s = start_s + (span_s - ago_s if lap % 2 else ago_s)
            if at_s - now >= horizon_s:
                return
            yield at_s, request
