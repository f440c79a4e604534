"""A run in virtual time from its plan to its run.json."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scheduler.core.events import Event, Kind
from scheduler.core.types import Request
from scheduler.core.watch import Watch
from scheduler.plan import Plan, run_header
from scheduler.record.document import run_document
from scheduler.record.expect import evaluate
from scheduler.record.recorder import Recorder
from scheduler.record.summary import load_ended
from scheduler.record.tally import Tally
from scheduler.twin.gaps import histograms
from scheduler.twin.gpu import Gpu
from scheduler.twin.simulate import Load, Simulation
from scheduler.twin.steering import Steered
from scheduler.twin.steplog import StepLog

LOOK_S = 1.0
"""Run seconds from one look for missed objectives to the next, in a recorded run."""


@contextmanager
def _no_cycle_collector() -> Iterator[None]:
    """Ended requests are freed by their reference counts, for none is part of a cycle; the collector would
    only walk what waits, again and again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _each(listeners: Sequence[Callable[[Request], None]]) -> Callable[[Request], None]:
    """All of them as one; one alone costs nothing more."""
    if len(listeners) == 1:
        return listeners[0]

    def tell(request: Request) -> None:
        for listen in listeners:
            listen(request)

    return tell


class VirtualRun:
    """``out`` is the run folder, None for none. ``on_progress`` is told the virtual time now and then,
    ``on_ended`` each request that has ended. Tenants are watched in a recorded run alone: what is seen is in
    its log, and ``on_change`` is told.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        out: Path | None = None,
        text: bool = False,
        on_progress: Callable[[float], None] | None = None,
        on_ended: Callable[[Request], None] | None = None,
        on_change: Callable[[Event], None] = lambda change: None,
    ) -> None:
        assert plan.profile is not None
        self.plan = plan
        self.tally = Tally()
        self.recorder: Recorder | None = None
        if out is not None:
            self.recorder = Recorder(
                out,
                tenants=[tenant.name for tenant in plan.tenants],
                scheduler=lambda: self.scheduler,
                paper=plan.scenario.paper,
                wait=True,
                text=text,
                # Its prompts are the scenario's, no client's: one seed gives one log.
                key=f"{plan.scenario.name} {plan.seed}".encode(),
            )
        emit = None if self.recorder is None else self.recorder.on_event
        listeners: list[Callable[[Request], None]] = [self.tally.add]
        if self.recorder is not None:
            self._watch, self._on_change = Watch(), on_change
            self._next_look_s = 0.0
            listeners.append(self._look_for_change)
        if on_ended is not None:
            listeners.append(on_ended)
        recorded = self.recorder is not None
        self.scheduler = plan.scheduler(emit=emit, windows=recorded)
        # Only a recorded run needs the gaps of each single request.
        self._log = None if recorded or plan.batch else StepLog(plan.profile)
        track_gaps = recorded and not plan.batch
        gpu: Gpu[Request] = Gpu(
            plan.profile, plan.capacity, first_token_events=recorded, track_gaps=track_gaps, log=self._log
        )
        self._steered: Steered | None = None
        workload = plan.workload()
        load: Load = workload
        if plan.steered:
            load = self._steered = Steered(workload, self.scheduler, gpu, guard=plan.guard, goal=plan.goal)
        self.simulation = Simulation(
            self.scheduler,
            [gpu],
            load,
            on_ended=_each(listeners),
            emit=emit,
            on_progress=on_progress,
        )

    def _look_for_change(self, request: Request) -> None:
        now = request.ended_s or 0.0
        if now >= self._next_look_s:  # where no request ends, there is no news
            self._next_look_s = now + LOOK_S
            for event in self._watch.look(self.scheduler, now):
                self._tell(event)
        if (change := self._watch.on_ended(request)) is not None:
            self._tell(change)

    def _tell(self, change: Event) -> None:
        assert self.recorder is not None
        self.recorder.on_event(change)
        self._on_change(change)

    def _mark(self, at_s: float, what: str) -> None:
        if self.recorder is not None:
            self.recorder.on_event(Event(at_s, Kind.SCENARIO, None, {"what": what}))

    def run(self) -> dict[str, Any]:
        """To the end, or to ``stop``; returns run.json."""
        assert self.plan.profile is not None
        started = time.perf_counter()
        self._mark(0.0, f"{self.plan.scenario.name} started")
        with _no_cycle_collector():
            self.simulation.run()
        if self.simulation.failure is None and not self.simulation.stopped:
            self._mark(self.simulation.now, load_ended(self.scheduler.books.counts()))
        if self._log is not None:
            for group, gaps in histograms(self._log).items():
                self.tally.add_gaps(group, gaps)
        document = run_document(
            run_header(self.plan, self.plan.profile.detail, self.scheduler.slots.capacity, "virtual"),
            self.scheduler,
            self.tally,
            now=self.simulation.now,
            wall_s=time.perf_counter() - started,
            interrupted=self.simulation.stopped,
            failure=self.simulation.failure,
            switches=self.simulation.switches,
            predictions=[] if self._steered is None else self._steered.document(self.simulation.now),
            telemetry={},
            loop_lag_ms=dict.fromkeys(("p50", "p99", "max"), None),
        )
        document["expect"] = evaluate(self.plan.scenario.expect, document)
        if self.recorder is not None:
            self.recorder.close(document)
        return document
