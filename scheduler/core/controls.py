"""What an operator may see and change while requests wait and run: policy, estimator, limits, tenants, pause.

The Scheduler's state lives here, too; ``scheduler.py`` adds what happens to requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import inf
from typing import Any

from scheduler.core.admission import Turnover
from scheduler.core.books import Books
from scheduler.core.estimate import Estimator
from scheduler.core.events import Emit, Event, Kind
from scheduler.core.lifecycle import DuplicateTenant
from scheduler.core.metrics import WindowMetrics
from scheduler.core.policy import Policy
from scheduler.core.slots import MicroBatch, Slots
from scheduler.core.swap import Swap, SwapRecord
from scheduler.core.types import Limits, Request, Tenant
from scheduler.core.waiting import WaitingRoom


class Controls:
    """The operator's side of the Scheduler. Every change is told as an event, with who made it (``by``)."""

    def __init__(
        self,
        policy: Policy,
        estimator: Estimator,
        tenants: Iterable[Tenant],
        *,
        capacities: Sequence[int] = (32,),
        batch: MicroBatch | None = None,
        limits: Limits = Limits(),
        max_inflight_tokens: float | None = None,
        max_model_len: float | None = None,
        metrics: WindowMetrics | None = None,
        emit: Emit | None = None,
    ) -> None:
        self.estimator = estimator
        self.limits = limits
        self.max_model_len: float = inf if max_model_len is None else max_model_len
        self._limited = limits != Limits()
        self.metrics = metrics
        self.books = Books()
        self.slots = Slots(capacities, batch, max_inflight_tokens)
        self.paused = False
        self.waiting = WaitingRoom(policy)
        self.swaps: list[SwapRecord] = []  # that changed the policy: one may be the estimator's alone
        self.learned: dict[str, Mapping[str, Any]] = {}  # states of estimators that are not in use, by name
        self._emit = emit
        self._active: dict[str, Request] = {}  # queued or in flight
        self._turnover = Turnover()
        policy.bind(self.books.configs)
        for tenant in tenants:
            self.add_tenant(tenant)

    @property
    def policy(self) -> Policy:
        """The policy that orders now."""
        return self.waiting.queue.policy

    @property
    def swap(self) -> Swap | None:
        """The swap that is under way."""
        return self.waiting.swap

    @property
    def idle(self) -> bool:
        """Nothing queued, nothing in flight."""
        return not self._active

    @property
    def in_flight(self) -> int:
        """Requests that were dispatched and have not ended."""
        return len(self._active) - self.books.totals.queued

    def get(self, request_id: str) -> Request | None:
        """The queued or running request of this id."""
        return self._active.get(request_id)

    def active(self) -> Iterable[Request]:
        """Everything queued or in flight, oldest first."""
        return self._active.values()

    def begin_swap(
        self, policy: Policy, now: float, *, by: str = "", estimator: Estimator | None = None
    ) -> int:
        """Start re-ranking everything queued under ``policy`` (and ``estimator``); returns how many wait.

        The old policy orders until ``swap_step`` has returned True. A second swap supersedes the first,
        but carries on a change of estimator that has not reached all that waits.
        """
        superseded = self.swap
        policy.bind(self.books.configs)
        swap = self.waiting.begin_swap(policy, self._active.values(), now, by)
        if estimator is not None:
            self.estimator = estimator
            swap.reestimate = self._reestimate
        elif superseded is not None:
            swap.reestimate = superseded.reestimate
        queued = self.books.totals.queued - len(self.waiting.suspects)
        detail = {"from": self.policy.describe(), "to": policy.describe(), "queued": queued, "by": by}
        self._tell(now, Kind.SWAP_REQUESTED, detail)
        return queued

    def swap_step(self, now: float, max_items: int = 1000) -> bool:
        """Re-rank up to ``max_items`` more; True once the new policy orders (or no swap is under way)."""
        swap = self.swap
        if swap is None:
            return True
        if not swap.step(max_items):
            return False
        source, policy = self.policy, swap.queue.policy
        self.waiting.end_swap(swap, (r for r in self._active.values() if r.replica >= 0))
        record = SwapRecord(swap.requested_s, now, source.describe(), policy.describe(), swap.ranked, swap.by)
        if record.source != record.target:
            self.swaps.append(record)
        detail = {"from": record.source, "to": record.target, "queued": record.queued, "by": record.by}
        self._tell(now, Kind.SWAP_APPLIED, detail)
        return True

    def set_estimator(self, estimator: Estimator, now: float, *, by: str = "") -> int:
        """Change the estimator: everything queued is estimated and ranked anew, by the same sliced swap. One
        that was in use before goes on with what it had learned.
        """
        target = self.swap.queue.policy if self.swap else self.policy
        self._tell(now, Kind.ESTIMATOR, {"to": estimator.name, "by": by})
        self.learned[self.estimator.name] = self.estimator.state()
        queued = self.begin_swap(target.fresh(), now, by=by, estimator=estimator)
        self.recall()
        return queued

    def recall(self) -> bool:
        """Give the estimator what one of its name had learned; False where it cannot take that."""
        state = self.learned.pop(self.estimator.name, None)
        if state is not None:
            try:
                self.estimator.restore(state)
            except ValueError:
                return False
        return True

    def _reestimate(self, request: Request) -> None:
        request.estimate = self.estimator.estimate(request)
        self.books.reestimated(request)

    def set_limits(self, limits: Limits, now: float, *, by: str = "") -> None:
        """Change the overall limits; what already waits stays."""
        self.limits = limits
        self._limited = limits != Limits()
        self._tell(now, Kind.LIMITS, {"limits": asdict(limits), "by": by})

    def add_tenant(self, tenant: Tenant) -> None:
        """A new tenant, from now on. Raises DuplicateTenant."""
        if tenant.name in self.books.tenants:
            raise DuplicateTenant(f"tenant {tenant.name!r} is already here")
        self.books.add_tenant(tenant)
        if self.metrics is not None:
            self.metrics.add_tenant(tenant.name)
        self.waiting.set_room(tenant.name, tenant.limits.max_in_flight)

    def set_tenant(self, tenant: Tenant, now: float, *, by: str = "") -> None:
        """Change weight or limits of a tenant; what waits keeps its tier. Raises UnknownTenant."""
        before = self.books.tenant(tenant.name).config
        books = self.books.set_tenant(tenant)
        limit = tenant.limits.max_in_flight
        self.waiting.set_room(tenant.name, None if limit is None else limit - books.in_flight)
        limits = asdict(tenant.limits)
        old = {"weight": before.weight, **asdict(before.limits)}
        new = {"weight": tenant.weight, **limits}
        changed = {name: value for name, value in new.items() if value != old[name]}
        detail = {"tenant": tenant.name, "weight": tenant.weight, "limits": limits, "changed": changed}
        self._tell(now, Kind.TENANT, {**detail, "by": by})

    def pause(self, now: float, *, by: str = "") -> None:
        """Dispatch nothing more; what runs goes on."""
        if not self.paused:
            self.paused = True
            self._tell(now, Kind.PAUSED, {"by": by})

    def resume(self, now: float, *, by: str = "") -> None:
        """Dispatch again."""
        if self.paused:
            self.paused = False
            self._tell(now, Kind.RESUMED, {"by": by})

    def _tell(self, now: float, kind: Kind, detail: Mapping[str, Any]) -> None:
        if self._emit is not None:
            self._emit(Event(now, kind, None, detail))
