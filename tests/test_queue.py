"""ReadyQueue against a sorted list: any pushes, cancels and limits, heaps rebuilt early or late."""

from __future__ import annotations

import dataclasses
from heapq import heappush
from math import inf

import pytest
from core_kit import TENANTS, make_request
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.core import queue as queue_module
from scheduler.core.policies import policy_from
from scheduler.core.policy import Entry
from scheduler.core.queue import ReadyQueue
from scheduler.core.types import Request

NAMES = [tenant.name for tenant in TENANTS]
ORDERINGS = ["fifo", "priority", "sjf", "aging", "aging rate=0.5"]  # one group: a plain order


class Bench:
    """A queue, the tickets that the Scheduler would give, and the list that it is held against."""

    def __init__(self, policy: str, room: dict[str, int] | None = None) -> None:
        self.room = {} if room is None else room
        self.queue = ReadyQueue(policy_from(policy), self.room)
        self.waiting: list[Request] = []
        self.tickets = 0

    def push(self, request: Request) -> None:
        self.tickets += 1
        request.ticket = self.tickets
        self.queue.push(request)
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        self.waiting.remove(request)
        request.ticket = -1
        self.queue.forget(request)

    def set_room(self, tenant: str, room: int) -> None:
        self.room[tenant] = room
        if room > 0:
            self.queue.room_grew(tenant, room)
        else:
            self.queue.room_gone(tenant)

    def rank(self, request: Request) -> tuple[float, ...]:
        return (*self.queue.policy.key(request), request.ticket)

    def expected(self) -> Request | None:
        """What a linear search through all that may run finds first."""
        may_run = [r for r in self.waiting if self.room.get(r.tenant, 1) > 0]
        retried = [r for r in may_run if r.attempts]
        if retried:
            return retried[0]
        return min(may_run, key=self.rank, default=None)

    def pop(self) -> Request | None:
        expected = self.expected()
        assert self.queue.peek() is expected
        request = self.queue.pop()
        assert request is expected
        if request is not None:
            self.waiting.remove(request)
            assert request.ticket == -1
            if request.tenant in self.room:
                self.room[request.tenant] -= 1
                if not self.room[request.tenant]:
                    self.queue.room_gone(request.tenant)
        return request


arrivals = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 9), st.integers(1, 5)), max_size=40)


@given(st.sampled_from(ORDERINGS), arrivals)
def test_pops_are_sorted(policy: str, arrivals: list[tuple[str, int, int]]) -> None:
    bench = Bench(policy)
    for i, (tenant, at, tokens) in enumerate(arrivals):
        request = make_request(str(i), tenant, float(at), tokens=tokens)
        request.estimate = dataclasses.replace(request.estimate, point=tokens)
        bench.push(request)
    in_order = sorted(bench.waiting, key=bench.rank)
    assert [bench.pop() for _ in arrivals] == in_order
    assert bench.pop() is None


class QueueMachine(RuleBasedStateMachine):
    """Pushes, retries, pops, cancels and limits in any order."""

    @initialize(
        policy=st.sampled_from(ORDERINGS),
        limited=st.sets(st.sampled_from(NAMES)),
        compact_at=st.sampled_from([1, 2, 1024]),
        one_by_one=st.sampled_from([0, 1, 64]),
    )
    def begin(self, policy: str, limited: set[str], compact_at: int, one_by_one: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(queue_module, "_COMPACT_AT", compact_at)
        self.patch.setattr(queue_module, "_ONE_BY_ONE", one_by_one)
        self.bench = Bench(policy, dict.fromkeys(limited, 1))
        self.pushed = 0

    @rule(tenant=st.sampled_from(NAMES), at=st.integers(0, 9), tokens=st.integers(1, 5), again=st.booleans())
    def push(self, tenant: str, at: int, tokens: int, again: bool) -> None:
        self.pushed += 1
        request = make_request(str(self.pushed), tenant, float(at), attempts=int(again and at < 3))
        request.estimate = dataclasses.replace(request.estimate, point=tokens)
        self.bench.push(request)

    @rule()
    def pop(self) -> None:
        self.bench.pop()

    @precondition(lambda self: self.bench.waiting)
    @rule(pick=st.integers(0, 99))
    def cancel(self, pick: int) -> None:
        self.bench.cancel(self.bench.waiting[pick % len(self.bench.waiting)])

    @precondition(lambda self: self.bench.waiting)
    @rule(pick=st.integers(0, 99))
    def look(self, pick: int) -> None:
        request = self.bench.waiting[pick % len(self.bench.waiting)]
        mine = [each for each in self.bench.waiting if each.tenant == request.tenant]
        first = [each for each in mine if each.attempts]
        rest = sorted((each for each in mine if not each.attempts), key=self.bench.rank)
        assert self.bench.queue.ahead(request) == [*first, *rest].index(request)

    @precondition(lambda self: self.bench.room)
    @rule(pick=st.integers(0, 9), room=st.integers(-1, 2))
    def set_room(self, pick: int, room: int) -> None:
        tenant = sorted(self.bench.room)[pick % len(self.bench.room)]
        self.bench.set_room(tenant, room)

    @precondition(lambda self: self.bench.room)
    @rule(pick=st.integers(0, 9))
    def give_room(self, pick: int) -> None:
        tenant = sorted(self.bench.room)[pick % len(self.bench.room)]
        self.bench.room[tenant] += 1
        if self.bench.room[tenant] > 0:
            self.bench.queue.room_grew(tenant, 1)

    @invariant()
    def holds_just_what_waits(self) -> None:
        assert sorted(r.ticket for r in self.bench.queue) == sorted(r.ticket for r in self.bench.waiting)

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            for tenant in list(self.bench.room):
                del self.bench.room[tenant]
                self.bench.queue.room_grew(tenant, inf)
            while self.bench.waiting:
                self.bench.pop()
            self.patch.undo()


TestQueueMachine = QueueMachine.TestCase


def heap_size(queue: ReadyQueue) -> int:
    return sum(map(len, queue._groups.values()))


def test_dead_entries_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request waits at the top, so that nothing dead behind it ever surfaces."""
    monkeypatch.setattr(queue_module, "_COMPACT_AT", 10)
    bench = Bench("fifo")
    bench.push(make_request("first", arrival_s=-1.0))
    sizes = []
    for i in range(1000):
        request = make_request(str(i), arrival_s=float(i))
        bench.push(request)
        bench.cancel(request)
        sizes.append(heap_size(bench.queue))
    assert max(sizes) == 10, "rebuilt, and not for every request"
    assert bench.pop() is not None
    assert bench.pop() is None


def test_dead_entries_of_a_tenant_at_its_limit_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "_COMPACT_AT", 10)
    bench = Bench("fifo", {NAMES[1]: 0})
    bench.push(make_request("kept", NAMES[1], arrival_s=-1.0))
    for i in range(1000):
        request = make_request(str(i), NAMES[1], arrival_s=float(i))
        bench.push(request)
        bench.cancel(request)
        assert heap_size(bench.queue) <= 10
    assert bench.pop() is None
    bench.set_room(NAMES[1], 1)
    assert bench.pop() is not None


def test_a_limit_on_a_long_queue_does_not_move_it_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator who limits a tenant with 100,000 queued, or no longer does, must not wait."""
    bench = Bench("fifo", {NAMES[0]: 1})
    for i in range(1000):
        bench.push(make_request(str(i), NAMES[0], arrival_s=float(i)))
    bench.push(make_request("other", NAMES[1], arrival_s=1e6))
    pushes = 0

    def push(heap: list[Entry], entry: Entry) -> None:
        nonlocal pushes
        pushes += 1
        heappush(heap, entry)

    monkeypatch.setattr(queue_module, "heappush", push)
    assert [bench.pop().id for _ in range(2)] == ["0", "other"]  # type: ignore[union-attr]
    del bench.room[NAMES[0]]
    bench.queue.room_grew(NAMES[0], inf)
    assert pushes <= 64
    assert bench.pop().id == "1"  # type: ignore[union-attr]


def test_ties_go_to_the_earlier_enqueueing() -> None:
    bench = Bench("fifo")
    requests = [make_request(str(i), NAMES[i % 3]) for i in range(9)]
    for request in requests:
        bench.push(request)
    assert [bench.pop() for _ in requests] == requests


def test_the_policy_hears_when_a_group_begins_to_wait() -> None:
    class Listening(type(policy_from("weighted"))):  # type: ignore[misc]
        heard: list[str] = []  # noqa: RUF012

        def on_backlogged(self, group: str) -> None:
            self.heard.append(group)

    policy = Listening()
    queue = ReadyQueue(policy, {})
    for ticket, tenant in enumerate(["acme", "acme", "globex"]):
        queue.push(make_request(str(ticket), tenant, ticket=ticket))
    assert policy.heard == ["premium", "standard"]
    while queue.pop():
        pass
    queue.push(make_request("again", "acme", ticket=9))
    assert policy.heard == ["premium", "standard", "premium"]
    last = make_request("cancelled", "globex", ticket=10)
    queue.push(last)
    last.ticket = -1
    queue.forget(last)
    queue.push(make_request("new", "globex", ticket=11))
    assert policy.heard[3:] == ["standard", "standard"], "nothing was waiting any more"


def test_a_group_that_waits_for_room_has_not_begun_to_wait_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    room = {"acme": 1}
    policy = policy_from("fair credit=0")
    policy.bind({tenant.name: tenant for tenant in TENANTS})
    heard: list[str] = []
    monkeypatch.setattr(type(policy), "on_backlogged", lambda _, group: heard.append(group))
    queue = ReadyQueue(policy, room)
    for ticket in range(2):
        queue.push(make_request(str(ticket), "acme", ticket=ticket))
    room["acme"] = 0
    queue.room_gone("acme")
    queue.push(make_request("third", "acme", ticket=3))
    assert heard == ["acme"]
