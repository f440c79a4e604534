"""``driftsched bench twin``: what the twin, fitted to an engine, predicts of runs that it has not seen."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol, cast

from scheduler.bench.calibrate import TENANTS, answers, handover_s, scenario, sweep
from scheduler.bench.engine import SharedEngine, shared_engine
from scheduler.bench.replay import Given
from scheduler.bench.result import BenchError, Claim, Result
from scheduler.core.types import Request
from scheduler.engines.vllm_setup import preflight
from scheduler.live.run import LiveRun
from scheduler.load.scenario import Scenario
from scheduler.load.workload import Submit, Workload
from scheduler.plan import Plan, make_plan
from scheduler.record.tally import Tally
from scheduler.twin.fit import Fit, StepSample, fit_profile
from scheduler.twin.gpu import Gpu, GpuEvent
from scheduler.twin.profile import Profile, profile_text
from scheduler.twin.simulate import Simulation

TOLERANCES = {
    "output_per_s": 0.03,
    "e2e_s.p50": 0.05,
    "e2e_s.p90": 0.05,
    "e2e_s.p99": 0.10,
    "ttft_s.p50": 0.10,
}
GAPS = 1.5  # times the gap between repeats of the real run are forgiven, where that is more

PROTOCOL = (
    "One engine, started once, in the bench's own event loop; every run is a whole headless live run on it, "
    "answers of forced length, the prefix cache emptied before each. Calibration: clients that ask again "
    "when they have their answer, from one to {more} at a time, prompts of three to 96 words; the profile "
    "is fitted to the duration of every engine step, the hand-over to the first tokens of the single client. "
    "Scenarios: {requests} requests each, prompts and seeds of their own, one Poisson at {steady:.0%} of the "
    "capacity that the twin gives them, under fifo, one at {rush:.0%}, under weighted. They are run in turn, "
    "{repeats} times each, with a calibration before and after every turn. Then the twin is fitted to the "
    "calibrations alone and given each scenario's arrivals, prompt and answer lengths; the same scheduler, "
    "policy and estimates run in virtual time. Error: predicted against the mean of the repeats. Gap: "
    "largest against smallest repeat, as a share of the mean. A figure is allowed its tolerance, or {gaps} "
    "times its gap if that is more."
)


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
    def profile(self) -> Profile:
        """What is known of it but for its pace."""

    def plan(self, scenario: Scenario) -> Plan: ...

    async def play(self, plan: Plan) -> Played: ...


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done. The loads are shares of the capacity that the twin gives the scenario."""

    requests: int = 300  # of each scenario
    tokens: int = 16  # median answer
    concurrency: int = 16  # the engine's batch
    repeats: int = 2
    steady: float = 0.6
    rush: float = 3.0


def bench_twin(
    tell: Callable[[str], None],
    *,
    model: str = "smollm2",
    sizes: Sizes | None = None,
    out: Path | None = None,
) -> Result:
    """Some minutes; writes the fitted profile to ``out``/twin-profile.yaml. Raises PlanError, EngineError,
    BenchError.

    The engine prints on file descriptors 1 and 2: see ``live.output.engine_output_to``.
    """
    sizes = sizes or Sizes()
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
    def profile(self) -> Profile:
        assert self._engine.profile is not None, "it has started"
        return self._engine.profile

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
    await run.start()
    await run.session.drained.wait()
    document = await run.stop()
    if run.session.failure is not None:
        raise run.session.failure
    counts = document["requests"]
    if not counts["submitted"] == counts["finished"] > 0:
        raise BenchError(f"{counts['finished']} of {counts['submitted']} requests finished")
    return Played(sorted(ended, key=lambda request: request.arrival_s), document, steps)


async def judge(subject: Subject, sizes: Sizes, tell: Callable[[str], None]) -> tuple[Result, Profile]:
    """Calibrate, run, predict, compare. Returns what came of it and the fitted profile."""
    calibrations: list[Played] = []
    with TemporaryDirectory() as folder:

        async def calibrate() -> None:
            tell(f"calibration {len(calibrations) + 1} of {sizes.repeats + 1}")
            spread = sweep(Path(folder), len(calibrations), capacity=sizes.concurrency, tokens=sizes.tokens)
            calibrations.append(await subject.play(subject.plan(spread)))

        tell("warming up")
        warm_up = _scenario("warm-up", "fifo", sizes, 1e6, 2 * sizes.concurrency)
        like = (await subject.play(subject.plan(warm_up))).requests
        await calibrate()
        rough = fit_profile(calibrations[0].steps, subject.profile).profile
        plans = _plans(subject, sizes, rough, round(fmean(request.prompt_tokens for request in like)))
        runs: dict[str, list[Played]] = {name: [] for name in plans}
        for repeat in range(1, sizes.repeats + 1):
            for name, plan in plans.items():
                tell(f"{name}, run {repeat} of {sizes.repeats}")
                runs[name].append(await subject.play(plan))
            await calibrate()

    fit = fit_profile([step for each in calibrations for step in each.steps], subject.profile)
    alone = [request for each in calibrations for request in each.requests]
    delay_s = handover_s(alone, fit.profile)
    protocol = PROTOCOL.format(**asdict(sizes), more=subject.capacity, gaps=GAPS)
    result = Result("twin", protocol, [_fit_row(fit, delay_s), _prompts_row(calibrations, runs.values())])
    for name, plan in plans.items():
        predicted = predict(plan, runs[name][0].requests, fit.profile, subject.capacity, delay_s)
        rows = compare(predicted, [run.document for run in runs[name]])
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
        replace(action.request, prompt_tokens=prompt_tokens)
        for action in actions
        if isinstance(action, Submit)
    ]
    served = predict(plan, requests, profile, subject.capacity, 0.0)
    capacity = sizes.requests / served["duration_s"]
    loads = (("steady", "fifo", sizes.steady), ("rush", "weighted", sizes.rush))
    return {
        name: subject.plan(_scenario(name, policy, sizes, share * capacity, sizes.requests, seed))
        for seed, (name, policy, share) in enumerate(loads, start=1)
    }


# -- the prediction --------------------------------------------------------------------------------------


class Distant(Gpu):
    """A GPU that hears of a request some time after it was sent."""

    def __init__(self, profile: Profile, max_num_seqs: int, delay_s: float) -> None:
        super().__init__(profile, max_num_seqs, first_token_events=False)
        self._delay_s = delay_s
        self._coming: deque[tuple[float, str, int, int]] = deque()

    def start(
        self, request_id: str, prompt_tokens: int, output_tokens: int, now: float, group: str = ""
    ) -> None:
        self._coming.append((now + self._delay_s, request_id, prompt_tokens, output_tokens))

    def next_event(self) -> float:
        event_s = super().next_event()
        return min(event_s, self._coming[0][0]) if self._coming else event_s

    def advance(self, now: float) -> list[GpuEvent]:
        events = super().advance(now)
        while self._coming and self._coming[0][0] <= now:
            super().start(*self._coming.popleft()[1:], now)
        return events


def predict(
    plan: Plan, requests: Iterable[Request], profile: Profile, capacity: int, delay_s: float
) -> dict[str, Any]:
    """Figures of run.json for these requests, of which only what came in and how long the answers were is
    looked at.
    """
    again = [_again(request) for request in requests]
    scheduler = plan.scheduler(capacity=capacity)
    tally = Tally({tenant.name: tenant.slo for tenant in plan.tenants})
    gpu = Distant(profile, plan.capacity, delay_s)
    Simulation(scheduler, [gpu], cast(Workload, Given(again)), on_ended=tally.add).run()
    return tally.figures(scheduler.books.tenants, tally.last_end_s)


def _again(request: Request) -> Request:
    """A fresh one whose answer gets as long, and ends in the same way."""
    tokens = request.output_tokens or request.forced_tokens
    return Request(
        *(request.id, request.tenant, request.tier, request.arrival_s),
        *(request.prompt_tokens, request.max_tokens, request.prompt, request.category),
        intended_tokens=tokens,
        forced_tokens=None if request.finish == "stop" else tokens,
    )


# -- the comparison --------------------------------------------------------------------------------------


def compare(predicted: dict[str, Any], observed: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each figure."""
    rows = []
    names = (
        "output_per_s",
        *(f"{kind}_s.{rank}" for kind in ("ttft", "tpot", "e2e") for rank in ("p50", "p90", "p99")),
    )
    for name in names:
        values = [_figure(document, name) for document in observed]
        ours, mean = _figure(predicted, name), fmean(values)
        gap = (max(values) - min(values)) / mean
        tolerance = TOLERANCES.get(name)
        rows.append(
            {
                "figure": name,
                "predicted": ours,
                "observed": mean,
                "error": ours / mean - 1.0,
                "gap": gap,
                "tolerance": tolerance,
                "allowed": None if tolerance is None else max(tolerance, GAPS * gap),
            }
        )
    return rows


def claims(scenario: str, rows: Iterable[dict[str, Any]]) -> list[Claim]:
    """On the size of each error that has a tolerance."""
    return [
        Claim(
            f"{scenario}_{row['figure']}_error",
            row["allowed"],
            abs(row["error"]),
            abs(row["error"]) <= row["allowed"],
            row["tolerance"],
        )
        for row in rows
        if row["tolerance"] is not None
    ]


def _figure(document: dict[str, Any], name: str) -> float:
    if name == "output_per_s":
        return float(document["tokens"][name])
    kind, _, rank = name.partition("_s.")
    return float(document["latency_s"]["all"][kind][rank])


def _fit_row(fit: Fit, delay_s: float) -> dict[str, Any]:
    profile = fit.profile
    return {
        "fitted_to": "calibration",
        "steps": fit.steps,
        "dropped": fit.dropped,
        "median_error": fit.median_error,
        "fixed_ms": profile.fixed_s * 1e3,
        "floor_ms": profile.floor_s * 1e3,
        "per_context_token_us": profile.per_context_token_s * 1e6,
        "per_sequence_us": profile.per_sequence_s * 1e6,
        "per_prefill_token_us": profile.per_prefill_token_s * 1e6,
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
