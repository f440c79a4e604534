"""The sections of a scenario file as models: strict, closed, frozen.

Where a run has a class for the same thing (``Tenant``, ``Guard``), the section is called ``...Section``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from math import inf
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from scheduler.core.autopilot import Goal
from scheduler.core.bounds import COMPARE, COSTS, FIGURES, Bound
from scheduler.core.estimators import ESTIMATORS
from scheduler.core.guard import GuardRule
from scheduler.core.policies import policy_from
from scheduler.core.types import Limits, Slo, Tenant, Tier
from scheduler.load.fields import (
    Count,
    CountOrZero,
    Duration,
    Name,
    PolicySpec,
    Positive,
    Seconds,
    Section,
    SomeRate,
    TimeToLive,
    Weight,
    embedding_path,
    exactly_one,
    gpu_profile,
    model_path,
    not_empty,
    or_section,
    policy_spec,
)
from scheduler.load.stream import Stream
from scheduler.load.yamlfile import Document, Loc, ScenarioError, did_you_mean, kind_of
from scheduler.record.expect import parse_expect


class EngineSection(Section):
    """What runs the requests."""

    kind: Literal["sim", "vllm", "auto"] = "sim"
    """`auto` is vllm where a model is given and vLLM is installed, else sim."""
    gpu: Annotated[str, AfterValidator(gpu_profile)] | None = None
    """Step model of the simulated engine: a shipped GPU, or a YAML file such as ``bench twin`` writes."""
    model: Annotated[str, AfterValidator(model_path)] | None = None
    """A folder, a Hugging Face name, or a prepared name such as smollm2."""
    capacity: Count | None = None
    """Concurrent requests; None leaves it to the engine."""
    tokenizer: Annotated[str, AfterValidator(model_path)] | None = None
    """Folder of a tokenizer, or smollm2, where the simulated engine is to count real tokens."""
    args: dict[str, Any] = Field(default_factory=dict)
    """vLLM's engine arguments; the simulated engine looks at ``max_model_len`` alone."""


class Microbatch(Section):
    """The paper's blocking batches."""

    size: Count = 32
    wait_s: Seconds = Field(default=0.01, alias="wait")
    """Longest time a batch waits for more."""


class Dispatch(Section):
    """`continuous`, or micro-batches."""

    microbatch: Microbatch | None = None


class EstimatorOptions(Section):
    """How output lengths are guessed; a name alone will do."""

    kind: str = "paper"
    calibrate: bool = True
    """Learn from completions; of the paper's estimator."""
    statistic: Literal["median", "mean"] = "median"
    """What `tenant` keeps of each tenant's answers."""
    embeddings: Annotated[str, AfterValidator(embedding_path)] | None = None
    """`minilm` or a folder with all-MiniLM-L6-v2: `learned` reads prompts with it, too."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        if isinstance(value, str):
            return {"kind": value}
        if not isinstance(value, Mapping | Section):
            raise ValueError(f"must be an estimator's name or a mapping, got {kind_of(value)}")
        return value

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.kind not in ESTIMATORS:
            raise ValueError(f"unknown estimator {self.kind!r:.60}; {did_you_mean(self.kind, ESTIMATORS)}")
        return self


class EstimatorSection(EstimatorOptions):
    """The one that a run starts with, and how all of them count."""

    counter: Literal["whitespace", "tokenizer"] = "whitespace"


class SloSection(Section):
    """Objectives of one tenant."""

    ttft_s: Duration = Field(default=inf, alias="ttft")
    e2e_s: Duration = Field(default=inf, alias="e2e")
    tpot_s: Duration = Field(default=inf, alias="tpot")

    def to_core(self) -> Slo:
        return Slo(self.ttft_s, self.e2e_s, self.tpot_s)


class LimitsSection(Section):
    """Bounds on what may wait and run; unset is unbounded."""

    max_queued: CountOrZero | None = None
    """Requests waiting."""
    max_queued_tokens: CountOrZero | None = None
    """Estimated tokens waiting, prompt and output."""
    max_in_flight: Count | None = None
    """Requests running."""
    ttl_s: TimeToLive | None = Field(default=None, alias="ttl")
    """Longest time in the queue."""

    @property
    def limits(self) -> Limits:
        """Those that the section does not have are unbounded, too: the rates, over all tenants."""
        return Limits(**{field.name: getattr(self, field.name, None) for field in fields(Limits)})


class TenantLimits(LimitsSection):
    """Bounds of one tenant; more may be set than over all."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    """Prompt tokens and estimated output tokens."""

    @property
    def named(self) -> dict[str, Any]:
        """Of the limits those that are given; None lifts one."""
        return {name: value for name, value in asdict(self.limits).items() if name in self.model_fields_set}


class TenantSection(TenantLimits):
    """One tenant."""

    name: Name
    tier: Tier = "standard"
    weight: Weight = 1.0
    slo: SloSection = SloSection()

    def to_core(self) -> Tenant:
        return Tenant(self.name, self.tier, self.weight, self.slo.to_core(), self.limits)


class Burst(Section):
    """Extra Poisson arrivals of one tenant, made like those of its first stream."""

    tenant: str
    rate: SomeRate
    for_s: Duration = Field(alias="for")


class Drift(Section):
    """From here on answers are longer or shorter."""

    tenant: str | None = None
    """Every tenant where not given."""
    output_scale: Annotated[float, Field(ge=0.01, le=100)]
    force: bool = False
    """Make a real engine answer exactly as long as drawn; the run is then labelled forced lengths."""


class TenantChange(TenantLimits):
    """New weight or limits of a tenant; what is not given stays."""

    name: str
    weight: Weight | None = None


class FaultSection(Section):
    """Break something on purpose."""

    engine: Literal["crash"]


class TimelineItem(Section):
    """One thing to do at one time. Exactly one of the keys beside `at`."""

    at_s: Seconds = Field(alias="at")
    policy: PolicySpec | None = None
    burst: Burst | None = None
    drift: Drift | None = None
    tenant: TenantChange | None = None
    fault: FaultSection | None = None
    estimator: EstimatorOptions | None = None
    """What it does not say is as in the scenario's own."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, "policy", "burst", "drift", "tenant", "fault", "estimator")
        return self


def _bound(value: object) -> Bound:
    """``tiers.premium.e2e.p99 < 12s``; with the path that run.json has, too."""
    if not isinstance(value, str):
        raise ValueError(f"must be `FIGURE OP VALUE`, such as e2e.p99 < 12s, got {value!r:.60}")
    expectation = parse_expect(value)
    figure = _figure(expectation.path)
    if expectation.op not in COMPARE or not isinstance(expectation.value, float):
        raise ValueError(f"{value!r:.60} compares with one of {' '.join(COMPARE)} and a number or a duration")
    return Bound(figure, expectation.op, expectation.value)


def _figure(value: object) -> str:
    name = str(value).removeprefix("latency_s.").removeprefix("all.")
    if name not in FIGURES:
        raise ValueError(f"no figure {value!r:.60}; {did_you_mean(name, FIGURES)}")
    return name


def _cost(value: object) -> str:
    if (name := _figure(value)) not in COSTS:
        raise ValueError(f"of {name} more is better; bound it, such as subject_to: [{name} > 5]")
    return name


def _share(value: object) -> float:
    """``25%`` or 0.25."""
    text = str(value)
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = inf
    if isinstance(value, bool) or not 0 <= share < 100:
        raise ValueError(f"must be a share such as 25% or 0.25, got {value!r:.60}")
    return share


BoundSpec = Annotated[Bound, BeforeValidator(_bound)]
Share = Annotated[float, BeforeValidator(_share)]


CANDIDATES = tuple(
    policy_from(name).describe() for name in ("fifo", "sjf", "two-class", "fair+two-class", "priority")
)


def _previous(value: object) -> object:
    return value if value == "previous" else policy_spec(value)


def _policy(value: object) -> object:
    if isinstance(value, PolicySection) or (isinstance(value, Mapping) and set(value) == {"auto"}):
        return value
    return {"spec": policy_spec(value)}


class GuardSection(Section):
    """When to undo a switch of the policy. At least one of `when` and `worse_than_predicted`."""

    when: BoundSpec | None = None
    """What must not be."""
    worse_than_predicted: Share | None = None
    """The P50 of E2E is this much above what was predicted at the switch."""
    over_s: Duration = Field(default=60.0, alias="over")
    """Figures are over this span."""
    hold_s: Seconds = Field(default=30.0, alias="hold")
    """How long a violation must last."""
    cooldown_s: Duration = Field(default=120.0, alias="cooldown")
    """Shortest time between two roll backs."""
    roll_back: Annotated[Literal["previous"] | PolicySpec, BeforeValidator(_previous)] = "previous"
    """To the policy before the switch, or to this one."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.when is None and self.worse_than_predicted is None:
            raise ValueError("needs `when`, `worse_than_predicted` or both")
        return self

    def to_core(self) -> GuardRule:
        target = "" if self.roll_back == "previous" else self.roll_back
        return GuardRule(
            self.when, self.worse_than_predicted, self.over_s, self.hold_s, self.cooldown_s, target
        )


class Auto(Section):
    """Previews every so often, and a swap when the gain is clear."""

    minimise: Annotated[str, BeforeValidator(_cost)] = "e2e.p50"
    subject_to: tuple[BoundSpec, ...] = ()
    every_s: Annotated[Duration, Field(ge=1)] = Field(default=30.0, alias="every")
    candidates: Annotated[tuple[PolicySpec, ...], AfterValidator(not_empty)] = CANDIDATES
    start: PolicySpec = "fifo"
    gain: Share = 0.10

    def to_core(self) -> Goal:
        return Goal(self.minimise, self.subject_to, self.candidates, self.every_s, self.gain)


class PolicySection(Section):
    """A name with its parameters, as text, or an autopilot."""

    spec: PolicySpec = "fifo"
    auto: Auto | None = None

    @property
    def start(self) -> str:
        """What orders first."""
        return self.spec if self.auto is None else self.auto.start


def _kv(value: object) -> object:
    if value == "kv" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"must be `kv` or a whole number of at least 1, got {value!r:.60}")


class Scenario(Section):
    """A whole file."""

    name: Name
    description: str = ""
    """One line for lists."""
    seed: int = 0
    engine: EngineSection = EngineSection()
    dispatch: Annotated[Dispatch, or_section("continuous", {}, "{microbatch: {size: 32}}")] = Dispatch()
    policy: Annotated[PolicySection, BeforeValidator(_policy)] = PolicySection()
    """A name, a name with its parameters, or `auto`."""
    guard: GuardSection | None = None
    """Rolls a switch back."""
    estimator: EstimatorSection = EstimatorSection()
    paper: bool = False
    """With the paper's quirks."""
    limits: LimitsSection = LimitsSection()
    """Over all tenants."""
    max_inflight_tokens: Annotated[int | Literal["kv"] | None, BeforeValidator(_kv)] = None
    """Bound on tokens in flight, reserved at the upper estimate; `kv` is what the cache holds."""
    tenants: Annotated[tuple[TenantSection, ...], AfterValidator(not_empty)]
    load: Annotated[tuple[Stream, ...], AfterValidator(not_empty)]
    timeline: tuple[TimelineItem, ...] = ()
    expect: tuple[str, ...] = ()
    speed: Positive = 1.0
    """Run seconds in a second of a simulated engine's live run."""
    _document: Document | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        self._document = (context or {}).get("document")

    def error(self, loc: Loc, what: str) -> ScenarioError:
        """For what shows only when a run is planned: wrong at ``loc``, with the line if there is a file."""
        return ScenarioError([(self._document or Document(self.name)).problem(loc, what)])
