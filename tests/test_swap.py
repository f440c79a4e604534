"""Hot swaps: at any moment, in slices, superseded; nothing lost, doubled or made older or younger."""

from __future__ import annotations

import copy
import dataclasses

import pytest
from core_kit import (
    TENANTS,
    Guess,
    Log,
    complete,
    dispatch_all,
    ids,
    make_request,
    make_scheduler,
    run_out,
    submit_all,
)
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.policies import policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import Limits, Request, State

STATELESS = ["fifo", "priority", "sjf", "aging", "aging rate=0.5"]
NAMES = [tenant.name for tenant in TENANTS]

crowds = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(0, 20), st.integers(1, 200)), min_size=1, max_size=30
)


def crowd(drawn: list[tuple[str, int, int]]) -> list[Request]:
    return [make_request(str(i), t, float(at), tokens=n) for i, (t, at, n) in enumerate(drawn)]


def swap(scheduler: Scheduler, policy: str, now: float = 0.0) -> None:
    scheduler.begin_swap(policy_from(policy), now)
    assert scheduler.swap_step(now)


@given(crowds, st.sampled_from([*STATELESS, "weighted"]), st.sampled_from(STATELESS), st.integers(0, 30))
def test_order_after_a_swap_is_that_of_a_fresh_scheduler(
    drawn: list[tuple[str, int, int]], source: str, target: str, dispatched: int
) -> None:
    scheduler = make_scheduler(source, capacities=(1,))
    submit_all(scheduler, crowd(drawn))
    for _ in range(min(dispatched, len(drawn))):
        request = scheduler.next_dispatch(30.0)
        assert request is not None
        complete(scheduler, request, 30.0)
    waiting = [r for r in crowd(drawn) if r.id in {q.id for q in scheduler.active()}]
    fresh = make_scheduler(target, capacities=(1,))
    submit_all(fresh, waiting)
    swap(scheduler, target, 30.0)
    assert run_out(scheduler, 30.0) == run_out(fresh, 30.0)


@given(
    crowds, st.integers(1, 10), st.lists(st.sampled_from(["pop", "cancel", "arrive", "lose"]), max_size=20)
)
def test_between_slices_the_old_policy_orders_and_both_queues_follow(
    drawn: list[tuple[str, int, int]], slice_size: int, doings: list[str]
) -> None:
    """A twin without a swap does the same things: it shows what the old policy alone would do."""
    swapping, plain = (make_scheduler("fifo", capacities=(2,)) for _ in range(2))
    for scheduler in (swapping, plain):
        submit_all(scheduler, crowd(drawn))
    swapping.begin_swap(policy_from("sjf"), 1.0)
    done = False
    for step, doing in enumerate(doings):
        if done := swapping.swap_step(1.0, slice_size):
            break
        did = [do(scheduler, doing, step) for scheduler in (swapping, plain)]
        assert did[0] == did[1]
        swapping.check()
    while not done:
        done = swapping.swap_step(2.0, slice_size)
    for scheduler in (swapping, plain):
        for request in [r for r in scheduler.active() if r.state is State.RUNNING]:
            complete(scheduler, request, 2.0)
    assert sorted(run_out(swapping, 3.0)) == sorted(run_out(plain, 3.0))
    swapping.check()


def do(scheduler: Scheduler, doing: str, step: int) -> list[str]:
    waiting = [r for r in scheduler.active() if r.state is State.QUEUED]
    match doing:
        case "pop":
            for request in [r for r in scheduler.active() if r.state is State.RUNNING]:
                complete(scheduler, request, 1.0)
            return ids(dispatch_all(scheduler, 1.0))
        case "cancel" if waiting:
            scheduler.cancel(waiting[step % len(waiting)].id, 1.0)
        case "arrive":
            submit_all(scheduler, [make_request(f"new{step}", NAMES[step % 3], 1.0, tokens=step + 1)], 1.0)
        case "lose":
            ended = scheduler.on_engine_lost(0, 1.0)
            scheduler.on_engine_up(0)
            return [request.id for request in ended]
    return []


def test_a_swap_changes_nothing_but_the_order() -> None:
    scheduler = make_scheduler("fifo", capacities=(2,))
    submit_all(scheduler, [make_request(str(i), NAMES[i % 3], float(i), tokens=50 - i) for i in range(9)])
    dispatch_all(scheduler, 9.0)
    before = {r.id: copy.copy(r) for r in scheduler.active()}
    swap(scheduler, "sjf", 9.5)
    for request in scheduler.active():
        for field in Request.__slots__:
            assert getattr(request, field) == getattr(before[request.id], field), field


def test_a_tenant_at_its_limit_stays_there_over_a_swap() -> None:
    """Its place is taken while the new queue is half full: that queue has to hear of it, too."""
    scheduler = make_scheduler("fifo", capacities=(4,))
    tenant = dataclasses.replace(TENANTS[0], limits=Limits(max_in_flight=1))
    scheduler.set_tenant(tenant, 0.0)
    submit_all(scheduler, [make_request(str(i), tenant.name, float(i)) for i in range(6)])
    scheduler.begin_swap(policy_from("sjf"), 0.0)
    scheduler.swap_step(0.0, max_items=3)
    running = scheduler.next_dispatch(0.0)
    assert running is not None
    assert scheduler.next_dispatch(0.0) is None
    assert scheduler.swap_step(0.0)
    assert scheduler.next_dispatch(0.0) is None
    complete(scheduler, running, 1.0)
    assert len(dispatch_all(scheduler, 1.0)) == 1


def test_swap_step_ranks_no_more_than_it_is_told() -> None:
    scheduler = make_scheduler("fifo")
    submit_all(scheduler, [make_request(str(i)) for i in range(10)])
    assert scheduler.begin_swap(policy_from("sjf"), 0.0) == 10
    steps = [(scheduler.swap_step(0.0, 4), scheduler.swap and scheduler.swap.share_done) for _ in range(3)]
    assert steps == [(False, 0.4), (False, 0.8), (True, None)]
    assert scheduler.policy.name == "sjf"
    assert scheduler.swap_step(0.0)


def test_where_nothing_waits_a_swap_has_nothing_left_to_do() -> None:
    scheduler = make_scheduler("fifo")
    assert scheduler.begin_swap(policy_from("sjf"), 0.0) == 0
    assert scheduler.swap is not None
    assert scheduler.swap.share_done == 1.0
    assert scheduler.swap_step(0.0)


def test_events_and_record_count_what_was_re_ranked() -> None:
    log = Log()
    scheduler = make_scheduler("fifo", emit=log.append)
    submit_all(scheduler, [make_request(str(i)) for i in range(5)])
    scheduler.begin_swap(policy_from("aging rate=0.5"), 1.0, by="operator")
    scheduler.cancel("4", 1.5)
    assert scheduler.swap_step(2.0)
    asked = {"from": "fifo", "to": "aging rate=0.5", "queued": 5, "by": "operator"}
    about_swaps = [(e.at_s, e.kind.value, dict(e.detail)) for e in log if e.kind.value.startswith("swap")]
    assert about_swaps == [(1.0, "swap_requested", asked), (2.0, "swap_applied", {**asked, "queued": 4})]
    (record,) = scheduler.swaps
    assert (record.requested_s, record.applied_s, record.queued) == (1.0, 2.0, 4)
    assert (record.source, record.target, record.by) == ("fifo", "aging rate=0.5", "operator")


def test_a_second_swap_supersedes_the_first() -> None:
    scheduler = make_scheduler("fifo", capacities=(1,))
    requests = [make_request(str(i), NAMES[2 - i % 3], float(i)) for i in range(9)]
    submit_all(scheduler, requests)
    scheduler.begin_swap(policy_from("sjf"), 1.0)
    assert not scheduler.swap_step(1.0, 5)
    swap(scheduler, "priority", 2.0)
    assert [record.target for record in scheduler.swaps] == ["priority"]
    assert run_out(scheduler, 3.0) == ["2", "5", "8", "1", "4", "7", "0", "3", "6"]


def test_lost_twice_during_one_swap_waits_once() -> None:
    scheduler = make_scheduler("fifo", capacities=(1,))
    submit_all(scheduler, [make_request("unlucky"), *(make_request(str(i)) for i in range(3))])
    dispatch_all(scheduler, 0.0)
    scheduler.begin_swap(policy_from("sjf"), 1.0)
    for now in (1.0, 2.0):
        scheduler.on_engine_lost(0, now)
        scheduler.on_engine_up(0)
        if now == 1.0:
            assert ids(dispatch_all(scheduler, now)) == ["unlucky"]
    assert scheduler.swap_step(3.0)
    scheduler.check()
    assert run_out(scheduler, 4.0) == ["unlucky", "0", "1", "2"]


def test_a_retry_that_waited_when_the_swap_began_waits_once() -> None:
    scheduler = make_scheduler("fifo", capacities=(1,))
    submit_all(scheduler, [make_request("unlucky"), make_request("other", arrival_s=1.0)])
    scheduler.begin_swap(policy_from("sjf"), 1.0)
    assert ids(dispatch_all(scheduler, 1.0)) == ["unlucky"]
    scheduler.on_engine_lost(0, 2.0)
    scheduler.on_engine_up(0)
    assert scheduler.swap_step(3.0)
    scheduler.check()
    assert run_out(scheduler, 4.0) == ["unlucky", "other"]


# -- a change of the estimator is a swap, too ---------------------------------------------------------


def test_set_estimator_estimates_and_ranks_what_waits_anew() -> None:
    scheduler = make_scheduler("sjf", estimator=Guess(7), capacities=(1,))
    requests = [make_request(str(i), tokens=50 - i, arrival_s=float(i)) for i in range(4)]
    submit_all(scheduler, requests)
    assert ids(dispatch_all(scheduler, 4.0)) == ["0"]
    truth = make_scheduler().estimator
    assert scheduler.set_estimator(truth, 5.0, by="operator") == 3
    assert scheduler.swap_step(5.0)
    assert [r.estimate.point for r in requests] == [7, 49, 48, 47], "what runs keeps its estimate"
    assert scheduler.books.totals.queued_tokens == pytest.approx(3 * 10 + 2 * (49 + 48 + 47))
    complete(scheduler, requests[0], 6.0)
    assert run_out(scheduler, 6.0) == ["3", "2", "1"]


def test_set_estimator_keeps_the_policy_and_its_parameters() -> None:
    scheduler = make_scheduler("fifo")
    scheduler.begin_swap(policy_from("aging rate=0.5"), 0.0)
    scheduler.set_estimator(Guess(7), 0.0)
    assert scheduler.swap_step(0.0)
    assert scheduler.policy.describe() == "aging rate=0.5"


def test_a_swap_of_policy_does_not_undo_a_change_of_estimator() -> None:
    scheduler = make_scheduler("fifo", estimator=Guess(7))
    requests = [make_request(str(i), tokens=50) for i in range(4)]
    submit_all(scheduler, requests)
    scheduler.set_estimator(make_scheduler().estimator, 0.0)
    assert not scheduler.swap_step(0.0, 2)
    swap(scheduler, "sjf")
    assert [r.estimate.point for r in requests] == [50] * 4


def test_the_old_queue_is_freed_in_slices_and_nothing_that_waits_with_it() -> None:
    scheduler = make_scheduler("fifo", capacities=(1,))
    submit_all(scheduler, [make_request(str(n), arrival_s=float(n)) for n in range(25)])
    scheduler.begin_swap(policy_from("sjf"), 0.0)
    assert scheduler.swap_step(0.0, 100)
    steps = 1
    while not scheduler.waiting.retire(10):
        scheduler.check()
        steps += 1
    assert steps >= 3
    assert scheduler.waiting.retired is None
    assert scheduler.waiting.retire(10)
    scheduler.check()
    assert scheduler.books.totals.queued == 25
