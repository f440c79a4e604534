"""What each policy would do to the requests of now: the Scheduler and the twin's GPU, played ahead.

Pure: a ``Picture`` goes in, figures come out; the same picture and seed give the same figures. All policies
meet the same future (common random numbers): the same lengths for what is here, the same arrivals after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import ceil, inf
from typing import NamedTuple

from scheduler.core.autopilot import Forecast
from scheduler.core.bounds import Figures
from scheduler.core.estimate import Given
from scheduler.core.metrics import nearest_rank
from scheduler.core.policies import policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import Outcome, Request
from scheduler.twin.future import POINT_SEED, Future, as_before, draw_future
from scheduler.twin.gpu import Gpu
from scheduler.twin.outlook import MORE_IS_BETTER, Outlook
from scheduler.twin.picture import Pending, Picture

HORIZON_S = 120.0
MAX_HORIZON_S = 420.0

NOTABLE = 0.05
"""Share by which a mean E2E must grow to be worth a word."""


def forecast(draws: Sequence[Figures]) -> Forecast:
    """The mean and the worse quarter of each figure over several futures."""
    usual, cautious = {}, {}
    for name, values in _by_figure(draws):
        usual[name] = sum(values) / len(values)
        cautious[name] = nearest_rank(values, 0.25 if name in MORE_IS_BETTER else 0.75)
    return Forecast(usual, cautious)


def forecasts(
    picture: Picture, policies: Iterable[str], futures: int, horizon_s: float
) -> dict[str, Forecast]:
    """All policies over the same ``futures``."""
    drawn = [draw_future(picture, horizon_s, seed) for seed in range(POINT_SEED, POINT_SEED + futures)]
    return {
        policy: forecast([play(picture, policy, future, horizon_s).figures for future in drawn])
        for policy in policies
    }


def band(draws: Sequence[Figures]) -> tuple[Figures, Figures]:
    """p10 and p90 of each figure over several futures; of one that a future lacks, over the others."""
    low, high = {}, {}
    for name, values in _by_figure(draws):
        low[name], high[name] = nearest_rank(values, 0.1), nearest_rank(values, 0.9)
    return low, high


def _by_figure(draws: Sequence[Figures]) -> Iterator[tuple[str, list[float]]]:
    """The values of each figure, ascending."""
    for name in dict.fromkeys(name for figures in draws for name in figures):
        yield name, sorted(figures[name] for figures in draws if name in figures)


def who_waits_longer(figures: Figures, today: Figures) -> tuple[str, ...]:
    """Tenants whose mean E2E grows by more than ``NOTABLE``."""
    before, after = "tenants.", ".e2e.mean"
    return tuple(
        name.removeprefix(before).removesuffix(after)
        for name, mean_s in figures.items()
        if name.startswith(before) and mean_s > today.get(name, inf) * (1 + NOTABLE)
    )


# -- playing it -----------------------------------------------------------------------------------------


class Backlog:
    """What waits, added up."""

    def __init__(self) -> None:
        self._requests = 0
        self._tokens = self._prompts = 0.0

    def add(self, queued: Sequence[Pending]) -> None:
        self._requests += len(queued)
        for request in queued:
            point, most = request.estimate.point, request.max_tokens
            self._tokens += point if point < most else most
            self._prompts += request.prompt_tokens

    def horizon_s(self, picture: Picture) -> float:
        """``HORIZON_S``, or longer until about all of it is gone, up to ``MAX_HORIZON_S``."""
        if not self._requests:
            return HORIZON_S
        profile, tokens, prompts = picture.profile, self._tokens, self._prompts
        slots = sum(min(capacity, picture.max_num_seqs) for capacity in picture.capacities)
        context = int(slots * (prompts + tokens / 2) / self._requests)
        drain_s = tokens * profile.step_s(slots, context) / slots + prompts * profile.per_prefill_token_s
        return min(MAX_HORIZON_S, max(HORIZON_S, drain_s))


def horizon_of(picture: Picture) -> float:
    """How far ahead a picture is to be played."""
    backlog = Backlog()
    backlog.add(picture.queued)
    return backlog.horizon_s(picture)


class Played(NamedTuple):
    """What comes of one future under one policy."""

    figures: Figures
    course: Sequence[float]  # the P50 of E2E so far, step by step; seconds


def play(picture: Picture, policy: str, future: Future, horizon_s: float, step_s: float = inf) -> Played:
    """``horizon_s`` of a future. Raises ValueError for a policy that there is not."""
    return _Play(picture, policy, future, horizon_s).run(step_s)


_NOBODY = Request("", "", "", inf, 0, 0)


class _Play:
    def __init__(self, picture: Picture, policy: str, future: Future, horizon_s: float) -> None:
        self._until_s = picture.now + horizon_s
        self._outlook = Outlook(picture.tenants, picture.now, horizon_s)
        self._busy = 0  # requests on the GPUs
        self._gpus: list[Gpu[Request]] = [
            Gpu(picture.profile, picture.max_num_seqs, first_token_events=False, now=-inf)
            for _ in picture.capacities
        ]
        self._scheduler = scheduler = Scheduler(
            policy_from("fifo"),
            Given(),
            picture.tenants,
            capacities=picture.capacities,
            batch=picture.batch,
            limits=picture.limits,
            max_inflight_tokens=picture.max_inflight_tokens,
            max_model_len=picture.max_model_len,
        )
        for requests in future:
            as_before(requests)
        self._arrivals = iter(future.arrivals)
        self._resume(picture, future.running)
        scheduler.begin_swap(policy_from(policy), picture.now)
        scheduler.swap_step(picture.now)
        for request in future.queued:
            scheduler.submit(request, picture.now)
        self._now = picture.now

    def _resume(self, picture: Picture, requests: Sequence[Request]) -> None:
        """Put what runs back on the GPU. The twin prefills an answer's tokens anew, as after a preemption, so
        it is given the time for that before now.
        """
        profile, running = picture.profile, picture.running
        tokens = sum(request.prompt_tokens + request.generated for request in running)
        steps = ceil(tokens / profile.max_num_batched_tokens)
        start_s = picture.now - tokens * profile.per_prefill_token_s - steps * profile.step_s(1, 0)
        known = dict(zip(requests, running, strict=True))
        for request in requests:
            self._scheduler.submit(request, start_s)
        wait_s = picture.batch.wait_s if picture.batch is not None else 0.0
        for at_s in (start_s - wait_s, start_s):  # a micro-batch first waits for more
            while (ready := self._scheduler.next_dispatch(at_s)) is not None:
                done = known[ready]
                ready.dispatched_s = ready.arrival_s  # how long it waited is past
                ready.first_token_s = done.first_token_s
                if ready.first_token_s is None and done.generated:
                    ready.first_token_s = start_s  # at the latest
                prompt = ready.prompt_tokens + done.generated
                more = (ready.intended_tokens or 0) - done.generated
                self._busy += 1
                gpu = self._gpus[ready.replica]
                gpu.advance(start_s)
                gpu.start(ready, prompt, max(1, more))

    def run(self, step_s: float) -> Played:
        scheduler, gpus, busy = self._scheduler, self._gpus, self._busy
        submit, next_dispatch, next_timer = scheduler.submit, scheduler.next_dispatch, scheduler.next_timer
        slots, until_s, now = scheduler.slots.capacity, self._until_s, self._now
        batched, expiries = scheduler.slots.batch is not None, scheduler.waiting.expiries
        outlook, step_at_s = self._outlook, min(now + step_s, until_s)
        course: list[float] = []
        only = gpus[0] if len(gpus) == 1 else None
        ended: list[Request] = []
        arrivals = self._arrivals
        coming = next(arrivals, _NOBODY)
        event_s, timer_s = now, inf  # something may have ended since what runs was put back
        while True:
            if event_s <= now:
                for gpu in gpus:
                    for _, sequence in gpu.advance(now):
                        done = sequence.key
                        busy -= 1
                        if done.first_token_s is None:
                            done.first_token_s = sequence.first_s
                        length = done.intended_tokens or 1
                        finish = "length" if length >= done.max_tokens else "stop"
                        ended += scheduler.on_complete(done.id, now, Outcome(finish, length))
            if timer_s <= now:
                ended += scheduler.expire(now)
            while coming.arrival_s <= now:
                submit(coming, now)
                coming = next(arrivals, _NOBODY)
            while busy < slots and (ready := next_dispatch(now)) is not None:
                busy += 1
                length = ready.intended_tokens or 1
                gpu = gpus[ready.replica]
                if event_s > now:
                    gpu.advance(now)
                gpu.start(ready, ready.prompt_tokens, length)
            event_s = only.next_event() if only is not None else min(gpu.next_event() for gpu in gpus)
            timer_s = next_timer() if expiries or batched else inf
            soonest_s = event_s if event_s < timer_s else timer_s
            if busy >= slots:  # who comes now can only wait
                busy_until_s = soonest_s if soonest_s < step_at_s else step_at_s
                while coming.arrival_s < busy_until_s and not expiries:
                    submit(coming, coming.arrival_s)
                    coming = next(arrivals, _NOBODY)
                if expiries and timer_s == inf:
                    continue  # the first that does not wait for ever has just come
            if coming.arrival_s < soonest_s:
                soonest_s = coming.arrival_s
            if soonest_s > now:
                now = soonest_s
            while now >= step_at_s:
                outlook.ended(ended)
                ended.clear()
                if step_at_s == until_s:
                    outlook.still_here(scheduler.active(), until_s)
                    return Played(outlook.figures(scheduler.books.tenants), course)
                course.append(outlook.p50_s(scheduler.active(), step_at_s))
                step_at_s = min(step_at_s + step_s, until_s)
