"""What a run is made of: a scenario with the command line's wishes applied, resolved and checked.

Everything that can be wrong before a run starts is found here (exit code 2): a ScenarioError where the
scenario is to blame, else a PlanError. What only a run needs (numpy, asyncio) is imported when one is made:
`driftsched check` is quicker for it.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from scheduler.core.autopilot import Goal
from scheduler.core.estimate import Counter, Estimator, count_words
from scheduler.core.estimators import estimator_from
from scheduler.core.events import Emit
from scheduler.core.guard import GuardRule
from scheduler.core.metrics import WindowMetrics
from scheduler.core.policies import policy_from
from scheduler.core.prior import NO_PRIOR
from scheduler.core.scheduler import Scheduler
from scheduler.core.slots import MicroBatch
from scheduler.core.types import Tenant
from scheduler.engines.engine import Engine, EngineConfigError
from scheduler.engines.models import load_counter, resolve
from scheduler.load.scenario import Scenario
from scheduler.load.schema import EngineSection, EstimatorOptions
from scheduler.load.traces import scan
from scheduler.load.yamlfile import Loc, did_you_mean
from scheduler.record.version import package_version
from scheduler.twin.profile import Profile
from scheduler.twin.profile_file import load_profile, profiles

if TYPE_CHECKING:
    from scheduler.engines.clock import Clock
    from scheduler.load.workload import Workload

DEFAULT_CAPACITY = 32
DEFAULT_GPU, DEFAULT_MODEL = "l4", "qwen1.5-1.8b-chat"  # of the simulated engine


class PlanError(ValueError):
    """The run cannot be made as asked; says what is wrong and what is allowed."""


@dataclass(frozen=True)
class Plan:
    """One run, ready to be built. ``profile`` is set for the simulated engine only."""

    scenario: Scenario
    engine: str  # sim or vllm
    model: str
    policy: str
    seed: int
    capacity: int  # requests in flight, as the scheduler counts
    profile: Profile | None
    counter: Counter
    served_counter: Counter | None  # counts what the engine will prefill, where known
    goal: Goal | None = None  # of the autopilot, where there is one
    invocation: tuple[str, ...] = ()  # words of the command line that make such a plan again

    @property
    def simulated(self) -> bool:
        return self.engine == "sim"

    @property
    def tenants(self) -> tuple[Tenant, ...]:
        return tuple(tenant.to_core() for tenant in self.scenario.tenants)

    @property
    def guard(self) -> GuardRule | None:
        return None if self.scenario.guard is None else self.scenario.guard.to_core()

    @property
    def steered(self) -> bool:
        """Whether the policy can change in the course of the run, by the scenario itself."""
        switches = any(item.policy is not None for item in self.scenario.timeline)
        return switches or self.goal is not None

    @property
    def batch(self) -> MicroBatch | None:
        micro = self.scenario.dispatch.microbatch
        return None if micro is None else MicroBatch(micro.size, micro.wait_s)

    @property
    def dispatch(self) -> str:
        """For people and run.json: "continuous" or "microbatch 32/10ms"."""
        batch = self.batch
        return "continuous" if batch is None else f"microbatch {batch.size}/{batch.wait_s * 1e3:g}ms"

    def workload(self) -> Workload:
        from scheduler.load.workload import Workload

        return Workload(
            self.scenario,
            seed=self.seed,
            prefix="r",
            count_tokens=self.served_counter,
            estimator=self.estimator,
        )

    def scheduler(
        self, *, capacity: int | None = None, emit: Emit | None = None, windows: bool = False
    ) -> Scheduler:
        """A fresh Scheduler. ``windows`` adds the sliding windows that a dashboard reads."""
        scenario, tenants = self.scenario, self.tenants
        return Scheduler(
            policy_from(self.policy),
            self.estimator(scenario.estimator),
            tenants,
            capacities=(self.capacity if capacity is None else capacity,),
            batch=self.batch,
            limits=scenario.limits.limits,
            max_inflight_tokens=self.max_inflight_tokens,
            max_model_len=self.max_model_len,
            metrics=WindowMetrics(tenant.name for tenant in tenants) if windows else None,
            emit=emit,
        )

    def estimator(self, wanted: EstimatorOptions) -> Estimator:
        """A fresh one; what ``wanted`` does not say is as the scenario has it. Raises PlanError."""
        said = {name: getattr(wanted, name) for name in wanted.model_fields_set}
        options = self.scenario.estimator.model_copy(update=said)
        prior, embed = NO_PRIOR, None
        if options.kind == "learned":
            from scheduler.load.embedding import EmbeddingError, embedding_model
            from scheduler.load.prior import shipped_prior

            try:
                embed = embedding_model(options.embeddings) if options.embeddings else None
            except EmbeddingError as error:
                raise PlanError(f"estimator.embeddings: {error}") from None
            prior = shipped_prior(embed is not None)
        return estimator_from(
            options.kind,
            counter=self.counter,
            calibrate=options.calibrate,
            faithful=self.scenario.paper,
            statistic=options.statistic,
            prior=prior,
            embed=embed,
        )

    @property
    def max_model_len(self) -> int | None:
        """Prompt + max_tokens that the simulated engine takes; None for a real one, which decides."""
        return self.profile.max_model_len if self.profile else None

    @property
    def max_inflight_tokens(self) -> float | None:
        """Bound on the tokens in flight; None where there is none, and for `kv` of a real engine."""
        asked = self.scenario.max_inflight_tokens
        if asked == "kv":
            return self.profile.kv_tokens if self.profile else None
        return asked


def make_plan(
    scenario: Scenario,
    *,
    engine: str | None = None,
    model: str | None = None,
    policy: str | None = None,
    seed: int | None = None,
    clock: str | None = "real",
    invocation: Sequence[str] = (),
) -> Plan:
    """Apply the command line to a scenario; ``clock`` None is virtual if that can be. ``invocation`` is kept
    for run.json.

    Raises PlanError, and ScenarioError for what is wrong in the scenario.
    """
    kind = engine or scenario.engine.kind
    model_loc = ("engine", "model") if model is None else ()
    if model is None and not (engine == "vllm" and scenario.engine.kind == "sim"):
        model = scenario.engine.model  # what a simulated engine is called is no model to load
    with _blaming(scenario, *model_loc):
        if model == "":
            raise ValueError("a model's name cannot be empty")
    if kind == "auto":
        kind = "vllm" if model and importlib.util.find_spec("vllm") else "sim"
    if clock == "virtual":
        if engine == "vllm":
            raise PlanError("--clock virtual needs the simulated engine: a real one cannot be hurried")
        kind = "sim"
    elif (loc := _oracle(scenario)) and (clock is not None or kind != "sim"):
        raise scenario.error(loc, "the oracle knows true lengths, which only --clock virtual has")
    autopilot = scenario.policy.auto if policy is None else None  # a policy by name is to stay
    with _blaming(scenario):
        policy = policy_from(scenario.policy.start if policy is None else policy).describe()
    profile = None
    if kind == "sim":
        with _blaming(scenario, *model_loc):
            profile = _profile(scenario.engine, model)
        profile = replace(profile, max_model_len=_max_model_len(scenario, profile))
    else:
        with _blaming(scenario, *(() if engine else ("engine", "model"))):
            if not model:
                raise ValueError("engine vllm needs a model: smollm2, a folder, or a Hugging Face name")
        with _blaming(scenario, *model_loc):
            resolve(model)
    counter = _counter(scenario, None if kind == "sim" else model)
    uses_tokenizer = scenario.estimator.counter == "tokenizer"
    return Plan(
        scenario=scenario,
        engine=kind,
        model=profile.model if profile else str(model),
        policy=policy,
        seed=scenario.seed if seed is None else seed,
        capacity=_capacity(scenario, profile),
        profile=profile,
        counter=counter,
        served_counter=counter if uses_tokenizer else None,
        goal=autopilot.to_core() if autopilot is not None else None,
        invocation=tuple(invocation),
    )


@contextmanager
def _blaming(scenario: Scenario, *loc: str) -> Iterator[None]:
    """What is wrong inside is wrong at this place of the scenario; without one, on the command line."""
    try:
        yield
    except (ValueError, EngineConfigError) as error:
        raise (scenario.error(loc, str(error)) if loc else PlanError(str(error))) from error


def _oracle(scenario: Scenario) -> Loc:
    """Where the oracle is first asked for; () where it is not."""
    if scenario.estimator.kind == "oracle":
        return ("estimator",)
    for index, item in enumerate(scenario.timeline):
        if item.estimator is not None and item.estimator.kind == "oracle":
            return ("timeline", index, "estimator")
    return ()


def _profile(engine: EngineSection, model: str | None) -> Profile:
    """The step model of the simulated engine. Raises ValueError.

    A model is matched by the last part of its name ("Qwen/Qwen1.5-1.8B-Chat"), on the GPU that is named, else
    on any. One without a profile may be meant for a real engine: then the GPU's default stands for it.
    """
    if engine.gpu is not None and engine.gpu.endswith((".yaml", ".yml")):
        return load_profile(engine.gpu)
    gpu = engine.gpu or DEFAULT_GPU
    own = [name for name in profiles() if name.startswith(f"{gpu}/")]
    candidates = own if engine.gpu else [*own, *profiles()]
    by_model = {name.partition("/")[2]: name for name in reversed(candidates)}  # the GPU's own go first
    wanted = (model or DEFAULT_MODEL).rsplit("/", 1)[-1].lower()
    if model and wanted not in by_model and engine.kind == "sim":
        raise ValueError(f"nothing simulates {model!r:.60} on {gpu}; {did_you_mean(wanted, by_model)}")
    usual = by_model.get(DEFAULT_MODEL, own[0])
    return load_profile(*by_model.get(wanted, usual).split("/", 1))


def _max_model_len(scenario: Scenario, profile: Profile) -> int:
    """Longest prompt + max_tokens that the simulated engine takes.

    As with vLLM, `engine.args.max_model_len` goes before the profile's, and never above what the KV cache
    holds: a longer request could never run.
    """
    args, known = scenario.engine.args, "max_model_len"
    for name in args:
        if name != known and difflib.get_close_matches(name, [known], cutoff=0.8):
            raise scenario.error(("engine", "args", name), f"no such argument; did you mean {known!r}?")
    asked = args.get(known, profile.max_model_len)
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise scenario.error(("engine", "args", known), f"{asked!r:.40} is no number of tokens above 0")
    return min(asked, profile.kv_tokens)


def _capacity(scenario: Scenario, profile: Profile | None) -> int:
    """Requests in flight: at least a micro-batch, at most what the simulated engine batches."""
    asked, micro = scenario.engine.capacity, scenario.dispatch.microbatch
    size, size_loc = micro.size if micro else 0, ("dispatch", "microbatch", "size")
    most = DEFAULT_CAPACITY if profile is None else profile.max_num_batched_tokens
    capacity = asked or max(min(DEFAULT_CAPACITY, most), size)
    if size > capacity:
        raise scenario.error(size_loc, f"{size} never run at once: engine.capacity is {capacity}")
    if profile is not None and capacity > most:
        loc = ("engine", "capacity") if asked else size_loc
        raise scenario.error(loc, f"must be at most {most} ({profile.detail}), got {capacity}")
    return capacity


def _counter(scenario: Scenario, served_model: str | None) -> Counter:
    if scenario.estimator.counter == "whitespace":
        return count_words
    tokenizer = scenario.engine.tokenizer or served_model
    if tokenizer is None and scenario.load and not _has_uncounted_prompts(scenario):
        return count_words  # of the estimator, should a row have its text besides
    loc = ("engine", "tokenizer") if scenario.engine.tokenizer else ("estimator", "counter")
    with _blaming(scenario, *loc):
        if tokenizer is None:
            raise ValueError(
                "the simulated engine has no tokenizer: give `engine.tokenizer` a folder, or smollm2 (made "
                "by `driftsched models prepare smollm2`), or use `counter: whitespace`"
            )
        return load_counter(tokenizer)


def _has_uncounted_prompts(scenario: Scenario) -> bool:
    tenants = frozenset(tenant.name for tenant in scenario.tenants)
    return any(item.burst for item in scenario.timeline) or any(
        stream.trace is None or scan(stream.trace, None if stream.tenant else tenants).uncounted
        for stream in scenario.load
    )


def make_engine(plan: Plan, clock: Clock, *, text: bool) -> Engine:
    """The engine of a live run, not started yet. ``plan.capacity`` is what the engine itself batches;
    ``text``: somebody wants to read the answers.
    """
    if plan.profile is not None:
        from scheduler.engines.simulated import SimulatedEngine

        return SimulatedEngine(plan.profile, plan.capacity, clock, text=text)
    from scheduler.engines.vllm import VllmEngine

    return VllmEngine(plan.model, max_num_seqs=plan.capacity, args=plan.scenario.engine.args, keep_text=text)


def run_header(plan: Plan, engine_detail: str, capacity: int, clock: str) -> dict[str, Any]:
    """The part of run.json that names the run."""
    return {
        "version": package_version(),
        "invocation": list(plan.invocation),
        "scenario": plan.scenario.name,
        "engine": plan.engine,
        "engine_detail": engine_detail,
        "capacity": capacity,
        "dispatch": plan.dispatch,
        "paper": plan.scenario.paper,
        "clock": clock,
        "policy": plan.policy,
        "guarded": plan.guard is not None,
        "autopilot": plan.goal is not None,
        "estimator": plan.scenario.estimator.kind,
        "counter": plan.scenario.estimator.counter,
        "calibrated": plan.scenario.estimator.calibrate,
        "seed": plan.seed,
        "tenants": {
            tenant.name: {
                "tier": tenant.tier,
                "weight": tenant.weight,
                "slo": asdict(tenant.slo),
                "limits": asdict(tenant.limits),
            }
            for tenant in plan.tenants
        },
        "limits": asdict(plan.scenario.limits.limits),
        "max_inflight_tokens": plan.max_inflight_tokens,
        "max_model_len": plan.max_model_len,
    }
