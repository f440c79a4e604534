"""A burst of given requests with given estimates through the twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from scheduler.core.estimate import Given
from scheduler.core.policies import policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import Estimate, Request, Tenant
from scheduler.load.workload import Action
from scheduler.twin.gpu import Gpu
from scheduler.twin.profile_file import load_profile
from scheduler.twin.simulate import Simulation

RATE = 50.0  # requests/s: far above what the L4 serves
SLOTS = 32


class ReadyMade:
    """A workload of ready-made requests, by their arrival."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._next = 0

    def next_time(self) -> float:
        return self._requests[self._next].arrival_s if self._next < len(self._requests) else inf

    def take(self, now: float) -> list[Action]:
        due: list[Action] = []
        while self.next_time() <= now:
            due.append(self._requests[self._next])
            self._next += 1
        return due

    def on_ended(self, request: Request, now: float) -> None:
        """Nobody waits for an end."""

    def on_drained(self, now: float) -> None:
        """Nothing follows."""


def play(requests: Sequence[Request], points: Sequence[float], policy: str) -> list[float]:
    """E2E latencies in seconds of a burst of these, each with its point estimate, ``RATE`` a second;
    continuous dispatch.
    """
    ended: list[Request] = []
    burst = [
        replace(request, arrival_s=at / RATE, estimate=_estimate(request, point))
        for at, (request, point) in enumerate(zip(requests, points, strict=True))
    ]
    scheduler = Scheduler(
        policy_from(policy),
        Given(),
        [Tenant(name) for name in dict.fromkeys(request.tenant for request in requests)],
        capacities=(SLOTS,),
    )
    gpu: Gpu[Request] = Gpu(load_profile("l4", "qwen1.5-1.8b-chat"), SLOTS)
    Simulation(scheduler, [gpu], ReadyMade(burst), on_ended=ended.append).run()
    return [(request.ended_s or 0.0) - request.arrival_s for request in ended]


def _estimate(request: Request, point: float) -> Estimate:
    tokens = request.prompt_tokens
    return Estimate(tokens, point, point, "short_qa", point)
