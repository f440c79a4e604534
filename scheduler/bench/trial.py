"""One run in the twin as the benches need it: latencies of the measured requests, by tier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from scheduler.core.metrics import percentiles
from scheduler.core.types import TIERS, Request, State
from scheduler.load.scenario import load_scenario
from scheduler.load.schema import Scenario
from scheduler.plan import make_plan
from scheduler.virtual import VirtualRun

ALL = "all"


class Trial(NamedTuple):
    """What came of one run."""

    e2e: Mapping[str, Sequence[float]]  # seconds, of the measured requests: "all", and by tier
    document: Mapping[str, Any]  # run.json


def scenario(base: str | Mapping[str, Any], **changes: Any) -> Scenario:
    """A shipped scenario, or one from a mapping, with sections replaced."""
    made = load_scenario(base) if isinstance(base, str) else Scenario.model_validate(_tuples(base))
    given = {name: getattr(made, name) for name in made.model_fields_set - {"expect"}}
    return Scenario.model_validate({**given, **_tuples(changes)})


def run_trial(what: Scenario, policy: str, seed: int, measured: Callable[[Request], bool]) -> Trial:
    """To the end, in virtual time."""
    done: list[Request] = []
    plan = make_plan(what, engine="sim", policy=policy, seed=seed, clock="virtual")
    document = VirtualRun(plan, on_ended=done.append).run()
    e2e: dict[str, list[float]] = {group: [] for group in (ALL, *TIERS)}
    for request in done:
        if request.state is State.FINISHED and measured(request):
            assert request.ended_s is not None
            for group in (ALL, request.tier):
                e2e[group].append(request.ended_s - request.arrival_s)
    return Trial({group: values for group, values in e2e.items() if values}, document)


def figures(trials: Sequence[Trial], group: str) -> dict[str, float]:
    """Medians over the seeds."""
    latencies = [percentiles(trial.e2e[group]) for trial in trials]
    documents = [trial.document for trial in trials]
    return {
        "e2e_p50_s": median(each.p50 for each in latencies),
        "e2e_p95_s": median(each.p95 for each in latencies),
        "e2e_p99_s": median(each.p99 for each in latencies),
        "e2e_max_s": median(each.max for each in latencies),
        "jain": median(each["fairness"]["jain"] for each in documents),
        "goodput_per_s": median(each["goodput"]["requests_per_s"] for each in documents),
        "requests_per_s": median(each["requests"]["finished"] / each["duration_s"] for each in documents),
        "output_tokens_per_s": median(each["tokens"]["output_per_s"] for each in documents),
    }


def _tuples(value: Any) -> Any:
    """Lists as the tuples that the strict models want."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
