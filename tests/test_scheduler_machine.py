"""Everything that can happen to a scheduler, in any order: nothing is lost, doubled or stuck."""

from __future__ import annotations

import dataclasses
from collections import Counter
from math import inf
from typing import Any

import pytest
from core_kit import TENANTS, Guess, Log, dispatch_all, make_request, spied
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.core.estimate import Oracle
from scheduler.core.lifecycle import DuplicateRequest, UnknownRequest
from scheduler.core.metrics import WindowMetrics
from scheduler.core.policies import POLICIES
from scheduler.core.scheduler import Scheduler
from scheduler.core.slots import MicroBatch
from scheduler.core.snapshot import take_snapshot
from scheduler.core.types import ENDED, Limits, Outcome, Request, State, Tenant

picks = st.integers(0, 999)
policies = st.sampled_from([*POLICIES, "aging rate=0.5"])
estimators = st.sampled_from([Oracle(), Guess(5), Guess(50)])
few = st.sampled_from([None, 0, 1, 2])
limits = st.builds(Limits, max_queued=st.sampled_from([None, 2, 6]), max_in_flight=few)
waits = st.sampled_from([0.0, 0.001, 0.01, 0.3, 2.0])

QUEUED_TOO_LONG = Limits(ttl_s=1.0)


class SchedulerMachine(RuleBasedStateMachine):
    """The model is small: the ids that live, the streams that the engines run, and the ids that ended."""

    @initialize(
        policy=policies,
        batch=st.sampled_from([None, MicroBatch(size=3, wait_s=0.01)]),
        capacities=st.sampled_from([(3,), (2, 2)]),
        max_inflight_tokens=st.sampled_from([None, 90]),
        ttl=st.booleans(),
    )
    def begin(
        self,
        policy: str,
        batch: MicroBatch | None,
        capacities: tuple[int, ...],
        max_inflight_tokens: float | None,
        ttl: bool,
    ) -> None:
        self.now = 0.0
        self.log = Log()
        self.turns: Counter[str] = Counter()
        self.base = QUEUED_TOO_LONG if ttl else Limits()
        self.tenants = {tenant.name: tenant for tenant in TENANTS}
        self.scheduler = Scheduler(
            spied(policy, self.turns),
            Oracle(),
            TENANTS,
            capacities=capacities,
            batch=batch,
            limits=self.base,
            max_inflight_tokens=max_inflight_tokens,
            metrics=WindowMetrics(self.tenants),
            emit=self.log.append,
        )
        self.requests: dict[str, Request] = {}
        self.alive: set[str] = set()
        self.streams: dict[str, int] = {}  # id -> replica, what the engines run
        self.ended: set[str] = set()

    def end(self, request_id: str) -> None:
        assert request_id in self.alive
        assert request_id not in self.ended, "ended twice"
        self.alive.remove(request_id)
        self.ended.add(request_id)

    def a_stream(self, pick: int) -> str:
        return sorted(self.streams)[pick % len(self.streams)]

    # -- arrivals and dispatch

    @rule(
        tenant=st.sampled_from([t.name for t in TENANTS]),
        tokens=st.sampled_from([1, 5, 30]),
        late=st.booleans(),
    )
    def submit(self, tenant: str, tokens: int, late: bool) -> None:
        name = f"r{len(self.requests)}"
        request = make_request(name, tenant, self.now - late, tokens=tokens, streamed=tokens == 30)
        rejected = self.scheduler.submit(request, self.now)
        self.requests[name] = request
        self.alive.add(name)
        if rejected is not None:
            assert rejected.retry_after_s > 0
            self.end(name)

    @rule(wait=waits)
    def pump(self, wait: float) -> None:
        """Time passes; then what a driver does whenever it is called."""
        self.now += wait
        for request in self.scheduler.expire(self.now):
            self.end(request.id)
        for request in dispatch_all(self.scheduler, self.now):
            name = request.id
            assert name in self.alive
            assert name not in self.streams, "runs twice"
            self.streams[name] = request.replica
        assert self.scheduler.next_timer() > self.now, "a driver would spin"

    # -- streams

    @precondition(lambda self: self.streams)
    @rule(pick=picks, tokens=st.integers(1, 3), first=st.booleans())
    def tokens(self, pick: int, tokens: int, first: bool) -> None:
        name = self.a_stream(pick)
        if first and self.requests[name].first_token_s is None:
            self.scheduler.on_first_token(name, self.now)
        self.scheduler.on_tokens(name, tokens, self.now)

    @precondition(lambda self: self.streams)
    @rule(pick=picks, finish=st.sampled_from(["stop", "length", "error"]), tokens=st.integers(1, 60))
    def complete(self, pick: int, finish: str, tokens: int) -> None:
        name = self.a_stream(pick)
        del self.streams[name]
        if self.requests[name].state is State.ABORTING:
            finish = "abort"
        for request in self.scheduler.on_complete(name, self.now, Outcome(finish, tokens)):
            self.end(request.id)

    @precondition(lambda self: self.alive)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        name = sorted(self.alive)[pick % len(self.alive)]
        request = self.requests[name]
        before = request.state
        replica = self.scheduler.cancel(name, self.now)
        if before is State.QUEUED:
            assert replica is None
            self.end(name)
        elif before is State.RUNNING:
            assert replica == self.streams.get(name), "abort just where it runs"

    @rule(replica=st.integers(0, 1))
    def engine_lost(self, replica: int) -> None:
        if replica < len(self.scheduler.slots.replicas):
            for request in self.scheduler.on_engine_lost(replica, self.now):
                self.end(request.id)
            self.streams = {name: at for name, at in self.streams.items() if at != replica}

    @rule(replica=st.integers(0, 1))
    def engine_up(self, replica: int) -> None:
        if replica < len(self.scheduler.slots.replicas):
            self.scheduler.on_engine_up(replica)

    # -- the operator

    @rule(policy=policies)
    def begin_swap(self, policy: str) -> None:
        arrivals = {r.id: r.arrival_s for r in self.scheduler.active()}
        self.scheduler.begin_swap(spied(policy, self.turns), self.now)
        assert {r.id: r.arrival_s for r in self.scheduler.active()} == arrivals

    @rule(estimator=estimators)
    def set_estimator(self, estimator: Any) -> None:
        self.scheduler.set_estimator(estimator, self.now)

    @precondition(lambda self: self.scheduler.swap is not None)
    @rule(items=st.integers(1, 4))
    def swap_step(self, items: int) -> None:
        target = self.scheduler.swap.queue.policy  # type: ignore[union-attr]
        if self.scheduler.swap_step(self.now, items):
            assert self.scheduler.policy is target

    @rule(name=st.sampled_from([t.name for t in TENANTS]), limits=limits)
    def set_tenant(self, name: str, limits: Limits) -> None:
        self.scheduler.set_tenant(dataclasses.replace(self.tenants[name], limits=limits), self.now)

    @rule(limits=limits)
    def set_limits(self, limits: Limits) -> None:
        self.scheduler.set_limits(dataclasses.replace(limits, ttl_s=self.base.ttl_s), self.now)

    @rule(pause=st.booleans())
    def pause_or_resume(self, pause: bool) -> None:
        (self.scheduler.pause if pause else self.scheduler.resume)(self.now)

    @rule(pick=picks)
    def what_is_not_allowed(self, pick: int) -> None:
        """What a confused driver may ask for; the invariants find what it changed."""
        if self.alive:
            name = sorted(self.alive)[pick % len(self.alive)]
            with pytest.raises(DuplicateRequest):
                self.scheduler.submit(make_request(name), self.now)
        strangers = ["nobody", *sorted(self.requests.keys() - self.streams.keys())]
        stranger = strangers[pick % len(strangers)]
        with pytest.raises(UnknownRequest):
            self.scheduler.on_complete(stranger, self.now, Outcome("stop", 1))
        with pytest.raises(UnknownRequest):
            self.scheduler.on_tokens(stranger, 1, self.now)
        if stranger not in self.alive:
            with pytest.raises(UnknownRequest):
                self.scheduler.cancel(stranger, self.now)

    # -- what holds after every step

    @invariant()
    def books_balance(self) -> None:
        self.scheduler.check()
        active = {r.id: r for r in self.scheduler.active()}
        assert active.keys() == self.alive
        running = {r.id for r in active.values() if r.replica >= 0 and not r.finish}
        assert running == self.streams.keys()
        charges = self.scheduler.policy.charges  # type: ignore[attr-defined]
        for request in active.values():
            assert charges[request.id] == request.charged

    @invariant()
    def estimates_are_those_of_the_estimator(self) -> None:
        if self.scheduler.swap is None:
            for request in self.scheduler.active():
                if request.state is State.QUEUED and not request.attempts:
                    assert request.estimate == self.scheduler.estimator.estimate(request)

    @invariant()
    def snapshot_agrees(self) -> None:
        snapshot = take_snapshot(self.scheduler, self.now)
        assert snapshot.queued + snapshot.in_flight == len(self.alive)
        assert sum(snapshot.counts[state.value] for state in ENDED) == len(self.ended)

    def teardown(self) -> None:
        """Lift everything that holds requests back: all of them come to an end."""
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        while not scheduler.swap_step(self.now, 2):
            scheduler.check()
        scheduler.set_limits(Limits(), self.now)
        for tenant in TENANTS:
            scheduler.set_tenant(Tenant(tenant.name, tenant.tier), self.now)
        scheduler.resume(self.now)
        for replica in range(len(scheduler.slots.replicas)):
            scheduler.on_engine_up(replica)
        while not scheduler.idle:
            self.pump(0.0)
            if not self.streams and not scheduler.idle:
                assert scheduler.next_timer() < inf, "stuck"
                self.pump(scheduler.next_timer() - self.now)
            while self.streams:
                self.complete(0, "stop", 5)
            self.books_balance()
        assert self.ended == self.requests.keys()
        ends = Counter(e.request.id for e in self.log if e.request is not None and e.kind.value in set(ENDED))
        assert ends == Counter(self.requests.keys()), "every request ends just once"
        dispatched = {r.id for r in self.requests.values() if r.attempts}
        assert self.turns == Counter(dispatched), "one turn for each request that ran"


TestSchedulerMachine = SchedulerMachine.TestCase
