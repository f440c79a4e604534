"""The state machine, one story at a time: a life, a cancel, a wrong call."""

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
    crowd,
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
    assert (request.output_tokens, request.finish, request.attempts) == (3, "stop", 1)
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
    submit_all(scheduler, [make_request("3", arrival_s=4.5)], now=4.5)
    scheduler.cancel("3", 4.5)
    dispatch_all(scheduler, 5.0)
    complete(scheduler, second, 9.0)
    assert acme.backlogged_until(100.0) == 4.0
    assert acme.served_by_weight == (10 + 2 * 20) / 5.0, "the second left no backlog behind"


def test_what_was_learned_of_an_end_is_told_with_what_was_believed_before() -> None:
    log = Log()
    scheduler = make_scheduler(estimator=PaperEstimator(), emit=log.append)
    first, second = crowd(2)
    submit_all(scheduler, [first, second])
    dispatch_all(scheduler, 0.0)
    for request in (first, second):
        complete(scheduler, request, 1.0)
    assert 1.0 == first.bias_before > first.bias_after == second.bias_before > second.bias_after


def test_an_answer_of_no_tokens_has_its_instants() -> None:
    scheduler = make_scheduler()
    request = make_request("r")
    submit_all(scheduler, [request])
    dispatch_all(scheduler, 1.0)
    scheduler.on_complete("r", 2.0, Outcome("stop", 0))
    assert request.state is State.FINISHED
    assert (request.first_token_s, request.last_token_s, request.ended_s) == (2.0, 2.0, 2.0)


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
                scheduler.books.totals.queued,
                *map(dataclasses.asdict, scheduler.books.tenants.values()),
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


@pytest.mark.parametrize("harm", ["lose", "double", "miscount", "miscount slots", "miscount tokens"])
def test_check_finds_what_is_wrong(harm: str) -> None:
    scheduler = make_scheduler(capacities=(1,), max_inflight_tokens=1000)
    submit_all(scheduler, crowd(4))
    dispatch_all(scheduler, 0.0)
    scheduler.check()
    match harm:
        case "lose":
            scheduler.waiting.queue.pop()
        case "double":
            scheduler.waiting.queue.push(next(iter(scheduler.waiting.queue)))
        case "miscount slots":
            scheduler.slots.replicas[0].running -= 1
        case "miscount tokens":
            scheduler.slots.replicas[0].reserved_tokens += 1
        case _:
            scheduler.books.tenants["acme"].submitted += 1
    with pytest.raises(AssertionError):
        scheduler.check()
