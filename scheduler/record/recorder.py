"""The run folder: events.jsonl, metrics.csv, queue_depth.csv, telemetry.csv and run.json.

metrics.csv and queue_depth.csv begin with the paper's columns; ours follow.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scheduler.core.estimate import BASE_TOKENS, MEASURED_RANGE, SAFETY_FACTOR, input_factor
from scheduler.core.events import Event, Kind
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import ENDED, TIERS, Request, State
from scheduler.record.log import LineMaker
from scheduler.record.writer import FileWriter

FILES = ("run.json", "events.jsonl", "metrics.csv", "queue_depth.csv", "telemetry.csv")
_BLOCK_LINES = 256
_SILENCE_ROWS = 3600
_TELEMETRY_ROWS = 5  # a second

METRICS_COLUMNS = (
    *("timestamp", "scheduler_type", "request_id", "tenant_id", "job_type", "workload_category"),
    *("priority_tier", "batch_id", "batch_size", "total_token_budget", "estimated_output_tokens"),
    *("max_output_tokens", "generated_tokens", "queue_enter_time", "worker_start_time"),
    *("worker_finish_time", "queue_wait_seconds", "inference_seconds", "end_to_end_seconds"),
    *("latency_seconds", "status", "feedback_old_bias", "feedback_measured_bias", "feedback_new_bias"),
    *("estimation_bias", "base_tokens", "safety_factor", "input_factor"),
    # ours
    *("ttft_seconds", "finish", "reason", "prompt_tokens", "attempts", "uncorrected_tokens"),
)
DEPTH_COLUMNS = ("elapsed_seconds", *(f"{tier}_queue" for tier in TIERS), "total_queue_size")


class Recorder:
    """Writes a run folder; give ``on_event`` every event. ``on_error`` hears once when the disk fails.

    An earlier run in the folder goes when the first lines of this one are written, and run.json is written at
    the end: what a crash leaves behind is the earlier run or none, never a mixture of two.

    ``scheduler`` is the run's, which may be made later; ``paper`` says that estimates hold the safety factor.
    ``key`` is what prompts are hashed with; without one, a random one that nobody knows.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tenants: Sequence[str],
        scheduler: Callable[[], Scheduler],
        wait: bool,
        paper: bool = False,
        text: bool = False,
        key: bytes | None = None,
        on_error: Callable[[str], None] = lambda why: None,
    ) -> None:
        mode = 0o600 if text else 0o644
        self._writer = FileWriter(folder, replaces=FILES, mode=mode, wait=wait, on_error=on_error)
        self._lines = LineMaker(os.urandom(16) if key is None else key, text=text)
        self._scheduler = scheduler
        self._paper = paper
        self._tenants = tuple(tenants)
        self._pending: dict[str, list[str]] = {}
        self._waiting: set[str] = set()
        self._by_tier = dict.fromkeys(TIERS, 0)  # of those that wait
        self._by_tenant = dict.fromkeys(self._tenants, 0)
        # Of queued and running requests: what their estimate was made with.
        self._biases: dict[str, float] = {}
        self._next_depth_s = 0.0
        self._telemetry_columns: tuple[str, ...] = ()
        self._row("metrics.csv", METRICS_COLUMNS)
        self._row("queue_depth.csv", (*DEPTH_COLUMNS, *(f"tenant:{name}" for name in self._tenants)))

    @property
    def folder(self) -> Path:
        return self._writer.folder

    @property
    def written_bytes(self) -> int:
        return self._writer.written_bytes

    @property
    def error(self) -> str:
        return self._writer.error

    def on_event(self, event: Event) -> None:
        """One event of the Scheduler or its driver, in order of time."""
        self._depths(event.at_s)
        self._line("events.jsonl", self._lines.line(event) + "\n")
        request = event.request
        if request is None:
            return
        if event.kind is Kind.QUEUED:
            self._biases[request.id] = self._bias(request)
        if event.kind in (Kind.QUEUED, Kind.RETRIED):
            self._waiting.add(request.id)
            self._count(request, 1)
        elif request.id in self._waiting:
            self._waiting.remove(request.id)
            self._count(request, -1)
        if request.state in ENDED:
            self._row("metrics.csv", self._metrics(request))

    def _count(self, request: Request, more: int) -> None:
        """So many more wait of its tier and its tenant."""
        self._by_tier[request.tier] += more
        self._by_tenant[request.tenant] = self._by_tenant.get(request.tenant, 0) + more

    def _bias(self, request: Request) -> float:
        return self._scheduler().estimator.bias(request.tenant, request.estimate.category)

    def telemetry(self, sample: Mapping[str, float | int | None]) -> None:
        """One row of telemetry.csv; the first sample names the columns. Once a second all that has happened
        goes to the disk with it: a live run that is killed leaves its log up to there.
        """
        if not self._telemetry_columns:
            self._telemetry_columns = tuple(sample)
            self._row("telemetry.csv", self._telemetry_columns)
        self._row("telemetry.csv", [sample[name] for name in self._telemetry_columns])
        if "events.jsonl" in self._pending and len(self._pending.get("telemetry.csv", ())) >= _TELEMETRY_ROWS:
            self._flush_all()

    def close(self, document: Mapping[str, Any]) -> None:
        """Write what is left, and run.json."""
        self._depth(self._next_depth_s)
        if not self._telemetry_columns:
            self._row("telemetry.csv", ("elapsed_s",))
        self._flush_all()
        self._writer.write("run.json", json.dumps(document, indent=1) + "\n")
        self._writer.close()

    def _metrics(self, request: Request) -> list[Any]:
        estimate = request.estimate
        category = estimate.category
        started, ended, first = request.dispatched_s, request.ended_s, request.first_token_s
        assert ended is not None
        low, high = MEASURED_RANGE
        measured = min(high, max(low, request.output_tokens / BASE_TOKENS[category]))
        finished = request.state is State.FINISHED
        wait = (ended if started is None else started) - request.arrival_s
        bias = self._biases.pop(request.id, None)
        if bias is None:
            bias = self._bias(request)  # rejected, at the instant of its estimate
        return [
            *(ended, self._scheduler().policy.name, request.id, request.tenant, request.category, category),
            *(request.tier, request.batch_id, request.batch_size, estimate.budget, estimate.point),
            *(request.max_tokens, request.output_tokens, request.arrival_s, started, ended, wait),
            *(None if started is None else ended - started, ended - request.arrival_s),
            *(ended - request.arrival_s, request.state.value),
            *(request.bias_before, measured if finished else None, request.bias_after),
            *(bias, BASE_TOKENS[category], SAFETY_FACTOR[request.tier] if self._paper else 1.0),
            input_factor(estimate.input_tokens),
            *(None if first is None else first - request.arrival_s, request.finish, request.reason),
            *(request.prompt_tokens, request.attempts, estimate.uncorrected),
        ]

    def _depths(self, until_s: float) -> None:
        """A row a second; nothing changes between two events, so a long silence is cut short."""
        for _ in range(_SILENCE_ROWS):
            if until_s < self._next_depth_s:
                return
            self._depth(self._next_depth_s)
            self._next_depth_s += 1.0
        self._next_depth_s = float(int(until_s)) + 1.0

    def _depth(self, at_s: float) -> None:
        depth = (at_s, *self._by_tier.values(), len(self._waiting))
        self._row("queue_depth.csv", (*depth, *(self._by_tenant[name] for name in self._tenants)))

    def _row(self, name: str, values: Sequence[Any]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        self._line(name, text.getvalue())

    def _line(self, name: str, line: str) -> None:
        lines = self._pending.setdefault(name, [])
        lines.append(line)
        if len(lines) >= _BLOCK_LINES:
            self._flush(name)

    def _flush_all(self) -> None:
        for name in list(self._pending):
            self._flush(name)

    def _flush(self, name: str) -> None:
        self._writer.write(name, "".join(self._pending.pop(name, ())))
