"""The gateway: every route on one aiohttp application, in the scheduler's own event loop."""

from __future__ import annotations

import asyncio
from functools import partial

from aiohttp import web

from scheduler.core.estimate import Counter
from scheduler.core.types import Tenant
from scheduler.gateway.bodies import MAX_BODY_BYTES
from scheduler.gateway.completions import Completions
from scheduler.gateway.connection import Connection
from scheduler.gateway.control import Control
from scheduler.gateway.errors import ApiError
from scheduler.gateway.jobs import Jobs
from scheduler.gateway.keys import DEFAULT_TENANT, Keys
from scheduler.gateway.listen import ListenError, check_open
from scheduler.gateway.metrics import CONTENT_TYPE, Metrics
from scheduler.live.feed import LocalFeed
from scheduler.live.journal import Journal
from scheduler.live.run import LiveRun


class Gateway:
    """Serves one live run. Handlers are in the files beside this one; here they get their addresses."""

    def __init__(
        self, run: LiveRun, keys: Keys, *, model: str, count: Counter, journal: Journal | None = None
    ) -> None:
        """``model`` is what clients call it, ``count`` counts a prompt's tokens; ``journal`` keeps jobs."""
        self.keys = keys
        self.feed = LocalFeed(run)
        self._run = run
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        if keys.open and DEFAULT_TENANT not in run.scheduler.books.tenants:
            run.scheduler.add_tenant(Tenant(DEFAULT_TENANT))
        self.completions = Completions(run, keys, model=model, count=count)
        self.app = web.Application(client_max_size=MAX_BODY_BYTES)
        self.metrics = Metrics(run, model=model)
        api = self.completions
        self.app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/ready", self._ready),
                web.get("/metrics", self._metrics),
                web.get("/v1/models", api.models),
                web.get("/v1/models/{model:.+}", api.model_by_name),
                web.post("/v1/completions", partial(api.serve, chat=False)),
                web.post("/v1/chat/completions", partial(api.serve, chat=True)),
            ]
        )

        self.control = Control(run, keys, self.completions, self.feed)
        self.app.add_routes(self.control.routes())
        self.jobs = None if journal is None else Jobs(run, keys, self.completions, journal)
        if self.jobs is not None:
            self.app.add_routes(self.jobs.routes())
        else:
            self.app.router.add_route("*", "/v1/jobs{rest:.*}", self._no_jobs)

    async def listen(self, host: str, port: int) -> int:
        """Accept connections; returns the port (for port 0). Raises ListenError."""
        if not self.keys.has_tenants:
            check_open(host)
        # With handler_cancellation a client that goes away ends its handler, and so its request.
        self._runner = web.AppRunner(self.app, handler_cancellation=True, shutdown_timeout=5.0)
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        try:
            self._listening = await loop.create_server(partial(Connection, server), host, port, backlog=1024)
        except OSError as error:
            await self.close()
            raise ListenError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        return int(self._listening.sockets[0].getsockname()[1])

    def drain(self) -> None:
        """Accept no further requests, for good; what is here goes on."""
        self.completions.stopping = True

    async def close(self) -> None:
        """After the run has stopped."""
        if self.jobs is not None:
            await self.jobs.close()
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        self.control.close()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self.completions.embedder.close()

    async def _health(self, http: web.Request) -> web.Response:
        """The process answers; 503 once the engine has stopped for good."""
        state = self._run.session.engine_state
        return web.json_response({"status": state}, status=503 if state == "dead" else 200)

    async def _ready(self, http: web.Request) -> web.Response:
        """200 while requests are accepted."""
        self.completions.check_up()
        return web.json_response({"status": self._run.session.engine_state})

    async def _no_jobs(self, http: web.Request) -> web.Response:
        self.keys.tenant(http.headers)
        raise ApiError(404, "jobs need a journal: driftsched serve --journal FILE", code="no_journal")

    async def _metrics(self, http: web.Request) -> web.Response:
        """Names and volumes of all tenants: the operator's."""
        self.keys.operator(http.headers)
        return web.Response(body=await self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})
