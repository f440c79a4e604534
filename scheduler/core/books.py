"""The books: what is queued, in flight and ended, of each tenant and overall.

What was submitted and neither waits nor has ended is in flight: ``check`` proves that it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from scheduler.core.lifecycle import UnknownTenant
from scheduler.core.pace import Pace
from scheduler.core.types import (
    CANCELLED,
    ENDED,
    EXPIRED,
    FAILED,
    FINISHED,
    REJECTED,
    Limits,
    Request,
    State,
    Tenant,
)

OUTPUT_COST = 2.0
"""What an output token costs, in prompt tokens."""


class Counts(Protocol):
    """What is queued and in flight; over all tenants, or of one."""

    @property
    def queued(self) -> int: ...
    @property
    def queued_tokens(self) -> float: ...
    @property
    def in_flight(self) -> int: ...


@dataclass(slots=True)
class TenantBooks:
    """One tenant's counts, and what fairness is judged by (docs/metrics.md)."""

    config: Tenant
    limited: bool  # whether its limits bound anything at all
    queued: int = 0
    queued_tokens: float = 0.0  # estimated cost
    submitted: int = 0
    retried: int = 0
    ended: dict[State, int] = field(default_factory=lambda: dict.fromkeys(sorted(ENDED), 0))
    pace: Pace = field(default_factory=Pace)
    backlogged_s: float = 0.0  # time with something queued; closed intervals only
    backlogged_since_s: float = 0.0  # where something is queued
    served_by_weight: float = 0.0  # cost of requests dispatched out of a backlog, over the weight then

    @property
    def in_flight(self) -> int:
        return self.submitted - self.queued - sum(self.ended.values())

    def backlogged_until(self, now: float) -> float:
        """Seconds with something queued, up to ``now``."""
        return self.backlogged_s + (now - self.backlogged_since_s if self.queued else 0.0)


class Totals:
    """Over all tenants. How many wait is counted, for drivers ask at every instant; the rest is added up."""

    def __init__(self, tenants: Mapping[str, TenantBooks]) -> None:
        self.queued = 0
        self._tenants = tenants

    @property
    def queued_tokens(self) -> float:
        return sum(tenant.queued_tokens for tenant in self._tenants.values())

    @property
    def in_flight(self) -> int:
        return sum(tenant.in_flight for tenant in self._tenants.values())

    @property
    def left(self) -> int:
        """Requests that waited and do no longer."""
        tenants = self._tenants.values()
        return sum(tenant.submitted - tenant.ended[REJECTED] for tenant in tenants) - self.queued


class Books:
    """Counts only: every method says which step of a request's life has just happened."""

    def __init__(self) -> None:
        self.tenants: dict[str, TenantBooks] = {}
        self.totals = Totals(self.tenants)
        self.configs: dict[str, Tenant] = {}  # as they are now; policies look here, too

    def tenant(self, name: str) -> TenantBooks:
        """Raises UnknownTenant."""
        try:
            return self.tenants[name]
        except KeyError:
            raise UnknownTenant(f"no tenant {name!r}; there are {', '.join(self.tenants)}") from None

    def add_tenant(self, tenant: Tenant) -> None:
        limited = tenant.limits != Limits()
        self.tenants[tenant.name] = TenantBooks(tenant, limited)
        self.configs[tenant.name] = tenant

    def set_tenant(self, tenant: Tenant) -> TenantBooks:
        """Replace its configuration; returns its books. Raises UnknownTenant."""
        books = self.tenant(tenant.name)
        books.config = self.configs[tenant.name] = tenant
        books.limited = tenant.limits != Limits()
        return books

    def counts(self, *names: str) -> dict[str, int]:
        """Requests that came, by how they ended, and that were tried again: of these tenants, or of all."""
        tenants = [self.tenants[name] for name in names or self.tenants]
        counts = {"submitted": sum(tenant.submitted for tenant in tenants)}
        for state in (FINISHED, FAILED, CANCELLED, REJECTED, EXPIRED):
            counts[state.value] = sum(tenant.ended[state] for tenant in tenants)
        counts["retried"] = sum(tenant.retried for tenant in tenants)
        return counts

    def enqueued(self, request: Request, tenant: TenantBooks, now: float) -> None:
        self.totals.queued += 1
        if not tenant.queued:
            tenant.backlogged_since_s = now
        tenant.queued += 1
        tenant.queued_tokens += request.cost

    def dequeued(self, request: Request, now: float) -> bool:
        """It waits no longer; returns whether its tenant has more waiting."""
        tenant = self.tenants[request.tenant]
        self.totals.queued -= 1
        tenant.queued_tokens -= request.cost
        tenant.queued = queued = tenant.queued - 1
        if queued:
            return True
        tenant.backlogged_s += now - tenant.backlogged_since_s
        return False

    def served(self, request: Request, tenant: TenantBooks) -> float:
        """Its stream is over; returns its cost in tokens, by what was generated."""
        cost = request.prompt_tokens + OUTPUT_COST * request.output_tokens
        if request.backlogged:
            tenant.served_by_weight += cost / tenant.config.weight
        return cost

    def reestimated(self, request: Request) -> None:
        """A queued request's estimate changed."""
        before, request.cost = request.cost, estimated_cost(request)
        self.tenants[request.tenant].queued_tokens += request.cost - before

    def check(self, active: Iterable[Request]) -> None:
        """Raise AssertionError unless the counts agree with ``active``, everything queued or in flight."""
        everything = list(active)
        for name, books in self.tenants.items():
            mine = [r for r in everything if r.tenant == name]
            _check(books, mine)
        _check(self.totals, everything)


def estimated_cost(request: Request) -> float:
    """In tokens, by the estimate, which never counts past max_tokens."""
    output = request.estimate.point
    if output > request.max_tokens:
        output = request.max_tokens
    return request.prompt_tokens + OUTPUT_COST * output


def _check(counted: Counts, active: Sequence[Request]) -> None:
    queued = [r for r in active if r.state is State.QUEUED]
    assert counted.queued == len(queued)
    assert abs(counted.queued_tokens - sum(map(estimated_cost, queued))) < 1e-3
    assert counted.in_flight == len(active) - len(queued)
