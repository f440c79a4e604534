"""What each policy would do to the requests of now: the Scheduler and the twin's GPU, played ahead.

Pure: a ``Picture`` goes in, figures come out; the same picture and seed give the same figures. All policies
meet the same future (common random numbers): the same lengths for what is here, the same arrivals after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, inf
from typing import NamedTuple

from scheduler.core.autopilot import Forecast
from scheduler.core.estimate import Given
from scheduler.core.bounds import Figures
from scheduler.core.metrics import nearest_rank
from scheduler.core.policies import policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import NO_ESTIMATE, Outcome, Request
from scheduler.twin.future import POINT_SEED, Future, draw_future
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
    for name in {name: None for figures in draws for name in figures}:
        values = sorted(figures[name] for figures in draws if name in figures)
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
    tokens = prompts = 0.0
    for request in picture.queued:  # on the event loop, thousands
        point, most = request.estimate.point, request.max_tokens
        tokens += point if point < most else most
        prompts += request.prompt_tokens
    count = len(picture.queued)
    context = int(slots * (prompts + tokens / 2) / count)
    drain_s = tokens * profile.step_s(slots, context) / slots + prompts * profile.per_prefill_token_s
    return min(MAX_HORIZON_S, max(HORIZON_S, drain_s))


class Played(NamedTuple):
    """What comes of one future under one policy."""

    figures: Figures
    course: Sequence[float]  # the P50 of E2E so far, step by step; seconds


def play(picture: Picture, policy: str, future: Future, horizon_s: float, step_s: float = inf) -> Played:
    """``horizon_s`` of a future. Raises ValueError for a policy that there is not."""
    return _Play(picture, policy, future, horizon_s).run(step_s)


_NOBODY = (inf, Pending("", "", inf, 0, 0, NO_ESTIMATE, None, 0), 0)


class _Play:
    def __init__(self, picture: Picture, policy: str, future: Future, horizon_s: float) -> None:
        self._until_s = picture.now + horizon_s
        self._outlook = Outlook(picture.tenants, picture.now, horizon_s)
        self._running: set[Request] = set()  # on the GPUs
        self._gpus: list[Gpu[Request]] = [
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
        for known, tokens in zip(picture.queued, future.queued, strict=True):
            self._submit(known, tokens, known.arrival_s, picture.now, acknowledged=True)
        self._now = picture.now

    def _submit(
        self, known: Pending, tokens: int, arrival_s: float, now: float, *, acknowledged: bool = False
    ) -> Request:
        self._come += 1
        request = Request(
            str(self._come),
            known.tenant,
            known.tier,
            arrival_s,
            known.prompt_tokens,
            known.max_tokens,
            intended_tokens=tokens,
            ttl_s=known.ttl_s,
            acknowledged=acknowledged,
            estimate=known.estimate,
        )
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
            request = self._submit(pending, length, pending.arrival_s, start_s, acknowledged=True)
            known[request.id] = pending
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
                self._running.add(ready)
                self._gpus[ready.replica].start(ready, prompt, max(1, more), start_s)

    def run(self, step_s: float) -> Played:
        scheduler, gpus, running = self._scheduler, self._gpus, self._running
        next_dispatch, next_timer = scheduler.next_dispatch, scheduler.next_timer
        slots, until_s, now = scheduler.slots.capacity, self._until_s, self._now
        outlook, step_at_s = self._outlook, min(now + step_s, until_s)
        course: list[float] = []
        only = gpus[0] if len(gpus) == 1 else None
        ended: list[Request] = []
        arrivals = self._arrivals
        coming_s, coming, tokens = next(arrivals, _NOBODY)
        while True:
            while len(running) < slots and (ready := next_dispatch(now)) is not None:
                running.add(ready)
                length = ready.intended_tokens or 1
                gpus[ready.replica].start(ready, ready.prompt_tokens, length, now)
            event_s = only.next_event() if only is not None else min(gpu.next_event() for gpu in gpus)
            timer_s = next_timer()
            soonest_s = event_s if event_s < timer_s else timer_s
            if coming_s < soonest_s:
                soonest_s = coming_s
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
            if event_s <= now:
                for gpu in gpus:
                    for _, sequence in gpu.advance(now):
                        done = sequence.key
                        running.remove(done)
                        if done.first_token_s is None:
                            done.first_token_s = sequence.first_s
                        length = done.intended_tokens or 1
                        finish = "length" if length >= done.max_tokens else "stop"
                        ended += scheduler.on_complete(done.id, now, Outcome(finish, length))
            if timer_s <= now:
                ended += scheduler.expire(now)
            while coming_s <= now:
                self._submit(coming, tokens, coming_s, now)
                coming_s, coming, tokens = next(arrivals, _NOBODY)
