"""Orders by hand of the policies beyond the paper: classes, ageing by size, deadlines, shares, packing."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from core_kit import (
    TENANTS,
    complete,
    dispatch_all,
    ids,
    make_request,
    make_scheduler,
    run_out,
    submit_all,
)

from scheduler.core.orderings import RecentSizes
from scheduler.core.policies import INSIDE, POLICIES, SHARING, policy_from
from scheduler.core.slots import MicroBatch
from scheduler.core.types import Outcome, Request, Slo

SIZES = (90, 10, 50, 70, 30)  # r0 ... r4, a second apart


def five() -> list[Request]:
    return [make_request(f"r{i}", "acme", float(i), tokens=size) for i, size in enumerate(SIZES)]


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        # each is short if it is at or below the quantile of all so far: 90 of (90), 10 of (10, 90) ...
        ("two-class q=0.5", "r0 r1 r2 r4 r3"),
        ("two-class q=0.99", "r0 r1 r2 r3 r4"),
        ("two-class q=0.01", "r0 r1 r2 r3 r4"),
        ("three-class", "r0 r1 r4 r2 r3"),
        ("three-class low=0.2 high=0.6", "r0 r1 r2 r3 r4"),  # three of them just at the upper bound or below
        ("aged-sjf rate=0", "r1 r4 r2 r3 r0"),
        # 20 tokens a second: 90, 30, 90, 130, 110 tokens at the start; ties by arrival
        ("aged-sjf rate=20", "r1 r0 r2 r4 r3"),
        ("aged-sjf rate=1000", "r0 r1 r2 r3 r4"),
    ],
)
def test_dispatch_order(policy: str, order: str) -> None:
    scheduler = make_scheduler(policy, capacities=(1,))
    submit_all(scheduler, five())
    assert run_out(scheduler) == order.split()


def test_three_classes_are_three() -> None:
    policy = policy_from("three-class")
    scheduler = make_scheduler("fifo")
    requests = [make_request(str(i), arrival_s=float(i), tokens=1 + i * 37 % 100) for i in range(300)]
    submit_all(scheduler, requests)
    keys = [policy.key(request) for request in requests][100:]
    shares = Counter(key[0] for key in keys)
    assert set(shares) == {0, 1, 2}
    assert all(55 < share < 80 for share in shares.values())


def test_recent_sizes_forget() -> None:
    sizes = RecentSizes()
    for size in [1000.0] * 10 + [float(n) for n in range(1, RecentSizes.SPAN + 1)]:
        sizes.add(size)
    assert (sizes.quantile(0.5), sizes.quantile(1.0), sizes.quantile(0.001)) == (256, 512, 1)


# -- edf -----------------------------------------------------------------------------------------------


def test_edf_goes_by_deadline_and_demotes_a_missed_one() -> None:
    tight = dataclasses.replace(TENANTS[0], slo=Slo(e2e_s=10.0))
    loose = dataclasses.replace(TENANTS[1], slo=Slo(e2e_s=100.0))
    scheduler = make_scheduler("edf", tenants=(tight, loose, TENANTS[2]), capacities=(1,))
    waiting = [
        make_request("late", "acme", 0.0),  # due at 10
        make_request("loose", "globex", 0.0),  # at 100
        make_request("tier", "initech", 0.0),  # at 300, batch's default
        make_request("tight", "acme", 5.0),  # at 15
    ]
    submit_all(scheduler, waiting, now=5.0)
    assert run_out(scheduler, now=12.0) == ["tight", "loose", "tier", "late"]
    scheduler.check()


def test_edf_without_a_miss_is_plain() -> None:
    scheduler = make_scheduler("edf", capacities=(1,))
    submit_all(scheduler, [make_request("b", "initech", 0.0), make_request("p", "acme", 250.0)], now=250.0)
    assert run_out(scheduler, now=251.0) == ["p", "b"]


# -- shares --------------------------------------------------------------------------------------------


def crowd(count: int, tokens: int = 45) -> list[Request]:
    return [
        make_request(f"{t.name}{i}", t.name, float(i), tokens=tokens) for i in range(count) for t in TENANTS
    ]


@pytest.mark.parametrize("policy", ["fair", "fair+two-class", "fair+sjf", "fair+edf", "lottery+sjf"])
def test_backlogged_tenants_are_served_by_weight(policy: str) -> None:
    """Equal requests, weights 5, 3 and 2: turns and tokens are the same thing."""
    scheduler = make_scheduler(policy, capacities=(1,))
    submit_all(scheduler, crowd(600))
    served: Counter[str] = Counter()
    for _ in range(600):
        (request,) = dispatch_all(scheduler, 1.0)
        served[request.tenant] += 1
        complete(scheduler, request, 1.0)
    slack = 2 if policy.startswith("fair") else 45  # a lottery is only fair in the mean
    assert abs(served["acme"] - 300) <= slack
    assert abs(served["globex"] - 180) <= slack


def test_fair_charges_what_was_really_served() -> None:
    """acme's answers turn out ten times as long as estimated: after each, it waits for the others."""
    scheduler = make_scheduler("fair", capacities=(1,))
    submit_all(scheduler, crowd(50, tokens=10))
    served: Counter[str] = Counter()
    for _ in range(60):
        (request,) = dispatch_all(scheduler, 1.0)
        name = request.tenant
        tokens = 100 if name == "acme" else 10
        served[name] += 10 + 2 * tokens
        scheduler.on_complete(request.id, 1.0, Outcome("stop", tokens))
    assert served["acme"] / served["globex"] == pytest.approx(5 / 3, rel=0.2)


@pytest.mark.parametrize(
    ("credit", "first"),
    [
        (0, 10),  # of 16, at five to three, from the moment it came
        (30, 12),  # five more at once: each costs 30 tokens by a weight of 5; then at five to three
        (2000, 16),  # all that it did not use
    ],
)
def test_fair_saves_no_more_than_a_credit_for_who_was_idle(credit: float, first: int) -> None:
    scheduler = make_scheduler(f"fair credit={credit}", capacities=(1,))
    submit_all(scheduler, [make_request(f"g{i}", "globex", 0.0) for i in range(40)])
    for _ in range(20):
        for request in dispatch_all(scheduler, 1.0):
            complete(scheduler, request, 1.0)
    submit_all(scheduler, [make_request(f"a{i}", "acme", 2.0) for i in range(20)], now=2.0)
    order = "".join(name[0] for name in run_out(scheduler, 2.0)[:16])
    assert order.count("a") == first


def test_a_weight_changes_at_once() -> None:
    scheduler = make_scheduler("fair", capacities=(1,))
    submit_all(scheduler, crowd(300))
    scheduler.set_tenant(dataclasses.replace(TENANTS[2], weight=92.0), 0.0)
    served = Counter(name.rstrip("0123456789") for name in run_out(scheduler)[:200])
    assert served["initech"] == pytest.approx(184, abs=4)


def test_priority_with_sizes_inside() -> None:
    scheduler = make_scheduler("priority+sjf", capacities=(1,))
    sizes = {"b": ("initech", 1), "p1": ("acme", 90), "p2": ("acme", 10), "s": ("globex", 5)}
    submit_all(scheduler, [make_request(n, tenant, tokens=size) for n, (tenant, size) in sizes.items()])
    assert run_out(scheduler) == ["p2", "p1", "s", "b"]


# -- packed --------------------------------------------------------------------------------------------


def test_packed_fills_a_batch_around_the_oldest_short_request() -> None:
    scheduler = make_scheduler("packed q=0.5", capacities=(3,), batch=MicroBatch(size=3, wait_s=0.01))
    sizes = {"a": 50, "b": 500, "c": 52, "d": 10, "e": 510, "f": 47, "g": 9}
    requests = [make_request(n, arrival_s=float(i), tokens=t) for i, (n, t) in enumerate(sizes.items())]
    submit_all(scheduler, requests, now=7.0)
    batches = []
    for now in (8.0, 9.0, 10.0):
        dispatches = dispatch_all(scheduler, now) or dispatch_all(scheduler, now + 0.02)
        batches.append("".join(sorted(ids(dispatches))))
        for request in dispatches:
            complete(scheduler, request, now + 0.5)
        scheduler.check()
    assert batches == ["acf", "bdg", "e"]


# -- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", SHARING)
@pytest.mark.parametrize("ordering", INSIDE)
def test_every_combination_runs(rule: str, ordering: str) -> None:
    name = f"{rule}+{ordering}"
    policy = policy_from(name)
    assert policy.name == name.removesuffix("+fifo")  # oldest first is what a rule does by itself
    assert policy_from(policy.describe()).describe() == policy.describe()
    scheduler = make_scheduler(name, capacities=(2,))
    requests = crowd(5)
    submit_all(scheduler, requests)
    assert sorted(run_out(scheduler, 400.0)) == sorted(request.id for request in requests)


@pytest.mark.parametrize("spec", ["two-class q=0.123456789", "lottery seed=123456789", "fair credit=1500"])
def test_a_description_keeps_every_digit(spec: str) -> None:
    assert policy_from(policy_from(spec).describe()) == policy_from(spec)


def test_parameters_reach_both_halves() -> None:
    assert policy_from("lottery+two-class q=0.4 seed=7").describe() == "lottery+two-class seed=7 q=0.4"
    assert policy_from("fair+two-class").describe() == "fair+two-class credit=2000 q=0.55"
    assert policy_from("fair + two-class q=0.4").describe() == "fair+two-class credit=2000 q=0.4"
    assert {"fair+two-class", "two-class", "packed"} <= set(POLICIES)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("two-class q=1", "policy two-class: q: 1.0 is not allowed; a quantile between 0 and 1"),
        ("three-class low=0.8", "low: 0.8 is not allowed; it must be below high"),
        ("fair credit=-1", "credit: -1.0 is not allowed; tokens by weight, 0 or more"),
        ("lottery seed=nan", "seed: nan is not allowed; any finite number"),
        ("aged-sjf rate=-3", "rate: -3.0 is not allowed; a number of tokens per second waited"),
        ("fair+two-class rate=1", "policy fair.two-class: unknown parameter 'rate'; it takes credit, q"),
        ({"name": "fair", "inside": "sjf"}, "unknown parameter 'inside'; it takes credit"),
        (
            "two-class+fair",
            "unknown policy 'two-class.fair'; allowed: .* one of fair, priority, weighted",
        ),
        ("fair+packed", "did you mean 'fair'|unknown policy 'fair.packed'"),
    ],
)
def test_what_is_wrong_is_said(spec: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        policy_from(spec)  # type: ignore[arg-type]
