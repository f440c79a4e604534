"""A lost engine: what is tried once more, what fails, and suspects, which run alone."""

from __future__ import annotations

from math import inf

import pytest
from core_kit import (
    Log,
    batched,
    complete,
    crowd,
    dispatch_all,
    ids,
    make_request,
    make_scheduler,
    submit_all,
)

from scheduler.core.slots import MicroBatch
from scheduler.core.types import State


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
    assert requests[0].attempts == 2
    assert requests[0].dispatched_s == 3.0, "queue wait ends at the first dispatch"
    assert requests[0].first_token_s == 10.0
    assert log.kinds("00") == [
        "queued", "dispatched", "first_token", "retried", "dispatched", "first_token", "finished"
    ]  # fmt: skip
    assert scheduler.books.counts()["retried"] == 2


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


def test_a_retried_request_may_wait_no_longer_than_its_ttl_either() -> None:
    scheduler = make_scheduler()
    submit_all(
        scheduler, [make_request("impatient", arrival_s=1.0, ttl_s=9.0), make_request("patient")], now=1.0
    )
    dispatch_all(scheduler, 1.0)
    assert scheduler.next_timer() == inf, "what runs does not expire"
    assert scheduler.on_engine_lost(0, 5.0) == []
    assert scheduler.next_timer() == 14.0, "the time that it ran is not held against it"
    assert ids(scheduler.expire(14.0)) == ["impatient"]
    scheduler.on_engine_up(0)
    assert ids(dispatch_all(scheduler, 15.0)) == ["patient"]
    scheduler.check()


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
    assert scheduler.books.counts()["retried"] == 4, "a request counts once, however often it was tried"


def test_a_suspect_waits_for_the_engine_to_be_empty_and_nothing_joins_it() -> None:
    log = Log()
    scheduler = make_scheduler(capacities=(2,), emit=log.append)
    suspect, neighbour = crowd(2)
    submit_all(scheduler, [suspect])
    for now in (0.0, 1.0):
        dispatch_all(scheduler, now)
        scheduler.on_engine_lost(0, now + 0.5)
        scheduler.on_engine_up(0)
    submit_all(scheduler, [neighbour], now=2.0)
    assert [scheduler.waiting.ahead(request) for request in (suspect, neighbour)] == [0, 0]
    assert ids(dispatch_all(scheduler, 2.0)) == [suspect.id]
    complete(scheduler, suspect, 3.0)
    assert ids(dispatch_all(scheduler, 3.0)) == [neighbour.id]
    assert log.kinds(suspect.id) == ["queued", *["dispatched", "retried"] * 2, "dispatched", "finished"]


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
