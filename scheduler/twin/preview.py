"""What each policy would do to the requests of now: the Scheduler and the twin's GPU, played ahead.

Pure: a ``Picture`` goes in, figures come out; the same picture and seed give the same figures. All policies
meet the same future (common random numbers): the same lengths for what is here, the same arrivals after it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from math import ceil, exp, inf, log, sqrt
from random import Random
from statistics import NormalDist
from typing import NamedTuple

from scheduler.core.autopilot import Forecast
from scheduler.core.estimate import Given
from scheduler.core.guard import Figures
from scheduler.core.metrics import nearest_rank
from scheduler.core.policies import policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import Outcome, Request
from scheduler.twin.gpu import Gpu
from scheduler.twin.outlook import MORE_IS_BETTER, Outlook
from scheduler.twin.picture import Pending, Picture, Ratios

HORIZON_S = 120.0
MAX_HORIZON_S = 420.0

POINT_SEED = 0
"""The future of a point prediction; every other seed is for bands."""

NOTABLE = 0.05

MIN_RATIOS = 16
"""Finished answers of a tenant and category that are needed to speak for it."""

_UPPER_Z = NormalDist().inv_cdf(0.9)  # an upper estimate covers 90 %
_UNKNOWN_SIGMA = 0.5  # of the log of a length, where nothing says how sure its estimate is


# -- a future -------------------------------------------------------------------------------------------


class Future(NamedTuple):
    """One way in which things may go on: a length for each request that is here, and those that will come."""

    running: Sequence[int]  # output tokens, in the picture's order
    queued: Sequence[int]
    arrivals: Sequence[tuple[Pending, int]]  # by time, with their lengths


class Lengths:
    """Draws answers from estimates: by how answers lately compared with theirs, of that tenant and category,
    of the category, or of all with so large a max_tokens; else from a log-normal with the point as its median
    and the upper as its 90 % quantile.
    """

    def __init__(self, ratios: Ratios) -> None:
        pools: dict[tuple[str, str, int], list[float]] = {}
        for (tenant, category, size), values in ratios.items():
            for key in ((tenant, category, size), ("", category, size), ("", "", size)):
                pools.setdefault(key, []).extend(values)
        self._pools = {key: sorted(pool) for key, pool in pools.items() if len(pool) >= MIN_RATIOS}

    def draw(self, request: Pending, u: float) -> int:
        """Output tokens of an answer; ``u`` (0..1) is its quantile among those longer than it is already."""
        if request.ended:
            return request.generated
        done, point = request.generated, max(1.0, request.point)
        pools, size = self._pools, request.max_tokens.bit_length()
        ratios = (
            pools.get((request.tenant, request.category, size))
            or pools.get(("", request.category, size))
            or pools.get(("", "", size))
        )
        if ratios is None:
            length = _lognormal(point, request.upper, done, u)
        else:
            first = bisect_right(ratios, done / point)
            rest = len(ratios) - first
            # Past everything that was seen: as much again as a long answer usually varies.
            length = point * ratios[first + int(u * rest)] if rest else done * (1 + _UNKNOWN_SIGMA * u)
        return max(done + 1, round(min(request.max_tokens, length)))


def _lognormal(point: float, upper: float, above: int, u: float) -> float:
    """The ``u``-quantile of those above ``above`` tokens."""
    sigma = log(upper / point) / _UPPER_Z if upper > point else _UNKNOWN_SIGMA
    normal = NormalDist(log(point), sigma)
    low = normal.cdf(log(above)) if above > 0 else 0.0
    share = min(1 - 1e-9, max(1e-9, low + u * (1 - low)))
    return exp(normal.inv_cdf(share))


def draw_future(picture: Picture, horizon_s: float, seed: int) -> Future:
    """Who came lately comes again, as it was for POINT_SEED, drawn from them with replacement for others."""
    rng, lengths = Random(seed), Lengths(picture.ratios)
    running = [lengths.draw(request, rng.random()) for request in picture.running]
    queued = [lengths.draw(request, rng.random()) for request in picture.queued]
    come = list(picture.arrivals)
    if seed != POINT_SEED and come:
        come = rng.choices(come, k=max(0, round(rng.gauss(len(come), sqrt(len(come))))))
        come.sort(key=lambda request: request.arrival_s)
    arrivals = [
        (request, lengths.draw(request, rng.random()))
        for request in _again(come, picture.now, picture.recent_s, horizon_s)
    ]
    return Future(running, queued, arrivals)


def _again(recent: Sequence[Pending], now: float, span_s: float, horizon_s: float) -> Iterator[Pending]:
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
            yield request._replace(arrival_s=at_s)


def forecast(draws: Sequence[Figures]) -> Forecast:
    """The median and the worse quarter of each figure over several futures."""
    usual, cautious = {}, {}
    for name in {name: None for figures in draws for name in figures}:
        values = sorted(figures[name] for figures in draws if name in figures)
        usual[name] = nearest_rank(values, 0.5)
        cautious[name] = nearest_rank(values, 0.25 if name in MORE_IS_BETTER else 0.75)
    return Forecast(usual, cautious)


def forecasts(
    picture: Picture, policies: Iterable[str], futures: int, horizon_s: float
) -> dict[str, Forecast]:
    """All policies over the same ``futures``."""
    drawn = [draw_future(picture, horizon_s, seed) for seed in range(POINT_SEED, POINT_SEED + futures)]
    return {
        policy: forecast([play(picture, policy, future, horizon_s) for future in drawn])
        for policy in policies
    }


def band(draws: Sequence[Figures]) -> tuple[Figures, Figures]:
    """p10 and p90 of each figure over several futures; of one that a future lacks, over the others."""
    low, high = {}, {}
    for name in {name: None for figures in draws for name in figures}:
        values = sorted(figures[name] for figures in draws if name in figures)
        low[name], high[name] = nearest_rank(values, 0.1), nearest_rank(values, 0.9)
    return low, high


def who_waits_longer(figures: Figures, today: Figures) -> tuple[str, ...]:
    """Tenants whose mean E2E grows by more than ``NOTABLE``."""
    before, after = "tenants.", ".e2e.mean"
    return tuple(
        name.removeprefix(before).removesuffix(after)
        for name, mean_s in figures.items()
        if name.startswith(before) and mean_s > today.get(name, inf) * (1 + NOTABLE)
    )


# -- playing it -----------------------------------------------------------------------------------------


def horizon_of(picture: Picture) -> float:
    """``HORIZON_S``, or longer until about what waits now is gone, up to ``MAX_HORIZON_S``."""
    if not picture.queued:
        return HORIZON_S
    profile = picture.profile
    slots = sum(min(capacity, picture.max_num_seqs) for capacity in picture.capacities)
    tokens = sum(min(request.point, request.max_tokens) for request in picture.queued)
    prompts = sum(request.prompt_tokens for request in picture.queued)
    count = len(picture.queued)
    context = int(slots * (prompts + tokens / 2) / count)
    drain_s = tokens * profile.step_s(slots, context) / slots + prompts * profile.per_prefill_token_s
    return min(MAX_HORIZON_S, max(HORIZON_S, drain_s))


def play(picture: Picture, policy: str, future: Future, horizon_s: float) -> Figures:
    """One future under one policy. Raises ValueError for a policy that there is not."""
    return _Play(picture, policy, future, horizon_s).run()


class _Play:
    def __init__(self, picture: Picture, policy: str, future: Future, horizon_s: float) -> None:
        self._until_s = picture.now + horizon_s
        self._outlook = Outlook(picture.tenants, picture.now, horizon_s)
        self._running: dict[str, Request] = {}  # on the GPUs
        self._gpus = [
            Gpu(picture.profile, picture.max_num_seqs, first_token_events=False) for _ in picture.capacities
        ]
        self._scheduler = Scheduler(
            policy_from("fifo"),
            Given(),
            picture.tenants,
            capacities=picture.capacities,
            batch=picture.batch,
            limits=picture.limits,
            max_inflight_tokens=picture.max_inflight_tokens,
            max_model_len=picture.max_model_len,
        )
        self._arrivals = iter(future.arrivals)
        self._come = 0
        self._resume(picture, future.running)
        self._scheduler.begin_swap(policy_from(policy), picture.now)
        self._scheduler.swap_step(picture.now)
        for request, tokens in zip(picture.queued, future.queued, strict=True):
            self._submit(request, tokens, picture.now, acknowledged=True)
        self._now = picture.now

    def _submit(self, known: Pending, tokens: int, now: float, *, acknowledged: bool = False) -> Request:
        self._come += 1
        request = Request(
            str(self._come), known.tenant, known.tier, known.arrival_s, known.prompt_tokens, known.max_tokens
        )
        request.intended_tokens = tokens
        request.estimate = known.estimate
        if known.ttl_s is not None:
            request.ttl_s = known.ttl_s
        request.acknowledged = acknowledged
        self._scheduler.submit(request, now)
        return request

    def _resume(self, picture: Picture, lengths: Sequence[int]) -> None:
        """Put what runs back on the GPU. The twin prefills an answer's tokens anew, as after a preemption, so
        it is given the time for that before now.
        """
        profile, running = picture.profile, picture.running
        tokens = sum(request.prompt_tokens + request.generated for request in running)
        steps = ceil(tokens / profile.max_num_batched_tokens)
        start_s = picture.now - tokens * profile.per_prefill_token_s - steps * profile.step_s(1, 0)
        known: dict[str, Pending] = {}
        for pending, length in zip(running, lengths, strict=True):
            known[self._submit(pending, length, start_s, acknowledged=True).id] = pending
        wait_s = picture.batch.wait_s if picture.batch is not None else 0.0
        for at_s in (start_s - wait_s, start_s):  # a micro-batch first waits for more
            while (ready := self._scheduler.next_dispatch(at_s)) is not None:
                done = known[ready.id]
                ready.dispatched_s = ready.arrival_s  # how long it waited is past
                ready.first_token_s = done.first_token_s
                if ready.first_token_s is None and done.generated:
                    ready.first_token_s = start_s  # at the latest
                prompt = ready.prompt_tokens + done.generated
                more = (ready.intended_tokens or 0) - done.generated
                self._running[ready.id] = ready
                self._gpus[ready.replica].start(ready.id, prompt, max(1, more), start_s)

    def run(self) -> Figures:
        scheduler, gpus, running = self._scheduler, self._gpus, self._running
        next_dispatch, next_timer = scheduler.next_dispatch, scheduler.next_timer
        ended, until_s, now = self._outlook.ended, self._until_s, self._now
        only = gpus[0] if len(gpus) == 1 else None
        coming, tokens = next(self._arrivals, (None, 0))
        while True:
            while (ready := next_dispatch(now)) is not None:
                running[ready.id] = ready
                length = ready.intended_tokens or 1
                gpus[ready.replica].start(ready.id, ready.prompt_tokens, length, now)
            event_s = only.next_event() if only is not None else min(gpu.next_event() for gpu in gpus)
            timer_s = next_timer()
            soonest_s = event_s if event_s < timer_s else timer_s
            if coming is not None and coming.arrival_s < soonest_s:
                soonest_s = coming.arrival_s
            if soonest_s > now:
                now = soonest_s
            if now >= until_s:
                break
            if event_s <= now:
                for gpu in gpus:
                    for event in gpu.advance(now):
                        done = running.pop(event.request_id)
                        if done.first_token_s is None:
                            done.first_token_s = event.first_token_s
                        length = done.intended_tokens or 1
                        finish = "length" if length >= done.max_tokens else "stop"
                        for request in scheduler.on_complete(done.id, now, Outcome(finish, length)):
                            ended(request)
            if timer_s <= now:
                for request in scheduler.expire(now):
                    ended(request)
            while coming is not None and coming.arrival_s <= now:
                self._submit(coming, tokens, now)
                coming, tokens = next(self._arrivals, (None, 0))
        self._outlook.still_here(scheduler.active(), until_s)
        return self._outlook.figures(scheduler.books.tenants)
