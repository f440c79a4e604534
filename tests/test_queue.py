"""ReadyQueue against a sorted list: any pushes, cancels and limits, heaps rebuilt early or late."""

from __future__ import annotations

import dataclasses
import heapq
from math import inf

import pytest
from core_kit import TENANTS, make_request
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.core import queue as queue_module
from scheduler.core.policies import policy_from
from scheduler.core.queue import ReadyQueue
from scheduler.core.types import Request
from scheduler.core.waiting import WaitingRoom

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
        few=st.sampled_from([0, 1, 64]),
    )
    def begin(self, policy: str, limited: set[str], compact_at: int, few: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(queue_module, "_COMPACT_AT", compact_at)
        self.patch.setattr(queue_module, "_FEW", few)
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
    return sum(len(heap) for group in queue._groups.values() for heap in (group.heap, *group.aside.values()))


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
    pops = counted(monkeypatch, "heappop")
    assert [bench.pop().id for _ in range(2)] == ["0", "other"]  # type: ignore[union-attr]
    for room, best in ((999, "1"), (inf, "2")):
        bench.room[NAMES[0]] = 999
        bench.queue.room_grew(NAMES[0], room)
        assert bench.pop().id == best  # type: ignore[union-attr]
        bench.set_room(NAMES[0], 0)
    assert len(pops) <= 64


def test_where_many_tenants_are_at_their_limits_the_queue_is_not_gone_through_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They step aside together, when the last tenant that might run comes to its limit, too."""
    queue = ReadyQueue(policy_from("fifo"), room := {f"t{i}": 1 for i in range(200)})
    for i in range(1000):
        request = make_request(str(i), arrival_s=float(i), ticket=i)
        request.tenant = f"t{i % 200}"
        queue.push(request)
    rebuilt = counted(monkeypatch, "heapify")
    for i in range(200):
        popped = queue.pop()
        assert popped is not None
        assert popped.id == str(i)
        room[popped.tenant] = 0
        queue.room_gone(popped.tenant)
    assert queue.pop() is None
    assert len(rebuilt) < 10


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[None]:
    """Grows by one with each call of this function of heapq by a queue."""
    calls: list[None] = []
    function = getattr(heapq, name)

    def count(*args: object) -> object:
        calls.append(None)
        return function(*args)

    monkeypatch.setattr(queue_module, name, count)
    return calls


def test_a_long_queue_is_rebuilt_for_as_many_dead_as_it_has_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "_COMPACT_AT", 10)
    bench = Bench("fifo")
    requests = [make_request(str(i), arrival_s=float(i)) for i in range(1000)]
    for request in requests:
        bench.push(request)
    rebuilt = counted(monkeypatch, "heapify")
    for request in requests[:1:-1]:
        bench.cancel(request)
    assert 1 <= len(rebuilt) <= 3
    assert heap_size(bench.queue) < 1000


def test_what_stays_when_all_else_steps_aside_is_in_order() -> None:
    bench = Bench("fifo", {NAMES[0]: 1})
    for i in range(300, 0, -1):
        bench.push(make_request(str(i), NAMES[i % 2] if i > 99 else NAMES[0], arrival_s=float(i)))
    assert [bench.pop() is not None for _ in range(101)] == [True] * 101
    assert bench.pop() is None


def test_the_next_one_comes_back_for_one_that_is_cancelled() -> None:
    bench = Bench("fifo", {"acme": 0})
    first, second = make_request("first"), make_request("second", arrival_s=1.0)
    bench.push(first)
    bench.push(second)
    bench.room["acme"] = 1
    bench.queue.room_grew("acme", 1)
    bench.cancel(first)
    assert bench.pop() is second


def test_room_for_several_is_taken_by_several() -> None:
    """Raised by an operator, and given back by those who end."""
    waiting = WaitingRoom(policy_from("fifo"))
    waiting.set_room("acme", 0)
    for i in range(9):
        waiting.enter(make_request(str(i), arrival_s=float(i)))

    def taken() -> list[str]:
        names = []
        while (request := waiting.queue.pop()) is not None:
            waiting.take_room(request.tenant)
            names.append(request.id)
        return names

    assert taken() == []
    waiting.set_room("acme", 3)
    assert taken() == ["0", "1", "2"]
    for _ in range(2):
        waiting.give_room("acme")
    assert taken() == ["3", "4"]


def test_room_that_comes_during_a_swap_is_there_after_it() -> None:
    waiting = WaitingRoom(policy_from("fifo"))
    waiting.set_room("acme", 0)
    request = make_request("waits")
    waiting.enter(request)
    swap = waiting.begin_swap(policy_from("sjf"), [request], 0.0, "")
    assert swap.step(9)
    waiting.give_room("acme")
    waiting.end_swap(swap, [])
    assert waiting.queue.peek() is request
    assert waiting.queue.pop() is request


def test_a_retired_queue_is_gone_once_those_aside_are() -> None:
    queue = ReadyQueue(policy_from("fair"), {"acme": 0})
    for i, tenant in enumerate(("acme", "acme", "acme", "globex", "globex")):
        queue.push(make_request(str(i), tenant, ticket=i))
    assert not queue.dismantle(4)
    assert heap_size(queue) == 1
    assert queue.dismantle(3)


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
    for request in list(queue):
        request.ticket = -1
        queue.forget(request)
    queue.push(make_request("fourth", "acme", ticket=4))
    assert heard == ["acme", "acme"], "those aside have all gone"


def test_a_place_that_lapses_is_no_new_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_from("fair+edf")
    policy.bind({tenant.name: tenant for tenant in TENANTS})
    heard: list[str] = []
    monkeypatch.setattr(type(policy), "on_backlogged", lambda _, group: heard.append(group))
    queue = ReadyQueue(policy, {})
    queue.push(make_request("waits", "acme", ticket=1))
    queue.lapse(1e6)
    assert heard == ["acme"]


def test_who_stepped_aside_goes_before_one_whose_place_has_lapsed() -> None:
    """``acme`` may run one more; its first, back at the end, must not stand for it there."""
    policy = policy_from("edf")
    policy.bind({tenant.name: tenant for tenant in TENANTS})
    queue = ReadyQueue(policy, room := {"acme": 0})
    early, late = make_request("early", "acme", ticket=1), make_request("late", "acme", 1e3, ticket=2)
    for request in (early, late):
        queue.push(request)
    room["acme"] = 1
    queue.room_grew("acme", 1)
    queue.lapse(999.0)
    assert queue.pop() is late
