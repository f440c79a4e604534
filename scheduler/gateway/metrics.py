"""``/metrics`` for Prometheus: the scheduler's own figures, and the engine's under the names that vLLM uses.

Gauges and counts are read off the books when somebody asks; only histograms are fed as requests end, and are
plain counts (prometheus-client's own take a lock for each figure). Labels are names out of the config:
tenants, outcomes, categories, the policy. Nothing that a client sends is one.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import accumulate, chain
from math import isnan
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from scheduler.core.types import CATEGORIES, FINISHED, QUEUED, Request, State
from scheduler.live.run import LiveRun

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class _Histogram:
    """How many values were at or below each bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> _Histogram:
        other = _Histogram(self.bounds)
        other.counts, other.total = self.counts.copy(), self.total
        return other

    def buckets(self) -> list[tuple[str, float]]:
        """(bound, values at or below it), the last one +Inf."""
        names = [*map(floatToGoString, self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


_TIMES = {
    "queue_wait": "Arrival to dispatch.",
    "ttft": "Arrival to first token.",
    "e2e": "Arrival to last token.",
    "tpot": "Time per output token after the first.",
}
"""What is kept as a histogram for each tenant, and its definition."""


class _Tenant:
    """What is counted as one tenant's requests end."""

    def __init__(self) -> None:
        self.queue_wait_s = _Histogram(_SECONDS)
        self.ttft_s = _Histogram(_SECONDS)
        self.e2e_s = _Histogram(_SECONDS)
        self.tpot_s = _Histogram(_PER_TOKEN)
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.estimates = 0
        self.error_tokens = 0.0  # sum of |actual - estimated|

    def copy(self) -> _Tenant:
        other = copy(self)
        for name in _TIMES:  # attributes, not a dict: they are looked up for every request that ends
            setattr(other, f"{name}_s", getattr(self, f"{name}_s").copy())
        return other


class _Now(NamedTuple):
    """One tenant as it is at this moment."""

    name: str
    queued: int
    queued_tokens: float
    oldest_s: float
    in_flight: int
    submitted: int
    retried: int
    ended: Mapping[State, int]
    bias: Sequence[float]  # of each category
    seen: _Tenant


class _Collected(CollectorRegistry):
    """What was collected, for prometheus-client to write out."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        super().__init__()
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


class Metrics:
    """Figures of one live run; definitions are those of docs/metrics.md, times are run seconds."""

    def __init__(self, run: LiveRun, *, model: str) -> None:
        self._run = run
        self._model = model
        self._seen: dict[str, _Tenant] = {}  # by name
        run.observers.append(self.on_ended)

    async def text(self) -> bytes:
        """The exposition, as of now. It is long where there are many tenants, so a thread writes it."""
        scheduler, tenants, engine = [*self._scheduler()], self._tenants(), [*self._engine()]
        told = chain(scheduler, _of_tenants(tenants), engine, _histograms(tenants))
        return await asyncio.to_thread(generate_latest, _Collected(told))

    def on_ended(self, request: Request) -> None:
        arrival_s, dispatched_s = request.arrival_s, request.dispatched_s
        if dispatched_s is None:
            return
        seen = self._seen.get(request.tenant)
        if seen is None:
            seen = self._seen[request.tenant] = _Tenant()
        output = request.output_tokens
        seen.queue_wait_s.observe(dispatched_s - arrival_s)
        seen.prompt_tokens += request.prompt_tokens
        seen.output_tokens += output
        first_token_s, ended_s = request.first_token_s, request.ended_s
        if request.state is not FINISHED or first_token_s is None or ended_s is None:
            return
        seen.ttft_s.observe(first_token_s - arrival_s)
        seen.e2e_s.observe(ended_s - arrival_s)
        if output > 1:
            seen.tpot_s.observe((ended_s - first_token_s) / (output - 1))
        seen.estimates += 1
        seen.error_tokens += abs(output - min(request.estimate.point, request.max_tokens))

    def _scheduler(self) -> Iterator[Metric]:
        run, scheduler = self._run, self._run.scheduler
        yield _gauge("capacity", "Requests that may be in flight.", scheduler.slots.capacity)
        yield _gauge("paused", "1 while dispatch is paused.", float(scheduler.paused))
        yield _gauge("engine_up", "1 while the engine is ready.", float(run.session.engine_state == "ready"))
        policy = GaugeMetricFamily(
            "driftsched_policy", "1 for the policy that orders now.", labels=["policy"]
        )
        policy.add_metric([scheduler.policy.describe()], 1.0)
        yield policy
        switches = CounterMetricFamily("driftsched_policy_switches", "Policy switches.")
        switches.add_metric([], len(scheduler.swaps))
        yield switches
        lag_ms = run.lag.recent_p99_ms()
        if not isnan(lag_ms):
            yield _gauge("loop_lag_p99_seconds", "Event-loop lag, about the last 10 s.", lag_ms / 1e3)

    def _tenants(self) -> list[_Now]:
        run, bias = self._run, self._run.scheduler.estimator.bias
        now = run.clock.now()
        tenants = run.scheduler.books.tenants
        waits: dict[str, float] = {}
        waiting = sum(books.queued > 0 for books in tenants.values())
        for request in run.scheduler.active():
            if len(waits) == waiting:
                break
            if request.state is QUEUED:
                waits.setdefault(request.tenant, now - request.arrival_s)
        return [
            _Now(
                name,
                books.queued,
                max(0.0, round(books.queued_tokens, 3)),
                waits.get(name, 0.0),
                books.in_flight,
                books.submitted,
                books.retried,
                dict(books.ended),
                [bias(name, category) for category in CATEGORIES],
                self._seen[name].copy() if name in self._seen else _NONE,
            )
            for name, books in tenants.items()
        ]

    def _engine(self) -> Iterator[Metric]:
        """What the engine tells of itself; what it does not know is left out."""
        told = self._run.engine.telemetry()
        gauges = (
            ("vllm:num_requests_running", "Requests in the engine's batch.", told.running),
            ("vllm:num_requests_waiting", "Requests in the engine's own queue.", told.waiting),
            ("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", told.kv_use),
        )
        for name, what, value in gauges:
            if value is not None:
                gauge = GaugeMetricFamily(name, what, labels=["model_name"])
                gauge.add_metric([self._model], value)
                yield gauge
        if told.preemptions is not None:
            preemptions = CounterMetricFamily(
                "vllm:num_preemptions", "Preemptions since the start.", labels=["model_name"]
            )
            preemptions.add_metric([self._model], told.preemptions)
            yield preemptions


_NONE = _Tenant()


def _of_tenants(tenants: Sequence[_Now]) -> Iterator[Metric]:
    labels = ["tenant"]
    queued = GaugeMetricFamily("driftsched_queue_size", "Requests that wait.", labels=labels)
    tokens = GaugeMetricFamily("driftsched_queue_tokens", "Estimated cost of what waits.", labels=labels)
    oldest = GaugeMetricFamily(
        "driftsched_queue_oldest_seconds", "Longest wait of what is queued now.", labels=labels
    )
    in_flight = GaugeMetricFamily("driftsched_in_flight", "Requests in the engine.", labels=labels)
    submitted = CounterMetricFamily("driftsched_requests_submitted", "Requests that came.", labels=labels)
    retried = CounterMetricFamily("driftsched_requests_retried", "Requests tried again.", labels=labels)
    ended = CounterMetricFamily(
        "driftsched_requests_ended", "Requests by how they ended.", labels=["tenant", "outcome"]
    )
    served = CounterMetricFamily(
        "driftsched_tokens", "Tokens of requests that have ended.", labels=["tenant", "kind"]
    )
    error = SummaryMetricFamily(
        "driftsched_estimate_error_tokens", "|actual - estimated| output tokens.", labels=labels
    )
    bias = GaugeMetricFamily("driftsched_bias", "Learned multiplier.", labels=["tenant", "category"])
    for now in tenants:
        name, seen = now.name, now.seen
        queued.add_metric([name], now.queued)
        tokens.add_metric([name], now.queued_tokens)
        oldest.add_metric([name], now.oldest_s)
        in_flight.add_metric([name], now.in_flight)
        submitted.add_metric([name], now.submitted)
        retried.add_metric([name], now.retried)
        for state, count in now.ended.items():
            ended.add_metric([name, state.value], count)
        served.add_metric([name, "prompt"], seen.prompt_tokens)
        served.add_metric([name, "output"], seen.output_tokens)
        error.add_metric([name], count_value=seen.estimates, sum_value=seen.error_tokens)
        for category, value in zip(CATEGORIES, now.bias, strict=True):
            bias.add_metric([name, category], value)
    yield from (queued, tokens, oldest, in_flight, submitted, retried, ended, served, error, bias)


def _histograms(tenants: Sequence[_Now]) -> Iterator[Metric]:
    """Of the tenants that have been served."""
    for name, what in _TIMES.items():
        family = HistogramMetricFamily(f"driftsched_{name}_seconds", what, labels=["tenant"])
        for now in tenants:
            if now.seen is not _NONE:
                histogram: _Histogram = getattr(now.seen, f"{name}_s")
                family.add_metric([now.name], histogram.buckets(), histogram.total)
        yield family


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"driftsched_{name}", what, value)
