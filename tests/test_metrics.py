"""Percentiles against their definition, gap buckets, sliding windows, and the snapshot made of them."""

from __future__ import annotations

import dataclasses
import math
from math import isnan, nan
from typing import Any

import pytest
from core_kit import TENANTS, Guess, complete, dispatch_all, make_request, make_scheduler, submit_all
from hypothesis import example, given
from hypothesis import strategies as st

from scheduler.core.metrics import (
    NO_PERCENTILES,
    Completion,
    TenantWindow,
    WindowMetrics,
    drift_ratio,
    gap_bucket,
    gap_value,
    meets_slo,
    percentiles,
    rank_index,
)
from scheduler.core.policies import policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.snapshot import take_snapshot
from scheduler.core.types import Limits, Outcome, Request, Slo, Snapshot, State, TenantSnapshot

# -- percentiles ---------------------------------------------------------------------------------------


def smallest_with_share_below(values: list[float], percent: int) -> float:
    """Nearest rank by its definition, in whole numbers."""
    return next(v for v in sorted(values) if 100 * sum(w <= v for w in values) >= percent * len(values))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_percentiles_are_nearest_rank(values: list[float]) -> None:
    got = percentiles(values)
    expected = [smallest_with_share_below(values, percent) for percent in (50, 90, 95, 99)]
    assert list(got[:4]) == expected
    assert got.max == max(values)
    assert got.mean == pytest.approx(math.fsum(values) / len(values), abs=1e-6)


@given(st.integers(1, 99), st.integers(1, 2000))
@example(percent=55, count=100)  # 0.55 * 100 > 55
@example(percent=67, count=1500)
def test_a_rank_is_not_moved_by_rounding(percent: int, count: int) -> None:
    assert rank_index(percent / 100, count) == -(-percent * count // 100) - 1


def test_percentiles_of_one_to_a_hundred() -> None:
    assert percentiles(range(100, 0, -1)) == (50, 90, 95, 99, 50.5, 100)


def test_nan_is_left_out_and_nothing_gives_nan() -> None:
    assert percentiles([nan, 2.0, nan]) == (2, 2, 2, 2, 2, 2)
    assert all(isnan(value) for value in percentiles([nan]))
    assert percentiles([]) is NO_PERCENTILES


# -- token gaps ----------------------------------------------------------------------------------------


@given(st.floats(1e-5, 1e4))
def test_a_gap_is_within_2_6_percent_of_its_bucket(gap_s: float) -> None:
    assert gap_value(gap_bucket(gap_s)) == pytest.approx(gap_s, rel=0.026)


@given(st.floats(0, 1e4), st.floats(0, 1e4))
def test_longer_gaps_are_in_later_buckets(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= gap_bucket(low) <= gap_bucket(high)


# -- windows -------------------------------------------------------------------------------------------


def finished(name: str = "r", *, at_s: float = 10.0, **given: float) -> Request:
    request = make_request(name, state=State.FINISHED)
    request.dispatched_s, request.first_token_s, request.ended_s = at_s - 3, at_s - 2, at_s
    request.arrival_s = at_s - 4
    request.output_tokens, request.finish = 11, "stop"
    request.estimate = dataclasses.replace(request.estimate, point=10)
    for key, value in given.items():
        setattr(request, key, value)
    return request


def test_a_completion_is_kept_as_its_times_and_tokens() -> None:
    metrics = WindowMetrics(["acme"])
    metrics.on_ended(finished(), 10.0, Slo())
    (completion,) = metrics.tenants["acme"].completions
    assert completion == Completion(10.0, 2.0, 4.0, 1.0, 10, 11, capped=False, slo_met=True, covered=False)


def test_an_estimate_above_max_tokens_counts_as_max_tokens() -> None:
    metrics = WindowMetrics(["acme"])
    metrics.on_ended(finished(max_tokens=8, output_tokens=8, finish="length"), 10.0, Slo())  # type: ignore[arg-type]
    (completion,) = metrics.tenants["acme"].completions
    assert (completion.estimated, completion.actual, completion.capped) == (8, 8, True)


def test_windows_forget() -> None:
    metrics = WindowMetrics(["acme"], window_s=60.0)
    for at_s in (10.0, 40.0):
        metrics.on_ended(finished(at_s=at_s), at_s, Slo())
        metrics.on_ended(make_request("x", state=State.EXPIRED), at_s, Slo())
        metrics.on_tokens("acme", 30, 5, at_s)
    window = metrics.tenants["acme"]
    assert metrics.rates(60.0)["acme"] == (60 / 60, 70)
    assert (len(window.completions), len(window.misses)) == (2, 2)
    assert metrics.rates(71.5)["acme"] == (30 / 60, 35)
    assert (len(window.completions), len(window.misses)) == (1, 1)
    assert metrics.rates(200.0)["acme"] == (0, 0)
    assert not window.completions
    assert not window.misses


def test_rates_before_the_window_is_full_are_over_the_time_so_far() -> None:
    metrics = WindowMetrics(["acme"])
    metrics.on_tokens("acme", 30, 5, 9.5)
    assert metrics.rates(10.0)["acme"] == (3.0, 35)


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        (Slo(), True),
        (Slo(ttft_s=2.0, e2e_s=4.0, tpot_s=0.2), True),  # just so
        (Slo(ttft_s=1.99), False),
        (Slo(e2e_s=3.99), False),
        (Slo(tpot_s=0.19), False),  # (4 - 2) / (11 - 1)
    ],
)
def test_every_objective_counts(slo: Slo, met: bool) -> None:
    assert meets_slo(finished(), slo) is met


def test_one_token_has_no_time_per_output_token() -> None:
    assert meets_slo(finished(output_tokens=1), Slo(tpot_s=0.0))


def test_slo_share_counts_what_never_finished_as_missed() -> None:
    metrics = WindowMetrics(["acme"])
    window = metrics.tenants["acme"]
    assert isnan(window.slo_share)
    metrics.on_ended(finished(), 10.0, Slo())
    metrics.on_ended(finished(), 10.0, Slo(e2e_s=1.0))
    metrics.on_ended(make_request("x", state=State.REJECTED), 10.0, Slo())
    metrics.on_ended(make_request("y", state=State.FAILED), 10.0, Slo())
    assert window.slo_share == 0.25


def test_drift_ratio_is_of_sums() -> None:
    done = [
        Completion(0, 0, 0, 0, estimated, actual, False, True, True)
        for estimated, actual in ((10, 40), (90, 60))
    ]
    assert drift_ratio(done) == 1.0
    assert isnan(drift_ratio([]))


# -- the learned multiplier ----------------------------------------------------------------------------


class Biased(Guess):
    """Two categories of different bias."""

    def bias(self, tenant: str, category: str) -> float:
        return {"short_qa": 1.0, "report": 3.0}[category]


def test_a_tenants_multiplier_weighs_categories_by_its_requests() -> None:
    metrics = WindowMetrics(["acme"])
    for category in ("short_qa", "short_qa", "short_qa", "report"):
        request = make_request("r")
        request.estimate = dataclasses.replace(request.estimate, category=category)
        metrics.on_observed(request, Biased(10))
    assert metrics.tenants["acme"].bias == 1.5


def window_of(*biases: float) -> TenantWindow:
    window = TenantWindow()
    window.biases.extend(biases)
    window.bias = biases[-1]
    return window


def test_converged_is_less_than_two_percent_over_fifty_observations() -> None:
    assert not window_of(*[1.0] * 50).converged, "fifty values are forty-nine moves"
    assert window_of(*[1.0] * 51).converged
    assert not window_of(1.03, *[1.0] * 50).converged
    assert window_of(1.03, *[1.0] * 51).converged, "the outlier is fifty-one observations old"
    assert window_of(1.019, *[1.0] * 50).converged
    assert not window_of(1.0, 1.03, *[1.0] * 49).converged, "there and back is a move"
    assert window_of(3.04, *[3.0] * 50).converged, "of what it is now"


# -- the snapshot --------------------------------------------------------------------------------------


def measured(**given: Any) -> Scheduler:
    return make_scheduler(metrics=WindowMetrics(t.name for t in TENANTS), **given)


def tenant(snapshot: Snapshot, name: str) -> TenantSnapshot:
    return next(t for t in snapshot.tenants if t.name == name)


def test_the_oldest_wait_is_of_what_waits() -> None:
    scheduler = measured(capacities=(1,))
    submit_all(scheduler, [make_request("runs"), make_request("waits", arrival_s=3.0)], now=3.0)
    dispatch_all(scheduler, 3.0)
    assert tenant(take_snapshot(scheduler, 10.0), "acme").oldest_wait_s == 7.0


def test_snapshot_of_a_run_by_hand() -> None:
    slow = dataclasses.replace(TENANTS[0], slo=Slo(e2e_s=5.0), limits=Limits(max_queued=3))
    scheduler = measured(tenants=(slow, *TENANTS[1:]), estimator=Guess(20), capacities=(2,))
    first, second = make_request("1", tokens=30), make_request("2", "globex", 1.0, tokens=10)
    third = make_request("3", arrival_s=2.0)
    submit_all(scheduler, [first, second, third], now=2.0)
    dispatch_all(scheduler, 2.0)
    scheduler.on_first_token("1", 3.0)
    scheduler.on_tokens("1", 30, 3.0)
    scheduler.on_complete("1", 6.0, Outcome("length", 30))
    scheduler.on_first_token("2", 4.0)
    scheduler.on_tokens("2", 10, 5.0)
    complete(scheduler, second, 8.0)
    snapshot = take_snapshot(scheduler, 10.0)
    assert (snapshot.queued, snapshot.in_flight, snapshot.capacity) == (1, 0, 2)
    assert snapshot.counts["submitted"] == 3
    assert snapshot.counts["finished"] == 2
    assert snapshot.drift_ratio == 40 / 40
    assert snapshot.tokens_per_s == 4.0
    assert (snapshot.ttft.p50, snapshot.ttft.max) == (3, 3)
    assert (snapshot.e2e.p50, snapshot.e2e.max) == (6, 7)
    assert (snapshot.queue_wait.p50, snapshot.queue_wait.max) == (1, 2)
    acme = tenant(snapshot, "acme")
    assert (acme.submitted, acme.queued, acme.queued_tokens, acme.finished) == (2, 1, 50, 1)
    assert (acme.drift_ratio, acme.estimated_tokens, acme.actual_tokens) == (1.5, 20, 30)
    assert (acme.coverage, snapshot.coverage) == (0.0, 0.5)
    assert (acme.capped_share, acme.slo_share, acme.share) == (1.0, 0.0, 40 / 60)
    assert acme.oldest_wait_s == 8.0
    assert (acme.tier, acme.weight, acme.limits.max_queued) == ("premium", 5.0, 3)
    idle = tenant(snapshot, "initech")
    assert (idle.submitted, idle.share, idle.oldest_wait_s) == (0, 0.0, 0.0)
    assert isnan(idle.slo_share)
    assert isnan(idle.coverage)
    assert isnan(idle.drift_ratio)


def test_snapshot_tells_of_pause_and_of_a_swap_under_way() -> None:
    scheduler = measured()
    submit_all(scheduler, [make_request(str(i)) for i in range(4)])
    scheduler.pause(1.0)
    scheduler.begin_swap(policy_from("sjf"), 2.0)
    scheduler.swap_step(2.0, 1)
    snapshot = take_snapshot(scheduler, 2.5)
    assert (snapshot.policy, snapshot.policy_since_s, snapshot.swap) == ("fifo", 0.0, ("sjf", 0.25))
    assert snapshot.paused
    scheduler.swap_step(3.0)
    snapshot = take_snapshot(scheduler, 3.5)
    assert (snapshot.policy, snapshot.policy_since_s, snapshot.swap) == ("sjf", 3.0, None)


def test_a_snapshot_needs_no_metrics() -> None:
    scheduler = make_scheduler()
    submit_all(scheduler, [make_request("r")])
    snapshot = take_snapshot(scheduler, 1.0)
    assert snapshot.queued == 1
    assert isnan(snapshot.ttft.p50)
