"""The control API, for the operator's key only: look at a run and steer it, as the dashboard does.

Every change says who asked for it (``by``), in the list of events and in the event log.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Annotated, TypeVar

from aiohttp import web
from pydantic import Field, ValidationError

from scheduler.core.events import Event, Kind
from scheduler.gateway.bodies import read_json
from scheduler.gateway.completions import Completions
from scheduler.gateway.errors import ApiError, bad
from scheduler.gateway.keys import Keys
from scheduler.gateway.response import send_events
from scheduler.gateway.wire import notices_to_json, to_json
from scheduler.live.feed import LocalFeed
from scheduler.live.run import LiveRun
from scheduler.live.view import CommandError, Notice, NotNow
from scheduler.load.fields import Positive, Section, Weight
from scheduler.load.scenario import first_fault
from scheduler.load.schema import LimitsSection, TenantLimits

KEEP_ALIVE_S = 15.0
"""An event stream says something at least so often, so that a dead connection is noticed."""

NO_TENANT = ""  # under which the operator's bodies are counted

BY = "^[A-Za-z0-9._@ -]{1,32}$"
By = Annotated[str, Field(pattern=BY)]


class Verb(Section):
    """A body of the control API."""

    by: By = "operator"


class SetPolicy(Verb):
    """A hot swap."""

    policy: Annotated[str, Field(max_length=200)]


class SetEstimator(Verb):
    """Another estimator; what waits is estimated and ranked anew."""

    estimator: Annotated[str, Field(max_length=64)]


class AskPreview(Verb):
    """Predict what these policies would do; all that are known by name where none is given."""

    policies: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=32)] = Field(
        default_factory=list
    )


class StartScenario(Verb):
    """A shipped scenario's load, from now on. Files of the server are not for the network to read."""

    scenario: Annotated[str, Field(max_length=64)]


class StartBurst(Verb):
    """Extra arrivals of one tenant of the scenario under way."""

    tenant: str
    rate: Positive
    seconds: Positive


class SetLimits(Verb, LimitsSection):
    """Bounds over all tenants; those not given are lifted."""


class SetTenant(Verb):
    """What is not given stays, of the limits, too; null lifts one."""

    weight: Weight | None = None
    limits: TenantLimits | None = None


class SetDraining(Verb):
    """Refuse new requests, or accept them again."""

    draining: bool = True


V = TypeVar("V", bound=Verb)


class Control:
    """Handlers over ``feed``; a dashboard beside them has the same, so that it can undo what they did."""

    def __init__(self, run: LiveRun, keys: Keys, completions: Completions, feed: LocalFeed) -> None:
        self._run = run
        self._keys = keys
        self._completions = completions
        self._feed = feed
        self._bells: set[asyncio.Event] = set()  # one of each stream of events
        self._closed = False
        run.notices.listeners.append(self._ring)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/control/view", self.view),
            web.get("/control/events", self.events, allow_head=False),  # it has no end
            web.get("/control/policies", self.policies),
            web.get("/control/scenarios", self.scenarios),
            web.get("/control/estimator", self.estimator),
            web.put("/control/estimator", self.set_estimator),
            web.get("/control/preview", self.preview),
            web.post("/control/preview", self.ask_preview),
            web.post("/control/policy", self.set_policy),
            web.post("/control/policy/undo", self.undo_policy),
            web.post("/control/pause", self.pause),
            web.post("/control/resume", self.resume),
            web.post("/control/scenario", self.start_scenario),
            web.delete("/control/scenario", self.stop_scenario),
            web.post("/control/burst", self.burst),
            web.put("/control/limits", self.set_limits),
            web.patch("/control/tenants/{name}", self.set_tenant),
            web.post("/control/drain", self.drain),
        ]

    # -- looking -------------------------------------------------------------------------------------

    def _operator(self, http: web.Request) -> None:
        self._keys.operator(http.headers)

    async def view(self, http: web.Request) -> web.Response:
        """The whole picture, and the notices since ``after``."""
        self._operator(http)
        notices = self._feed.notices(_after(http))
        view = self._feed.view()
        if self._completions.stopping:  # of which the session knows only when all is drained
            view = replace(view, engine_state="stopping")
        body = {"view": to_json(view), "notices": notices_to_json(notices)}
        return web.json_response(body)

    async def events(self, http: web.Request) -> web.StreamResponse:
        """Notices as server-sent events, from ``after`` (or Last-Event-ID) on, while somebody reads."""
        self._operator(http)
        return await send_events(http, self._notices(_after(http)))

    async def _notices(self, seen: int) -> AsyncGenerator[bytes]:
        bell = asyncio.Event()
        self._bells.add(bell)
        try:
            while True:
                bell.clear()
                for notice in notices_to_json(self._feed.notices(seen)):
                    seen = notice["seq"]
                    yield f"id: {seen}\ndata: {json.dumps(notice)}\n\n".encode()
                if self._closed:
                    return
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        await bell.wait()
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            self._bells.remove(bell)

    def _ring(self, notice: Notice | None = None) -> None:
        for bell in self._bells:
            bell.set()

    def close(self) -> None:
        """After the run has stopped: who listens to its events gets what is left of them, and the end."""
        self._closed = True
        self._ring()

    async def policies(self, http: web.Request) -> web.Response:
        self._operator(http)
        return web.json_response(dict(self._feed.policies()))

    async def scenarios(self, http: web.Request) -> web.Response:
        self._operator(http)
        return web.json_response(dict(self._feed.scenarios()))

    async def estimator(self, http: web.Request) -> web.Response:
        """All that was learned about lengths."""
        self._operator(http)
        return web.json_response(self._run.scheduler.estimator.state())

    async def preview(self, http: web.Request) -> web.Response:
        """The latest preview, as far as it is; null before the first."""
        self._operator(http)
        latest = self._feed.previewed()
        return web.json_response({"preview": None if latest is None else to_json(latest)})

    # -- steering ------------------------------------------------------------------------------------

    async def set_policy(self, http: web.Request) -> web.Response:
        verb = await self._read(http, SetPolicy)
        return self._do(lambda: self._feed.switch_policy(verb.policy, by=verb.by))

    async def ask_preview(self, http: web.Request) -> web.Response:
        verb = await self._read(http, AskPreview)
        return self._do(lambda: self._feed.preview(verb.policies), not_now="no_preview_yet")

    async def undo_policy(self, http: web.Request) -> web.Response:
        verb = await self._read(http, Verb)
        return self._do(lambda: self._feed.undo_policy(by=verb.by), not_now="nothing_to_undo")

    async def set_estimator(self, http: web.Request) -> web.Response:
        verb = await self._read(http, SetEstimator)
        return self._do(lambda: self._feed.switch_estimator(verb.estimator, by=verb.by))

    async def pause(self, http: web.Request) -> web.Response:
        verb = await self._read(http, Verb)
        self._completions.check_staying()  # what drains would wait in vain
        return self._do(lambda: self._feed.pause(by=verb.by))

    async def resume(self, http: web.Request) -> web.Response:
        verb = await self._read(http, Verb)
        return self._do(lambda: self._feed.resume(by=verb.by))

    async def start_scenario(self, http: web.Request) -> web.Response:
        verb = await self._read(http, StartScenario)
        if verb.scenario not in self._feed.scenarios():
            raise bad(f"scenario must be one of {', '.join(self._feed.scenarios())}", "scenario")
        self._completions.check_up()
        return self._do(lambda: self._feed.inject(verb.scenario, by=verb.by))

    async def stop_scenario(self, http: web.Request) -> web.Response:
        verb = await self._read(http, Verb)
        return self._do(lambda: self._feed.stop_loads(by=verb.by))

    async def burst(self, http: web.Request) -> web.Response:
        verb = await self._read(http, StartBurst)
        self._completions.check_up()
        return self._do(lambda: self._feed.burst(verb.tenant, verb.rate, verb.seconds, by=verb.by))

    async def set_limits(self, http: web.Request) -> web.Response:
        verb = await self._read(http, SetLimits)
        self._run.session.set_limits(verb.limits, by=verb.by)
        return _done()

    async def set_tenant(self, http: web.Request) -> web.Response:
        verb = await self._read(http, SetTenant)
        name, known = http.match_info["name"], self._run.scheduler.books.tenants
        if name not in known:
            raise ApiError(404, f"tenant must be one of {', '.join(known)}", code="unknown_tenant")
        limits = replace(known[name].config.limits, **verb.limits.named) if verb.limits else None
        return self._do(lambda: self._feed.set_tenant(name, weight=verb.weight, limits=limits, by=verb.by))

    async def drain(self, http: web.Request) -> web.Response:
        verb = await self._read(http, SetDraining)
        self._completions.check_staying()
        self._completions.draining = verb.draining
        return self._tell(Kind.SCENARIO, "draining" if verb.draining else "accepting requests again", verb)

    async def _read(self, http: web.Request, model: type[V]) -> V:
        self._operator(http)
        try:
            bodies = self._completions.bodies
            raw = await bodies.read(http, NO_TENANT) if http.can_read_body else b"{}"
            return model.model_validate(read_json(raw))
        except ValidationError as error:
            where, what = first_fault(error, model)
            raise bad(f"{where}: {what}", where) from None

    def _do(self, verb: Callable[[], None], *, not_now: str | None = None) -> web.Response:
        """``not_now`` is the code of a 409, for a verb that may come too early: nothing is wrong with it."""
        try:
            verb()
        except CommandError as error:
            if not_now is not None and isinstance(error, NotNow):
                raise ApiError(409, str(error), code=not_now) from None
            raise bad(str(error)) from None
        return _done()

    def _tell(self, kind: Kind, what: str, verb: Verb) -> web.Response:
        self._run.on_event(Event(self._run.clock.now(), kind, None, {"what": what, "by": verb.by}))
        return _done()


def _done() -> web.Response:
    return web.json_response({"ok": True})


def _after(http: web.Request) -> int:
    text = http.query.get("after") or http.headers.get("Last-Event-ID") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise bad("after must be the number of a notice", "after")
    return int(text)
