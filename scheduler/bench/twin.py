"""``driftsched bench twin``: what the twin, fitted to an engine, predicts of runs that it has not seen."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

from scheduler.bench.engine import TENANTS, SharedEngine, play_out, shared_engine
from scheduler.bench.result import Result
from scheduler.bench.twin_calibration import answers, handover_s, scenario, sweep
from scheduler.bench.twin_prediction import GAPS, claims, compare, predict
from scheduler.core.types import Request
from scheduler.engines.vllm_setup import preflight
from scheduler.live.run import LiveRun
from scheduler.load.scenario import Scenario
from scheduler.plan import Plan, make_plan
from scheduler.twin.fit import Fit, StepSample, at_pace_of, fit_profile
from scheduler.twin.profile import Profile
from scheduler.twin.profile_file import profile_text, step_costs

PROTOCOL = (
    "One engine, started once, in the bench's own event loop; every run is a whole headless live run on it, "
    "answers of forced length, the prefix cache emptied before each. Calibration: clients that ask again "
    "when they have their answer, from one to {more} at a time, with short prompts and with long; the "
    "profile is fitted to the duration of every engine step, the hand-over to the first tokens of the single "
    "client. "
    "Scenarios: {requests} requests each, prompts and seeds of their own, one Poisson at {steady:.0%} of the "
    "capacity that the twin gives them, under fifo, one at {rush:.0%}, under weighted. They are run in turn, "
    "{repeats} times each, with a calibration before and after every run. Then the twin is fitted to the "
    "calibrations alone and given each scenario's arrivals, prompt and answer lengths; the same scheduler, "
    "policy and estimates run in virtual time. Error: predicted against the mean of the repeats. Gap: "
    "largest against smallest repeat, as a share of the mean. A figure is allowed its tolerance, or {gaps} "
    "times its gap if that is more. Error at own pace, which no claim is on: of the same profile, scaled so "
    "that the steps of each run add up to the time that they took. It tells a wrong model from a machine "
    "whose pace has changed since the calibrations."
)


POLICIES = {"steady": "fifo", "rush": "weighted"}
"""Of each scenario."""


class Played(NamedTuple):
    """One live run: its requests by arrival, its run.json, the engine's steps."""

    requests: Sequence[Request]
    document: dict[str, Any]
    steps: Sequence[StepSample]


class Subject(Protocol):
    """The engine that is to be predicted."""

    @property
    def capacity(self) -> int:
        """Requests in flight, as the scheduler counts."""

    @property
    def blank(self) -> Profile:
        """A step model of it, right but for its pace."""

    def plan(self, scenario: Scenario) -> Plan: ...

    async def play(self, plan: Plan) -> Played: ...


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done. The loads are shares of the capacity that the twin gives the scenario."""

    requests: int = 300  # of each scenario
    tokens: int = 16  # median answer
    concurrency: int = 16  # the engine's batch
    repeats: int = 3
    steady: float = 0.6
    rush: float = 3.0


def bench_twin(tell: Callable[[str], None], *, model: str, sizes: Sizes, out: Path | None) -> Result:
    """Some minutes; writes the fitted profile to ``out``/twin-profile.yaml. Raises PlanError, EngineError,
    BenchError.

    The engine prints on file descriptors 1 and 2: see ``live.output.engine_output_to``.
    """
    tell("importing vLLM")
    preflight(model)

    async def run() -> tuple[Result, Profile]:
        async with _vllm(model, sizes, tell) as subject:
            return await judge(subject, sizes, tell)

    result, profile = asyncio.run(run())
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "twin-profile.yaml").write_text(profile_text(profile), encoding="utf-8")
    return result


class _Vllm:
    """A vLLM engine that outlives its runs."""

    def __init__(self, engine: SharedEngine, model: str) -> None:
        self._engine = engine
        self._model = model

    @property
    def capacity(self) -> int:
        return self._engine.capacity

    @property
    def blank(self) -> Profile:
        assert self._engine.blank is not None, "it has started"
        return self._engine.blank

    def plan(self, scenario: Scenario) -> Plan:
        return make_plan(scenario, engine="vllm", model=self._model)

    async def play(self, plan: Plan) -> Played:
        steps: list[StepSample] = []
        await self._engine.llm.reset_prefix_cache()
        self._engine.on_step = steps.append
        return await play(LiveRun(plan, engine=self._engine), steps)


@asynccontextmanager
async def _vllm(model: str, sizes: Sizes, tell: Callable[[str], None]) -> AsyncIterator[_Vllm]:
    plan = make_plan(_scenario("start", "fifo", sizes, 1.0, 1), engine="vllm", model=model)
    async with shared_engine(plan, tell) as engine:
        yield _Vllm(engine, model)


async def play(run: LiveRun, steps: Sequence[StepSample]) -> Played:
    """A live run to its end; ``steps`` is filled meanwhile. Raises EngineError, BenchError."""
    ended: list[Request] = []
    run.observers.append(ended.append)
    document, _ = await play_out(run)
    return Played(sorted(ended, key=lambda request: request.arrival_s), document, steps)


async def judge(subject: Subject, sizes: Sizes, tell: Callable[[str], None]) -> tuple[Result, Profile]:
    """Calibrate, run, predict, compare. Returns what came of it and the fitted profile."""
    calibrations: list[Played] = []
    with TemporaryDirectory() as folder:

        async def calibrate() -> None:
            tell(f"calibration {len(calibrations) + 1} of {sizes.repeats * len(POLICIES) + 1}")
            spread = sweep(Path(folder), len(calibrations), capacity=sizes.concurrency, tokens=sizes.tokens)
            calibrations.append(await subject.play(subject.plan(spread)))

        tell("warming up")
        warm_up = _scenario("warm-up", "fifo", sizes, 1e6, 2 * sizes.concurrency)
        like = (await subject.play(subject.plan(warm_up))).requests
        await calibrate()
        rough = fit_profile(calibrations[0].steps, subject.blank).profile
        plans = _plans(subject, sizes, rough, round(fmean(request.prompt_tokens for request in like)))
        runs: dict[str, list[Played]] = {name: [] for name in plans}
        for repeat in range(1, sizes.repeats + 1):
            for name, plan in plans.items():
                tell(f"{name}, run {repeat} of {sizes.repeats}")
                runs[name].append(await subject.play(plan))
                await calibrate()  # often: an engine's pace follows what else its machine does

    fit = fit_profile([step for each in calibrations for step in each.steps], subject.blank)
    alone = [request for each in calibrations for request in each.requests]
    delay_s = handover_s(alone, fit.profile)
    protocol = PROTOCOL.format(**asdict(sizes), more=subject.capacity, gaps=GAPS)
    result = Result("twin", protocol, [_fit_row(fit, delay_s), _prompts_row(calibrations, runs.values())])
    for name, plan in plans.items():
        played = runs[name]
        predicted = predict(plan, played[0].requests, fit.profile, subject.capacity, delay_s)
        at_own_pace = [
            predict(plan, run.requests, at_pace_of(run.steps, fit.profile), subject.capacity, delay_s)
            for run in played
        ]
        rows = compare(predicted, at_own_pace, [run.document for run in played])
        where = {
            "scenario": name,
            "policy": plan.policy,
            "load": sizes.steady if name == "steady" else sizes.rush,
        }
        result.rows.extend(where | row for row in rows)
        result.claims.extend(claims(name, rows))
    return result, fit.profile


# -- the scenarios ---------------------------------------------------------------------------------------


def _scenario(name: str, policy: str, sizes: Sizes, rate: float, requests: int, seed: int = 0) -> Scenario:
    stream = {
        "tenant": dict.fromkeys(TENANTS, 1),
        "arrivals": {"poisson": rate},
        "count": requests,
        **answers(sizes.tokens),
    }
    return scenario(name, policy, seed, [stream], sizes.concurrency)


def _plans(subject: Subject, sizes: Sizes, profile: Profile, prompt_tokens: int) -> dict[str, Plan]:
    """Both scenarios, their rates set by what the twin can serve of such requests. Only the engine knows how
    many tokens their prompts have: as many as those that it has seen, on average.
    """
    plan = subject.plan(_scenario("capacity", "fifo", sizes, 1e6, sizes.requests))
    actions = plan.workload().take(inf)
    requests = [
        replace(action, prompt_tokens=prompt_tokens) for action in actions if isinstance(action, Request)
    ]
    served = predict(plan, requests, profile, subject.capacity, 0.0)
    capacity = sizes.requests / served["duration_s"]
    loads = {"steady": sizes.steady, "rush": sizes.rush}
    return {
        name: subject.plan(_scenario(name, policy, sizes, loads[name] * capacity, sizes.requests, seed))
        for seed, (name, policy) in enumerate(POLICIES.items(), start=1)
    }


# -- rows -----------------------------------------------------------------------------------------------


def _fit_row(fit: Fit, delay_s: float) -> dict[str, Any]:
    costs = step_costs(fit.profile)
    return {
        "fitted_to": "calibration",
        "steps": fit.steps,
        "dropped": fit.dropped,
        "median_error": fit.median_error,
        **{name: cost if cost < inf else None for name, cost in costs.items()},
        "handover_ms": delay_s * 1e3,
    }


def _prompts_row(calibrations: Iterable[Played], runs: Iterable[Sequence[Played]]) -> dict[str, Any]:
    """SHA-256 tells whether a prompt was seen before."""

    def hashes(played: Iterable[Played]) -> set[bytes]:
        return {hashlib.sha256(r.prompt.encode()).digest() for each in played for r in each.requests}

    fitted, tested = hashes(calibrations), hashes(run for repeats in runs for run in repeats)
    return {
        "prompts": "by hash",
        "calibration": len(fitted),
        "scenarios": len(tested),
        "in_both": len(fitted & tested),
    }
