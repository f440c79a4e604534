"""``driftsched bench policies``: every policy under the same loads, beside FIFO and the oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from scheduler.bench.result import BadInput, Claim, Result
from scheduler.bench.trial import Trial, figures, run_trial, scenario
from scheduler.core.types import TIERS, Request
from scheduler.load.schema import Scenario
from scheduler.load.stream import Trace
from scheduler.load.traces import TraceError, scan

SEEDS = (1, 2, 3)
ORACLE = "oracle sjf"
POLICIES = (
    *("fifo", ORACLE, "sjf", "two-class", "three-class", "aged-sjf", "fair", "fair+two-class", "fair+sjf"),
    *("priority", "priority+two-class", "weighted", "aging", "edf", "lottery", "packed"),
)
TENANTS = [
    {"name": "premium", "tier": "premium", "weight": 5, "slo": {"e2e": 20.0}},
    {"name": "standard", "tier": "standard", "weight": 3, "slo": {"e2e": 40.0}},
    {"name": "batch", "tier": "batch", "weight": 2},
]
EVENLY = {"premium": 1, "standard": 1, "batch": 1}
SHARE = {"premium": 0.5, "standard": 0.3, "batch": 0.2}
SATURATION = 7.3  # requests/s that the simulated L4 serves of the usual mix with 32 slots
BUSY_IDLE = {"bursts": {"rate": 11.5, "base": 3.0, "busy": 40.0, "idle": 40.0}}
FLOOD = 4.0
TRACE_SPEED = 0.5  # an hour of the Azure code trace asks for 1.6 times what one L4 serves

PROTOCOL = (
    "Virtual time, simulated L4 with Qwen1.5-1.8B, 32 slots, the paper's estimator without its quirks "
    f"unless it says oracle; medians over {len(SEEDS)} seeds. burst: the paper's stress phase after "
    "its learning phase (2000 requests; burst_all: all 3000), lengths near. busy_idle: 40 s at "
    "11.5/s, 40 s at 3/s. heavy: Poisson 3.9/s, heavy-tailed lengths. noisy_X: X floods with 4 times "
    "its share of saturation, the others send 0.9 of theirs; calm_X: X sends just its share. full "
    "stack (all 3000 requests): static micro-batches of 32 under FIFO, as in the paper, and "
    "continuous dispatch with 32 and 128 slots; continuous FIFO stands beside them. trace: a "
    "file in Azure's format at half its pace, Llama-3.1-8B. SLO: 20 s premium, 40 s standard, from arrival "
    "to the last token."
)


class Load(NamedTuple):
    """One load, and which of its requests count."""

    scenario: Scenario
    policies: tuple[str, ...]
    stream: str = ""  # only this one's requests; "" is all


def bench_policies(tell: Callable[[str], None], trace: Path | None = None) -> Result:
    """A few minutes."""
    result = Result("policies", PROTOCOL)
    table: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, load in _loads(trace).items():
        tell(f"{name}: {len(load.policies)} policies x {len(SEEDS)} seeds")
        for policy in load.policies:
            trials = [_trial(load, policy, seed) for seed in SEEDS]
            for group in trials[0].e2e:
                row = table[name, policy, group] = figures(trials, group)
                result.rows.append({"load": name, "policy": policy, "tier": group, **row})
    result.claims.extend(_claims(table))
    return result


def _trial(load: Load, policy: str, seed: int) -> Trial:
    def measured(request: Request) -> bool:
        return load.stream in ("", request.submitted_by)

    what = load.scenario
    if policy == ORACLE:
        oracle = what.estimator.model_copy(update={"kind": "oracle"})
        what, policy = what.model_copy(update={"estimator": oracle}), "sjf"
    return run_trial(what, policy, seed, measured)


def _loads(trace: Path | None) -> dict[str, Load]:
    continuous: dict[str, Any] = {"dispatch": {}, "paper": False}
    burst = scenario("paper", **continuous)
    static = scenario("paper", paper=False)
    wide = scenario("paper", **continuous, engine={"capacity": 128})
    loads = {
        "burst": Load(burst, POLICIES, "stress"),
        "burst_all": Load(burst, ("fifo", ORACLE, "two-class", "fair+two-class")),
        "busy_idle": Load(one_stream(BUSY_IDLE, "near", 1800.0), POLICIES),
        "heavy": Load(one_stream({"poisson": 3.9}, "heavy", 1800.0), POLICIES),
        "static_32": Load(static, ("fifo", "sjf", "packed", ORACLE)),
        "continuous_32": Load(burst, ("fifo", "two-class")),
        "continuous_128": Load(wide, ("fifo", "two-class")),
    }
    for flooder in SHARE:
        loads[f"calm_{flooder}"] = Load(_neighbours(flooder, 1.0), ("fifo", "fair", "fair+two-class"))
        loads[f"noisy_{flooder}"] = Load(_neighbours(flooder, FLOOD), ("fifo", "fair", "fair+two-class"))
    if trace is not None:
        if not trace.is_file():
            raise BadInput(f"no such file: {str(trace)!a}")
        source = {"file": str(trace.resolve()), "format": "azure", "speed": TRACE_SPEED}
        try:
            scan(Trace.model_validate(source))  # now, not after the minutes that the rest takes
        except TraceError as error:
            raise BadInput(str(error)) from None
        stream = {"tenant": EVENLY, "trace": source, "max_tokens": 1024}
        loads["trace"] = Load(_scenario([stream], model="llama-3.1-8b-instruct"), POLICIES)
    return loads


def _scenario(load: list[dict[str, Any]], **engine: Any) -> Scenario:
    return scenario({"name": "bench", "tenants": TENANTS, "load": load, "engine": {"capacity": 32, **engine}})


def one_stream(arrivals: dict[str, Any], profile: str, seconds: float) -> Scenario:
    """An open load of all three tenants, evenly."""
    return _scenario(
        [{"tenant": EVENLY, "arrivals": arrivals, "lengths": {"profile": profile}, "for": seconds}]
    )


def _neighbours(flooder: str, times: float) -> Scenario:
    rates = {name: SATURATION * share * (times if name == flooder else 0.9) for name, share in SHARE.items()}
    return _scenario(
        [{"tenant": name, "arrivals": {"poisson": rate}, "for": 900.0} for name, rate in rates.items()]
    )


def _claims(table: dict[tuple[str, str, str], dict[str, float]]) -> list[Claim]:
    def change(load: str, policy: str, figure: str, base: tuple[str, str]) -> float:
        return (table[load, policy, "all"][figure] / table[(*base, "all")][figure] - 1) * 100

    at_most, p50, p99, static = Claim.at_most, "e2e_p50_s", "e2e_p99_s", ("static_32", "fifo")
    claims = [
        at_most("burst: two-class P50 %", -33, change("burst", "two-class", p50, ("burst", "fifo"))),
        at_most("burst: two-class P99 %", 1, change("burst", "two-class", p99, ("burst", "fifo"))),
        at_most(
            "busy_idle: two-class P99 %", 25, change("busy_idle", "two-class", p99, ("busy_idle", "fifo"))
        ),
        at_most("full stack 32: P50 %", -59, change("continuous_32", "two-class", p50, static)),
        at_most("full stack 32: P99 %", -32, change("continuous_32", "two-class", p99, static)),
        at_most("full stack 128: P50 %", -80, change("continuous_128", "two-class", p50, static)),
        at_most("full stack 128: P99 %", -65, change("continuous_128", "two-class", p99, static)),
    ]
    for figure in (p50, p99):
        premium, standard, batch = (table["burst", "fair+two-class", tier][figure] for tier in TIERS)
        closest = max(premium / standard, standard / batch)
        claims.append(Claim(f"burst: fair+two-class tiers in order, {figure}", 1, closest, closest < 1))
    for flooder in SHARE:
        calm, noisy = f"calm_{flooder}", f"noisy_{flooder}"
        others = [tier for tier in TIERS if tier != flooder]
        worst = max(
            table[noisy, "fair+two-class", tier][p99] / table[calm, "fair+two-class", tier][p99] - 1
            for tier in others
        )
        longest = max(table[noisy, "fair+two-class", tier]["e2e_max_s"] for tier in others)
        fifo = table[noisy, "fifo", "all"]["e2e_max_s"]
        claims += [
            at_most(f"{flooder} floods: the others' P99 %", 20, worst * 100),
            at_most(f"{flooder} floods: the others' longest against FIFO's %", 0, (longest / fifo - 1) * 100),
        ]
    return claims
