"""Small tools for the tests of the core: requests by the dozen, and a driver in a few lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from scheduler.core.estimate import Oracle
from scheduler.core.events import Event
from scheduler.core.policies import policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import Dispatch, Outcome, Request, Tenant

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


def dispatch_all(scheduler: Scheduler, now: float) -> list[Dispatch]:
    """What a driver does after anything that may have freed or filled something."""
    dispatches = []
    while (dispatch := scheduler.next_dispatch(now)) is not None:
        dispatches.append(dispatch)
    return dispatches


def ids(dispatches: Iterable[Dispatch]) -> list[str]:
    return [dispatch.request.id for dispatch in dispatches]


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
        for dispatch in dispatches:
            complete(scheduler, dispatch.request, now)
    return order


class Log(list[Event]):
    """Collects events: hand ``log.append`` to the scheduler as ``emit``."""

    def kinds(self, request_id: str) -> list[str]:
        return [e.kind.value for e in self if e.request is not None and e.request.id == request_id]
