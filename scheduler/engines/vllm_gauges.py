"""What vLLM tells of itself after every step, and how long the step took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from scheduler.engines.engine import EngineTelemetry
from scheduler.twin.fit import StepSample


class Gauges:
    """vLLM's stat logger for one engine: keeps the last values and prints nothing.

    vLLM reports once a step. A step lasts as long as the gap between the tokens that it and the one before
    gave to the same request, by the clock of the engine; where there is no such request, from one report to
    the next while anything runs. (vLLM's own ``elapsed_ms`` leaves out the forward pass where executor and
    EngineCore are one process.)
    """

    def __init__(self, on_step: Callable[[StepSample], None]) -> None:
        self.context = 0  # tokens of the requests that decode, prompts and answers, as far as handed over
        self._on_step = on_step
        self._running = self._waiting = self._preemptions = self._steps = 0
        self._kv_use = 0.0
        self._step_ms: float | None = None
        self._busy_since: float | None = None  # end of the last step, if another one followed at once

    def attach(self, config: Any, engine_index: int = 0) -> Gauges:
        """The factory that vLLM calls: a restarted engine goes on counting here."""
        return self

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
        if scheduler_stats is not None:
            self._running = scheduler_stats.num_running_reqs
            self._waiting = scheduler_stats.num_waiting_reqs
            self._kv_use = scheduler_stats.kv_cache_usage
            self._steps += 1
            now = time.monotonic()
            gaps = iteration_stats.inter_token_latencies_iter if iteration_stats is not None else ()
            step_s = min(gaps) if gaps else None if self._busy_since is None else now - self._busy_since
            self._busy_since = now if self._running else None
            if step_s is not None:
                self._step_ms = step_s * 1000
                details = scheduler_stats.iteration_details
                if details is not None:
                    batch = details.num_ctx_requests + details.num_generation_requests
                    prefill = details.num_ctx_tokens
                    self._on_step(StepSample(step_s, batch, self.context + prefill, prefill))
        if iteration_stats is not None:
            self._preemptions += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def log(self) -> None:
        """Nothing to say."""

    def rest(self) -> None:
        """The engine is gone: nothing runs in it."""
        self._running = self._waiting = 0
        self._kv_use = 0.0
        self._busy_since = None

    def read(self) -> EngineTelemetry:
        return EngineTelemetry(
            self._running, self._waiting, self._kv_use, self._preemptions, self._steps, self._step_ms
        )
