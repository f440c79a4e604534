"""The virtual driver: the same Scheduler against simulated GPUs, jumping from instant to instant.

now = min(next GPU event, next scheduler timer, next of the workload); ties in the order completion, expiry,
cancel, arrival, then sequence number. No sleeping, and no clock but for the wall time that swaps took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Protocol

from scheduler.core.crashes import GIVEN_UP, Crashes
from scheduler.core.events import Emit, Event, Kind
from scheduler.core.policies import policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import ENDED, Outcome, Request
from scheduler.load.workload import (
    Action,
    Cancel,
    ChangeTenant,
    Fault,
    Mark,
    SwitchEstimator,
    SwitchPolicy,
)
from scheduler.twin.answer import answer
from scheduler.twin.gpu import Gpu

RESTART_S = 10.0
"""How long a crashed simulated engine stays away, seconds of run time."""

_PROGRESS_EVERY = 2000  # instants


class Load(Protocol):
    """What comes, and when: a scenario's ``Workload``, or something that stands before it."""

    def next_time(self) -> float: ...

    def take(self, now: float) -> list[Action]: ...

    def on_ended(self, request: Request, now: float) -> None: ...

    def on_drained(self, now: float) -> None: ...


class Simulation:
    """One run in virtual time. ``on_ended`` gets every request that has ended, in order."""

    def __init__(
        self,
        scheduler: Scheduler,
        gpus: Sequence[Gpu[Request]],
        workload: Load,
        *,
        on_ended: Callable[[Request], None],
        emit: Emit | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.now = 0.0
        self.switches: list[dict[str, Any]] = []
        self._gpus = list(gpus)
        self._workload = workload
        self._on_ended = on_ended
        self._emit = emit
        self._on_progress = on_progress
        self._running: dict[Request, Outcome] = {}  # with how it will end
        self._restarts: list[tuple[float, int]] = []
        self._crashes = Crashes()
        self._over = False
        self.stopped = False
        self.failure: str | None = None  # why its engines were given up

    def stop(self) -> None:
        """End the run at the next instant; safe to call from a signal handler."""
        self.stopped = self._over = True

    def run(self) -> None:
        """Until nothing is left to happen."""
        scheduler, workload, gpus, running = self.scheduler, self._workload, self._gpus, self._running
        next_event = gpus[0].next_event if len(gpus) == 1 else lambda: min(gpu.next_event() for gpu in gpus)
        submit, on_complete = scheduler.submit, scheduler.on_complete
        next_dispatch, totals = scheduler.next_dispatch, scheduler.books.totals
        capacity, batched = scheduler.slots.capacity, scheduler.slots.batch is not None
        next_timer, expiries = scheduler.next_timer, scheduler.waiting.expiries
        next_time, take, client_goes_on = workload.next_time, workload.take, workload.on_ended
        on_ended, on_progress, restarts = self._on_ended, self._on_progress, self._restarts
        instants, now, event_s = 0, self.now, next_event()
        while not self._over:
            load_s, timer_s = next_time(), next_timer() if expiries or batched else inf
            if restarts and restarts[0][0] < timer_s:
                timer_s = restarts[0][0]
            due_s = event_s if event_s < timer_s else timer_s
            if load_s < due_s:
                due_s = load_s
            elif due_s == inf:
                break
            if due_s > now:
                now = due_s
            if event_s <= now:
                for gpu in gpus:
                    for kind, sequence in gpu.advance(now):
                        request = sequence.key
                        if kind == "first":
                            scheduler.on_first_token(request.id, sequence.first_s)
                            continue
                        request.first_token_s, request.last_token_s = sequence.first_s, sequence.last_s
                        request.gaps = sequence.gaps
                        for ended in on_complete(request.id, now, running.pop(request)):
                            on_ended(ended)
                            client_goes_on(ended, now)
            if timer_s <= now:
                self._timers(now)
            if load_s <= now:
                for action in take(now):
                    if type(action) is not Request:
                        self._act(action, now)
                    elif submit(action, now) is not None:
                        self._ended(action, now)
                # While every slot is taken, what comes changes nothing but the queue.
                if event_s > now and len(running) == capacity:
                    continue
            # At most instants there is no slot, or nobody who waits for one.
            while len(running) < capacity and (totals.queued or batched):
                if (ready := next_dispatch(now)) is None:
                    break
                running[ready] = outcome = answer(ready)
                gpu = gpus[ready.replica]
                if event_s > now:
                    gpu.advance(now)
                group = ready.tenant, ready.tier
                gpu.start(ready, ready.prompt_tokens, outcome.output_tokens, group)
            if not running and scheduler.idle:
                workload.on_drained(now)
            event_s = next_event()
            if on_progress is not None:
                instants += 1
                if instants % _PROGRESS_EVERY == 0:
                    on_progress(now)
        self.now = now
        if self._over:
            self._end_the_rest(now)

    def _timers(self, now: float) -> None:
        self._restart(now)
        for request in self.scheduler.expire(now):
            self._ended(request, now)

    def _ended(self, request: Request, now: float) -> None:
        self._on_ended(request)
        self._workload.on_ended(request, now)

    def _act(self, action: object, now: float) -> None:
        scheduler = self.scheduler
        match action:
            case Cancel(request_id):
                self._cancel(request_id, now)
            case SwitchPolicy(spec, by):
                self._swap(lambda: scheduler.begin_swap(policy_from(spec), now, by=by), now)
            case SwitchEstimator(estimator, by):
                self._swap(lambda: scheduler.set_estimator(estimator, now, by=by), now)
            case ChangeTenant(name):
                tenant = scheduler.books.tenant(name).config
                scheduler.set_tenant(action.to(tenant), now, by="timeline")
            case Fault():
                self._crash(now)
            case Mark(text):
                self._tell(now, Kind.SCENARIO, {"what": text})
            case _:
                raise TypeError(f"the workload gave {action!r}")

    def _swap(self, begin: Callable[[], object], now: float) -> None:
        """Carried out at once."""
        scheduler, started = self.scheduler, time.perf_counter()
        swaps = len(scheduler.swaps)
        begin()
        scheduler.swap_step(now, max_items=1 << 62)
        scheduler.waiting.retire(1 << 62)
        if len(scheduler.swaps) == swaps:
            return  # the policy is as before
        took_ms = (time.perf_counter() - started) * 1e3
        record = scheduler.swaps[-1]
        self.switches.append(record.told(took_ms))
        # By the run's own time it took none, and the log of one seed is always the same.
        self._tell(now, Kind.SWITCHED, record.told(0.0))

    def _cancel(self, request_id: str, now: float) -> None:
        request = self.scheduler.get(request_id)
        if request is None:
            return  # it ended in this same instant
        replica = self.scheduler.cancel(request_id, now)
        if replica is not None:
            del self._running[request]
            gpu = self._gpus[replica]
            gpu.advance(now)
            tokens = gpu.cancel(request)
            for ended in self.scheduler.on_complete(request_id, now, Outcome("abort", tokens)):
                self._ended(ended, now)
        elif request.state in ENDED:
            self._ended(request, now)

    def _crash(self, now: float) -> None:
        away = {index for _, index in self._restarts}
        if len(away) == len(self._gpus):
            return  # there is nothing to crash
        for index, gpu in enumerate(self._gpus):
            if index in away:
                continue
            gpu.advance(now)
            lost = gpu.crash()
            for request in lost:
                del self._running[request]
            self._tell(now, Kind.ENGINE, {"what": "crashed", "replica": index, "lost": len(lost)})
            for ended in self.scheduler.on_engine_lost(index, now):
                self._ended(ended, now)
            self._restarts.append((now + RESTART_S, index))
        if self._crashes.add(now):
            self._over, self.failure = True, GIVEN_UP
            self._tell(now, Kind.ENGINE, {"what": "dead", "why": GIVEN_UP})

    def _end_the_rest(self, now: float) -> None:
        """What waits for engines that were given up has failed; what a stopped run leaves is cancelled."""
        if self.failure is not None:
            for request in self.scheduler.on_engines_gone(now):
                self._ended(request, now)
        for request in list(self.scheduler.active()):
            self._cancel(request.id, now)

    def _restart(self, now: float) -> None:
        while self._restarts and self._restarts[0][0] <= now:
            _, index = self._restarts.pop(0)
            self.scheduler.on_engine_up(index)
            self._tell(now, Kind.ENGINE, {"what": "restarted", "replica": index, "away_s": RESTART_S})

    def _tell(self, now: float, kind: Kind, detail: dict[str, Any]) -> None:
        if self._emit is not None:
            self._emit(Event(now, kind, None, detail))
