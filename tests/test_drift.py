"""Change points told from noise, by the detector, by the estimators and to the operator; Kalman filters."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import replace
from itertools import pairwise

import pytest
from core_kit import TENANTS, make_request, make_scheduler, submit_all

from scheduler.bench.trial import scenario
from scheduler.core.drift import Change, ChangeDetector, Cusum
from scheduler.core.estimators import estimator_from
from scheduler.core.events import Event, Kind
from scheduler.core.kalman import Offset, Plane
from scheduler.core.metrics import WindowMetrics
from scheduler.core.types import Estimate, Limits, Outcome, Request, Slo
from scheduler.core.watch import Watch
from scheduler.live.notices import Notices
from scheduler.plan import make_plan
from scheduler.virtual import VirtualRun

np = pytest.importorskip("numpy")

USUAL = {"short_qa": 1.0, "summary": 3.0, "report": 0.3}  # actual over estimated, by category


def changes(
    detector: ChangeDetector, rng: random.Random, count: int, scale: float, sd: float
) -> list[Change]:
    found = []
    for _ in range(count):
        category = rng.choice(list(USUAL))
        change = detector.add(category, scale * USUAL[category] * math.exp(rng.gauss(0, sd)))
        if change is not None:
            found.append(change)
    return found


def test_the_sums_by_hand() -> None:
    cusum = Cusum(alarm=4.0)
    assert [cusum.add(z) for z in (1.5, 0.0, 1.5, 2.5)] == [0, 0, 0, 0]  # 1, 0.5, 1.5, 3.5
    assert cusum.add(2.0) == 1  # 5.0
    assert [cusum.add(-4.0), cusum.add(-2.0)] == [0, -1], "the sums have started anew: 3.5, 5.0"


@pytest.mark.parametrize("sd", [0.3, 0.5])
@pytest.mark.parametrize("scale", [2.0, 0.5])
def test_a_change_is_told_once_and_soon(sd: float, scale: float) -> None:
    for seed in range(5):
        rng, detector = random.Random(seed), ChangeDetector()
        assert changes(detector, rng, 1000, 1.0, sd) == []
        (change,) = changes(detector, rng, 60, scale, sd)
        assert change.after / change.before == pytest.approx(scale, rel=0.4)
        assert changes(detector, rng, 1000, scale, sd) == []
        (back,) = changes(detector, rng, 60, 1.0, sd)
        assert back.before == pytest.approx(change.after, rel=0.5)


def test_noise_alone_is_told_about_once_in_two_hundred_thousand_answers() -> None:
    found = [changes(ChangeDetector(), random.Random(seed), 50_000, 1.0, 0.5) for seed in range(4)]
    assert sum(map(len, found)) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_answers_are_enough_to_know_what_is_usual(seed: int) -> None:
    rng, detector = random.Random(seed), ChangeDetector()
    assert changes(detector, rng, 100, 1.0, 0.3) == []
    assert len(changes(detector, rng, 27, 2.0, 0.3)) == 1


@pytest.mark.parametrize("policy", ["sjf", "aged-sjf"])
def test_an_order_by_length_and_a_mixture_of_kinds_are_no_change_but_a_doubling_is(policy: str) -> None:
    """The prompts of `near` whose keywords are missing count as short questions, with answers six times as
    long; an order by length makes runs of them.
    """
    tenants = ("premium", "standard", "batch")
    stream = {
        "tenant": dict.fromkeys(tenants, 1),
        "arrivals": {"poisson": 5.0},
        "for": 600.0,
        "lengths": {"profile": "near"},
        "max_tokens": 3000,
    }
    doubled = scenario(
        {
            "name": "doubled",
            "tenants": [{"name": tenant, "tier": tenant} for tenant in tenants],
            "engine": {"capacity": 32},
            "load": [stream],
            "timeline": [{"at": 300.0, "drift": {"tenant": "premium", "output_scale": 2.0}}],
        }
    )
    for seed in (1, 2):
        watch, told, since = Watch(), list[Event](), 0

        def ended(request: Request, watch: Watch = watch, told: list[Event] = told) -> None:
            nonlocal since
            if request.tenant == "premium" and request.arrival_s > 300.0 and not told:
                since += 1
            if (change := watch.on_ended(request)) is not None:
                told.append(change)

        VirtualRun(make_plan(doubled, policy=policy, seed=seed, clock="virtual"), on_ended=ended).run()
        (change,) = told
        assert change.detail["tenant"] == "premium"
        assert change.detail["after"] / change.detail["before"] == pytest.approx(2.0, rel=0.35)
        assert 10 < since < 40


def test_another_mix_of_categories_is_no_change() -> None:
    rng, detector = random.Random(0), ChangeDetector()
    changes(detector, rng, 500, 1.0, 0.5)
    assert [detector.add("summary", 3.0 * math.exp(rng.gauss(0, 0.5))) for _ in range(300)] == [None] * 300


@pytest.mark.parametrize("kind", ["tenant", "learned"])
def test_an_estimator_follows_a_tenant_that_doubles_and_leaves_the_other_alone(kind: str) -> None:
    estimator, rng = estimator_from(kind), random.Random(1)

    def ask(tenant: str) -> Request:
        request = Request("r", tenant, "standard", 0.0, 3, 4096, "What is DNS")
        request.estimate = estimator.estimate(request)
        return request

    def teach(count: int, scale: float) -> None:
        for _ in range(count):
            for tenant, tokens in (("steady", 100.0), ("acme", 100.0 * scale)):
                answer = Outcome("stop", round(tokens * math.exp(rng.gauss(0, 0.3))))
                estimator.observe(ask(tenant), answer)

    teach(300, 1.0)
    before = ask("acme").estimate.point
    teach(15, 3.0)
    assert ask("acme").estimate.point > 2 * before
    assert ask("steady").estimate.point == pytest.approx(before, rel=0.4)


def test_the_operator_is_told_of_a_change_once() -> None:
    rng, watch, notices = random.Random(2), Watch(), Notices()
    told = []
    for number in range(200):
        tokens = round((100 if number < 100 else 250) * math.exp(rng.gauss(0, 0.3)))
        request = Request(str(number), "acme", "standard", 0.0, 3, 4096)
        request.estimate = Estimate(3, 100.0, 4096.0, "short_qa", 100.0)
        request.finish, request.output_tokens, request.ended_s = "stop", tokens, float(number)
        told.append(watch.on_ended(request))
    (event,) = filter(None, told)
    assert event.kind is Kind.DRIFT
    assert 110 < event.at_s < 130
    assert event.detail["after"] / event.detail["before"] == pytest.approx(2.5, rel=0.3)
    notices.on_event(event)
    assert notices.after(0)[0].text.startswith("acme: answers ×")


def test_what_never_ended_by_itself_is_no_change() -> None:
    watch = Watch()
    for number in range(100):
        request = Request(str(number), "acme", "standard", 0.0, 3, 4096)
        request.estimate = Estimate(3, 100.0, 4096.0, "short_qa", 100.0)
        request.finish, request.output_tokens = ("stop", 100) if number < 50 else ("abort", 1)
        assert watch.on_ended(request) is None


def test_a_tenant_of_which_nothing_finishes_misses_its_objective() -> None:
    tenants = [replace(tenant, slo=Slo(e2e_s=20.0)) for tenant in TENANTS]
    scheduler = make_scheduler(
        capacities=(1,), tenants=tenants, metrics=WindowMetrics(t.name for t in TENANTS)
    )
    watch = Watch()
    submit_all(scheduler, [make_request(str(number)) for number in range(10)])
    for number in range(10):
        assert list(watch.look(scheduler, 1.0)) == [], "so few say nothing"
        scheduler.cancel(str(number), 1.0)
    (event,) = watch.look(scheduler, 1.0)
    assert (event.kind, event.detail) == (Kind.SLO, {"tenant": "acme", "share": 0.0})
    assert list(watch.look(scheduler, 2.0)) == [], "it is told once"


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ([89, 95, 89, 90, 89], [(89, None)]),
        ([89, 96, 90, 89], [(89, None), (96, 89), (89, None)]),
        ([95, 89, 60, 49, 51, 20, 49, 9, 3, 50], [(89, None), (49, None), (9, None)]),
        ([3, 9, 96, 97], [(3, None), (96, 3)]),
    ],
)
def test_how_far_a_tenant_falls_short_is_told_and_when_it_is_over(
    shares: list[int], said: list[tuple[int, int | None]]
) -> None:
    """Told below 90, 50 and 10 %, once each; back above 95 %, so that what goes up and down does not flap."""
    metrics = WindowMetrics(["acme"])
    scheduler = make_scheduler(tenants=[replace(TENANTS[0], slo=Slo(e2e_s=20.0))], metrics=metrics)
    window = metrics.tenants["acme"]
    watch, told = Watch(), []
    for met in shares:
        window.misses, window.slo_met = deque([0.0] * 100), met
        for event in watch.look(scheduler, 1.0):
            worst = event.detail.get("worst")
            told.append((round(100 * event.detail["share"]), worst and round(100 * worst)))
    assert told == said


def test_an_episode_of_requests_that_are_not_served_is_told_at_both_its_ends() -> None:
    """Once each, however many they are; a minute without one ends it, a shorter pause does not;
    two minutes do where it comes back.
    """
    tenants = [replace(TENANTS[0], limits=Limits(max_queued=0)), *TENANTS[1:]]
    scheduler, watch, notices = make_scheduler(tenants=tenants), Watch(), Notices()
    told: list[Event] = []
    for now in (*range(100, 136), 195, 314, 315, 400):
        told += watch.look(scheduler, now)
        if now not in (314, 315):
            request = make_request(str(now), arrival_s=now)
            assert scheduler.submit(request, now) is not None
            told += filter(None, [watch.on_ended(request)])
    for event in told:
        notices.on_event(event)
    assert [(event.at_s, event.kind) for event in told] == [
        (at_s, Kind.UNSERVED) for at_s in (100.0, 195.0, 195.0, 315.0, 400.0)
    ]
    assert [notice.text for notice in notices.after(0)] == [
        "acme: requests are rejected (tenant_queue_full)",
        "acme: no more requests are rejected; 36 in 35 s",
        "acme: requests are rejected (tenant_queue_full)",
        "acme: no more requests are rejected; 1 in 0 s",
        "acme: requests are rejected (tenant_queue_full)",
    ]


@pytest.mark.parametrize("every_s", [70, 200, 500])
def test_what_comes_back_now_and_then_is_soon_told_as_one_episode(every_s: int) -> None:
    scheduler, watch = make_scheduler(limits=Limits(max_queued=0)), Watch()
    told: list[Event] = []
    for number in range(50):
        now = float(every_s * number)
        request = make_request(str(number), arrival_s=now)
        assert scheduler.submit(request, now) is not None
        told += filter(None, [watch.on_ended(request)])
        for later in range(1, every_s, 5):
            told += watch.look(scheduler, now + later)
    assert len(told) <= 9
    last_s = 49.0 * every_s
    (end,) = watch.look(scheduler, last_s + 600)
    assert end.detail["requests"] >= 45
    again = make_request("again", arrival_s=last_s + 700)
    scheduler.submit(again, last_s + 700)
    assert watch.on_ended(again) is not None
    assert [event.detail["requests"] for event in watch.look(scheduler, last_s + 760)] == [1], "as at first"


def test_requests_that_expire_are_told_beside_those_that_are_rejected() -> None:
    tenants = [replace(TENANTS[0], limits=Limits(max_queued=1, ttl_s=5.0)), *TENANTS[1:]]
    scheduler, watch, notices = make_scheduler(tenants=tenants), Watch(), Notices()
    waits, rejected = make_request("waits"), make_request("rejected")
    scheduler.submit(waits, 0.0)
    scheduler.submit(rejected, 0.0)
    assert scheduler.expire(5.0) == [waits]
    events = [
        *map(watch.on_ended, (rejected, waits)),
        *watch.look(scheduler, 64.0),
        *watch.look(scheduler, 65.0),
    ]
    for event in events:
        assert event is not None
        notices.on_event(event)
    assert [notice.text for notice in notices.after(0)] == [
        "acme: requests are rejected (tenant_queue_full)",
        "acme: requests expire in the queue",
        "acme: no more requests are rejected; 1 in 0 s",
        "acme: no more requests expire; 1 in 0 s",
    ]


def test_a_tenant_without_an_objective_misses_none() -> None:
    scheduler = make_scheduler(metrics=WindowMetrics(t.name for t in TENANTS))
    submit_all(scheduler, [make_request(str(number)) for number in range(10)])
    for number in range(10):
        scheduler.cancel(str(number), 1.0)
    assert list(Watch().look(scheduler, 1.0)) == []


# -- Kalman filters ------------------------------------------------------------------------------------


def test_an_offset_starts_as_a_mean_and_ends_with_a_steady_gain() -> None:
    offset = Offset(variance=1e9, wander=0.01)
    for error in (3.0, 1.0, 2.0):
        offset.learn(error - offset.value)
    assert offset.value == pytest.approx(2.0, abs=0.05)
    variances = []
    for _ in range(200):
        offset.learn(0.0)
        variances.append(offset.variance)
    assert all(after <= before for before, after in pairwise(variances))
    assert variances[-1] ** 2 / (1 + variances[-1]) == pytest.approx(0.01, rel=0.05)


def test_a_plane_against_the_textbook() -> None:
    rng = np.random.default_rng(3)
    plane = Plane((1.0, 2.0, 3.0), (0.5, 0.2, 0.1), 0.01)
    values, covariance = np.array([1.0, 2.0, 3.0]), np.diag([0.5, 0.2, 0.1])
    for x, y, error in rng.normal(size=(20, 3)).tolist():
        inputs = np.array([1.0, x, y])
        gain = covariance @ inputs / (1 + inputs @ covariance @ inputs)
        values = values + gain * error
        covariance = covariance - np.outer(gain, inputs @ covariance) + np.diag([0.01, 0.0, 0.0])
        plane.learn(x, y, error)
    assert plane.values == pytest.approx(values)
    assert plane.covariance == pytest.approx(covariance[np.triu_indices(3)])
