"""The Scheduler: the one state machine through which every request of every tenant goes.

Sans-IO: each method takes ``now`` (seconds since the run began) and returns what the driver must do.
After every call that may have freed or filled something, a driver calls ``next_dispatch`` until it returns
None, and it comes back at ``next_timer()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from scheduler.core import admission
from scheduler.core.books import TenantBooks, estimated_cost
from scheduler.core.controls import Controls
from scheduler.core.events import Kind, about
from scheduler.core.lifecycle import (
    DuplicateRequest,
    IllegalTransition,
    UnknownRequest,
    move,
)
from scheduler.core.slots import MicroBatch, Replica
from scheduler.core.types import (
    ABORTING,
    CANCELLED,
    ENDED,
    EXPIRED,
    FAILED,
    FINISHED,
    NEW,
    QUEUED,
    REJECTED,
    RUNNING,
    Outcome,
    Rejected,
    Request,
    State,
)

# For each request: looking them up in the enum is slow.
_QUEUED, _DISPATCHED, _FIRST_TOKEN = Kind.QUEUED, Kind.DISPATCHED, Kind.FIRST_TOKEN
_ENDING = {state: Kind(state) for state in ENDED}


class Scheduler(Controls):
    """Decides which tenant's request runs next; every transition of a request happens here."""

    # -- arrivals ------------------------------------------------------------------------------------

    def submit(self, request: Request, now: float) -> Rejected | None:
        """Estimate and enqueue; returns why not when it is turned away, None when it waits.

        Raises UnknownTenant, DuplicateRequest, IllegalTransition; then nothing was changed.
        """
        tenant = self.books.tenants.get(request.tenant) or self.books.tenant(request.tenant)
        if request.id in self._active:
            raise DuplicateRequest(f"request {request.id} is already here")
        if request.state is not NEW:
            raise IllegalTransition(
                f"request {request.id} is {request.state.value}; only new ones are submitted"
            )
        request.estimate = self.estimator.estimate(request)
        request.cost = estimated_cost(request)
        limited = self._limited or tenant.limited
        if limited:
            self._turnover.look(self.books.totals, now)
        tenant.submitted += 1
        if limited or request.prompt_tokens + request.max_tokens > self.max_model_len:
            rejected = self._admit(request, tenant, now)
            if rejected is not None:
                return rejected
        self._active[request.id] = request
        request.state = QUEUED
        self.books.enqueued(request, tenant, now)
        self.waiting.enter(request)
        if limited or request.ttl_s is not None:
            self._bound_wait(request, tenant, request.arrival_s)
        if self._emit is not None:
            self._emit(about(request, _QUEUED, now))
        return None

    def _admit(self, request: Request, tenant: TenantBooks, now: float) -> Rejected | None:
        """End what may not wait here."""
        totals = self.books.totals
        if request.prompt_tokens + request.max_tokens > self.max_model_len:
            reason = "too_long"
        else:
            reason = admission.admit(request, tenant, totals, self.limits, now)
        if not reason:
            return None
        request.reason = reason
        move(request, REJECTED)
        self._end(request, tenant, REJECTED, now)
        return admission.rejection(reason, tenant, totals.queued, self._turnover.interval_s)

    def _bound_wait(self, request: Request, tenant: TenantBooks, since_s: float) -> None:
        """It may wait for the shortest of the TTLs."""
        ttls_s = (request.ttl_s, tenant.config.limits.ttl_s, self.limits.ttl_s)
        ttl_s = min(inf if ttl_s is None else ttl_s for ttl_s in ttls_s)
        if ttl_s < inf:
            self.waiting.expire_at(since_s + ttl_s, request)

    # -- dispatch ------------------------------------------------------------------------------------

    def next_dispatch(self, now: float) -> Request | None:
        """The next request to start, on its ``replica``; it is running from now on. Call until None."""
        slots = self.slots
        if slots.batch is not None:
            return self._next_of_batch(slots.batch, now)
        replica = slots.only or slots.freest()
        if replica.running >= replica.room or self.paused or (self._limited and self._at_limit()):
            return None
        waiting = self.waiting
        if waiting.suspects:
            return self._dispatch_suspect(replica, now)
        queue = waiting.queue
        if queue.lapses:
            queue.lapse(now)
        if slots.max_inflight_tokens is not None:
            head = queue.peek()
            if head is not None and not slots.fits(head, replica):
                return None
        request = queue.pop()
        if request is None:
            return None  # all that waits belongs to tenants at their limit
        self._start(request, replica, now)
        if self._emit is not None:
            self._emit(about(request, _DISPATCHED, now))
        return request

    def _at_limit(self) -> bool:
        limit = self.limits.max_in_flight
        return limit is not None and self.in_flight >= limit

    def _next_of_batch(self, full: MicroBatch, now: float) -> Request | None:
        """The next of the micro-batch that is being handed out, or the first of another."""
        slots, queue = self.slots, self.waiting.queue
        if slots.handout:
            return slots.handout.popleft()
        replica = slots.idle()
        if replica is None or self.paused or (self._limited and self._at_limit()):
            slots.waiting_since_s = None  # no micro-batch waits to fill
            return None
        if self.waiting.suspects:
            return self._dispatch_suspect(replica, now)
        if queue.lapses:
            queue.lapse(now)
        if not slots.batch_closes(self.books.totals.queued, now):
            return None
        limit = self.limits.max_in_flight
        size = min(full.size, replica.room, inf if limit is None else limit - self.in_flight)
        batch = []
        for request in queue.policy.take(queue, int(size)):
            self._start(request, replica, now)
            batch.append(request)
        slots.hand_out(batch)
        if self._emit is not None:
            for request in batch:
                self._emit(about(request, _DISPATCHED, now))
        return slots.handout.popleft() if batch else None

    def _dispatch_suspect(self, replica: Replica, now: float) -> Request | None:
        """A request that was aboard two crashes runs by itself, so that it can take nobody with it."""
        self.slots.waiting_since_s = None
        if self.in_flight:
            return None
        request = self.waiting.pop_suspect()
        self.slots.isolate(request, replica)
        self._start(request, replica, now)
        if self._emit is not None:
            self._emit(about(request, _DISPATCHED, now))
        return request

    def _start(self, request: Request, replica: Replica, now: float) -> None:
        waiting = self.waiting
        if waiting.swap is not None:
            waiting.swap.queue.forget(request)
        if waiting.room:
            waiting.take_room(request.tenant)
        request.backlogged = self.books.dequeued(request, now)
        request.state = RUNNING  # what holds a place in the queue was queued
        if not request.attempts:
            request.dispatched_s = now
            request.charged = request.cost
            if waiting.queue.hears_dispatch:
                waiting.queue.policy.on_dispatch(request, request.cost)
        request.attempts += 1
        request.replica = replica.index
        replica.running += 1
        if self.slots.max_inflight_tokens is not None:
            self.slots.reserve(request, replica)

    # -- while it runs -------------------------------------------------------------------------------

    def on_prompt_counted(self, request_id: str, tokens: int) -> None:
        """The engine knows how many tokens the prompt really has. Raises UnknownRequest."""
        self.slots.recount(self._running(request_id), tokens)

    def on_first_token(self, request_id: str, now: float) -> None:
        """The first output token is there. Raises UnknownRequest."""
        request = self._running(request_id)
        request.first_token_s = now
        if self._emit is not None:
            self._emit(about(request, _FIRST_TOKEN, now))

    def on_tokens(self, request_id: str, tokens: int, now: float) -> None:
        """``tokens`` more output tokens are there; the final count comes with the outcome."""
        request = self._running(request_id)
        if self.metrics is not None:
            prompt = 0 if request.output_tokens else request.prompt_tokens
            self.metrics.on_tokens(request.tenant, tokens, prompt, now)
        request.output_tokens += tokens
        request.last_token_s = now

    def on_complete(self, request_id: str, now: float, outcome: Outcome) -> Sequence[Request]:
        """A stream has ended. Returns the requests that ended with it: in a micro-batch none before its
        last one, then all of them. Raises UnknownRequest.
        """
        request = self._active.get(request_id)  # as _running does; a call is felt here
        if request is None or request.replica < 0 or request.finish:
            raise UnknownRequest(f"no running request {request_id}")
        request.finish = outcome.finish
        request.output_tokens = outcome.output_tokens
        replica = self.slots.end(request)
        if self.slots.batch is None:
            self._settle(request, outcome, now)
            return (request,)
        replica.held.append(request)
        return () if replica.running else self._release(replica, now)

    def _release(self, replica: Replica, now: float) -> list[Request]:
        """A micro-batch is over: its results and slots are released together."""
        released, replica.held = replica.held, []
        for request in released:
            # All its tokens come to the client now, so there are no gaps between them either.
            request.first_token_s = request.last_token_s = now if request.output_tokens else None
            request.gaps = None
            self._settle(request, Outcome(request.finish, request.output_tokens), now)
        return released

    def _settle(self, request: Request, outcome: Outcome, now: float) -> None:
        """End a request whose stream is over: free, charge, learn, count."""
        if request.state is ABORTING:
            state = CANCELLED
            request.finish = "abort"
            outcome = Outcome("abort", request.output_tokens)
        elif request.finish in ("stop", "length"):
            state = FINISHED
            if request.first_token_s is None:
                request.first_token_s = now
            if request.last_token_s is None:  # an answer of no tokens
                request.last_token_s = now
        else:
            state = FAILED
            request.reason = request.reason or "engine_error"
        books, waiting, name = self.books, self.waiting, request.tenant
        tenant = books.tenants[name]
        if waiting.room:
            waiting.give_room(name)
        cost = books.served(request, tenant)
        if waiting.queue.hears_settle:
            waiting.queue.policy.on_settle(request, cost - request.charged)
        request.charged = cost
        request.state = state  # it was aborting or running, as found above
        estimator, category = self.estimator, request.estimate.category
        if self._emit is not None:  # only the log tells it
            request.bias_before = estimator.bias(name, category)
        estimator.observe(request, outcome)
        request.bias_after = estimator.bias(name, category)
        if self.metrics is not None:
            self.metrics.on_observed(request, estimator)
        del self._active[request.id]
        self._end(request, tenant, state, now)

    def _end(self, request: Request, tenant: TenantBooks, state: State, now: float) -> None:
        request.ended_s = now
        tenant.ended[state] += 1
        if self.metrics is not None:
            self.metrics.on_ended(request, now, tenant.config.slo)
        if self._emit is not None:
            self._emit(about(request, _ENDING[state], now))

    # -- ends that are no completion -----------------------------------------------------------------

    def cancel(self, request_id: str, now: float) -> int | None:
        """The client gave up. Returns the replica on which its stream must be aborted, None where there is
        no stream. The slot stays taken until the stream has ended. Raises UnknownRequest.
        """
        request = self._active.get(request_id)
        if request is None:
            raise UnknownRequest(f"no queued or running request {request_id}")
        if request.state is QUEUED:
            self._drop(request, CANCELLED, now)
            return None
        if request.state is ABORTING:
            return None
        move(request, ABORTING)
        if self._emit is not None:
            self._emit(about(request, Kind.ABORTING, now))
        return None if request.finish else request.replica  # a micro-batch holds what has ended

    def expire(self, now: float) -> list[Request]:
        """End what has waited past its TTL; returns those requests."""
        expired: list[Request] = []
        for request in self.waiting.expired(now):
            self._drop(request, EXPIRED, now)
            expired.append(request)
        return expired

    def _drop(self, request: Request, state: State, now: float) -> None:
        """End a request that waits."""
        tenant = self.books.tenants[request.tenant]
        move(request, state)
        self.waiting.remove(request)
        self.books.dequeued(request, now)
        if request.charged:  # it ran on an engine that was lost
            self.policy.on_settle(request, -request.charged)
            request.charged = 0.0
        del self._active[request.id]
        self._end(request, tenant, state, now)

    def on_engine_lost(self, replica_index: int, now: float) -> list[Request]:
        """A replica died. What it ran is retried once if nothing of it was delivered; what was aboard two
        crashes is retried alone; the rest fails. Returns the requests that ended.
        """
        replica = self.slots.replicas[replica_index]
        alone = replica.alone
        ended = self._release(replica, now)
        self.slots.lose(replica)
        for request in [r for r in self._active.values() if r.replica == replica_index]:
            delivered = request.streamed and request.output_tokens > 0
            if request.state is RUNNING and not delivered and request is not alone:
                self._retry(request, now)
                continue
            request.finish, request.reason = "error", "engine_lost"
            self._settle(request, Outcome("error", request.output_tokens), now)
            ended.append(request)
        return ended

    def _retry(self, request: Request, now: float) -> None:
        tenant = self.books.tenants[request.tenant]
        self.waiting.give_room(request.tenant)
        if request.attempts == 1:  # counted once, however often it is tried
            tenant.retried += 1
        request.output_tokens = request.batch_size = 0
        request.first_token_s = request.last_token_s = None
        request.gaps = None
        request.replica = request.batch_id = -1
        request.cost = estimated_cost(request)  # its prompt may have been counted anew
        request.state = QUEUED
        self.books.enqueued(request, tenant, now)
        if request.attempts == 1:
            self.waiting.enter(request)
        else:
            self.waiting.suspect(request)
        self._bound_wait(request, tenant, now)  # the time that it ran is not held against it
        if self._emit is not None:
            self._emit(about(request, Kind.RETRIED, now))

    def on_engines_gone(self, now: float) -> list[Request]:
        """No replica comes back: what waits fails. Returns the requests that ended."""
        waiting = [request for request in self._active.values() if request.state is QUEUED]
        for request in waiting:
            request.finish, request.reason = "error", "engine_lost"
            self._drop(request, FAILED, now)
        return waiting

    def on_engine_up(self, replica_index: int) -> None:
        """A replica is back."""
        self.slots.restore(self.slots.replicas[replica_index])

    # -- reading -------------------------------------------------------------------------------------

    def next_timer(self) -> float:
        """When to call expire() and next_dispatch() again whatever else happens; inf for never."""
        expiry_s = self.waiting.next_expiry_s()
        return expiry_s if self.slots.batch is None else min(expiry_s, self.slots.next_timer())

    def _running(self, request_id: str) -> Request:
        request = self._active.get(request_id)
        if request is None or request.replica < 0 or request.finish:
            raise UnknownRequest(f"no running request {request_id}")
        return request

    def check(self) -> None:
        """Raise AssertionError unless nothing is lost or doubled: submitted = queued + in flight + ended."""
        active = self._active.values()
        self.books.check(active)
        self.slots.check([r for r in active if r.state in (RUNNING, ABORTING)])
        queued = sorted(r.ticket for r in active if r.state is QUEUED)
        waiting = sorted(r.ticket for r in self.waiting)
        assert waiting == queued, "the queue holds just what is queued"
        assert len(set(waiting)) == len(waiting), "no request waits twice"
        for name, room in self.waiting.room.items():
            books = self.books.tenants[name]
            assert room == (books.config.limits.max_in_flight or 0) - books.in_flight, name
