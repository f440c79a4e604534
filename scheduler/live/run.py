"""A live run from its plan to its run.json: session, figures, recording and telemetry wired together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from math import isnan
from pathlib import Path
from typing import Any

from scheduler.core.events import Event, Kind
from scheduler.core.types import Request
from scheduler.core.watch import Watch
from scheduler.engines.clock import Clock, PlannedClock
from scheduler.engines.engine import Engine
from scheduler.live.mistakes import on_uncaught, place_of
from scheduler.live.notices import Notices
from scheduler.live.preview import Previewer
from scheduler.live.session import Session
from scheduler.live.steering import Steering
from scheduler.live.tasks import cancel_all
from scheduler.live.telemetry import LoopLag, Machine, Sample, Summary, health
from scheduler.live.view import Health
from scheduler.load.schema import EstimatorOptions
from scheduler.plan import Plan, make_engine, run_header
from scheduler.record.document import run_document
from scheduler.record.expect import evaluate
from scheduler.record.recorder import Recorder
from scheduler.record.summary import load_ended
from scheduler.record.tally import Tally

TELEMETRY_S = 0.2

# For each request: looking them up in the enum is slow.
_QUEUED, _REJECTED, _DISPATCHED = Kind.QUEUED, Kind.REJECTED, Kind.DISPATCHED
_PAUSED = Kind.PAUSED
UNDO = " (undo)"
"""Ends the name of who asks for a switch that takes another one back."""


class LiveRun:
    """``out`` is the run folder, None for none; ``engine`` is one that somebody else made, instead of the
    plan's. With ``clients``, answers have texts. An ``endless`` run keeps no row of each request, so its
    document has no latencies. Make it inside the event loop.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        engine: Engine | None = None,
        out: Path | None = None,
        text: bool = False,
        speed: float | None = None,
        clients: bool = False,
        endless: bool = False,
    ) -> None:
        self.plan = plan
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(on_uncaught)
        simulated = plan.simulated if engine is None else engine.simulated
        self.clock = (
            PlannedClock(self._loop, speed or plan.scenario.speed) if simulated else Clock(self._loop)
        )
        self.engine: Engine = engine or make_engine(plan, self.clock, text=clients)
        self.notices = Notices()
        self.tally = Tally()
        self.lag = LoopLag(self._loop)
        self.health = Health()
        self.recorder: Recorder | None = None
        self.observers: list[Callable[[Request], None]] = []  # told of every request that has ended
        self.left: deque[str] = deque(maxlen=100)  # the policies before this one, to go back to
        self._endless = endless
        self._wall_from = time.perf_counter()
        self._summary = Summary()
        self._watch = Watch()
        self._sampling: asyncio.Task[None] | None = None
        self.scheduler = plan.scheduler(capacity=self.engine.capacity, emit=self.on_event, windows=True)
        if plan.scenario.estimator.embeddings is not None:
            plan.estimator(EstimatorOptions(kind="learned"))  # read now: no switch to it holds up the loop
        self.previewer = Previewer(
            self.scheduler,
            self.clock,
            lambda: self.engine.profile,
            plan.capacity,
            lambda line: self.notices.add(self.clock.now(), "policy", line),
        )
        self.session = Session(
            self.scheduler,
            self.engine,
            self.clock,
            on_ended=self._on_ended,
            on_event=self.on_event,
            on_switch=self._on_switch,
            on_loads_ended=self._on_loads_ended,
        )
        self.steering = Steering(self.session, self.clock, self.previewer, plan.guard, plan.goal)
        self.load = plan.workload()
        if out is not None:
            self.recorder = Recorder(
                out,
                tenants=[tenant.name for tenant in plan.tenants],
                scheduler=lambda: self.scheduler,
                paper=plan.scenario.paper,
                wait=False,
                text=text,
                on_error=self._recording_failed,
            )

    async def start(self) -> None:
        """Engine up, then the load. Raises EngineConfigError, EngineLost."""
        machine = await asyncio.to_thread(Machine)
        await self.session.start()
        self.lag.start()
        self._sampling = self._loop.create_task(self._sample(machine))
        self._sampling.add_done_callback(self._sampled)
        self.on_event(Event(0.0, Kind.SCENARIO, None, {"what": f"{self.plan.scenario.name} started"}))
        self.steering.start()
        self.session.add_load(self.load)

    async def stop(self, *, drain_s: float = 0.0, interrupted: bool = False) -> dict[str, Any]:
        """Drain for up to ``drain_s`` seconds, stop the engine, and return the document; the run folder is
        complete then.
        """
        await self.session.stop(drain_s=drain_s)
        await self.steering.stop()
        if self._sampling is not None:
            await cancel_all(self._sampling)
        self.lag.stop()
        document = self.document(interrupted=interrupted)
        await self.previewer.stop()
        if self.recorder is not None:
            await asyncio.to_thread(self.recorder.close, document)
        return document

    def document(self, *, interrupted: bool) -> dict[str, Any]:
        """run.json as of now, its expectations judged."""
        document = run_document(
            run_header(self.plan, self.engine.detail, self.scheduler.slots.capacity, "real"),
            self.scheduler,
            self.tally,
            now=self.clock.now(),
            wall_s=time.perf_counter() - self._wall_from,
            interrupted=interrupted,
            failure=None if self.session.failure is None else str(self.session.failure),
            switches=self.session.switches,
            predictions=self.previewer.document(self.clock.now()),
            telemetry=self._summary.figures(),
            loop_lag_ms=self.lag.figures(),
        )
        document["expect"] = evaluate(self.plan.scenario.expect, document)
        return document

    def on_event(self, event: Event) -> None:
        """To the list of events and the log; whoever steers the run from outside tells it here."""
        kind = event.kind
        if event.request is None:
            self.notices.on_event(event)
            if kind is _PAUSED:
                self.previewer.on_paused(event.at_s)
        elif kind is _DISPATCHED:
            self.lag.begin()
        elif kind is _QUEUED or kind is _REJECTED:
            self.previewer.on_arrived(event.request)
        if self.recorder is not None:
            self.recorder.on_event(event)

    def _on_ended(self, request: Request) -> None:
        if not self._endless:
            self.tally.add(request)
        if (change := self._watch.on_ended(request)) is not None:
            self.on_event(change)
        if self.scheduler.idle:
            self.lag.end()
        self.previewer.on_ended(request)
        self.steering.on_ended(request)
        for observe in self.observers:
            observe(request)

    def _on_switch(self, source: str, target: str, by: str, now: float) -> None:
        if source != target:
            if not by.endswith(UNDO):
                self.left.append(source)
            self.steering.on_switch(source, by, now)
            self.previewer.on_switch(source, target, now)

    def _on_loads_ended(self, now: float) -> None:
        if self.plan.scenario.load and not self._endless:  # what clients send does not end
            what = load_ended(self.scheduler.books.counts())
            self.on_event(Event(now, Kind.SCENARIO, None, {"what": what}))

    def _recording_failed(self, why: str) -> None:
        """May be called from the writer's thread."""
        self._loop.call_soon_threadsafe(self.notices.add, self.clock.now(), "record", why)

    async def _sample(self, machine: Machine) -> None:
        """Telemetry every 200 ms; the reading blocks for a moment, so it is done in a thread."""
        while True:
            sample = await asyncio.to_thread(machine.read)
            self.health = health(sample)
            row = self._row(sample)
            self._summary.add(row)
            if self.recorder is not None:
                self.recorder.telemetry(row)
            self.session.check_engine()
            now = self.clock.now()
            for event in self._watch.look(self.scheduler, now):
                self.on_event(event)
            await asyncio.sleep(TELEMETRY_S)

    def _sampled(self, sampling: asyncio.Task[None]) -> None:
        """Cancelled at the end, or failed: the run goes on without."""
        if not sampling.cancelled() and (error := sampling.exception()) is not None:
            self.notices.add(self.clock.now(), "error", f"no more telemetry: {place_of(error)}")

    def _row(self, sample: Sample) -> Mapping[str, float | None]:
        told = self.engine.telemetry()
        lag = self.lag.recent_p99_ms()
        return {
            "elapsed_s": round(self.clock.now(), 3),
            **sample,
            "loop_lag_p99_ms": None if isnan(lag) else lag,
            "engine_running": told.running,
            "engine_waiting": told.waiting,
            "engine_kv_use": told.kv_use,
            "engine_preemptions": told.preemptions,
            "engine_step_ms": told.step_ms,
        }
