"""What a run is made of: a scenario with the command line's wishes applied, resolved and checked.

Everything that can be wrong before a run starts is found here, as a PlanError (exit code 2). What only a run
needs (numpy, asyncio) is imported when one is made: `driftsched check` is quicker for it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, dataclass
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
from scheduler.record.version import package_version
from scheduler.twin.profile import Profile
from scheduler.twin.profile_file import load_profile, profiles

if TYPE_CHECKING:
    from scheduler.engines.clock import Clock
    from scheduler.load.workload import Workload

DEFAULT_CAPACITY = 32
DEFAULT_PROFILE = "qwen1.5-1.8b-chat"


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

    def workload(self, *, start_s: float = 0.0, prefix: str = "r") -> Workload:
        from scheduler.load.workload import Workload

        return Workload(
            self.scenario, seed=self.seed, start_s=start_s, prefix=prefix, count_tokens=self.served_counter
        )

    def scheduler(
        self, *, capacity: int | None = None, emit: Emit | None = None, windows: bool = False
    ) -> Scheduler:
        """A fresh Scheduler. ``windows`` adds the sliding windows that a dashboard reads."""
        scenario, tenants = self.scenario, self.tenants
        return Scheduler(
            policy_from(self.policy),
            self.estimator(scenario.estimator.kind),
            tenants,
            capacities=(self.capacity if capacity is None else capacity,),
            batch=self.batch,
            limits=scenario.limits.limits,
            max_inflight_tokens=self.max_inflight_tokens,
            max_model_len=self.max_model_len,
            metrics=WindowMetrics(tenant.name for tenant in tenants) if windows else None,
            emit=emit,
        )

    def estimator(self, kind: str) -> Estimator:
        """A fresh one of this name, with the scenario's options. Raises ValueError."""
        options = self.scenario.estimator
        prior, embed = NO_PRIOR, None
        if kind == "learned":
            from scheduler.load.embedding import EmbeddingError, embedding_model
            from scheduler.load.prior import shipped_prior

            try:
                embed = embedding_model(options.embeddings) if options.embeddings else None
            except EmbeddingError as error:
                raise PlanError(f"estimator.embeddings: {error}") from None
            prior = shipped_prior(embed is not None)
        return estimator_from(
            kind,
            counter=self.counter,
            calibrate=options.calibrate,
            faithful=self.scenario.paper,
            statistic=options.statistic,
            prior=prior,
            embed=embed,
        )

    @property
    def max_model_len(self) -> int | None:
        """Longest prompt + max_tokens that the simulated engine takes; None where a real one decides.

        As with vLLM, `engine.args.max_model_len` goes before the profile's, and never above what the KV cache
        holds: a longer request could never run.
        """
        if self.profile is None:
            return None
        asked = self.scenario.engine.args.get("max_model_len", self.profile.max_model_len)
        if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
            raise PlanError(f"engine.args.max_model_len: {asked!r:.40} is no number of tokens above 0")
        return min(asked, self.profile.kv_tokens)

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
) -> Plan:
    """Apply the command line to a scenario; ``clock`` None is virtual if that can be. Raises PlanError."""
    kind = engine or scenario.engine.kind
    if model is None and not (engine == "vllm" and scenario.engine.kind == "sim"):
        model = scenario.engine.model  # what a simulated engine is called is no model to load
    if kind == "auto":
        kind = "vllm" if model and importlib.util.find_spec("vllm") else "sim"
    if clock == "virtual":
        if engine == "vllm":
            raise PlanError("--clock virtual needs the simulated engine: a real one cannot be hurried")
        kind = "sim"
    elif scenario.estimator.kind == "oracle" and (clock is not None or kind != "sim"):
        raise PlanError("estimator oracle: it knows true lengths, which only --clock virtual has")
    try:
        autopilot = scenario.policy.auto if policy is None else None  # a policy by name is to stay
        policy = policy_from(policy or scenario.policy.start).describe()
        profile = None
        if kind == "sim":
            profile = _profile(scenario, model)
        elif not model:
            raise PlanError("engine vllm needs a model: --model smollm2, a folder, or a Hugging Face name")
        else:
            resolve(model)
        counter = _counter(scenario, None if kind == "sim" else model)
    except (ValueError, EngineConfigError) as error:
        raise PlanError(str(error)) from error
    uses_tokenizer = scenario.estimator.counter == "tokenizer"
    return Plan(
        scenario=scenario,
        engine=kind,
        model=profile.model if profile else str(model),
        policy=policy,
        seed=scenario.seed if seed is None else seed,
        capacity=scenario.engine.capacity or DEFAULT_CAPACITY,
        profile=profile,
        counter=counter,
        served_counter=counter if uses_tokenizer else None,
        goal=autopilot.to_core() if autopilot is not None else None,
    )


def _profile(scenario: Scenario, model: str | None) -> Profile:
    """The step model of the simulated engine. Raises ValueError for an unknown GPU.

    A model is matched by the last part of its name ("Qwen/Qwen1.5-1.8B-Chat"), on the scenario's GPU first;
    one that has no profile anywhere (it is meant for a real engine) runs as the GPU's first.
    """
    engine = scenario.engine
    if engine.gpu.endswith((".yaml", ".yml")):
        return load_profile(engine.gpu)
    wanted = (model or DEFAULT_PROFILE).rsplit("/", 1)[-1].lower()
    names = profiles()
    matching = [name for name in names if name.endswith(f"/{wanted}")]
    here = [name for name in names if name.startswith(f"{engine.gpu}/")]
    if not here:
        return load_profile(engine.gpu, wanted)  # raises, naming what ships
    best = next((name for name in matching if name in here), (matching or here)[0])
    return load_profile(*best.split("/", 1))


def _counter(scenario: Scenario, served_model: str | None) -> Counter:
    if scenario.estimator.counter == "whitespace":
        return count_words
    tokenizer = scenario.engine.tokenizer or served_model
    if tokenizer is None:
        raise PlanError(
            "estimator.counter tokenizer: the simulated engine serves no model to take one from; "
            "name one as engine.tokenizer: smollm2 (`driftsched models prepare smollm2`) or a model's folder"
        )
    return load_counter(resolve(tokenizer))


def make_engine(plan: Plan, clock: Clock, *, text: bool = False) -> Engine:
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
        "scenario": plan.scenario.name,
        "engine": plan.engine,
        "engine_detail": engine_detail,
        "capacity": capacity,
        "dispatch": plan.dispatch,
        "paper": plan.scenario.paper,
        "clock": clock,
        "policy": plan.policy,
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
