"""One run in the twin as the benches need it: latencies of the measured requests, by tier and tenant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from scheduler.core.estimate import Estimator
from scheduler.core.metrics import percentiles
from scheduler.core.types import TIERS, Percentiles, Request, State
from scheduler.load.scenario import load_scenario
from scheduler.load.schema import Scenario
from scheduler.plan import make_plan
from scheduler.record.tally import Tally
from scheduler.twin.gpu import Gpu
from scheduler.twin.simulate import Simulation

ALL = "all"


@dataclass(slots=True)
class Trial:
    """What came of one run. Groups are "all" and the tiers."""

    e2e: dict[str, list[float]] = field(default_factory=dict)  # seconds, by group
    jain: float = 0.0
    goodput_per_s: float = 0.0
    requests_per_s: float = 0.0
    output_tokens_per_s: float = 0.0

    def latency(self, group: str = ALL) -> Percentiles:
        return percentiles(self.e2e.get(group, []))

    @property
    def groups(self) -> list[str]:
        return [ALL, *(tier for tier in TIERS if tier in self.e2e)]


def scenario(base: str | Mapping[str, Any], **changes: Any) -> Scenario:
    """A shipped scenario, or one from a mapping, with sections replaced."""
    made = load_scenario(base) if isinstance(base, str) else Scenario.model_validate(_tuples(base))
    given = {name: getattr(made, name) for name in made.model_fields_set - {"expect"}}
    return Scenario.model_validate({**given, **_tuples(changes)})


def run_trial(
    what: Scenario,
    policy: str,
    seed: int,
    *,
    estimator: Estimator | None = None,
    measured: Callable[[Request], bool] = lambda request: True,
) -> Trial:
    """To the end, in virtual time. ``estimator`` replaces the scenario's."""
    plan = make_plan(what, engine="sim", policy=policy, seed=seed, clock="virtual")
    assert plan.profile is not None
    scheduler = plan.scheduler()
    if estimator is not None:
        scheduler.estimator = estimator
    tally, trial = Tally(), Trial()

    def ended(request: Request) -> None:
        tally.add(request)
        if request.state is State.FINISHED and measured(request):
            assert request.ended_s is not None
            e2e_s = request.ended_s - request.arrival_s
            for group in (ALL, request.tier):
                trial.e2e.setdefault(group, []).append(e2e_s)

    simulation = Simulation(scheduler, [Gpu(plan.profile, plan.capacity)], plan.workload(), on_ended=ended)
    simulation.run()
    figures = tally.figures(scheduler.books, simulation.now)
    trial.jain = figures["fairness"]["jain"]
    trial.goodput_per_s = figures["goodput"]["requests_per_s"]
    trial.output_tokens_per_s = figures["tokens"]["output_per_s"]
    trial.requests_per_s = figures["requests"]["finished"] / figures["duration_s"]
    return trial


def figures(trials: Sequence[Trial], group: str = ALL) -> dict[str, float]:
    """Medians over the seeds."""
    latencies = [trial.latency(group) for trial in trials]
    return {
        "e2e_p50_s": median(each.p50 for each in latencies),
        "e2e_p95_s": median(each.p95 for each in latencies),
        "e2e_p99_s": median(each.p99 for each in latencies),
        "e2e_max_s": median(each.max for each in latencies),
        "jain": median(trial.jain for trial in trials),
        "goodput_per_s": median(trial.goodput_per_s for trial in trials),
        "requests_per_s": median(trial.requests_per_s for trial in trials),
        "output_tokens_per_s": median(trial.output_tokens_per_s for trial in trials),
    }


def _tuples(value: Any) -> Any:
    """Lists as the tuples that the strict models want."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
