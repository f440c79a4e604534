"""The tenant estimator by hand; what all estimators hold; the synthetic drift of the bench."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.bench.estimate_drift import bench_drift, drifting, feed
from scheduler.core.estimate import Estimator
from scheduler.core.estimators import ESTIMATORS, estimator_from
from scheduler.core.tenant_estimate import TenantEstimator
from scheduler.core.types import Outcome, Request

QUESTION = "What is DNS"  # short_qa: 64 x (1 + 3 / 1000) = 64.192


def ask(tenant: str = "acme", max_tokens: int = 4096, prompt: str = QUESTION) -> Request:
    return Request("r", tenant, "premium", 0.0, 3, max_tokens, prompt, intended_tokens=50)


def teach(estimator: Estimator, tokens: int, finish: str = "stop", **given: Any) -> None:
    request = ask(**given)
    request.estimate = estimator.estimate(request)
    estimator.observe(request, Outcome(finish, tokens))


def test_nothing_learned_is_the_formula_without_safety() -> None:
    estimate = TenantEstimator().estimate(ask())
    assert (estimate.point, estimate.uncorrected, estimate.category) == (64, 64, "short_qa")


@pytest.mark.parametrize(("statistic", "ratio"), [("median", 1.0), ("mean", (0.5 + 1 + 6) / 3)])
def test_one_tenant_by_hand(statistic: str, ratio: float) -> None:
    estimator = TenantEstimator(statistic=statistic)
    for tokens in (32, 64, 384):
        teach(estimator, tokens)
    assert estimator.bias("acme", "short_qa") == pytest.approx(ratio)
    assert estimator.bias("acme", "report") == 1.0


def test_a_tenant_is_shrunk_to_the_category_with_the_weight_of_ten() -> None:
    estimator = TenantEstimator(statistic="mean")
    for _ in range(10):
        teach(estimator, 64, tenant="usual")
    for _ in range(10):
        teach(estimator, 192, tenant="tripled")
    common = estimator.bias("nobody", "short_qa")
    assert common == pytest.approx(2.0)
    assert estimator.bias("tripled", "short_qa") == pytest.approx((10 * 3 + 10 * common) / 20)
    assert estimator.bias("usual", "short_qa") == pytest.approx((10 * 1 + 10 * common) / 20)


def test_the_median_rests_in_the_middle_and_an_odd_answer_hardly_moves_it() -> None:
    estimator = TenantEstimator()
    for _ in range(100):
        for tokens in (32, 64, 640):
            teach(estimator, tokens)
    settled = estimator.bias("acme", "short_qa")
    assert settled == pytest.approx(1.0, abs=0.03)
    teach(estimator, 64_000)
    assert estimator.bias("acme", "short_qa") == pytest.approx(settled, rel=0.021)


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_answers_that_double_are_followed_within_thirty(statistic: str) -> None:
    estimator = TenantEstimator(statistic=statistic)
    for tokens in [64] * 300 + [128] * 30:
        teach(estimator, tokens)
    assert estimator.bias("acme", "short_qa") == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize("finish", ["length", "abort", "error"])
def test_what_was_cut_only_pushes_up(finish: str) -> None:
    estimator = TenantEstimator()
    teach(estimator, 10, finish)
    assert estimator.bias("acme", "short_qa") == 1.0
    teach(estimator, 192, finish)
    assert estimator.bias("acme", "short_qa") == pytest.approx((3 + 10 * 2) / 11), "a step is twice at most"


def test_unknown_statistic() -> None:
    with pytest.raises(ValueError, match="unknown statistic 'mode'; allowed: median, mean"):
        estimator_from("tenant", statistic="mode")


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_tenant_state_round_trips(statistic: str) -> None:
    estimator, again = TenantEstimator(statistic=statistic), TenantEstimator(statistic=statistic)
    for n in range(40):
        teach(estimator, 10 + 7 * n, tenant=f"t{n % 3}")
    again.restore(json.loads(json.dumps(estimator.state())))
    for tenant in ("t0", "t1", "new"):
        assert again.estimate(ask(tenant)) == estimator.estimate(ask(tenant))
    teach(estimator, 500)
    teach(again, 500)
    assert again.state() == estimator.state()


@pytest.mark.parametrize(
    "change",
    [
        *({"kind": "paper"}, {"statistic": "mean"}, {"categories": {}}, {"tenants": [["t"]]}),
        *(
            {"margin": "wide"},
            {"tenants": [["t", "report", [1, math.nan]]]},
            {"tenants": [["t", "report", []]]},
            {"tenants": [["t", "report", [1, 0.0]]]},
            {"tenants": [["t", "report", [3, 1.0, 0.5, 1.0, 2.0]]]},
            {"tenants": [["t", "report", [3, 1.0]]], "trends": {"t": -2.0}},
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    estimator = TenantEstimator()
    with pytest.raises(ValueError, match="not a state of the tenant estimator by median"):
        estimator.restore({**estimator.state(), **change})
    assert estimator.state() == TenantEstimator().state()


@pytest.mark.parametrize(
    "options", [*({"kind": kind} for kind in ESTIMATORS), {"kind": "tenant", "statistic": "mean"}]
)
@given(seed=st.integers(0, 1 << 32), learned=st.integers(0, 150))
@settings(max_examples=20)
def test_restored_it_goes_on_as_the_one_that_never_stopped(
    options: dict[str, Any], seed: int, learned: int
) -> None:
    """Answers come in runs of one length, so that trends and sums are under way at the cut."""
    rng, usual = random.Random(seed), 50
    estimator, again = estimator_from(**options), estimator_from(**options)
    for number in range(learned + 50):
        if number == learned:
            again.restore(json.loads(json.dumps(estimator.state())))
        if rng.random() < 0.1:
            usual = rng.choice((20, 100, 500))
        request = ask(rng.choice(("acme", "lab")), prompt=rng.choice((QUESTION, "Write a detailed report")))
        request.estimate = estimator.estimate(request)
        tokens = round(usual * math.exp(rng.gauss(0, 0.3)))
        outcome = Outcome(rng.choice(("stop", "stop", "stop", "length", "abort")), tokens)
        if number >= learned:
            assert again.estimate(request) == request.estimate
            again.observe(request, outcome)
        estimator.observe(request, outcome)
    assert again.state() == estimator.state()


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("max_tokens", [1, 100, 100_000])
def test_every_estimate_is_positive_and_within_the_cap(kind: str, max_tokens: int) -> None:
    estimator = estimator_from(kind)
    for finish, tokens in [("stop", 1), ("length", max_tokens), ("abort", 0), ("error", 3)] * 5:
        teach(estimator, tokens, finish, max_tokens=max_tokens)
        estimate = estimator.estimate(ask(max_tokens=max_tokens))
        assert 0 < estimate.point <= estimate.upper <= max_tokens


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize(("label", "category"), [("", "short_qa"), ("report", "report")])
def test_without_a_prompt_a_request_goes_by_its_label_and_its_count(
    kind: str, label: str, category: str
) -> None:
    request = Request("r", "acme", "premium", 0.0, 77, 4096, category=label, intended_tokens=50)
    estimate = estimator_from(kind).estimate(request)
    assert (estimate.category, estimate.input_tokens) == (category, 77)


@pytest.mark.parametrize("kind", ["tenant", "learned"])
def test_coverage_is_nine_in_ten_under_drift(kind: str) -> None:
    requests, lengths, _ = drifting("gradual", 5)
    _, uppers, _ = feed(estimator_from(kind), requests, lengths)
    covered = sum(n <= upper for n, upper in zip(lengths, uppers, strict=True)) / len(lengths)
    assert covered == pytest.approx(0.9, abs=0.02)


def test_under_sudden_drift_tenant_and_learned_are_near_the_floor_and_paper_is_not() -> None:
    rows, _ = bench_drift("sudden", seeds=1)
    mae = {row["estimator"]: row["mae_percent"] for row in rows}
    assert mae["tenant"] - mae["floor"] < 3.3
    assert mae["learned"] - mae["floor"] < 3.3
    assert mae["paper"] - mae["floor"] > 12
