"""``/metrics`` for Prometheus: the scheduler's own figures, and the engine's under the names that vLLM uses.

Gauges and counts are read off the books when somebody asks; only histograms are fed as requests end. Labels
are names out of the config: tenants, outcomes, categories, the policy. Nothing that a client sends is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from scheduler.core.types import CATEGORIES, Request, State
from scheduler.live.run import LiveRun

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class _Times(NamedTuple):
    """One tenant's histograms, in the order in which they are made."""

    queue_wait: Histogram
    ttft: Histogram
    e2e: Histogram
    tpot: Histogram


class Metrics(Collector):
    """Figures of one live run; definitions are those of docs/metrics.md, times are run seconds."""

    def __init__(self, run: LiveRun, *, model: str) -> None:
        self._run = run
        self._model = model
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._histograms = (
            self._histogram("queue_wait_seconds", "Arrival to dispatch.", _SECONDS),
            self._histogram("ttft_seconds", "Arrival to first token.", _SECONDS),
            self._histogram("e2e_seconds", "Arrival to last token.", _SECONDS),
            self._histogram("tpot_seconds", "Time per output token after the first.", _PER_TOKEN),
        )
        self._times: dict[str, _Times] = {}
        self._errors: dict[str, list[float]] = {}  # tenant -> [count, sum of |actual - estimated| tokens]
        self._tokens: dict[str, list[int]] = {}  # tenant -> [prompt, output] of what has ended
        run.observers.append(self.on_ended)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"driftsched_{name}", what, ["tenant"], buckets=buckets, registry=self._registry)

    def text(self) -> bytes:
        """The exposition, as of now."""
        return generate_latest(self._registry)

    def on_ended(self, request: Request) -> None:
        tenant, arrival_s = request.tenant, request.arrival_s
        if request.dispatched_s is None:
            return
        times = self._times.get(tenant)
        if times is None:  # looking labels up takes longer than observing
            times = self._times[tenant] = _Times(*(each.labels(tenant) for each in self._histograms))
        times.queue_wait.observe(request.dispatched_s - arrival_s)
        tokens = self._tokens.setdefault(tenant, [0, 0])
        tokens[0] += request.prompt_tokens
        tokens[1] += request.output_tokens
        if request.state is not State.FINISHED or request.first_token_s is None or request.ended_s is None:
            return
        times.ttft.observe(request.first_token_s - arrival_s)
        times.e2e.observe(request.ended_s - arrival_s)
        if request.output_tokens > 1:
            span_s = request.ended_s - request.first_token_s
            times.tpot.observe(span_s / (request.output_tokens - 1))
        error = self._errors.setdefault(tenant, [0, 0.0])
        error[0] += 1
        error[1] += abs(request.output_tokens - min(request.estimate.point, request.max_tokens))

    def collect(self) -> Iterator[Metric]:
        yield from self._scheduler()
        yield from self._tenants()
        yield from self._estimates()
        yield from self._engine()

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

    def _tenants(self) -> Iterator[Metric]:
        run, labels = self._run, ["tenant"]
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
        now = run.clock.now()
        waits: dict[str, float] = {}
        for request in run.scheduler.active():
            if request.state is State.QUEUED:
                waits.setdefault(request.tenant, now - request.arrival_s)
        for name, books in run.scheduler.books.tenants.items():
            queued.add_metric([name], books.queued)
            tokens.add_metric([name], max(0.0, round(books.queued_tokens, 3)))
            oldest.add_metric([name], waits.get(name, 0.0))
            in_flight.add_metric([name], books.in_flight)
            submitted.add_metric([name], books.submitted)
            retried.add_metric([name], books.retried)
            for state, count in books.ended.items():
                ended.add_metric([name, state.value], count)
            for kind, count in zip(("prompt", "output"), self._tokens.get(name, (0, 0)), strict=True):
                served.add_metric([name, kind], count)
        yield from (queued, tokens, oldest, in_flight, submitted, retried, ended, served)

    def _estimates(self) -> Iterator[Metric]:
        estimator = self._run.scheduler.estimator
        error = SummaryMetricFamily(
            "driftsched_estimate_error_tokens", "|actual - estimated| output tokens.", labels=["tenant"]
        )
        bias = GaugeMetricFamily("driftsched_bias", "Learned multiplier.", labels=["tenant", "category"])
        for name in self._run.scheduler.books.tenants:
            count, total = self._errors.get(name, (0, 0.0))
            error.add_metric([name], count_value=int(count), sum_value=total)
            for category in CATEGORIES:
                bias.add_metric([name, category], estimator.bias(name, category))
        yield from (error, bias)

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


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"driftsched_{name}", what, value)
