"""One stream of a scenario's ``load`` as models: when its requests come, whose they are, how long."""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from scheduler.core.estimate import BASE_TOKENS
from scheduler.core.types import Category, Sampling
from scheduler.load.fields import (
    MAX_TOKENS,
    Count,
    Duration,
    FilePath,
    Name,
    Portion,
    Rate,
    Seconds,
    Section,
    SomeRate,
    TenantShares,
    Tokens,
    exactly_one,
    or_section,
    some_share,
    tokens_by_category,
)


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

    rate: SomeRate
    cv: Annotated[float, Field(ge=0.01, le=100)]


class Bursts(Section):
    """Poisson at ``rate`` for ``busy``, at ``base`` for ``idle``, and again."""

    rate: SomeRate
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
    high: SomeRate
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

    poisson: SomeRate | None = None
    uniform: Uniform | None = None
    gamma: Gamma | None = None
    bursts: Bursts | None = None
    ramp: Ramp | None = None
    step: Step | None = None
    diurnal: Diurnal | None = None
    closed: Closed | None = None
    at_once: Literal[True] | None = Field(default=None, alias="at-once")

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, *type(self).model_fields)
        return self


class Trace(Section):
    """Recorded arrivals."""

    file: FilePath
    format: Literal["azure", "burstgpt", "mooncake", "jsonl"]
    speed: Annotated[float, Field(ge=0.001, le=1e6)] = 1.0
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


Median = Annotated[float, Field(gt=0, le=MAX_TOKENS)]
Sigma = Annotated[float, Field(gt=0, le=10)]


class Lengths(Section):
    """How long answers get on the simulated engine. Exactly one of profile, lognormal and file."""

    profile: Literal["sat", "near", "mod", "short", "heavy"] | None = None
    lognormal: dict[Category, tuple[Median, Sigma]] | None = None
    """For each category its median in tokens and sigma."""
    file: FilePath | None = None
    """JSON lines with `output_tokens`: a number, or one for each model."""
    model: str | None = None
    """Which of the file's models."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, "profile", "lognormal", "file")
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


class Stream(Section):
    """One source of requests; the streams of a scenario add up."""

    name: Name | None = None
    tenant: TenantShares | None = None
    """Who asks: one tenant, or several with their shares; a jsonl trace may say so itself."""
    arrivals: Annotated[Arrivals, or_section("at-once", {"at-once": True}, "{poisson: 4.0}")] | None = None
    trace: Trace | None = None
    mix: Annotated[dict[Category, Portion], AfterValidator(some_share)] | None = None
    """Shares of the categories; the paper's learning phase where not given."""
    prompts: Annotated[Prompts, or_section("paper", {}, "{file: F.jsonl}")] | None = None
    from_s: Seconds = Field(default=0.0, alias="from")
    """Start, from the run's start; with ``after``, from that moment."""
    after: str | None = None
    """`drained` or a stream's name: start no sooner than that."""
    for_s: Duration | None = Field(default=None, alias="for")
    count: Count | None = None
    max_tokens: Annotated[dict[Category, Tokens], BeforeValidator(tokens_by_category)] | None = None
    """`base` (the category's), a number, or one for each category."""
    lengths: Lengths | None = None
    sampling: SamplingSection = SamplingSection()
    patience_s: Duration | None = Field(default=None, alias="patience")
    """The client gives up after this long and cancels."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        exactly_one(self, "arrivals", "trace")
        if self.tenant is None and not (self.trace and self.trace.format == "jsonl"):
            raise ValueError("tenant is required; only a jsonl trace can name its own")
        if self.arrivals and self.for_s is None and self.count is None:
            raise ValueError("without an end: `for: 60s`, `count: 1000` or both are needed")
        if self.arrivals and self.arrivals.at_once and self.count is None:
            raise ValueError("at-once needs `count`: how many come at once")
        if self.trace and (self.mix or self.prompts):
            raise ValueError("a trace brings its own requests: mix and prompts do not go with it")
        if self.mix and self.prompts and self.prompts.file:
            raise ValueError("mix is for prompts that are made: those of a file have categories of their own")
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
