"""Micro-batches: when they close, what they hold, how they are released."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from core_kit import (
    Log,
    batched,
    complete,
    crowd,
    dispatch_all,
    ids,
    submit_all,
)

from scheduler.core.slots import MicroBatch
from scheduler.core.types import Limits, Outcome, State


def test_a_full_micro_batch_starts_at_once() -> None:
    scheduler = batched()
    submit_all(scheduler, crowd(40))
    dispatches = dispatch_all(scheduler, 5.0)
    assert ids(dispatches) == [f"{i:02}" for i in range(32)]
    assert {(r.batch_id, r.batch_size) for r in dispatches} == {(1, 32)}
    assert scheduler.next_timer() == inf


def test_a_small_micro_batch_waits_ten_milliseconds_from_its_first() -> None:
    scheduler = batched()
    assert dispatch_all(scheduler, 1.0) == []
    assert scheduler.next_timer() == inf
    submit_all(scheduler, crowd(1))
    assert dispatch_all(scheduler, 2.0) == []
    assert scheduler.next_timer() == 2.010
    submit_all(scheduler, crowd(1, start=1))
    assert dispatch_all(scheduler, 2.009) == []
    assert scheduler.next_timer() == 2.010, "an arrival does not start the wait anew"
    assert ids(dispatch_all(scheduler, 2.010)) == ["00", "01"]


def test_a_micro_batch_that_fills_up_does_not_wait_out_its_time() -> None:
    scheduler = batched()
    submit_all(scheduler, crowd(31))
    assert dispatch_all(scheduler, 1.0) == []
    submit_all(scheduler, crowd(1, start=31))
    assert len(dispatch_all(scheduler, 1.005)) == 32


def test_the_wait_begins_anew_once_nobody_waits() -> None:
    scheduler = batched()
    submit_all(scheduler, crowd(1))
    assert dispatch_all(scheduler, 1.0) == []
    scheduler.cancel("00", 1.005)
    assert dispatch_all(scheduler, 1.005) == []
    assert scheduler.next_timer() == inf
    submit_all(scheduler, crowd(1, start=1))
    assert dispatch_all(scheduler, 2.0) == []
    assert scheduler.next_timer() == 2.010


def test_a_micro_batch_is_released_as_one() -> None:
    log = Log()
    scheduler = batched(emit=log.append)
    submit_all(scheduler, crowd(40))
    dispatches = dispatch_all(scheduler, 40.0)
    for request in dispatches[1:]:
        scheduler.on_first_token(request.id, 41.0)
        request.gaps = {0: 9}
        assert complete(scheduler, request, 42.0) == ()
        assert dispatch_all(scheduler, 42.0) == [], "the batch blocks"
        scheduler.check()
    assert not [e for e in log if e.kind.value == "finished"]
    released = complete(scheduler, dispatches[0], 50.0)
    assert {r.id for r in released} == set(ids(dispatches))
    assert {(r.state, r.first_token_s, r.ended_s) for r in released} == {(State.FINISHED, 50.0, 50.0)}
    assert {r.gaps for r in released} == {None}, "all its tokens come at once"
    assert dispatch_all(scheduler, 50.0) == []
    following = dispatch_all(scheduler, 50.010)
    assert {(r.batch_id, r.batch_size) for r in following} == {(2, 8)}


@pytest.mark.parametrize("given", [{"capacities": (5,)}, {"limits": Limits(max_in_flight=5)}])
def test_a_micro_batch_is_no_larger_than_what_may_run(given: dict[str, Any]) -> None:
    scheduler = batched(**given)
    submit_all(scheduler, crowd(40))
    assert len(dispatch_all(scheduler, 0.0)) == 5


def test_cancel_inside_a_micro_batch() -> None:
    scheduler = batched(batch=MicroBatch(size=3))
    first, second, third = requests = crowd(3)
    submit_all(scheduler, requests)
    dispatch_all(scheduler, 3.0)
    complete(scheduler, first, 4.0)
    assert scheduler.cancel(first.id, 4.5) is None, "its stream is over: there is nothing to abort"
    assert scheduler.cancel(second.id, 4.5) == 0
    assert scheduler.on_complete(second.id, 5.0, Outcome("abort", 1)) == ()
    assert len(complete(scheduler, third, 6.0)) == 3
    assert [r.state for r in requests] == [State.CANCELLED, State.CANCELLED, State.FINISHED]


def test_two_replicas_run_a_micro_batch_each() -> None:
    scheduler = batched(capacities=(4, 4), batch=MicroBatch(size=4))
    submit_all(scheduler, crowd(8))
    dispatches = dispatch_all(scheduler, 0.0)
    assert [(d.batch_id, d.replica) for d in dispatches] == [(1, 0)] * 4 + [(2, 1)] * 4


def test_a_wait_goes_on_when_another_replica_falls_idle() -> None:
    scheduler = batched(capacities=(2, 2), batch=MicroBatch(size=2))
    submit_all(scheduler, crowd(2))
    running = dispatch_all(scheduler, 0.0)
    submit_all(scheduler, crowd(1, start=2))
    assert dispatch_all(scheduler, 1.0) == []
    for request in running:
        complete(scheduler, request, 1.005)
    assert dispatch_all(scheduler, 1.005) == []
    assert scheduler.next_timer() == 1.010
    assert ids(dispatch_all(scheduler, 1.010)) == ["02"]
    assert scheduler.next_timer() == inf
