"""The nouns of the scheduler: requests, estimates, outcomes, tenants, limits, snapshots.

Times are seconds since the run began, on a monotonic clock; token counts are integers. Nothing here
reads a clock or does IO. ``Request`` is mutable, but only ``core/scheduler.py`` moves its state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf, nan
from typing import Literal, NamedTuple, get_args

Tier = Literal["premium", "standard", "batch"]
TIERS: tuple[str, ...] = get_args(Tier)
TIER_RANK: Mapping[str, int] = {"premium": 1, "standard": 2, "batch": 3}

Category = Literal["short_qa", "summary", "technical", "report"]
CATEGORIES: tuple[str, ...] = get_args(Category)
RUNTIME_CLASSES = ("short", "medium", "long")
SHORT_TOKENS, MEDIUM_TOKENS = 128, 512


def runtime_class(budget: float) -> str:
    """short <= 128 < medium <= 512 < long, of a total token budget (input + output tokens)."""
    return "short" if budget <= SHORT_TOKENS else "medium" if budget <= MEDIUM_TOKENS else "long"


class State(StrEnum):
    """Where a request is in its life; the legal moves are ``lifecycle.TRANSITIONS``."""

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    ABORTING = "aborting"  # cancelled while in flight: the slot is held until the stream ends
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    EXPIRED = "expired"


# Reading a member off an enum costs ten times what a plain name does (Python 3.11); the hot paths use these.
NEW, QUEUED, RUNNING, ABORTING, FINISHED, FAILED, CANCELLED, REJECTED, EXPIRED = State

ENDED = frozenset({FINISHED, FAILED, CANCELLED, REJECTED, EXPIRED})


@dataclass(slots=True, unsafe_hash=True)
class Estimate:
    """What is believed of a request's output length at admission, in tokens. Never changed once made: it is
    not frozen because that would make it three times as slow to make.
    """

    input_tokens: int  # as the estimator's counter sees the prompt
    point: float  # the value for ranking
    upper: float  # a bound to reserve KV cache by
    category: str  # one of CATEGORIES
    uncorrected: float  # the same formula with nothing learned

    @property
    def budget(self) -> float:
        """Total token budget: input tokens + estimated output tokens, the paper's."""
        return self.input_tokens + self.point

    @property
    def runtime_class(self) -> str:
        """One of RUNTIME_CLASSES."""
        return runtime_class(self.budget)


NO_ESTIMATE = Estimate(0, 0.0, 0.0, "short_qa", 0.0)


@dataclass(slots=True)
class Outcome:
    """How a request's stream ended.

    ``finish`` is "stop" (the model ended by itself), "length" (cut at max_tokens: a censored length),
    "abort" (cancelled) or "error" (the engine failed this request).
    """

    finish: str
    output_tokens: int


class Sampling(NamedTuple):
    """Sampling parameters handed to the engine unchanged."""

    temperature: float = 0.7
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


DEFAULT_SAMPLING = Sampling()


@dataclass(slots=True, eq=False)
class Request:
    """One request of one tenant. The first block is given, the second belongs to the Scheduler."""

    id: str
    tenant: str
    tier: str
    arrival_s: float
    prompt_tokens: int  # by the best counter at hand; what the engine will prefill
    max_tokens: int  # hard cap on output tokens, at least 1
    prompt: str = ""  # tenant text: hostile, never shown or logged raw
    category: str = ""  # the load's own label, for the record only; estimators classify the prompt
    # Tokens the simulated engine will generate when nothing cuts it; only `oracle` may look.
    intended_tokens: int | None = None
    forced_tokens: int | None = None  # a real engine is made to answer this long ("forced lengths")
    sampling: Sampling = DEFAULT_SAMPLING
    streamed: bool = False  # tokens are delivered to a client as they come: no silent retry after that
    submitted_by: str = ""  # name of the load stream or client
    ttl_s: float | None = None  # longest time in the queue that its client allows
    acknowledged: bool = False  # promised before (a durable job): not turned away by limits
    # "message" goes into the model's chat template, "chat" has been through it, "raw" is taken as it is.
    form: str = "message"

    state: State = NEW
    estimate: Estimate = NO_ESTIMATE
    ticket: int = -1  # place in the order of enqueueing; -1 when not queued
    replica: int = -1
    batch_id: int = -1  # micro-batch number, -1 under continuous dispatch
    batch_size: int = 0
    cost: float = 0.0  # in tokens, by the estimate; what the books count while it waits
    charged: float = 0.0  # cost in tokens the policy has been charged so far
    backlogged: bool = False  # its tenant had more waiting when it was dispatched
    dispatched_s: float | None = None  # the first dispatch: queue wait ends here
    first_token_s: float | None = None
    last_token_s: float | None = None
    ended_s: float | None = None
    output_tokens: int = 0
    finish: str = ""
    reason: str = ""  # why it was rejected or failed
    attempts: int = 0  # times handed to an engine
    # Learned multiplier in force at the end, before and after learning from this request.
    bias_before: float = 1.0  # 1 where no events are told
    bias_after: float = 1.0
    # Token gaps (ITL) as {bucket: count}, see metrics.gap_bucket; a histogram, not a list.
    gaps: dict[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Slo:
    """Service-level objective; ``inf`` where none is set. Seconds."""

    ttft_s: float = inf
    e2e_s: float = inf
    tpot_s: float = inf


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what may wait and run; ``None`` is unbounded. The same for a tenant and for all."""

    max_queued: int | None = None  # requests
    max_queued_tokens: int | None = None  # estimated cost, prompt + output tokens
    max_in_flight: int | None = None  # requests
    ttl_s: float | None = None  # longest time in the queue
    # What may come within a minute, of one tenant (not bounded overall); tokens by the estimate.
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as configured."""

    name: str
    tier: str = "standard"
    weight: float = 1.0
    slo: Slo = Slo()
    limits: Limits = Limits()

    def changed(self, weight: float | None, limits: Limits | None) -> Tenant:
        """The same tenant with a new weight or new limits; None leaves them as they are."""
        return replace(
            self,
            weight=self.weight if weight is None else weight,
            limits=self.limits if limits is None else limits,
        )


class Rejected(NamedTuple):
    """Why a request was not admitted and when trying again makes sense (seconds)."""

    reason: str  # one of admission.REASONS
    retry_after_s: float


class Percentiles(NamedTuple):
    """Nearest-rank percentiles and friends of one metric, in its unit; NaN where nothing was seen."""

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class TenantSnapshot:
    """One row of the tenants table. Latencies are over the metrics window (seconds)."""

    name: str
    tier: str
    weight: float
    limits: Limits
    slo: Slo
    queued: int
    queued_tokens: float
    in_flight: int
    submitted: int
    finished: int
    ended_otherwise: int  # failed, cancelled, rejected or expired
    share: float  # of all tokens served in the window, 0..1
    tokens_per_s: float  # output tokens per second in the window
    ttft: Percentiles
    e2e: Percentiles
    slo_share: float  # of requests ended in the window that met every SLO; NaN for none
    estimated_tokens: float  # mean estimate, min(estimate, max_tokens), of the window's completions
    actual_tokens: float  # mean output of the same requests
    drift_ratio: float  # actual / estimated over the window; NaN for none
    capped_share: float  # of those that ended by length
    bias: float  # effective learned multiplier
    converged: bool  # bias moved < 2 % over its last 50 observations
    oldest_wait_s: float  # longest wait of what is queued now; 0 for none
    coverage: float = nan  # share of the window's completions within their upper estimate


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything the operator sees of the scheduler at one instant; immutable."""

    now: float
    policy: str
    policy_since_s: float  # instant of the last swap (or start)
    swap: tuple[str, float] | None  # (target policy, share done) while a swap is under way
    paused: bool
    capacity: int
    queued: int
    in_flight: int
    tenants: tuple[TenantSnapshot, ...]
    ttft: Percentiles
    e2e: Percentiles
    queue_wait: Percentiles
    drift_ratio: float
    tokens_per_s: float
    counts: Mapping[str, int]  # submitted, finished, failed, cancelled, rejected, expired, retried
    category_bias: Mapping[str, float] = field(default_factory=dict)
    coverage: float = nan  # share of the window's completions within their upper estimate
