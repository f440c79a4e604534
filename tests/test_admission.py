"""Limits on what may wait and run: each reason, each bound, for a tenant and for all."""

from __future__ import annotations

import dataclasses
from math import inf
from typing import Any

import pytest
from core_kit import TENANTS, Log, complete, dispatch_all, ids, make_request, make_scheduler, submit_all
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core import waiting as waiting_module
from scheduler.core.admission import REASONS, is_full
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import Limits, State


def with_limits(own: Limits, **given: Any) -> Scheduler:
    """A scheduler in which acme has limits of its own."""
    acme = dataclasses.replace(TENANTS[0], limits=own)
    return make_scheduler(tenants=(acme, *TENANTS[1:]), **given)


# Each lets two requests of acme wait, cost 10 + 2 x 10 each, and turns the third away.
FULL: dict[str, Any] = {
    "too_long": lambda: make_scheduler(max_model_len=1010),
    "queue_full": lambda: make_scheduler(limits=Limits(max_queued=2)),
    "tokens_full": lambda: make_scheduler(limits=Limits(max_queued_tokens=60)),
    "tenant_queue_full": lambda: with_limits(Limits(max_queued=2)),
    "tenant_tokens_full": lambda: with_limits(Limits(max_queued_tokens=60)),
    "tenant_requests_per_minute": lambda: with_limits(Limits(requests_per_minute=2)),
    "tenant_tokens_per_minute": lambda: with_limits(Limits(tokens_per_minute=40)),
}


def test_every_reason_has_its_case() -> None:
    assert set(FULL) == set(REASONS)


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_is_reached_at_its_bound_and_not_before(reason: str) -> None:
    scheduler = FULL[reason]()
    submit_all(scheduler, [make_request("1"), make_request("2")])
    third = make_request("3", max_tokens=1001 if reason == "too_long" else 1000)
    rejected = scheduler.submit(third, 1.0)
    assert rejected is not None
    assert rejected.reason == third.reason == reason
    assert third.state is State.REJECTED
    assert third.ended_s == 1.0
    assert scheduler.books.counts()["submitted"] == 3
    assert scheduler.books.tenants["acme"].ended[State.REJECTED] == 1
    scheduler.check()


@pytest.mark.parametrize("reason", [r for r in REASONS if r != "too_long"])
def test_that_it_is_full_is_known_before_and_asking_counts_nothing(reason: str) -> None:
    scheduler = FULL[reason]()

    def full(tenant: str) -> list[bool]:
        books = scheduler.books
        return [is_full(books.tenant(tenant), books.totals, scheduler.limits, 0.0) for _ in range(3)]

    for name in ("1", "2"):
        assert full("acme") == [False] * 3
        submit_all(scheduler, [make_request(name)])
    assert full("acme") == [True] * 3
    assert full("globex") == [not reason.startswith("tenant_")] * 3


@pytest.mark.parametrize("reason", [r for r in REASONS if r.endswith("_full")])
def test_room_that_is_made_is_used(reason: str) -> None:
    scheduler = FULL[reason]()
    submit_all(scheduler, [make_request("1"), make_request("2")])
    scheduler.cancel("1", 0.5)
    assert scheduler.submit(make_request("3"), 1.0) is None


@pytest.mark.parametrize("reason", [r for r in REASONS if r != "too_long"])
def test_what_was_acknowledged_before_is_not_turned_away_now(reason: str) -> None:
    scheduler = FULL[reason]()
    submit_all(scheduler, [make_request(name, acknowledged=True) for name in "123"])


def test_limits_hold_as_soon_as_they_are_set_and_no_longer_than_that() -> None:
    scheduler = make_scheduler()
    submit_all(scheduler, [make_request("1"), make_request("2")])
    for own, overall in ((Limits(max_queued=2), Limits()), (Limits(), Limits(max_queued=2))):
        scheduler.set_tenant(dataclasses.replace(TENANTS[0], limits=own), 1.0)
        scheduler.set_limits(overall, 1.0)
        assert scheduler.submit(make_request("3"), 1.0) is not None
    scheduler.set_limits(Limits(), 2.0)
    submit_all(scheduler, [make_request("3")])


@pytest.mark.parametrize("reason", [r for r in REASONS if r.startswith("tenant_")])
def test_a_full_tenant_leaves_its_neighbours_alone(reason: str) -> None:
    scheduler = FULL[reason]()
    submit_all(scheduler, [make_request("1"), make_request("2")])
    assert scheduler.submit(make_request("3", "globex"), 1.0) is None


def test_retry_after_is_when_half_of_the_queue_is_gone() -> None:
    scheduler = make_scheduler(limits=Limits(max_queued=6), capacities=(5,))
    submit_all(scheduler, [make_request(str(i)) for i in range(5)])
    dispatch_all(scheduler, 0.0)
    submit_all(scheduler, [make_request(str(i)) for i in range(5, 11)])
    rejected = scheduler.submit(make_request("late"), 10.0)
    assert rejected is not None
    assert rejected.retry_after_s == pytest.approx(6 / 2 * 10.0 / 5)


def test_retry_after_follows_the_last_minute_and_not_the_hours_before() -> None:
    scheduler = make_scheduler(limits=Limits(max_queued=4), capacities=(1,))
    for now in (0.0, 3600.0, 7200.0):  # a quiet morning
        submit_all(scheduler, [make_request(f"at {now}", arrival_s=now)], now=now)
        (request,) = dispatch_all(scheduler, now)
        complete(scheduler, request, now + 1.0)
    told = []
    for second in range(90):  # four a second come, one a second goes
        now = 36_000.0 + second
        for request in list(scheduler.active()):
            if request.state is State.RUNNING:
                complete(scheduler, request, now)
        dispatch_all(scheduler, now)
        arrivals = [make_request(f"{second}/{i}", arrival_s=now) for i in range(4)]
        told += [no.retry_after_s for no in (scheduler.submit(r, now) for r in arrivals) if no is not None]
    assert max(told) <= 4.0
    assert told[-1] == pytest.approx(4 / 2 * 1.0, rel=0.05)
    scheduler.pause(now)
    late = scheduler.submit(make_request("late"), now + 600.0)
    assert late is not None
    assert late.retry_after_s == told[-1], "nothing moves, so the last that is known holds"


def test_the_first_of_a_burst_are_told_the_pace_too() -> None:
    scheduler = make_scheduler(limits=Limits(max_queued=100), capacities=(1,))
    for second in range(600):  # one a second comes and goes, and nobody is turned away
        submit_all(scheduler, [make_request(f"{second}", arrival_s=second)], now=second)
        (request,) = dispatch_all(scheduler, second)
        complete(scheduler, request, second + 0.5)
    burst = [scheduler.submit(make_request(f"burst {i}"), 600.0) for i in range(101)]
    assert burst[:100] == [None] * 100
    assert burst[-1] is not None
    assert burst[-1].retry_after_s == pytest.approx(100 / 2 * 1.0, rel=0.05)


def test_a_prompt_that_is_too_long_need_not_come_back() -> None:
    scheduler = make_scheduler(max_model_len=100)
    rejected = scheduler.submit(make_request("1"), 1.0)
    assert rejected is not None
    assert rejected.retry_after_s == inf


def test_a_rejection_is_one_event_and_frees_the_id() -> None:
    log = Log()
    scheduler = make_scheduler(limits=Limits(max_queued=0), emit=log.append)
    assert scheduler.submit(make_request("1"), 1.0) is not None
    assert log.kinds("1") == ["rejected"]
    scheduler.set_limits(Limits(), 2.0)
    assert scheduler.submit(make_request("1"), 2.0) is None


# -- in flight ----------------------------------------------------------------------------------------


def test_max_in_flight_over_all() -> None:
    scheduler = make_scheduler(limits=Limits(max_in_flight=2), capacities=(4, 4))
    requests = [make_request(str(i), TENANTS[i % 3].name, float(i)) for i in range(6)]
    submit_all(scheduler, requests)
    assert ids(dispatch_all(scheduler, 0.0)) == ["0", "1"]
    complete(scheduler, requests[0], 1.0)
    assert ids(dispatch_all(scheduler, 1.0)) == ["2"]
    scheduler.set_limits(Limits(max_in_flight=1), 2.0)
    complete(scheduler, requests[1], 2.0)
    assert dispatch_all(scheduler, 2.0) == []
    scheduler.set_limits(Limits(), 3.0)
    assert ids(dispatch_all(scheduler, 3.0)) == ["3", "4", "5"]


def test_max_in_flight_of_a_tenant_lowered_below_what_runs() -> None:
    scheduler = make_scheduler(capacities=(4,))
    requests = [make_request(str(i)) for i in range(6)]
    submit_all(scheduler, requests)
    assert len(dispatch_all(scheduler, 0.0)) == 4
    scheduler.set_tenant(dataclasses.replace(TENANTS[0], limits=Limits(max_in_flight=2)), 1.0)
    for running, request in enumerate(requests[:3]):
        complete(scheduler, request, 2.0)
        scheduler.check()
        assert len(dispatch_all(scheduler, 2.0)) == (running == 2)


def test_what_is_reserved_follows_the_engines_count_of_the_prompt() -> None:
    scheduler = make_scheduler(max_inflight_tokens=100)
    for number in range(5):
        request = make_request(f"r{number}", tokens=10)
        submit_all(scheduler, [request])
        dispatch_all(scheduler, 0.0)
        assert scheduler.slots.replicas[0].reserved_tokens == 20
        scheduler.on_prompt_counted(request.id, request.prompt_tokens + 35)  # the chat template
        assert (request.prompt_tokens, scheduler.slots.replicas[0].reserved_tokens) == (45, 55)
        complete(scheduler, request, 1.0)
    assert scheduler.slots.replicas[0].reserved_tokens == 0.0


def test_max_inflight_tokens_holds_the_head_back_until_it_fits() -> None:
    scheduler = make_scheduler(max_inflight_tokens=100)
    big, large, tiny = (make_request(n, tokens=t) for n, t in (("big", 60), ("large", 40), ("tiny", 1)))
    submit_all(scheduler, [big, large, tiny])
    # 70 tokens are reserved and large needs 50; tiny would fit but may not overtake it
    assert ids(dispatch_all(scheduler, 0.0)) == ["big"]
    complete(scheduler, big, 1.0)
    assert ids(dispatch_all(scheduler, 1.0)) == ["large", "tiny"]


def test_what_never_fits_runs_alone() -> None:
    scheduler = make_scheduler(max_inflight_tokens=100)
    first, huge = make_request("first", tokens=1), make_request("huge", tokens=500)
    submit_all(scheduler, [first, huge, make_request("behind", tokens=1)])
    assert ids(dispatch_all(scheduler, 0.0)) == ["first"]
    complete(scheduler, first, 1.0)
    assert ids(dispatch_all(scheduler, 1.0)) == ["huge"]
    complete(scheduler, huge, 2.0)
    assert ids(dispatch_all(scheduler, 2.0)) == ["behind"]


# -- time to live -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "overall"), [(5.0, None), (None, 5.0), (5.0, 9.0), (9.0, 5.0)])
def test_what_waits_past_its_ttl_expires(own: float | None, overall: float | None) -> None:
    log = Log()
    scheduler = with_limits(Limits(ttl_s=own), limits=Limits(ttl_s=overall), capacities=(1,), emit=log.append)
    submit_all(scheduler, [make_request("runs"), make_request("waits", arrival_s=1.0)], now=1.5)
    dispatch_all(scheduler, 1.5)
    assert scheduler.next_timer() == 6.0  # it counts from the arrival
    assert scheduler.expire(5.999) == []
    (expired,) = scheduler.expire(6.0)
    assert (expired.id, expired.state, expired.ended_s) == ("waits", State.EXPIRED, 6.0)
    assert log.kinds("waits") == ["queued", "expired"]
    assert scheduler.next_timer() == inf
    complete(scheduler, next(iter(scheduler.active())), 20.0)
    assert dispatch_all(scheduler, 20.0) == []
    scheduler.check()


def test_ttl_is_of_the_queue_only() -> None:
    scheduler = make_scheduler(limits=Limits(ttl_s=5.0))
    submit_all(scheduler, [make_request("1")])
    dispatch_all(scheduler, 4.0)
    assert scheduler.next_timer() == inf
    assert scheduler.expire(100.0) == []


def test_only_what_still_waits_expires() -> None:
    scheduler = make_scheduler(limits=Limits(ttl_s=5.0), capacities=(1,))
    submit_all(scheduler, [make_request(str(i), arrival_s=float(i)) for i in range(4)])
    dispatch_all(scheduler, 1.0)
    scheduler.cancel("2", 1.0)
    assert [r.id for r in scheduler.expire(7.0)] == ["1"]
    assert [r.id for r in scheduler.expire(8.0)] == ["3"]


def test_what_has_ended_is_not_kept_until_it_would_have_expired() -> None:
    scheduler = make_scheduler(limits=Limits(ttl_s=3600.0), capacities=(1,))
    submit_all(scheduler, [make_request("waits", arrival_s=-1.0)])
    kept = []
    for number in range(5000):
        submit_all(scheduler, [make_request(str(number))])
        scheduler.cancel(str(number), 1.0)
        kept.append(len(scheduler.waiting.expiries))
    assert max(kept) == 1024, "swept, and not for every request"
    assert scheduler.next_timer() == 3599.0
    assert [r.id for r in scheduler.expire(3599.0)] == ["waits"]


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=40))
def test_each_expires_in_its_turn_however_often_the_rest_is_swept(drawn: list[tuple[int, bool]]) -> None:
    """Some give up at once; what is left of them is swept early."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting_module, "_SWEEP_AT", 4)
        scheduler = make_scheduler(capacities=(0,))
        for number, (ttl_s, gives_up) in enumerate(drawn):
            submit_all(scheduler, [make_request(str(number), ttl_s=float(ttl_s))])
            if gives_up:
                scheduler.cancel(str(number), 0.0)
        in_turn = sorted((ttl_s, number) for number, (ttl_s, gives_up) in enumerate(drawn) if not gives_up)
        expired = []
        while (now := scheduler.next_timer()) < inf:
            expired += [(now, int(request.id)) for request in scheduler.expire(now)]
        assert expired == in_turn
        assert scheduler.idle


def test_a_new_ttl_is_for_new_arrivals() -> None:
    scheduler = make_scheduler()
    submit_all(scheduler, [make_request("old")])
    scheduler.set_limits(Limits(ttl_s=5.0), 1.0)
    submit_all(scheduler, [make_request("new")], now=2.0)
    assert [r.id for r in scheduler.expire(100.0)] == ["new"]
