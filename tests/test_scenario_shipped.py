"""Each expectation of each shipped scenario holds in virtual time, and fails under one named mutation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from scheduler.core.types import CATEGORIES
from scheduler.load.scenario import Scenario, load_scenario, shipped_scenarios
from scheduler.load.schema import Dispatch, LimitsSection, PolicySection, TimelineItem
from scheduler.plan import make_plan
from scheduler.virtual import VirtualRun


def with_(scenario: Scenario, **changes: Any) -> Scenario:
    return scenario.model_copy(update=changes)


def every_stream(scenario: Scenario, **changes: Any) -> Scenario:
    return with_(scenario, load=tuple(stream.model_copy(update=changes) for stream in scenario.load))


def every_tenant(scenario: Scenario, **changes: Any) -> Scenario:
    return with_(scenario, tenants=tuple(tenant.model_copy(update=changes) for tenant in scenario.tenants))


def crash_loop(scenario: Scenario) -> Scenario:
    items = ({"at": at_s, "fault": {"engine": "crash"}} for at_s in range(3, 60, 3))
    return with_(scenario, timeline=tuple(TimelineItem.model_validate(item) for item in items))


def fewer_requests(scenario: Scenario) -> Scenario:
    return every_stream(scenario, count=20)


def no_switch(scenario: Scenario) -> Scenario:
    return with_(scenario, timeline=tuple(item for item in scenario.timeline if item.policy is None))


def no_drift(scenario: Scenario) -> Scenario:
    return with_(scenario, timeline=tuple(item for item in scenario.timeline if item.drift is None))


def wide_engine(scenario: Scenario) -> Scenario:
    return with_(scenario, engine=scenario.engine.model_copy(update={"capacity": 256}))


def fifo(scenario: Scenario) -> Scenario:
    return with_(scenario, policy=PolicySection(spec="fifo"))


def priority_to_the_flood(scenario: Scenario) -> Scenario:
    tiers = {"web-scraper": "premium", "ledger-api": "batch", "docs-search": "batch"}
    tenants = tuple(t.model_copy(update={"tier": tiers[t.name]}) for t in scenario.tenants)
    return with_(scenario, tenants=tenants, policy=PolicySection(spec="priority"))


def no_flood(scenario: Scenario) -> Scenario:
    return with_(scenario, load=(scenario.load[0], scenario.load[1].model_copy(update={"count": 20})))


def no_limits(scenario: Scenario) -> Scenario:
    unset = dict.fromkeys(("max_queued", "max_queued_tokens", "max_in_flight", "ttl_s"))
    return every_tenant(with_(scenario, limits=LimitsSection()), **unset)


def no_patience(scenario: Scenario) -> Scenario:
    return every_stream(scenario, patience_s=None)


def no_patience_no_ttl(scenario: Scenario) -> Scenario:
    return every_tenant(no_patience(scenario), ttl_s=None)


def one_may_queue(scenario: Scenario) -> Scenario:
    return every_tenant(scenario, max_queued=1)


def continuous(scenario: Scenario) -> Scenario:
    return with_(scenario, dispatch=Dispatch())


def one_token_each(scenario: Scenario) -> Scenario:
    return every_stream(scenario, max_tokens=dict.fromkeys(CATEGORIES, 1))


def no_cap(scenario: Scenario) -> Scenario:
    return every_stream(scenario, max_tokens=dict.fromkeys(CATEGORIES, 100_000))


def uniform_lengths(scenario: Scenario) -> Scenario:
    """Every category as short as the shortest: the classes of the estimates are then wrong."""
    streams = tuple(
        stream.model_copy(update={"max_tokens": dict.fromkeys(CATEGORIES, 20)}) for stream in scenario.load
    )
    return with_(scenario, load=streams, estimator=scenario.estimator.model_copy(update={"calibrate": False}))


MUTATIONS: list[tuple[str, str, Callable[[Scenario], Scenario]]] = [
    ("demo", "requests.finished > 600", fewer_requests),
    ("demo", "requests.failed == 0", crash_loop),
    ("demo", "estimate.bias.summary > 1.2", no_drift),
    ("demo", "switches.0.queued > 10", wide_engine),
    ("paper", "requests.submitted == 3000", fewer_requests),
    ("paper", "requests.finished == 3000", one_may_queue),
    ("paper", "requests.failed == 0", crash_loop),
    ("paper", "estimate.class_accuracy > 0.8", uniform_lengths),
    ("l4-paper", "requests.finished == 3000", one_may_queue),
    ("l4-paper", "requests.failed == 0", crash_loop),
    ("l4-paper", "dispatch == microbatch 32/10ms", continuous),
    ("noisy-neighbour", "requests.failed == 0", crash_loop),
    ("noisy-neighbour", "latency_s.tenants.ledger-api.ttft.p99 < 3s", fifo),
    ("noisy-neighbour", "latency_s.tenants.docs-search.ttft.p99 < 5s", priority_to_the_flood),
    ("noisy-neighbour", "latency_s.tenants.web-scraper.ttft.p50 > 10s", no_flood),
    ("noisy-neighbour", "goodput.slo_share > 0.95", fifo),
    ("overload", "requests.failed == 0", crash_loop),
    ("overload", "requests.rejected > 500", no_limits),
    ("overload", "requests.expired > 0", no_limits),
    ("overload", "requests.cancelled > 0", no_patience),
    ("overload", "latency_s.tenants.trading-desk.requests.rejected == 0", one_may_queue),
    ("overload", "latency_s.tiers.premium.ttft.p99 < 5s", fifo),
    ("overload", "latency_s.all.queue_wait.max <= 35s", no_patience_no_ttl),
    ("autopilot", "switches.0.by == autopilot", fifo),
    ("autopilot", "latency_s.tiers.premium.e2e.p99 < 30s", fifo),
    ("cpu-real", "requests.finished == 60", fewer_requests),
    ("cpu-real", "requests.failed == 0", crash_loop),
    ("cpu-real", "finish.stop > 0", one_token_each),
    ("cpu-real", "finish.length > 0", no_cap),
    ("cpu-real", "switches.0.to == sjf", no_switch),
    ("cpu-real", "switches.0.queued > 0", wide_engine),
]


@cache
def held(name: str, mutation: Callable[[Scenario], Scenario] | None) -> dict[str, bool]:
    scenario = load_scenario(name)
    plan = make_plan(mutation(scenario) if mutation else scenario, clock="virtual")
    return {line["text"]: line["ok"] for line in VirtualRun(plan).run()["expect"]}


@pytest.mark.parametrize("name", shipped_scenarios())
def test_every_expectation_holds(name: str) -> None:
    assert all(held(name, None).values()), held(name, None)


def test_every_expectation_has_a_mutation() -> None:
    lines = {(name, text) for name in shipped_scenarios() for text in load_scenario(name).expect}
    assert lines == {(name, text) for name, text, _ in MUTATIONS}


@pytest.mark.parametrize(
    ("name", "text", "mutation"), MUTATIONS, ids=[f"{m[0]}: {m[1]}: {m[2].__name__}" for m in MUTATIONS]
)
def test_an_expectation_fails_under_its_mutation(
    name: str, text: str, mutation: Callable[[Scenario], Scenario]
) -> None:
    assert held(name, mutation)[text] is False
