"""Each policy's dispatch order, pinned by hand; then what every policy must hold, by name."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from core_kit import (
    TENANTS,
    complete,
    dispatch_all,
    ids,
    make_request,
    make_scheduler,
    run_out,
    spied,
    submit_all,
)
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.policies import POLICIES, Policy, policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.slots import MicroBatch
from scheduler.core.types import TIER_RANK, Limits, Outcome, Request, State

# -- the orders, by hand ------------------------------------------------------------------------------

# (id, tenant, arrival, answer tokens): p premium, s standard, b batch
MIXED = [
    ("b1", "initech", 0.0, 50),
    ("s1", "globex", 1.0, 400),
    ("p1", "acme", 2.0, 300),
    ("b2", "initech", 3.0, 20),
    ("p2", "acme", 4.0, 50),
    ("s2", "globex", 5.0, 10),
]


def mixed() -> list[Request]:
    return [make_request(name, tenant, arrival, tokens=n) for name, tenant, arrival, n in MIXED]


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("fifo", "b1 s1 p1 b2 p2 s2"),
        ("priority", "p1 p2 s1 s2 b1 b2"),
        ("weighted", "p1 p2 s1 s2 b1 b2"),
        ("sjf", "s2 b2 b1 p2 p1 s1"),
        # 0.01 ranks per second: a tier is worth 100 s, more than all these arrivals are apart
        ("aging", "p1 p2 s1 s2 b1 b2"),
        # half a rank per second: a tier is worth 2 s; p1 4, s1 5, b1 6 = p2 6, b2 9 = s2 9, ties by arrival
        ("aging rate=0.5", "p1 s1 b1 p2 b2 s2"),
        ("aging rate=10", "b1 s1 p1 b2 p2 s2"),
        ("aging rate=0", "p1 p2 s1 s2 b1 b2"),
    ],
)
def test_dispatch_order(policy: str, order: str) -> None:
    scheduler = make_scheduler(policy, capacities=(1,))
    submit_all(scheduler, mixed(), now=5.0)
    assert run_out(scheduler, now=6.0) == order.split()


def test_arrival_counts_not_the_order_of_submission() -> None:
    scheduler = make_scheduler("fifo", capacities=(1,))
    submit_all(scheduler, [make_request("late", arrival_s=2.0), make_request("early", arrival_s=1.0)])
    assert run_out(scheduler) == ["early", "late"]


@pytest.mark.parametrize(
    ("policy", "tenant", "arrival_s"),
    [("sjf", "acme", 3.0), ("aging rate=0.5", "acme", 4.0), ("aging rate=0", "globex", 2.5)],
)
def test_ties_go_to_the_earlier_arrival(policy: str, tenant: str, arrival_s: float) -> None:
    """Even when submitted later; at half a rank per second premium at 4 s ties with standard at 2 s."""
    scheduler = make_scheduler(policy, capacities=(1,))
    submit_all(scheduler, [make_request("late", tenant, arrival_s), make_request("early", "globex", 2.0)])
    submit_all(scheduler, [make_request("first", "globex", 1.0)])
    assert [name for name in run_out(scheduler) if name != "first"] == ["early", "late"]


def crowd(**counts: int) -> list[Request]:
    names = {"p": "acme", "s": "globex", "b": "initech"}
    return [make_request(f"{k}{i}", names[k], float(i)) for k, n in counts.items() for i in range(n)]


def letters(order: list[str]) -> str:
    return "".join(name[0] for name in order)


@pytest.mark.parametrize("batch", [None, MicroBatch(size=7, wait_s=0.01)])
def test_weighted_goes_through_its_ten_turns(batch: MicroBatch | None) -> None:
    scheduler = make_scheduler("weighted", capacities=(7,), batch=batch)
    submit_all(scheduler, crowd(b=10, s=10, p=10))
    order = run_out(scheduler)
    assert letters(order) == "PPPPPSSSBBPPPPPSSSBBSSSBBSBBBB".lower()
    assert [name for name in order if name[0] == "p"] == [f"p{i}" for i in range(10)]


def test_weighted_pointer_advances_past_empty_tiers() -> None:
    scheduler = make_scheduler("weighted", capacities=(1,))
    submit_all(scheduler, crowd(p=2, b=3))
    # PP, then three empty turns of premium and three of standard are passed, then BB; the next
    # cycle begins: premium is still empty, so on to batch again.
    assert letters(run_out(scheduler)) == "ppbbb"
    # The pointer now stands on the second turn of batch: it goes to batch, then premium.
    submit_all(scheduler, [make_request("p9"), make_request("b9", "initech"), make_request("s9", "globex")])
    assert run_out(scheduler) == ["b9", "p9", "s9"]


def test_weighted_leaves_out_a_tier_whose_tenant_is_at_its_limit() -> None:
    acme = dataclasses.replace(TENANTS[0], limits=Limits(max_in_flight=1))
    scheduler = make_scheduler("weighted", tenants=(acme, *TENANTS[1:]), capacities=(4,))
    submit_all(scheduler, crowd(p=3, s=1, b=1))
    assert letters(ids(dispatch_all(scheduler, 0.0))) == "psb"


# -- ageing against the paper's own O(n) rule ----------------------------------------------------------

arrivals = st.lists(
    st.tuples(st.sampled_from([t.name for t in TENANTS]), st.integers(0, 40)), min_size=1, max_size=30
)


@given(arrivals, st.sampled_from([0.25, 0.5, 1.0, 2.0]), st.lists(st.integers(0, 8), max_size=30))
def test_aging_equals_scoring_everything_at_every_dispatch(
    arrivals: list[tuple[str, int]], rate: float, gaps: list[int]
) -> None:
    """Halves and quarters are exact in binary, so that ties are ties in both."""
    coming = [make_request(str(i), tenant, at / 2) for i, (tenant, at) in enumerate(arrivals)]
    coming.sort(key=lambda r: r.arrival_s)
    scheduler = make_scheduler(f"aging rate={rate}", capacities=(1,))
    waiting: list[Request] = []
    now = 0.0
    for gap in [*gaps, *[100] * len(coming)]:
        now += gap / 4
        while coming and coming[0].arrival_s <= now:
            waiting.append(coming.pop(0))
            assert scheduler.submit(waiting[-1], now) is None
        request = scheduler.next_dispatch(now)
        if request is None:
            assert not waiting
            continue
        scores = [TIER_RANK[r.tier] - rate * (now - r.arrival_s) for r in waiting]
        oldest = min(waiting, key=lambda r: (scores[waiting.index(r)], r.arrival_s))
        assert request is oldest
        waiting.remove(oldest)
        complete(scheduler, oldest, now)
    assert not waiting


@given(arrivals)
def test_aging_at_rate_0_is_priority(arrivals: list[tuple[str, int]]) -> None:
    orders = []
    for policy in ("aging rate=0", "priority"):
        scheduler = make_scheduler(policy, capacities=(1,))
        submit_all(scheduler, [make_request(str(i), t, float(at)) for i, (t, at) in enumerate(arrivals)])
        orders.append(run_out(scheduler))
    assert orders[0] == orders[1]


# -- from text and back ------------------------------------------------------------------------------


def test_policy_from_text_and_mapping() -> None:
    assert policy_from("aging rate=0.05").describe() == "aging rate=0.05"
    assert policy_from({"name": "aging", "rate": 0.05}).describe() == "aging rate=0.05"
    assert policy_from("aging").describe() == "aging rate=0.01"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("sfj", r"unknown policy 'sfj'; allowed: fifo, .*did you mean 'sjf'\?"),
        ("", "unknown policy ''"),
        ({"rate": 1}, "unknown policy None"),
        ("fifo rate=1", "policy fifo: unknown parameter 'rate'; it takes no parameters"),
        ("aging speed=1", "unknown parameter 'speed'; it takes rate"),
        ("aging rate", "'rate' is not of the form parameter=number"),
        ("aging rate=1 rate=2", "policy aging: rate is given twice"),
        ("aging rate=-1", "policy aging: rate: -1.0 is not allowed; .* 0 or more"),
        ("aging rate=nan", "rate: nan is not allowed"),
        ({"name": "aging", "rate": True}, "rate must be a number, not True"),
    ],
)
def test_policy_from_says_what_is_wrong(spec: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        policy_from(spec)


# -- conformance: every policy, by name --------------------------------------------------------------

every_policy = pytest.mark.parametrize("name", POLICIES)
every_dispatch = pytest.mark.parametrize("batch", [None, MicroBatch(size=4, wait_s=0.01)])


def assorted() -> list[Request]:
    """Thirty requests of all tenants in no particular order."""
    names = [tenant.name for tenant in TENANTS]
    return [
        make_request(f"r{i}", names[i * 7 % 3], float(i * 11 % 17), tokens=1 + i * 13 % 40) for i in range(30)
    ]


def scheduler_with(policy: Policy, **given: Any) -> Scheduler:
    scheduler = make_scheduler(**given)
    scheduler.begin_swap(policy, 0.0)
    assert scheduler.swap_step(0.0)
    return scheduler


@every_policy
@every_dispatch
def test_nothing_is_lost_or_doubled(name: str, batch: MicroBatch | None) -> None:
    scheduler = make_scheduler(name, capacities=(4,), batch=batch)
    requests = assorted()
    submit_all(scheduler, requests)
    assert sorted(run_out(scheduler)) == sorted(r.id for r in requests)
    assert scheduler.idle
    scheduler.check()


@every_policy
@every_dispatch
def test_the_same_requests_give_the_same_order(name: str, batch: MicroBatch | None) -> None:
    orders = []
    for _ in range(2):
        scheduler = make_scheduler(name, capacities=(4,), batch=batch)
        submit_all(scheduler, assorted())
        orders.append(run_out(scheduler))
    assert orders[0] == orders[1]


@every_policy
def test_keys_are_pairs_of_numbers(name: str) -> None:
    policy = policy_from(name)
    policy.bind({tenant.name: tenant for tenant in TENANTS})
    for request in assorted():
        key = policy.key(request)
        assert len(key) == 2
        assert all(isinstance(part, int | float) and part == part for part in key)


@every_policy
def test_describe_round_trips(name: str) -> None:
    policy = policy_from(name)
    assert policy.describe().split()[0] == name
    assert policy_from(policy.describe()) == policy


@every_policy
@every_dispatch
def test_one_turn_per_request_and_charges_settle_to_the_actual_cost(
    name: str, batch: MicroBatch | None
) -> None:
    policy = spied(name)
    scheduler = scheduler_with(policy, capacities=(4,), batch=batch)
    requests = [make_request(f"r{i}", TENANTS[i % 3].name, float(i), tokens=20) for i in range(8)]
    submit_all(scheduler, requests)
    first = dispatch_all(scheduler, 0.01) or dispatch_all(scheduler, 0.02)
    assert policy.charges == {d.id: 10 + 2 * 20 for d in first}
    scheduler.on_engine_lost(0, 0.1)  # what ran is retried: no second turn
    scheduler.on_engine_up(0)
    actual = {r.id: 10 + 2 * (i + 1) for i, r in enumerate(requests)}
    now = 1.0
    while not scheduler.idle:
        for request in dispatch_all(scheduler, now):
            tokens = (actual[request.id] - 10) // 2
            scheduler.on_complete(request.id, now, Outcome("stop", tokens))
        now += 0.02
    assert policy.turns == Counter(actual.keys())
    assert policy.charges == actual
    assert {r.id: r.charged for r in requests} == actual


@every_policy
def test_a_cancelled_retry_gives_its_charge_back(name: str) -> None:
    policy = spied(name)
    scheduler = scheduler_with(policy)
    submit_all(scheduler, [make_request("r")])
    dispatch_all(scheduler, 0.0)
    scheduler.on_engine_lost(0, 1.0)
    scheduler.cancel("r", 2.0)
    assert policy.charges["r"] == 0


@every_policy
def test_a_swap_takes_over_the_charges_of_what_began(name: str) -> None:
    scheduler = make_scheduler("fifo", capacities=(1, 1))
    submit_all(scheduler, [make_request("lost"), make_request("runs"), make_request("waits", arrival_s=1.0)])
    dispatch_all(scheduler, 0.0)
    scheduler.on_engine_lost(0, 1.0)
    policy = spied(name)
    scheduler.begin_swap(policy, 2.0)
    assert scheduler.swap_step(2.0)
    assert policy.charges == {"lost": 30, "runs": 30}
    assert policy.turns == {}


@every_policy
@every_dispatch
def test_retried_requests_go_first(name: str, batch: MicroBatch | None) -> None:
    scheduler = make_scheduler(name, capacities=(4,), batch=batch)
    requests = assorted()
    submit_all(scheduler, requests)
    lost = {request.id for request in dispatch_all(scheduler, 0.1)}
    assert scheduler.on_engine_lost(0, 1.0) == []
    eager = [make_request(f"new{i}", tenant.name, -100.0, tokens=1) for i, tenant in enumerate(TENANTS)]
    submit_all(scheduler, eager, now=2.0)
    scheduler.on_engine_up(0)
    assert {request.id for request in dispatch_all(scheduler, 3.0)} == lost
    assert all(r.attempts == 2 for r in requests if r.id in lost)


@every_policy
@every_dispatch
def test_a_tenant_at_its_limit_is_skipped_while_others_run(name: str, batch: MicroBatch | None) -> None:
    tenants = [dataclasses.replace(t, limits=Limits(max_in_flight=1)) for t in TENANTS[:2]]
    scheduler = make_scheduler(name, tenants=(*tenants, TENANTS[2]), capacities=(8,), batch=batch)
    submit_all(scheduler, crowd(p=4, s=4, b=4))
    first = dispatch_all(scheduler, 0.0)
    assert Counter(letters(ids(first))) == {"p": 1, "s": 1, "b": 4 if batch is None else 2}
    assert dispatch_all(scheduler, 1.0) == []
    scheduler.check()
    for request in first:
        complete(scheduler, request, 2.0)
    again = dispatch_all(scheduler, 3.0) or dispatch_all(scheduler, 3.1)
    assert Counter(letters(ids(again)))["p"] == 1


@every_policy
def test_a_raised_limit_wakes_the_tenant(name: str) -> None:
    blocked = dataclasses.replace(TENANTS[0], limits=Limits(max_in_flight=0))
    scheduler = make_scheduler(name, tenants=(blocked, *TENANTS[1:]))
    submit_all(scheduler, crowd(p=2, s=1))
    assert letters(ids(dispatch_all(scheduler, 0.0))) == "s"
    scheduler.set_tenant(dataclasses.replace(blocked, limits=Limits(max_in_flight=1)), 1.0)
    assert letters(ids(dispatch_all(scheduler, 1.0))) == "p"
    scheduler.set_tenant(TENANTS[0], 2.0)
    assert letters(ids(dispatch_all(scheduler, 2.0))) == "p"
    assert all(r.state is State.RUNNING for r in scheduler.active())
