"""A live run on the simulated engine takes the course that the same scenario takes in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.live.run import LiveRun
from scheduler.load.scenario import Scenario
from scheduler.plan import Plan, make_plan
from scheduler.virtual import VirtualRun

TENANTS = (
    {"name": "acme", "tier": "premium", "weight": 5},
    {"name": "blue", "tier": "standard", "weight": 3},
    {"name": "cyan", "tier": "batch", "weight": 2},
)
EVERYONE = {"acme": 2, "blue": 2, "cyan": 1}


def plan(policy: str, **fields: Any) -> Plan:
    """1000 requests at rho 0.8: with these lengths the L4 serves 7.5 a second."""
    scenario = {
        "name": "agree",
        "seed": 3,
        "speed": 300.0,
        "policy": policy,
        "tenants": TENANTS,
        "load": ({"tenant": EVERYONE, "arrivals": {"poisson": 6.0}, "count": 1000},),
    }
    return make_plan(Scenario.model_validate(scenario | fields))


async def live(plan: Plan) -> dict[str, Any]:
    run = LiveRun(plan)
    await run.start()
    await run.session.drained.wait()
    return await run.stop()


@pytest.mark.parametrize("policy", ["fifo", "fair"])
async def test_the_same_figures_at_rho_0_8(policy: str) -> None:
    expected = VirtualRun(plan(policy)).run()
    seen = await live(plan(policy))
    assert seen["requests"] == expected["requests"]
    assert seen["requests"]["finished"] == 1000
    # Wanted are 2 % at p50 and p90 and 5 % at p99. As no instant moves with the loop's lag, they are equal,
    # but for requests that end in one step: live, the policy is asked after each.
    for name in ("e2e", "ttft", "queue_wait", "tpot"):
        for rank in ("p50", "p90", "p99"):
            figure, wanted = (run["latency_s"]["all"][name][rank] for run in (seen, expected))
            assert figure == pytest.approx(wanted, rel=0.005), f"{name} {rank}"
    assert seen["tokens"]["output_per_s"] == pytest.approx(expected["tokens"]["output_per_s"], rel=0.001)


async def test_the_same_course_with_patience_clients_that_wait_and_a_switch() -> None:
    busy = {
        "load": (
            {"tenant": EVERYONE, "arrivals": {"poisson": 12.0}, "count": 200, "patience": "6s"},
            {"tenant": "blue", "arrivals": {"closed": {"clients": 12, "think": "2s"}}, "for": "20s"},
        ),
        "timeline": (
            {"at": "10s", "policy": "sjf"},
            {"at": "12s", "estimator": {"kind": "tenant", "statistic": "mean"}},
            {"at": "14s", "estimator": "paper"},
        ),
    }
    expected = VirtualRun(plan("fifo", **busy)).run()
    seen = await live(plan("fifo", **busy))
    assert expected["requests"]["cancelled"] > 0
    assert seen["requests"] == expected["requests"]
    assert seen["tokens"] == expected["tokens"]
    queued = [[switch["queued"] for switch in run["switches"]] for run in (seen, expected)]
    assert queued[0] == queued[1]
    assert min(queued[0]) > 0
    assert len(queued[0]) == 1


async def test_an_engine_that_crashed_is_back_at_the_same_instant() -> None:
    crash = {
        "load": ({"tenant": EVERYONE, "arrivals": {"poisson": 12.0}, "count": 200, "patience": "6s"},),
        "timeline": ({"at": "8s", "fault": {"engine": "crash"}},),
    }
    expected = VirtualRun(plan("fifo", **crash)).run()
    seen = await live(plan("fifo", **crash))
    assert expected["requests"]["retried"] > 10
    assert seen["requests"] == expected["requests"]
    assert seen["latency_s"]["all"]["e2e"] == pytest.approx(expected["latency_s"]["all"]["e2e"])
