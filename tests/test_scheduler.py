"""The state machine, one story at a time: a life, a cancel, a micro-batch, a lost engine, a wrong call."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from core_kit import (
    TENANTS,
    Log,
    complete,
    dispatch_all,
    ids,
    make_request,
    make_scheduler,
    submit_all,
)

from scheduler.core.estimate import PaperEstimator
from scheduler.core.lifecycle import (
    TRANSITIONS,
    DuplicateRequest,
    DuplicateTenant,
    IllegalTransition,
    UnknownRequest,
    UnknownTenant,
    move,
)
from scheduler.core.metrics import WindowMetrics
from scheduler.core.scheduler import Scheduler
from scheduler.core.slots import MicroBatch
from scheduler.core.types import Outcome, Request, State, Tenant

# -- a life -------------------------------------------------------------------------------------------


def test_a_request_from_arrival_to_its_last_token() -> None:
    log = Log()
    scheduler = make_scheduler(emit=log.append)
    request = make_request("r", arrival_s=1.0, tokens=3)
    assert scheduler.submit(request, 1.5) is None
    assert dispatch_all(scheduler, 2.0) == [request]
    assert request.replica == 0
    scheduler.on_first_token("r", 3.0)
    for at_s in (3.0, 4.0, 5.0):
        scheduler.on_tokens("r", 1, at_s)
    assert scheduler.on_complete("r", 5.0, Outcome("stop", 3)) == (request,)
    assert request.state is State.FINISHED
    assert (request.dispatched_s, request.first_token_s, request.last_token_s, request.ended_s) == (
        2,
        3,
        5,
        5,
    )
    assert (request.output_tokens, request.finish, request.attempts, request.retried) == (3, "stop", 1, False)
    assert [(e.at_s, e.kind.value) for e in log] == [
        (1.5, "queued"),
        (2.0, "dispatched"),
        (3.0, "first_token"),
        (5.0, "finished"),
    ]
    assert scheduler.idle
    assert scheduler.next_timer() == inf


def test_what_the_engine_failed_has_failed() -> None:
    scheduler = make_scheduler()
    submit_all(scheduler, [make_request("r")])
    dispatch_all(scheduler, 0.0)
    (request,) = scheduler.on_complete("r", 1.0, Outcome("error", 4))
    assert (request.state, request.reason, request.output_tokens) == (State.FAILED, "engine_error", 4)


def test_the_replica_with_most_free_slots_is_filled_first() -> None:
    scheduler = make_scheduler(capacities=(1, 3, 2))
    submit_all(scheduler, [make_request(str(i), arrival_s=float(i)) for i in range(8)])
    assert [d.replica for d in dispatch_all(scheduler, 9.0)] == [1, 1, 2, 0, 1, 2]


def test_pause_holds_back_and_lets_run() -> None:
    log = Log()
    scheduler = make_scheduler(capacities=(1,), emit=log.append)
    first, second = make_request("first"), make_request("second", arrival_s=1.0)
    submit_all(scheduler, [first, second])
    dispatch_all(scheduler, 1.0)
    scheduler.pause(2.0, by="operator")
    scheduler.pause(2.5)
    complete(scheduler, first, 3.0)
    assert first.state is State.FINISHED
    assert dispatch_all(scheduler, 3.0) == []
    scheduler.resume(4.0)
    scheduler.resume(4.5)
    assert ids(dispatch_all(scheduler, 4.0)) == ["second"]
    told = [(e.at_s, e.kind.value) for e in log if e.request is None]
    assert told == [(2.0, "paused"), (4.0, "resumed")]


def test_a_tenant_may_come_later() -> None:
    scheduler = make_scheduler(metrics=WindowMetrics(t.name for t in TENANTS))
    scheduler.add_tenant(Tenant("hooli", "batch"))
    request = Request("r", "hooli", "batch", 0.0, 10, 100, intended_tokens=5)
    submit_all(scheduler, [request])
    dispatch_all(scheduler, 0.0)
    scheduler.on_tokens("r", 5, 1.0)
    complete(scheduler, request, 1.0)
    assert scheduler.books.tenants["hooli"].ended[State.FINISHED] == 1


def test_books_of_backlog_and_of_service_by_weight() -> None:
    scheduler = make_scheduler(capacities=(1,))
    first, second = make_request("1", tokens=20), make_request("2", arrival_s=1.0, tokens=20)
    submit_all(scheduler, [first, second], now=1.0)
    dispatch_all(scheduler, 1.0)
    complete(scheduler, first, 4.0)
    acme = scheduler.books.tenants["acme"]
    assert acme.backlogged_until(4.0) == 3.0
    dispatch_all(scheduler, 5.0)
    complete(scheduler, second, 9.0)
    assert acme.backlogged_until(100.0) == 4.0
    assert acme.served_by_weight == (10 + 2 * 20) / 5.0, "the second left no backlog behind"


# -- cancels ------------------------------------------------------------------------------------------


def test_cancel_of_what_waits() -> None:
    log = Log()
    scheduler = make_scheduler(emit=log.append)
    request = make_request("r")
    submit_all(scheduler, [request])
    assert scheduler.cancel("r", 1.0) is None
    assert (request.state, request.ended_s) == (State.CANCELLED, 1.0)
    assert dispatch_all(scheduler, 2.0) == []
    assert log.kinds("r") == ["queued", "cancelled"]


@pytest.mark.parametrize("finish", ["abort", "stop", "length", "error"])
def test_cancel_of_what_runs_keeps_the_slot_until_the_stream_has_ended(finish: str) -> None:
    log = Log()
    scheduler = make_scheduler(capacities=(1, 1), emit=log.append)
    requests = [make_request(str(i), arrival_s=float(i)) for i in range(3)]
    submit_all(scheduler, requests)
    _, second = dispatch_all(scheduler, 2.0)
    assert scheduler.cancel(second.id, 3.0) == second.replica == 1
    assert second.state is State.ABORTING
    assert dispatch_all(scheduler, 3.0) == []
    assert scheduler.cancel(second.id, 3.5) is None, "one abort is enough"
    assert scheduler.on_complete(second.id, 4.0, Outcome(finish, 7)) == (second,)
    assert (second.state, second.finish, second.output_tokens) == (State.CANCELLED, "abort", 7)
    assert log.kinds("1") == ["queued", "dispatched", "aborting", "cancelled"]
    assert ids(dispatch_all(scheduler, 4.0)) == ["2"]


# -- micro-batches ------------------------------------------------------------------------------------


def batched(policy: str = "fifo", **given: Any) -> Scheduler:
    settings = {"capacities": (32,), "batch": MicroBatch(), **given}
    return make_scheduler(policy, **settings)


def crowd(n: int, start: int = 0) -> list[Request]:
    return [
        make_request(f"{i:02}", TENANTS[i % 3].name, float(i), tokens=i + 1) for i in range(start, start + n)
    ]


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


def test_a_micro_batch_is_released_as_one() -> None:
    log = Log()
    scheduler = batched(emit=log.append)
    submit_all(scheduler, crowd(40))
    dispatches = dispatch_all(scheduler, 40.0)
    for request in dispatches[1:]:
        scheduler.on_first_token(request.id, 41.0)
        assert complete(scheduler, request, 42.0) == ()
        assert dispatch_all(scheduler, 42.0) == [], "the batch blocks"
        scheduler.check()
    assert not [e for e in log if e.kind.value == "finished"]
    released = complete(scheduler, dispatches[0], 50.0)
    assert {r.id for r in released} == set(ids(dispatches))
    assert {(r.state, r.first_token_s, r.ended_s) for r in released} == {(State.FINISHED, 50.0, 50.0)}
    assert dispatch_all(scheduler, 50.0) == []
    following = dispatch_all(scheduler, 50.010)
    assert {(r.batch_id, r.batch_size) for r in following} == {(2, 8)}


def test_a_micro_batch_is_no_larger_than_what_the_engine_runs() -> None:
    scheduler = batched(capacities=(5,))
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


# -- a lost engine ------------------------------------------------------------------------------------


def test_what_a_lost_engine_ran_is_tried_once_more() -> None:
    log = Log()
    scheduler = make_scheduler(capacities=(2,), emit=log.append)
    requests = crowd(3)
    submit_all(scheduler, requests)
    dispatch_all(scheduler, 3.0)
    scheduler.on_first_token("00", 4.0)
    scheduler.on_tokens("00", 5, 4.0)
    assert scheduler.on_engine_lost(0, 5.0) == []
    assert dispatch_all(scheduler, 5.0) == [], "the engine is down"
    assert (requests[0].output_tokens, requests[0].first_token_s) == (0, None), "partial tokens are dropped"
    scheduler.on_engine_up(0)
    assert ids(dispatch_all(scheduler, 9.0)) == ["00", "01"]
    scheduler.on_first_token("00", 10.0)
    complete(scheduler, requests[0], 11.0)
    assert requests[0].retried
    assert requests[0].dispatched_s == 3.0, "queue wait ends at the first dispatch"
    assert requests[0].first_token_s == 10.0
    assert log.kinds("00") == [
        "queued", "dispatched", "first_token", "retried", "dispatched", "first_token", "finished"
    ]  # fmt: skip
    assert scheduler.books.retried == 2


def test_a_stream_of_which_something_was_delivered_fails() -> None:
    scheduler = make_scheduler()
    told, untold = make_request("told", streamed=True), make_request("untold", streamed=True)
    submit_all(scheduler, [told, untold])
    dispatch_all(scheduler, 0.0)
    scheduler.on_first_token("told", 1.0)
    scheduler.on_tokens("told", 1, 1.0)
    assert scheduler.on_engine_lost(0, 2.0) == [told]
    assert (told.state, told.reason, told.finish) == (State.FAILED, "engine_lost", "error")
    assert untold.state is State.QUEUED


def test_what_was_being_aborted_is_over_when_its_engine_is() -> None:
    scheduler = make_scheduler()
    request = make_request("r")
    submit_all(scheduler, [request])
    dispatch_all(scheduler, 0.0)
    scheduler.cancel("r", 1.0)
    assert scheduler.on_engine_lost(0, 2.0) == [request]
    assert request.state is State.CANCELLED


def test_the_other_replica_goes_on() -> None:
    scheduler = make_scheduler(capacities=(1, 1))
    requests = crowd(2)
    submit_all(scheduler, requests)
    dispatch_all(scheduler, 0.0)
    scheduler.on_engine_lost(0, 1.0)
    complete(scheduler, requests[1], 2.0)
    assert dispatch_all(scheduler, 2.0) == requests[:1]
    assert requests[0].replica == 1


def test_a_micro_batch_cut_short_releases_what_has_ended() -> None:
    scheduler = batched(batch=MicroBatch(size=3))
    first, second, third = requests = crowd(3)
    submit_all(scheduler, requests)
    dispatch_all(scheduler, 0.0)
    complete(scheduler, first, 1.0)
    assert scheduler.on_engine_lost(0, 2.0) == [first]
    assert first.state is State.FINISHED
    scheduler.on_engine_up(0)
    assert dispatch_all(scheduler, 3.0) == []
    assert ids(dispatch_all(scheduler, 3.010)) == [second.id, third.id]


@pytest.mark.parametrize("batch", [None, MicroBatch(size=4)])
def test_after_a_second_crash_the_suspects_run_alone(batch: MicroBatch | None) -> None:
    """One of four prompts kills the engine whenever it runs."""
    scheduler = make_scheduler(capacities=(4,), batch=batch)
    requests = crowd(6)
    poison = requests[2]
    submit_all(scheduler, requests)
    now, crashes, aboard = 0.0, 0, []
    while not scheduler.idle:
        now += 1.0
        running = dispatch_all(scheduler, now)
        if poison in running:
            crashes += 1
            aboard.append(len(running))
            ended = scheduler.on_engine_lost(0, now)
            scheduler.on_engine_up(0)
            assert ended == ([poison] if crashes == 3 else [])
        else:
            if any(r.attempts > 2 for r in running):
                assert len(running) == 1
            for request in running:
                complete(scheduler, request, now)
        scheduler.check()
        assert scheduler.next_timer() > now
        now = max(now, min(scheduler.next_timer(), now + 1.0))
    assert aboard == [4, 4, 1]
    assert (poison.state, poison.reason) == (State.FAILED, "engine_lost")
    assert {r.state for r in requests if r is not poison} == {State.FINISHED}
    assert scheduler.books.retried == 4, "a request counts once, however often it was tried"


def test_a_suspect_waits_for_the_engine_to_be_empty_and_nothing_joins_it() -> None:
    scheduler = make_scheduler(capacities=(2,))
    suspect, neighbour = crowd(2)
    submit_all(scheduler, [suspect])
    for now in (0.0, 1.0):
        dispatch_all(scheduler, now)
        scheduler.on_engine_lost(0, now + 0.5)
        scheduler.on_engine_up(0)
    submit_all(scheduler, [neighbour], now=2.0)
    assert ids(dispatch_all(scheduler, 2.0)) == [suspect.id]
    complete(scheduler, suspect, 3.0)
    assert ids(dispatch_all(scheduler, 3.0)) == [neighbour.id]


def test_a_suspect_joins_no_neighbours_on_another_replica() -> None:
    scheduler = make_scheduler(capacities=(1, 4))
    requests = crowd(2)
    submit_all(scheduler, requests[:1])
    assert [d.replica for d in dispatch_all(scheduler, 0.0)] == [1]
    scheduler.on_engine_lost(1, 0.5)
    dispatch_all(scheduler, 0.5)  # tried again on replica 0
    scheduler.on_engine_up(1)
    submit_all(scheduler, requests[1:])
    assert [d.replica for d in dispatch_all(scheduler, 0.6)] == [1]
    scheduler.on_engine_lost(0, 0.7)
    assert dispatch_all(scheduler, 0.7) == [], "there is room beside the neighbour, but not for a suspect"
    complete(scheduler, requests[1], 1.0)
    assert ids(dispatch_all(scheduler, 1.0)) == ["00"]


def test_no_batch_waits_while_suspects_go_first() -> None:
    scheduler = batched(capacities=(2, 2, 2), batch=MicroBatch(size=2))
    submit_all(scheduler, crowd(4))
    dispatch_all(scheduler, 0.0)
    scheduler.on_engine_lost(1, 0.5)
    scheduler.on_engine_up(1)
    dispatch_all(scheduler, 0.6)
    submit_all(scheduler, crowd(1, start=4))
    assert dispatch_all(scheduler, 1.0) == []
    assert scheduler.next_timer() == 1.010
    scheduler.on_engine_lost(1, 1.005)
    assert dispatch_all(scheduler, 1.005) == []
    assert scheduler.next_timer() == inf


def test_no_batch_waits_for_a_replica_that_is_down() -> None:
    scheduler = batched(capacities=(2, 2), batch=MicroBatch(size=2))
    submit_all(scheduler, crowd(3))
    assert ids(dispatch_all(scheduler, 1.0)) == ["00", "01"]
    assert scheduler.next_timer() == 1.010
    scheduler.on_engine_lost(1, 1.005)
    assert dispatch_all(scheduler, 1.005) == []
    assert scheduler.next_timer() == inf
    scheduler.on_engine_up(1)
    assert dispatch_all(scheduler, 2.0) == []
    assert scheduler.next_timer() == 2.010


def test_a_suspect_may_be_cancelled() -> None:
    scheduler = make_scheduler()
    submit_all(scheduler, crowd(1))
    for now in (0.0, 1.0):
        dispatch_all(scheduler, now)
        scheduler.on_engine_lost(0, now + 0.5)
        scheduler.on_engine_up(0)
    scheduler.cancel("00", 2.0)
    assert dispatch_all(scheduler, 3.0) == []
    assert scheduler.idle
    scheduler.check()


# -- wrong calls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
def test_only_the_table_moves_a_request(state: State) -> None:
    for to in State:
        request = make_request("r", state=state)
        if to in TRANSITIONS[state]:
            move(request, to)
            assert request.state is to
        else:
            with pytest.raises(IllegalTransition, match=f"request r is {state}; it cannot become {to}"):
                move(request, to)
            assert request.state is state


def one_of_each() -> Scheduler:
    """Requests named after their states, with room for all that may go wrong."""
    scheduler = make_scheduler(
        estimator=PaperEstimator(), capacities=(2,), metrics=WindowMetrics(t.name for t in TENANTS)
    )
    submit_all(scheduler, [make_request("finished")])
    dispatch_all(scheduler, 0.0)
    scheduler.on_complete("finished", 1.0, Outcome("stop", 5))
    submit_all(scheduler, [make_request(name) for name in ("running", "aborting", "queued")], now=2.0)
    dispatch_all(scheduler, 2.0)
    scheduler.cancel("aborting", 3.0)
    return scheduler


def picture(scheduler: Scheduler) -> dict[str, Any]:
    """All that a call might change, as plain values."""
    assert scheduler.metrics is not None
    return copy.deepcopy(
        {
            "books": [
                dataclasses.asdict(b) for b in (scheduler.books.totals, *scheduler.books.tenants.values())
            ],
            "requests": [dataclasses.asdict(r) for r in scheduler.active()],
            "queue": [r.id for r in scheduler.waiting.queue],
            "slots": [(r.running, r.reserved_tokens, r.up) for r in scheduler.slots.replicas],
            "learned": scheduler.estimator.state(),
            "windows": {name: vars(window) for name, window in scheduler.metrics.tenants.items()},
            "rest": (
                scheduler.paused,
                scheduler.swap,
                scheduler.swaps,
                scheduler.limits,
                scheduler.next_timer(),
            ),
        }
    )


WRONG: dict[str, tuple[type[Exception], Callable[[Scheduler], object]]] = {
    "submit: no such tenant": (
        UnknownTenant,
        lambda s: s.submit(Request("new", "umbrella", "batch", 0.0, 1, 1), 9.0),
    ),
    "submit: waits already": (DuplicateRequest, lambda s: s.submit(make_request("queued"), 9.0)),
    "submit: runs already": (DuplicateRequest, lambda s: s.submit(make_request("running"), 9.0)),
    "submit: has ended": (
        IllegalTransition,
        lambda s: s.submit(make_request("new", state=State.FINISHED), 9.0),
    ),
    "complete: unknown": (UnknownRequest, lambda s: s.on_complete("nobody", 9.0, Outcome("stop", 1))),
    "complete: waits": (UnknownRequest, lambda s: s.on_complete("queued", 9.0, Outcome("stop", 1))),
    "complete: has ended": (UnknownRequest, lambda s: s.on_complete("finished", 9.0, Outcome("stop", 1))),
    "first token: waits": (UnknownRequest, lambda s: s.on_first_token("queued", 9.0)),
    "first token: has ended": (UnknownRequest, lambda s: s.on_first_token("finished", 9.0)),
    "tokens: waits": (UnknownRequest, lambda s: s.on_tokens("queued", 1, 9.0)),
    "tokens: unknown": (UnknownRequest, lambda s: s.on_tokens("nobody", 1, 9.0)),
    "cancel: unknown": (UnknownRequest, lambda s: s.cancel("nobody", 9.0)),
    "cancel: has ended": (UnknownRequest, lambda s: s.cancel("finished", 9.0)),
    "add_tenant: is here": (DuplicateTenant, lambda s: s.add_tenant(Tenant("acme", "batch"))),
    "set_tenant: unknown": (UnknownTenant, lambda s: s.set_tenant(Tenant("umbrella"), 9.0)),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_raises_its_own_type_and_changes_nothing(case: str) -> None:
    expected, call = WRONG[case]
    scheduler = one_of_each()
    before = picture(scheduler)
    with pytest.raises(expected) as caught:
        call(scheduler)
    assert caught.type is expected
    assert picture(scheduler) == before
    scheduler.check()


def test_an_id_may_come_again_after_its_end() -> None:
    scheduler = one_of_each()
    assert scheduler.submit(make_request("finished"), 9.0) is None


@pytest.mark.parametrize("harm", ["lose", "double", "forget to count"])
def test_check_finds_what_is_wrong(harm: str) -> None:
    scheduler = make_scheduler(capacities=(1,))
    submit_all(scheduler, crowd(4))
    dispatch_all(scheduler, 0.0)
    scheduler.check()
    match harm:
        case "lose":
            scheduler.waiting.queue.pop()
        case "double":
            scheduler.waiting.queue.push(next(iter(scheduler.waiting.queue)))
        case _:
            scheduler.books.tenants["acme"].submitted += 1
    with pytest.raises(AssertionError):
        scheduler.check()
