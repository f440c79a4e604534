"""Small tools for the tests of the core: requests by the dozen, and a driver in a few lines."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from scheduler.core.estimate import Given, Oracle
from scheduler.core.events import Event
from scheduler.core.policies import policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.slots import MicroBatch
from scheduler.core.types import Estimate, Outcome, Request, Tenant

TENANTS = (
    Tenant("acme", "premium", 5.0),
    Tenant("globex", "standard", 3.0),
    Tenant("initech", "batch", 2.0),
)
TIER_OF = {tenant.name: tenant.tier for tenant in TENANTS}


def make_request(
    name: str, tenant: str = "acme", arrival_s: float = 0.0, *, tokens: int = 10, **given: Any
) -> Request:
    """A request whose answer has ``tokens`` tokens, as an oracle estimates it; budget = tokens + 10."""
    fields: dict[str, Any] = {"prompt_tokens": 10, "max_tokens": 1000, **given}
    return Request(name, tenant, TIER_OF[tenant], arrival_s, intended_tokens=tokens, **fields)


def make_scheduler(policy: str = "fifo", **given: Any) -> Scheduler:
    """A scheduler of the three tenants whose estimates are exact, unless told otherwise."""
    settings: dict[str, Any] = {"estimator": Oracle(), "tenants": TENANTS, **given}
    return Scheduler(policy_from(policy), **settings)


def submit_all(scheduler: Scheduler, requests: Iterable[Request], now: float = 0.0) -> None:
    for request in requests:
        assert scheduler.submit(request, now) is None


def dispatch_all(scheduler: Scheduler, now: float) -> list[Request]:
    """What a driver does after anything that may have freed or filled something."""
    dispatches = []
    while (request := scheduler.next_dispatch(now)) is not None:
        dispatches.append(request)
    return dispatches


def ids(dispatches: Iterable[Request]) -> list[str]:
    return [request.id for request in dispatches]


def complete(scheduler: Scheduler, request: Request, now: float, finish: str = "stop") -> Sequence[Request]:
    """Its stream ends with as many tokens as it was made for."""
    assert request.intended_tokens is not None
    return scheduler.on_complete(request.id, now, Outcome(finish, request.intended_tokens))


def run_out(scheduler: Scheduler, now: float = 0.0) -> list[str]:
    """Dispatch and complete, a batch after the other, until nothing waits; the ids in dispatch order."""
    order: list[str] = []
    while scheduler.books.totals.queued:
        dispatches = dispatch_all(scheduler, now)
        if not dispatches:
            now = scheduler.next_timer()
            assert now < float("inf"), f"{scheduler.books.totals.queued} wait for ever"
        order += ids(dispatches)
        for request in dispatches:
            complete(scheduler, request, now)
    return order


class Guess(Given):
    """Believes that every answer has ``tokens`` tokens, and learns nothing."""

    name = "guess"

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def estimate(self, request: Request) -> Estimate:
        return Estimate(request.prompt_tokens, self.tokens, self.tokens, "short_qa", self.tokens)


def spied(spec: str, turns: Counter[str] | None = None) -> Any:
    """The policy, keeping account of its ``charges`` and ``turns``; copies share the turns."""
    kind = type(policy_from(spec))

    class Spied(kind):  # type: ignore[misc, valid-type]
        def __new__(cls, *args: Any, **given: Any) -> Any:
            policy = super().__new__(cls)
            policy.charges, policy.turns = Counter(), counter
            return policy

        def on_dispatch(self, request: Request, cost: float) -> None:
            self.turns[request.id] += 1
            self.charges[request.id] += cost
            super().on_dispatch(request, cost)

        def on_settle(self, request: Request, delta: float) -> None:
            self.charges[request.id] += delta
            super().on_settle(request, delta)

        def restore(self, charged: Iterable[Request]) -> None:
            begun = list(charged)
            self.charges.update({request.id: request.charged for request in begun})
            super().restore(begun)

    counter: Counter[str] = Counter() if turns is None else turns
    given = policy_from(spec)
    fields = dataclasses.fields(given)  # type: ignore[arg-type]
    return Spied(**{field.name: getattr(given, field.name) for field in fields if field.init})


class Log(list[Event]):
    """Collects events: hand ``log.append`` to the scheduler as ``emit``."""

    def kinds(self, request_id: str) -> list[str]:
        return [e.kind.value for e in self if e.request is not None and e.request.id == request_id]


def batched(**given: Any) -> Scheduler:
    """A scheduler in micro-batches of 32, unless told otherwise."""
    return make_scheduler(**{"capacities": (32,), "batch": MicroBatch(), **given})


def crowd(n: int, start: int = 0) -> list[Request]:
    """Requests of all tenants in turn, a second and a token apart."""
    return [
        make_request(f"{i:02}", TENANTS[i % 3].name, float(i), tokens=i + 1) for i in range(start, start + n)
    ]
