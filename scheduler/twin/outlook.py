"""The figures of a span of time, the same for what is predicted and for what is then observed.

Over every request that ended in the span or is still here at its end; one that is still here counts with its
age, so that a policy does not look better for what it leaves waiting. Figures have the names of run.json:
``e2e.p50`` (p50, p95, p99), ``tiers.premium.e2e.p99``, ``tenants.acme.e2e.mean``, ``goodput.requests_per_s``,
``fairness.jain``; besides, ``longest_wait_s`` for a slot, and how many requests ``ended`` or are still
``here``. Times are seconds.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from math import inf, nan

from scheduler.core.books import TenantBooks
from scheduler.core.bounds import PERCENTILES, Figures
from scheduler.core.metrics import jain, meets_slo, nearest_rank
from scheduler.core.types import EXPIRED, FINISHED, TIERS, Request, Slo, Tenant

NO_SLO = Slo()

MORE_IS_BETTER = frozenset({"goodput.requests_per_s", "fairness.jain", "ended"})


class Outlook:
    """Collects one span, from ``start_s`` for ``span_s`` seconds."""

    def __init__(self, tenants: Iterable[Tenant], start_s: float, span_s: float) -> None:
        self.until_s = start_s + span_s
        self.span_s = span_s
        self._slos = {tenant.name: tenant.slo for tenant in tenants if tenant.slo != NO_SLO}
        self._e2e: defaultdict[tuple[str, str], list[float]] = defaultdict(list)  # by tenant and tier
        self._longest_s = 0.0
        self._missed = self._ended = self._here = 0

    def ended(self, requests: Iterable[Request]) -> None:
        """Requests that ended. One that expired counts with its age: it is no shorter for that."""
        e2e, slos, longest_s = self._e2e, self._slos, self._longest_s
        for request in requests:
            ended_s, arrival_s = request.ended_s, request.arrival_s
            assert ended_s is not None
            if request.state is FINISHED:
                self._ended += 1
                slo = slos.get(request.tenant)
                if slo is not None and not meets_slo(request, slo):
                    self._missed += 1
                waited_until_s = request.dispatched_s
                assert waited_until_s is not None
            elif request.state is EXPIRED:
                waited_until_s = ended_s
            else:
                continue
            e2e[request.tenant, request.tier].append(ended_s - arrival_s)
            if waited_until_s - arrival_s > longest_s:
                longest_s = waited_until_s - arrival_s
        self._longest_s = longest_s

    def still_here(self, active: Iterable[Request], now: float) -> None:
        """What waits or runs at the end of the span."""
        e2e, longest_s = self._e2e, self._longest_s
        for request in active:
            self._here += 1
            arrival_s, dispatched_s = request.arrival_s, request.dispatched_s
            e2e[request.tenant, request.tier].append(now - arrival_s)
            wait_s = (now if dispatched_s is None else dispatched_s) - arrival_s
            if wait_s > longest_s:
                longest_s = wait_s
        self._longest_s = longest_s

    def p50_s(self, active: Iterable[Request], now: float) -> float:
        """Of E2E, of all who ended or are here so far; nan where that is nobody."""
        values = [now - request.arrival_s for request in active]
        for e2e in self._e2e.values():
            values += e2e
        return nearest_rank(sorted(values), 0.5) if values else nan

    def figures(self, books: Mapping[str, TenantBooks] | None = None) -> Figures:
        """A group without requests is left out. Fairness needs the ``books``, begun with the span."""
        figures: dict[str, float] = {}
        tenants: defaultdict[str, list[float]] = defaultdict(list)
        groups: dict[str, list[float]] = {"": [], **{f"tiers.{tier}.": [] for tier in TIERS}}
        for (tenant, tier), values in self._e2e.items():
            values.sort()  # what is put together of sorted parts is sorted in no time
            for group in (groups[""], groups[f"tiers.{tier}."], tenants[tenant]):
                group.extend(values)
        for prefix, values in groups.items():
            if values:
                values.sort()
                for name in PERCENTILES:
                    figures[f"{prefix}e2e.{name}"] = nearest_rank(values, int(name[1:]) / 100)
        for name, values in tenants.items():
            figures[f"tenants.{name}.e2e.mean"] = sum(values) / len(values)
        figures["goodput.requests_per_s"] = (self._ended - self._missed) / self.span_s if self.span_s else 0.0
        if books is not None:
            figures["fairness.jain"] = jain(books.values(), self.until_s)
        figures["longest_wait_s"] = self._longest_s
        figures["ended"] = float(self._ended)
        figures["here"] = float(self._here)
        return figures


class Window:
    """What has ended in the last ``span_s`` seconds, for figures of just that."""

    def __init__(self, span_s: float) -> None:
        self.span_s = span_s
        self._ended: deque[Request] = deque()

    def add(self, request: Request) -> None:
        """A request that ended; in order."""
        self._ended.append(request)
        self._forget(request.ended_s or 0.0)

    def figures(self, tenants: Iterable[Tenant], now: float, since_s: float = -inf) -> Figures:
        """Over the window, or since ``since_s`` if that is later."""
        self._forget(now)
        start_s = max(since_s, now - self.span_s)
        outlook = Outlook(tenants, start_s, now - start_s)
        outlook.ended(request for request in self._ended if (request.ended_s or 0.0) > start_s)
        return outlook.figures()

    def _forget(self, now: float) -> None:
        """What ended before the window; it may be long until somebody asks for figures."""
        ended = self._ended
        while ended and (ended[0].ended_s or 0.0) < now - self.span_s:
            ended.popleft()
