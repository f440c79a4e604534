"""A recorded run, played again: its log through the same books and windows that the run had.

Of requests that were still in flight when an interrupted run ended, no tokens are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import NamedTuple

from scheduler.core.books import Books, TenantBooks, estimated_cost
from scheduler.core.events import Event, Kind
from scheduler.core.metrics import WindowMetrics
from scheduler.core.snapshot import take_snapshot
from scheduler.core.swap import SwapRecord
from scheduler.core.types import Request, Snapshot, State, Tenant
from scheduler.record.recording import ENDINGS, Recording, Step


class _Policy(NamedTuple):
    name: str

    def describe(self) -> str:
        return self.name


class _Slots(NamedTuple):
    capacity: int


class _Learned:
    """The multipliers as the log tells them."""

    def __init__(self) -> None:
        self._bias: dict[tuple[str, str], float] = {}

    def learn(self, tenant: str, category: str, bias: float) -> None:
        self._bias[tenant, category] = self._bias["", category] = bias

    def bias(self, tenant: str, category: str) -> float:
        return self._bias.get((tenant, category), 1.0)


class Playback:
    """The state of a recorded run at one instant, which moves forward; ``restart`` goes back to the start.

    ``emit`` hears every event that is about no single request.
    """

    def __init__(
        self, recording: Recording, emit: Callable[[Event], None] = lambda event: None, window_s: float = 60.0
    ) -> None:
        self.recording = recording
        self._emit = emit
        self._window_s = window_s
        self.restart()

    def restart(self) -> None:
        """Back to before the first event."""
        self.now = 0.0
        self._next = 0
        self._active: dict[str, Request] = {}
        self.books = Books()
        self.metrics = WindowMetrics((), self._window_s)
        for tenant in self.recording.tenants:
            self._add(tenant)
        self.policy = _Policy(self.recording.document["policy"])
        self.slots = _Slots(self.recording.document["capacity"])
        self.swaps: list[SwapRecord] = []
        self.swap: None = None  # in the log a swap takes no time
        self.paused = False
        self.estimator = _Learned()

    def active(self) -> Iterable[Request]:
        """Everything queued or in flight, in order of arrival."""
        return self._active.values()

    def play_to(self, at_s: float) -> None:
        """Everything that happened until then; never back."""
        steps = self.recording.steps
        while self._next < len(steps) and steps[self._next].at_s <= at_s:
            step = steps[self._next]
            self._next += 1
            self.now = max(self.now, step.at_s)
            self._play(step)
        self.now = max(self.now, at_s)

    def snapshot(self) -> Snapshot:
        return take_snapshot(self, self.now)

    def _add(self, tenant: Tenant) -> None:
        self.books.add_tenant(tenant)
        self.metrics.add_tenant(tenant.name)

    def _play(self, step: Step) -> None:
        match step.kind:
            case None:
                self._tokens(step)
            case Kind.QUEUED:
                self._arrived(step)
                self._move(self._active[step.request_id], State.QUEUED)
            case Kind.REJECTED:
                self._arrived(step)
                self._ended(step, State.REJECTED)
            case Kind.DISPATCHED if step.request_id in self._active:
                self._move(self._active[step.request_id], State.RUNNING)
            case Kind.RETRIED if step.request_id in self._active:
                request = self._active[step.request_id]
                self._move(request, State.QUEUED)
                if not request.attempts:  # counted once, however often it is tried
                    self.books.tenants[request.tenant].retried += 1
                request.attempts += 1
            case kind if kind in ENDINGS and step.request_id in self._active:
                self._ended(step, ENDINGS[kind])
            case kind if not step.request_id:
                self._happened(kind, step)

    def _happened(self, kind: Kind, step: Step) -> None:
        """An event that is about no request."""
        told = step.data
        match kind:
            case Kind.SWAP_APPLIED if told["from"] != told["to"]:
                self.policy = _Policy(told["to"])
                record = SwapRecord(
                    step.at_s, step.at_s, told["from"], told["to"], told["queued"], told["by"]
                )
                self.swaps.append(record)
            case Kind.PAUSED | Kind.RESUMED:
                self.paused = kind is Kind.PAUSED
            case Kind.TENANT if "added" in told:
                self._add(told["added"])
            case Kind.TENANT if told["tenant"] in self.books.tenants:
                config = self.books.tenant(told["tenant"]).config
                self.books.set_tenant(config.changed(told["weight"], told["limits"]))
        self._emit(Event(step.at_s, kind, None, told))

    def _arrived(self, step: Step) -> None:
        told = {key: value for key, value in step.data.items() if key in _REQUEST_FIELDS}
        request = Request(step.request_id, **told)
        if request.tenant not in self.books.tenants:
            self._add(Tenant(request.tenant, request.tier))
        request.cost = estimated_cost(request)
        self._active[request.id] = request
        self.books.tenants[request.tenant].submitted += 1

    def _tokens(self, step: Step) -> None:
        request = self._active.get(step.request_id)
        if request is not None:
            prompt_tokens = request.prompt_tokens if step.data["first"] else 0
            self.metrics.on_tokens(request.tenant, step.data["tokens"], prompt_tokens, self.now)

    def _ended(self, step: Step, state: State) -> None:
        request = self._active[step.request_id]
        for name in step.data.keys() & _REQUEST_FIELDS:
            setattr(request, name, step.data[name])
        # Another estimator may have looked at it while it waited.
        request.estimate = replace(request.estimate, **step.data["estimated"])
        request.ended_s = step.at_s
        ran = request.state is State.RUNNING
        self._move(request, state)
        del self._active[request.id]
        tenant = self.books.tenants[request.tenant]
        tenant.ended[state] += 1
        self.metrics.on_ended(request, step.at_s, tenant.config.slo)
        if ran:  # the run learned from it, however it ended
            self.estimator.learn(request.tenant, request.estimate.category, request.bias_after)
            self.metrics.on_observed(request, self.estimator)

    def _move(self, request: Request, state: State) -> None:
        """Into the queue or out of it."""
        tenant: TenantBooks = self.books.tenants[request.tenant]
        queued = (state is State.QUEUED) - (request.state is State.QUEUED)
        self.books.totals.queued += queued
        tenant.queued += queued
        tenant.queued_tokens += queued * request.cost
        request.state = state


_REQUEST_FIELDS = frozenset(field.name for field in fields(Request))
