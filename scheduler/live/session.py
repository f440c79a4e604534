"""One live run: the Scheduler, its engine and the load in one event loop, pumped by events.

``pump`` runs after each submit, completion, cancel and change, and at one timer: the earlier of the
Scheduler's and the load's next instant. Nothing polls. Times are run seconds of one ``Clock``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from math import inf
from typing import Any

from scheduler.core.crashes import GIVEN_UP, Crashes
from scheduler.core.estimate import Estimator
from scheduler.core.events import Event, Kind
from scheduler.core.metrics import note_gaps
from scheduler.core.policies import Policy, policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.types import (
    ABORTING,
    ENDED,
    QUEUED,
    RUNNING,
    Limits,
    Outcome,
    Rejected,
    Request,
    Tenant,
)
from scheduler.engines.clock import Clock
from scheduler.engines.engine import Chunk, Engine, EngineError, EngineLost
from scheduler.live.answer import Answer
from scheduler.live.hot_swap import HotSwap
from scheduler.live.mistakes import place_of
from scheduler.live.tasks import Tasks
from scheduler.load.workload import (
    Action,
    Cancel,
    ChangeTenant,
    Fault,
    Mark,
    SwitchEstimator,
    SwitchPolicy,
    Workload,
)
from scheduler.record.document import finite

log = logging.getLogger(__name__)


class Session:
    """Owns the tasks of a run. ``on_event`` gets every event, ``on_ended`` every request that has ended,
    ``on_switch`` each switch (from, to, by whom, when), ``on_loads_ended`` when all load has come and ended.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        engine: Engine,
        clock: Clock,
        *,
        on_ended: Callable[[Request], None],
        on_event: Callable[[Event], None],
        on_switch: Callable[[str, str, str, float], None],
        on_loads_ended: Callable[[float], None],
    ) -> None:
        self.scheduler = scheduler
        self.engine = engine
        self.clock = clock
        self.engine_state = "starting"  # starting, ready, restarting, dead, stopping
        self.switches: list[dict[str, Any]] = []
        self.loads: list[Workload] = []
        self.drained = asyncio.Event()  # all load has come and ended, or the engine is dead
        self.failure: EngineError | None = None
        self._loop = asyncio.get_running_loop()
        self._on_ended = on_ended
        self._on_event = on_event
        self._on_switch = on_switch
        self._on_loads_ended = on_loads_ended
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = inf  # when it goes off
        self._pumping = False
        self._draining = False
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._tasks = Tasks()
        self._answers: dict[str, Answer] = {}  # of requests that a client waits for
        self._crashes = Crashes()
        self._hot_swap = HotSwap(scheduler, clock, on_switched=self._switched, on_done=self.pump)

    # -- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring the engine up; the run's time begins then. Raises EngineConfigError, EngineLost."""
        await self.engine.start()
        self.clock.start()
        self._engine_ready({"what": "started"})

    def add_load(self, load: Workload, tenants: Iterable[Tenant] = ()) -> None:
        """Play this load from its own start on, with the tenants it needs; there may be several at a time.
        One that was added before may have been given more to do.
        """
        for tenant in tenants:
            if tenant.name not in self.scheduler.books.tenants:
                self.scheduler.add_tenant(tenant)
                self._tell(Kind.TENANT, {"tenant": tenant.name, **finite(asdict(tenant))})
        if load not in self.loads:
            self.loads.append(load)
        self.drained.clear()
        self.pump()

    def stop_loads(self) -> None:
        """No further request comes from any load, even where one is given more to do later."""
        for load in self.loads:
            load.stop()
        self.loads.clear()
        self.pump()

    async def stop(self, *, drain_s: float = 0.0) -> None:
        """Stop loads, drain up to ``drain_s`` real seconds, abort what still runs, stop the engine. What is
        queued while dispatch is paused, at the beginning or later, is cancelled: it would wait in vain.
        """
        self._draining = True
        self.stop_loads()
        if drain_s > 0 and not self.scheduler.idle and self.engine_state == "ready":
            self._loop.call_later(drain_s, self.skip_drain)
            await self.drained.wait()
        self.engine_state = "stopping"
        for request in list(self.scheduler.active()):
            if request.state not in ENDED:  # as one is that a mistake left half settled
                self.cancel(request.id)
        if streams := list(self._streams.values()):
            await asyncio.wait(streams, timeout=10.0)
        for stream in self._streams.values():
            stream.cancel()
        self._tasks.cancel()
        if self._timer is not None:
            self._timer.cancel()
        await self.engine.stop()
        self._tell(Kind.ENGINE, {"what": "stopped"})

    def skip_drain(self) -> None:
        """Wait no longer for what still runs."""
        self.drained.set()

    # -- the pump ------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Do all that is due now, start all that may run, and set the timer for what comes next."""
        if self._pumping:
            return  # what asks is an action of a load, and others of the same instant are still to come
        self._pumping = True
        try:
            self._do_due(self.clock.now())
        finally:
            self._pumping = False
        self._arm()

    def _do_due(self, now: float) -> None:
        scheduler = self.scheduler
        for request in scheduler.expire(now):
            self._ended(request)
        for load in list(self.loads):
            if load.next_time() <= now:
                for action in load.take(now):
                    self._act(action, now)
        while (ready := scheduler.next_dispatch(now)) is not None:
            self._streams[ready.id] = self._loop.create_task(self._stream(ready, ready.attempts))
        if self._draining and scheduler.paused:
            for request in [request for request in scheduler.active() if request.state is QUEUED]:
                self.cancel(request.id)
        if scheduler.idle:
            for load in self.loads:
                load.on_drained(now)
            if all(load.exhausted for load in self.loads):
                if self.loads:
                    self._on_loads_ended(now)
                self.loads.clear()
                self.drained.set()

    def _arm(self) -> None:
        due_s = self.scheduler.next_timer()
        for load in self.loads:
            due_s = min(due_s, load.next_time())
        if due_s == self._due_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = due_s
        self._timer = self.clock.call_at(due_s, self._ring) if due_s < inf else None

    def _ring(self) -> None:
        self._due_s, self._timer = inf, None
        self.pump()

    def _act(self, action: Action, now: float) -> None:
        match action:
            case Request():
                if self.scheduler.submit(action, now) is not None:
                    self._ended(action)
            case Cancel(request_id):
                self.cancel(request_id)
            case SwitchPolicy(spec, by):
                self.switch_policy(policy_from(spec), by=by)
            case SwitchEstimator(estimator, by):
                self.switch_estimator(estimator, by=by)
            case ChangeTenant(name):
                tenant = self.scheduler.books.tenant(name).config
                self.scheduler.set_tenant(action.to(tenant), now, by="timeline")
            case Fault():
                self.engine.crash()
                self.check_engine()
            case Mark(text):
                self._tell(Kind.SCENARIO, {"what": text})

    # -- verbs ---------------------------------------------------------------------------------------

    def submit(self, request: Request, answer: Answer | None = None) -> Rejected | None:
        """One request from outside any load, its text to ``answer``; ``Scheduler.submit`` says the rest."""
        rejected = self.scheduler.submit(request, self.clock.now())
        if rejected is not None:
            self._ended(request)
        elif answer is not None:
            self._answers[request.id] = answer
        self.drained.clear()
        if self.engine_state in ("dead", "stopping"):
            self.cancel(request.id)  # nothing is to run it, and nobody is left waiting for an answer
        self.pump()
        return rejected

    def cancel(self, request_id: str) -> None:
        """The client gave up; unknown ids (it has just ended) are ignored."""
        request = self.scheduler.get(request_id)
        if request is None:
            return
        replica = self.scheduler.cancel(request_id, self.clock.now())
        if replica is not None:
            self._tasks.spawn(self.engine.abort(request_id))
        elif request.state in ENDED:
            self._ended(request)
            self.pump()

    def switch_policy(self, policy: Policy, *, by: str) -> None:
        """Begin a hot swap; slices of it ride on the loop's next turns."""
        now = self.clock.now()
        source, target = self.scheduler.policy.describe(), policy.describe()
        self._hot_swap.policy(policy, by=by)
        self._on_switch(source, target, by, now)  # who only wants to know comes after

    def switch_estimator(self, estimator: Estimator, *, by: str) -> None:
        """Estimate all that waits anew, and rank it by that; in slices too."""
        self._hot_swap.estimator(estimator, by=by)

    def _switched(self, told: dict[str, Any]) -> None:
        self.switches.append(told)
        self._tell(Kind.SWITCHED, told)

    def set_tenant(self, tenant: Tenant, *, by: str) -> None:
        self.scheduler.set_tenant(tenant, self.clock.now(), by=by)
        self.pump()

    def set_limits(self, limits: Limits, *, by: str) -> None:
        self.scheduler.set_limits(limits, self.clock.now(), by=by)
        self.pump()

    def pause(self, *, by: str) -> None:
        self.scheduler.pause(self.clock.now(), by=by)
        self.pump()

    def resume(self, *, by: str) -> None:
        self.scheduler.resume(self.clock.now(), by=by)
        self.pump()

    # -- streams -------------------------------------------------------------------------------------

    async def _stream(self, request: Request, attempt: int) -> None:
        """Carry one stream's tokens to the Scheduler. A stream of an attempt that was lost is deaf."""
        ended = False
        try:
            # To its very end: a generator that is left before costs the loop a task to close it.
            async for chunk in self.engine.generate(request):
                if request.attempts != attempt or request.state not in (RUNNING, ABORTING):
                    return
                ended = self._on_chunk(request, chunk)
            if not ended:
                raise EngineLost(f"the stream of request {request.id} ended without a finish reason")
        except Exception as error:
            mine = request.attempts == attempt and self._streams.get(request.id) is asyncio.current_task()
            if isinstance(error, EngineLost):
                if mine:
                    self._engine_lost(error)
                return
            # A mistake, the engine's or ours.
            log.error("request %s: %s", request.id, place_of(error))
            if mine:  # it costs one request, not the run that would wait for its end
                self._on_chunk(request, Chunk(0, "error"))
            elif request.finish and not ended:
                self.fail(error)  # made while we settled it: our books cannot be trusted any more

    def _on_chunk(self, request: Request, chunk: Chunk) -> bool:
        """True once the stream has ended."""
        scheduler = self.scheduler
        at_s = self.clock.now() if chunk.at_s is None else chunk.at_s
        if chunk.prompt_tokens is not None:
            scheduler.on_prompt_counted(request.id, chunk.prompt_tokens)
        if (answer := self._answers.get(request.id)) is not None:
            answer.on_chunk(chunk)
        if chunk.tokens:
            if request.first_token_s is None:
                scheduler.on_first_token(request.id, at_s)
                note_gaps(request, chunk.tokens - 1, 0.0)
            else:
                note_gaps(request, chunk.tokens, at_s - (request.last_token_s or at_s))
            scheduler.on_tokens(request.id, chunk.tokens, at_s)
        if not chunk.finish:
            return False
        if chunk.gaps is not None:
            request.gaps = dict(chunk.gaps)
        del self._streams[request.id]
        for ended in scheduler.on_complete(request.id, at_s, Outcome(chunk.finish, request.output_tokens)):
            self._ended(ended)
        if scheduler.books.totals.queued or scheduler.idle or self.loads:
            self.pump()  # else there is nothing that could take the slot
        return True

    def _ended(self, request: Request) -> None:
        self._on_ended(request)
        if (answer := self._answers.pop(request.id, None)) is not None:
            answer.on_ended()
        for load in self.loads:
            load.on_ended(request, self.clock.now())

    # -- a dead engine -------------------------------------------------------------------------------

    def _engine_lost(self, error: EngineLost) -> None:
        now = self.clock.now()
        lost = list(self._streams.values())
        self._streams.clear()
        for task in {*lost} - {asyncio.current_task()}:
            task.cancel()
        self._tell(Kind.ENGINE, {"what": "crashed", "lost": len(lost)})
        for request in self.scheduler.on_engine_lost(0, now):
            self._ended(request)
        if self._crashes.add(now):
            self.fail(EngineLost(f"{GIVEN_UP}: {error}"))
            return
        if self.engine_state == "stopping":
            self.fail(error)
            return
        self.engine_state = "restarting"
        self._tasks.spawn(self._restart(now))
        self.pump()  # nothing runs meanwhile, but what waits may expire, and clients come back

    def check_engine(self) -> None:
        """To be called now and then: with nothing to run, no stream tells that the engine has died."""
        if self.engine_state == "ready" and not self._streams and not self.engine.telemetry().alive:
            self._engine_lost(EngineLost("the engine died while it had nothing to do"))

    async def _restart(self, crashed_s: float) -> None:
        try:
            await self.engine.start()
        except EngineLost as error:
            self._engine_lost(error)
        except Exception as error:
            self.fail(error)
        else:
            self._engine_ready({"what": "restarted", "away_s": self.clock.now() - crashed_s})

    def _engine_ready(self, detail: dict[str, Any]) -> None:
        self.engine_state = "ready"
        self.scheduler.on_engine_up(0)
        self._tell(Kind.ENGINE, detail)
        self.pump()

    def fail(self, error: Exception) -> None:
        """The engine stays away: what waits will not run. Of a mistake, which no engine tells of, only the
        type is told.
        """
        self.engine_state = "dead"
        self.failure = error if isinstance(error, EngineError) else EngineError(type(error).__name__)
        self._tell(Kind.ENGINE, {"what": "dead", "why": str(self.failure)})
        for request_id in list(self._answers):
            self.cancel(request_id)  # nobody is left waiting for an answer
        self.drained.set()

    def end_waiting(self) -> None:
        """What waits for an engine that stays away fails; else it would be cancelled when the run stops."""
        for request in self.scheduler.on_engines_gone(self.clock.now()):
            self._ended(request)

    def _tell(self, kind: Kind, detail: dict[str, Any]) -> None:
        self._on_event(Event(self.clock.now(), kind, None, detail))
