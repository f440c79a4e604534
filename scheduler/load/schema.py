"""The sections of a scenario file as models: strict, closed, frozen; one docstring a field.

Shapes that may be written in two ways (``tenant: acme`` or ``tenant: {acme: 1}``) are brought to one before
they are checked, so the location of an error is always a place in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from unicodedata import category as unicode_category

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from scheduler.core.durations import parse_duration
from scheduler.core.estimate import BASE_TOKENS, ESTIMATORS
from scheduler.core.policies import policy_from
from scheduler.core.types import Limits, Sampling, Slo, Tenant
from scheduler.load.yamlfile import did_you_mean

MAX_TOKENS = 1_000_000


class Section(BaseModel):
    """What every section is."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _name(value: str) -> str:
    if not value.strip() or value != value.strip() or len(value) > 64:
        raise ValueError("must be 1 to 64 characters, with no space at the ends")
    if any(unicode_category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for char in value):
        raise ValueError(
            "holds a control or invisible character; letters, digits and punctuation are allowed"
        )
    return value


def _file(value: str, info: ValidationInfo) -> str:
    path = _relative(value, info)
    if not Path(path).is_file():
        raise ValueError(f"no such file: {value!r:.200}; paths are relative to the scenario file")
    return path


def _relative(value: str, info: ValidationInfo) -> str:
    return str(Path((info.context or {}).get("folder", ".")) / Path(value).expanduser())


def _model_path(value: str, info: ValidationInfo) -> str:
    """A folder beside the scenario stays a path; a shipped or Hugging Face name stays a name."""
    return _relative(value, info) if value.startswith((".", "/", "~")) else value


def _policy(value: object) -> str:
    if not isinstance(value, str | Mapping):
        raise ValueError("must be a policy's name, or {name: aging, rate: 0.01}")
    return policy_from(value).describe()


def _shares(value: Mapping[str, float]) -> Mapping[str, float]:
    if not any(share > 0 for share in value.values()):
        raise ValueError("at least one share must be above 0")
    return value


def _tokens_by_category(value: object) -> object:
    if value == "base":
        return dict(BASE_TOKENS)
    if isinstance(value, Mapping):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TOKENS:
        raise ValueError(
            f"must be `base`, a whole number from 1 to {MAX_TOKENS}, or one for each category, got {value!r:.60}"
        )
    return dict.fromkeys(BASE_TOKENS, value)


def _exactly_one(section: BaseModel, *names: str) -> str:
    keys = {name: type(section).model_fields[name].alias or name for name in names}
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        got = ", ".join(keys[name] for name in given) or "none"
        raise ValueError(f"exactly one of {', '.join(keys.values())} is needed, got {got}")
    return given[0]


Category = Literal["short_qa", "summary", "technical", "report"]
Tier = Literal["premium", "standard", "batch"]
Name = Annotated[str, AfterValidator(_name)]
FilePath = Annotated[str, AfterValidator(_file)]
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
Rate = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
PolicySpec = Annotated[str, BeforeValidator(_policy)]
TenantShares = Annotated[
    dict[str, Rate],
    BeforeValidator(lambda value: {value: 1.0} if isinstance(value, str) else value),
    AfterValidator(_shares),
]


class Engine(Section):
    """What runs the requests."""

    kind: Literal["sim", "vllm", "openai", "ray", "auto"] = "sim"
    """`auto` is vllm where a model is given and vLLM is installed, else sim."""
    gpu: str = "l4"
    """GPU profile of the simulated engine."""
    model: Annotated[str, AfterValidator(_model_path)] | None = None
    """A folder, a Hugging Face name, or a prepared name such as smollm2."""
    capacity: Count | None = None
    """Concurrent requests; None leaves it to the engine."""
    tokenizer: Annotated[str, AfterValidator(_model_path)] | None = None
    """Folder of a tokenizer, or smollm2, where the simulated engine is to count real tokens."""
    args: dict[str, Any] = {}
    """Handed to the engine: vLLM's engine arguments, or those of the simulated one."""
    profile: str | None = None
    """A calibrated step model instead of ``gpu``'s: a file or a shipped name."""


class Microbatch(Section):
    """The paper's blocking batches."""

    size: Count = 32
    wait_s: Seconds = Field(default=0.01, alias="wait")
    """Longest time a batch waits for more."""


class Dispatch(Section):
    """`continuous`, or micro-batches."""

    microbatch: Microbatch | None = None


class Estimator(Section):
    """How output lengths are guessed."""

    kind: str = "paper"
    counter: Literal["whitespace", "tokenizer"] = "whitespace"
    calibrate: bool = True
    """Learn from completions."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.kind not in ESTIMATORS:
            raise ValueError(f"unknown estimator {self.kind!r:.60}; {did_you_mean(self.kind, ESTIMATORS)}")
        return self


class SloSection(Section):
    """Objectives of one tenant."""

    ttft_s: Duration = Field(default=inf, alias="ttft")
    e2e_s: Duration = Field(default=inf, alias="e2e")
    tpot_s: Duration = Field(default=inf, alias="tpot")

    def to_core(self) -> Slo:
        return Slo(self.ttft_s, self.e2e_s, self.tpot_s)


class LimitsSection(Section):
    """Bounds on what may wait and run; unset is unbounded."""

    max_queued: Annotated[int, Field(ge=0)] | None = None
    """Requests waiting."""
    max_queued_tokens: Annotated[int, Field(ge=0)] | None = None
    """Estimated tokens waiting, prompt and output."""
    max_in_flight: Count | None = None
    """Requests running."""
    ttl_s: Duration | None = Field(default=None, alias="ttl")
    """Longest time in the queue."""

    @property
    def limits(self) -> Limits:
        return Limits(self.max_queued, self.max_queued_tokens, self.max_in_flight, self.ttl_s)


class TenantSection(LimitsSection):
    """One tenant."""

    name: Name
    tier: Tier = "standard"
    weight: Positive = 1.0
    slo: SloSection = SloSection()

    def to_core(self) -> Tenant:
        return Tenant(self.name, self.tier, self.weight, self.slo.to_core(), self.limits)


class Uniform(Section):
    """Gaps drawn evenly."""

    min_s: Seconds = Field(alias="min")
    max_s: Duration = Field(alias="max")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_s > self.max_s:
            raise ValueError(f"min must not be above max, got {self.min_s:g}s and {self.max_s:g}s")
        return self


class Gamma(Section):
    """Gamma-distributed gaps; cv 1 is Poisson."""

    rate: Positive
    cv: Annotated[float, Field(gt=0, le=100)]


class Bursts(Section):
    """Poisson at ``rate`` for ``busy``, at ``base`` for ``idle``, and again."""

    rate: Positive
    base: Rate = 0.0
    busy_s: Duration = Field(alias="busy")
    idle_s: Duration = Field(alias="idle")


class _Change(Section):
    start: Rate = Field(alias="from")
    end: Rate = Field(alias="to")

    @model_validator(mode="after")
    def _comes_at_all(self) -> Self:
        if self.start == self.end == 0:
            raise ValueError("from and to cannot both be 0")
        return self


class Ramp(_Change):
    """A rate that changes in a straight line."""

    over_s: Duration = Field(alias="over")


class Step(_Change):
    """A rate that jumps."""

    at_s: Seconds = Field(alias="at")


class Diurnal(Section):
    """A rate that swings from ``low`` to ``high`` and back in each period."""

    low: Rate
    high: Positive
    period_s: Duration = Field(default=86400.0, alias="period")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low must not be above high, got {self.low:g} and {self.high:g}")
        return self


class Closed(Section):
    """Clients that each wait for their answer, think, and ask again."""

    clients: Annotated[int, Field(ge=1, le=100_000)]
    think_s: Seconds = Field(default=0.0, alias="think")
    """Mean of an exponential draw."""


class Arrivals(Section):
    """Exactly one of these. Rates are requests per second."""

    poisson: Positive | None = None
    uniform: Uniform | None = None
    gamma: Gamma | None = None
    bursts: Bursts | None = None
    ramp: Ramp | None = None
    step: Step | None = None
    diurnal: Diurnal | None = None
    closed: Closed | None = None
    at_once: Literal[True] | None = Field(default=None, alias="at-once")

    @property
    def kind(self) -> str:
        return _exactly_one(self, *type(self).model_fields)

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, *type(self).model_fields)
        return self


class Trace(Section):
    """Recorded arrivals."""

    file: FilePath
    format: Literal["azure", "burstgpt", "mooncake", "jsonl"]
    speed: Positive = 1.0
    """The trace's seconds in one second of the run."""
    from_s: Seconds = Field(default=0.0, alias="from")
    """Where in the trace to begin; that instant is the stream's start."""
    until_s: Duration = Field(default=inf, alias="until")
    limit: Count | None = None
    """Most rows to use."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Malformed rows are left out; above this share the trace is refused."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.until_s <= self.from_s:
            raise ValueError(f"until must be after from, got {self.until_s:g}s and {self.from_s:g}s")
        return self


class Lengths(Section):
    """How long answers get on the simulated engine. Exactly one of profile, lognormal and file."""

    profile: Literal["sat", "near", "mod", "short", "heavy"] | None = None
    lognormal: dict[Category, tuple[Positive, Positive]] | None = None
    """For each category its median in tokens and sigma."""
    file: FilePath | None = None
    """JSON lines with `output_tokens`: a number, or one for each model."""
    model: str | None = None
    """Which of the file's models."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, "profile", "lognormal", "file")
        if self.model is not None and self.file is None:
            raise ValueError("model goes with file only")
        return self


class Prompts(Section):
    """`paper`: made from templates; or drawn from a file."""

    file: FilePath | None = None
    """JSON lines with `prompt`."""


class SamplingSection(Section):
    """Handed to the engine."""

    temperature: Annotated[float, Field(ge=0, le=10)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def to_core(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.seed, self.stop)


def _or_section(word: str, section: dict[str, Any]) -> BeforeValidator:
    """Let one word stand for a section; any other text is refused by name."""

    def expand(value: object) -> object:
        if isinstance(value, str):
            if value != word:
                raise ValueError(f"must be `{word}` or a mapping, got {value!r:.60}")
            return section
        return value

    return BeforeValidator(expand)


class Stream(Section):
    """One source of requests; the streams of a scenario add up."""

    name: Name | None = None
    tenant: TenantShares | None = None
    """Who asks: one tenant, or several with their shares; a jsonl trace may say so itself."""
    arrivals: Annotated[Arrivals, _or_section("at-once", {"at-once": True})] | None = None
    trace: Trace | None = None
    mix: Annotated[dict[Category, Rate], AfterValidator(_shares)] | None = None
    """Shares of the categories; the paper's learning phase where not given."""
    prompts: Annotated[Prompts, _or_section("paper", {})] | None = None
    from_s: Seconds = Field(default=0.0, alias="from")
    """Start, from the run's start; with ``after``, from that moment."""
    after: str | None = None
    """`drained` or a stream's name: start no sooner than that."""
    for_s: Duration | None = Field(default=None, alias="for")
    count: Count | None = None
    max_tokens: Annotated[dict[Category, Tokens], BeforeValidator(_tokens_by_category)] | None = None
    """`base` (the category's), a number, or one for each category."""
    lengths: Lengths | None = None
    sampling: SamplingSection = SamplingSection()
    patience_s: Duration | None = Field(default=None, alias="patience")
    """The client gives up after this long and cancels."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _exactly_one(self, "arrivals", "trace")
        if self.tenant is None and not (self.trace and self.trace.format == "jsonl"):
            raise ValueError("tenant is required; only a jsonl trace can name its own")
        if self.arrivals and self.for_s is None and self.count is None:
            raise ValueError("without an end: `for: 60s`, `count: 1000` or both are needed")
        if self.arrivals and self.arrivals.at_once and self.count is None:
            raise ValueError("at-once needs `count`: how many come at once")
        if self.trace and (self.mix or self.prompts):
            raise ValueError("a trace brings its own requests: mix and prompts do not go with it")
        self._check_categories()
        return self

    def _check_categories(self) -> None:
        for name, table in (
            ("lengths.lognormal", self.lengths and self.lengths.lognormal),
            ("max_tokens", self.max_tokens),
        ):
            missing = sorted(set(self.categories) - set(table)) if table else []
            if missing:
                raise ValueError(f"{name} has nothing for {', '.join(missing)}, which the stream draws")

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories that the stream can draw."""
        mix = self.mix or BASE_TOKENS
        return tuple(category for category, share in mix.items() if share > 0)


class Burst(Section):
    """Extra Poisson arrivals of one tenant, made like those of its first stream."""

    tenant: str
    rate: Positive
    for_s: Duration = Field(alias="for")


class Drift(Section):
    """From here on answers are longer or shorter."""

    tenant: str | None = None
    """Every tenant where not given."""
    output_scale: Annotated[float, Field(ge=0.01, le=100)]
    force: bool = False
    """Make a real engine answer exactly as long as drawn; the run is then labelled forced lengths."""


class TenantChange(LimitsSection):
    """New weight or limits of a tenant; what is not given stays."""

    name: str
    weight: Positive | None = None


class Fault(Section):
    """Break something on purpose."""

    engine: Literal["crash"]


class TimelineItem(Section):
    """One thing to do at one time. Exactly one of the keys beside `at`."""

    at_s: Seconds = Field(alias="at")
    policy: PolicySpec | None = None
    burst: Burst | None = None
    drift: Drift | None = None
    tenant: TenantChange | None = None
    fault: Fault | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, "policy", "burst", "drift", "tenant", "fault")
        return self


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
    engine: Engine = Engine()
    dispatch: Annotated[Dispatch, _or_section("continuous", {})] = Dispatch()
    policy: PolicySpec = "fifo"
    """A name, or a name with its parameters; kept as text: "aging rate=0.01"."""
    estimator: Estimator = Estimator()
    paper: bool = False
    """With the paper's quirks."""
    limits: LimitsSection = LimitsSection()
    """Over all tenants."""
    max_inflight_tokens: Annotated[int | Literal["kv"] | None, BeforeValidator(_kv)] = None
    """Bound on tokens in flight, reserved at the upper estimate; `kv` is what the cache holds."""
    tenants: Annotated[tuple[TenantSection, ...], Field(min_length=1)]
    load: Annotated[tuple[Stream, ...], Field(min_length=1)]
    timeline: tuple[TimelineItem, ...] = ()
    expect: tuple[str, ...] = ()
    speed: Positive = 1.0
    """Run seconds in a second of a simulated engine's live run."""
