"""The books: what is queued, in flight and ended, of each tenant and overall.

submitted = queued + in flight + ended holds for each tenant and in all after every call; ``check`` proves it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from scheduler.core.lifecycle import UnknownTenant
from scheduler.core.pace import Pace
from scheduler.core.types import ENDED, Request, State, Tenant


@dataclass(frozen=True, slots=True)
class TokenCost:
    """Cost of a request in tokens: prompt_weight x prompt + output_weight x output."""

    prompt_weight: float = 1.0
    output_weight: float = 2.0


@dataclass(slots=True)
class Totals:
    """Counts over all tenants, or of one."""

    queued: int = 0
    queued_tokens: float = 0.0  # estimated cost
    in_flight: int = 0
    submitted: int = 0
    retried: int = 0
    ended: dict[State, int] = field(default_factory=lambda: dict.fromkeys(sorted(ENDED), 0))


@dataclass(slots=True)
class TenantBooks(Totals):
    """One tenant's counts, and what fairness is judged by (docs/metrics.md)."""

    config: Tenant = field(kw_only=True)
    pace: Pace = field(default_factory=Pace)
    backlogged_since_s: float | None = None
    backlogged_s: float = 0.0  # time with something queued; closed intervals only
    served_by_weight: float = 0.0  # cost of requests dispatched out of a backlog, over the weight then

    def backlogged_until(self, now: float) -> float:
        """Seconds with something queued, up to ``now``."""
        since = self.backlogged_since_s
        return self.backlogged_s + (0.0 if since is None else now - since)


class Books:
    """Counts only: every method says which step of a request's life has just happened."""

    def __init__(self, cost: TokenCost) -> None:
        self.cost = cost
        self.totals = Totals()
        self.tenants: dict[str, TenantBooks] = {}
        self.configs: dict[str, Tenant] = {}  # as they are now; policies look here, too

    def tenant(self, name: str) -> TenantBooks:
        """Raises UnknownTenant."""
        try:
            return self.tenants[name]
        except KeyError:
            raise UnknownTenant(f"no tenant {name!r}; there are {', '.join(self.tenants)}") from None

    def add_tenant(self, tenant: Tenant) -> None:
        self.tenants[tenant.name] = TenantBooks(config=tenant)
        self.configs[tenant.name] = tenant

    def estimated_cost(self, request: Request) -> float:
        """In tokens, by the estimate, which never counts past max_tokens."""
        point = request.estimate.point
        output = point if point < request.max_tokens else request.max_tokens
        return self.cost.prompt_weight * request.prompt_tokens + self.cost.output_weight * output

    def actual_cost(self, request: Request) -> float:
        """In tokens, by what was generated."""
        cost = self.cost
        return cost.prompt_weight * request.prompt_tokens + cost.output_weight * request.output_tokens

    def enqueued(self, request: Request, now: float) -> None:
        totals, tenant, cost = self.totals, self.tenants[request.tenant], request.cost
        totals.queued += 1
        totals.queued_tokens += cost
        if not tenant.queued:
            tenant.backlogged_since_s = now
        tenant.queued += 1
        tenant.queued_tokens += cost

    def left_queue(self, request: Request, now: float) -> TenantBooks:
        """Returns its tenant's books."""
        totals, tenant, cost = self.totals, self.tenants[request.tenant], request.cost
        totals.queued -= 1
        totals.queued_tokens -= cost
        tenant.queued -= 1
        tenant.queued_tokens -= cost
        if not tenant.queued and tenant.backlogged_since_s is not None:
            tenant.backlogged_s += now - tenant.backlogged_since_s
            tenant.backlogged_since_s = None
        return tenant

    def dispatched(self, request: Request, now: float) -> None:
        tenant = self.left_queue(request, now)
        self.totals.in_flight += 1
        tenant.in_flight += 1
        request.backlogged = tenant.queued > 0

    def freed(self, request: Request) -> TenantBooks:
        """Its slot is free; returns its tenant's books."""
        tenant = self.tenants[request.tenant]
        self.totals.in_flight -= 1
        tenant.in_flight -= 1
        return tenant

    def retried(self, request: Request) -> None:
        if request.attempts == 1:  # counted once, however often it is tried
            self.totals.retried += 1
            self.tenants[request.tenant].retried += 1

    def ended(self, request: Request) -> None:
        self.totals.ended[request.state] += 1
        self.tenants[request.tenant].ended[request.state] += 1

    def reestimated(self, request: Request) -> None:
        """A queued request's estimate changed."""
        before, request.cost = request.cost, self.estimated_cost(request)
        change = request.cost - before
        self.totals.queued_tokens += change
        self.tenants[request.tenant].queued_tokens += change

    def check(self, active: Iterable[Request]) -> None:
        """Raise AssertionError unless the counts agree with ``active``, everything queued or in flight."""
        everything = list(active)
        for name, books in [("", self.totals), *self.tenants.items()]:
            mine = [r for r in everything if name in ("", r.tenant)]
            queued = [r for r in mine if r.state is State.QUEUED]
            assert books.queued == len(queued), name
            assert abs(books.queued_tokens - sum(map(self.estimated_cost, queued))) < 1e-3, name
            assert books.in_flight == len(mine) - len(queued), name
            assert books.submitted == len(mine) + sum(books.ended.values()), name
