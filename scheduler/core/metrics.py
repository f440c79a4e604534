"""Percentiles, token-gap histograms and the sliding windows behind the dashboard's numbers.

Definitions are in docs/metrics.md: nearest rank, over a named window or a whole run, never averages of
percentiles.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp, isnan, log, nan

from scheduler.core.books import TenantBooks
from scheduler.core.estimate import Learned
from scheduler.core.types import Percentiles, Request, Slo, State

NO_PERCENTILES = Percentiles(nan, nan, nan, nan, nan, nan)
SHARES = (0.50, 0.90, 0.95, 0.99)
"""Of ``Percentiles``, in their order."""

GAP_FLOOR_S = 1e-5
GAP_LOG_GROWTH = log(1.05)


def gap_bucket(gap_s: float) -> int:
    """Histogram bucket of one inter-token gap: 5 % wide, log-spaced from 10 us."""
    return int(log(gap_s / GAP_FLOOR_S) / GAP_LOG_GROWTH) if gap_s > GAP_FLOOR_S else 0


def note_gaps(request: Request, tokens: int, span_s: float) -> None:
    """``tokens`` that came together share the time since the last ones evenly."""
    if tokens > 0:
        if request.gaps is None:
            request.gaps = {}
        bucket = gap_bucket(span_s / tokens)
        request.gaps[bucket] = request.gaps.get(bucket, 0) + tokens


def gap_value(bucket: int) -> float:
    """The gap, in seconds, that stands for a bucket: its geometric middle."""
    return GAP_FLOOR_S * exp((bucket + 0.5) * GAP_LOG_GROWTH)


def gap_rank(counts: Mapping[int, int], share: float) -> float:
    """Nearest rank, in seconds to 2.5 %, of gaps counted by bucket; NaN where there is none."""
    rank, seen = rank_index(share, sum(counts.values())), 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen > rank:
            return gap_value(bucket)
    return nan


def rank_index(share: float, count: int) -> int:
    """Where the nearest rank is among ``count`` values in ascending order."""
    # Rounded: in floats 0.55 x 100 is a little above 55, which would be one rank too high.
    return max(0, ceil(round(share * count, 9)) - 1)


def nearest_rank(ordered: Sequence[float], share: float) -> float:
    """The smallest value with at least ``share`` of ``ordered`` (ascending) at or below it."""
    return ordered[rank_index(share, len(ordered))]


def percentiles(values: Iterable[float]) -> Percentiles:
    """Of any number of values; NaN values are left out, and none at all gives NaN throughout."""
    ordered = sorted(v for v in values if not isnan(v))
    if not ordered:
        return NO_PERCENTILES
    ranks = (nearest_rank(ordered, share) for share in SHARES)
    return Percentiles._make((*ranks, sum(ordered) / len(ordered), ordered[-1]))


def meets_slo(request: Request, slo: Slo) -> bool:
    """Whether a finished request met all of its tenant's objectives."""
    assert request.first_token_s is not None
    assert request.ended_s is not None
    e2e = request.ended_s - request.arrival_s
    ttft = request.first_token_s - request.arrival_s
    tpot = (e2e - ttft) / (request.output_tokens - 1) if request.output_tokens > 1 else 0.0
    return e2e <= slo.e2e_s and ttft <= slo.ttft_s and tpot <= slo.tpot_s


MIN_BACKLOG_S = 1.0


def jain(books: Iterable[TenantBooks], now: float) -> float:
    """Jain's index over tenants of tokens served by weight and second while backlogged.

    Tenants backlogged for less than ``MIN_BACKLOG_S`` in all are left out; fewer than two left give 1.
    """
    rates = [
        tenant.served_by_weight / tenant.backlogged_until(now)
        for tenant in books
        if tenant.backlogged_until(now) >= MIN_BACKLOG_S
    ]
    squares = sum(rate * rate for rate in rates)
    return sum(rates) ** 2 / (len(rates) * squares) if len(rates) > 1 and squares else 1.0


@dataclass(slots=True)
class Completion:
    """What the window keeps of a finished request; seconds and tokens."""

    at_s: float
    ttft_s: float
    e2e_s: float
    queue_wait_s: float
    estimated: float  # min(estimate, max_tokens)
    actual: int
    capped: bool
    slo_met: bool
    covered: bool  # within its upper estimate


CONVERGED_OVER = 50  # observations over which a converged bias moves less than BIAS_TOLERANCE
BIAS_TOLERANCE = 0.02


class TenantWindow:
    """One tenant's last ``window_s`` seconds."""

    def __init__(self) -> None:
        self.completions: deque[Completion] = deque()
        self.slo_met = 0  # of the completions
        self.misses: deque[float] = deque()  # instants at which a request ended without being finished
        self.tokens: deque[list[float]] = deque()  # [whole second, output tokens, tokens served]
        self.categories: dict[str, int] = {}  # observations by category, over the whole run
        self.bias = 1.0
        self.biases: deque[float] = deque(maxlen=CONVERGED_OVER + 1)

    def forget(self, before_s: float) -> None:
        while self.completions and self.completions[0].at_s < before_s:
            self.slo_met -= self.completions.popleft().slo_met
        while self.misses and self.misses[0] < before_s:
            self.misses.popleft()
        while self.tokens and self.tokens[0][0] + 1 < before_s:
            self.tokens.popleft()

    @property
    def converged(self) -> bool:
        if len(self.biases) <= CONVERGED_OVER:
            return False
        return max(self.biases) - min(self.biases) < BIAS_TOLERANCE * self.bias

    @property
    def ended(self) -> int:
        """Requests, however they did."""
        return len(self.completions) + len(self.misses)

    @property
    def slo_share(self) -> float:
        return self.slo_met / self.ended if self.ended else nan


class WindowMetrics:
    """Sliding windows per tenant, fed by the Scheduler; O(1) amortised per event."""

    def __init__(self, tenants: Iterable[str], window_s: float = 60.0) -> None:
        self.window_s = window_s
        self.tenants = {name: TenantWindow() for name in tenants}

    def add_tenant(self, name: str) -> None:
        self.tenants.setdefault(name, TenantWindow())

    def on_tokens(self, tenant: str, tokens: int, prompt_tokens: int, now: float) -> None:
        """``tokens`` were generated; ``prompt_tokens`` is set with the first of a request."""
        window = self.tenants[tenant]
        second = float(int(now))
        if not window.tokens or window.tokens[-1][0] != second:
            window.tokens.append([second, 0.0, 0.0])
        window.tokens[-1][1] += tokens
        window.tokens[-1][2] += tokens + prompt_tokens

    def on_ended(self, request: Request, now: float, slo: Slo) -> None:
        window = self.tenants[request.tenant]
        window.forget(now - self.window_s)
        if request.state is not State.FINISHED:
            window.misses.append(now)
            return
        assert request.first_token_s is not None
        assert request.dispatched_s is not None
        met = meets_slo(request, slo)
        window.slo_met += met
        window.completions.append(
            Completion(
                now,
                request.first_token_s - request.arrival_s,
                now - request.arrival_s,
                request.dispatched_s - request.arrival_s,
                min(request.estimate.point, request.max_tokens),
                request.output_tokens,
                request.finish == "length",
                met,
                request.output_tokens <= request.estimate.upper,
            )
        )

    def on_observed(self, request: Request, estimator: Learned) -> None:
        """The estimator has just learned from this request: follow the tenant's effective multiplier."""
        window = self.tenants[request.tenant]
        category = request.estimate.category
        window.categories[category] = window.categories.get(category, 0) + 1
        seen, weighed = 0, 0.0
        for name, count in window.categories.items():
            seen += count
            weighed += count * estimator.bias(request.tenant, name)
        window.bias = weighed / seen
        window.biases.append(window.bias)

    def rates(self, now: float) -> Mapping[str, tuple[float, float]]:
        """Tenant -> (output tokens per second, tokens served) over the window."""
        span = max(1.0, min(self.window_s, now))
        rates: dict[str, tuple[float, float]] = {}
        for name, window in self.tenants.items():
            window.forget(now - self.window_s)
            output = sum(second[1] for second in window.tokens)
            rates[name] = (output / span, sum(second[2] for second in window.tokens))
        return rates


def drift_ratio(completions: Iterable[Completion]) -> float:
    """Sum of actual over sum of estimated tokens; NaN for none."""
    estimated = actual = 0.0
    for completion in completions:
        estimated += completion.estimated
        actual += completion.actual
    return actual / estimated if estimated else nan


def coverage(completions: Collection[Completion]) -> float:
    """Share that stayed within the upper estimate; NaN for none."""
    return sum(c.covered for c in completions) / len(completions) if completions else nan
