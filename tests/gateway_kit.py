"""A gateway over the simulated engine on a real loopback socket, hurried; shared by the gateway's tests."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from scheduler.core.estimate import count_words
from scheduler.gateway.config import ServeConfig
from scheduler.gateway.jobs import Jobs
from scheduler.gateway.keys import Keys
from scheduler.gateway.server import Gateway
from scheduler.live.journal import Journal
from scheduler.live.run import LiveRun
from scheduler.load.schema import EngineSection, TenantSection
from scheduler.plan import make_plan

MODEL = "placeholder"
JOBS = "/v1/jobs"
ACME, GLOBEX, OPERATOR = "acme-key-0123456789", "globex-key-0123456789", "operator-key-0123456789"
ENVIRON = {"ACME": ACME, "GLOBEX": GLOBEX, "OPERATOR": OPERATOR}


class Served:
    """A running gateway and a client that speaks to it."""

    def __init__(self, run: LiveRun, gateway: Gateway, url: str, http: aiohttp.ClientSession) -> None:
        self.run = run
        self.gateway = gateway
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.http = http

    @property
    def jobs(self) -> Jobs:
        assert self.gateway.jobs is not None, "it was given a journal"
        return self.gateway.jobs

    async def post(
        self, path: str, body: object, key: str | None = None, headers: Mapping[str, str] = {}
    ) -> tuple[int, Any, Mapping[str, str]]:
        """(status, JSON, headers); ``body`` is JSON unless it is bytes."""
        raw = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        sent = {"Content-Type": "application/json", **bearer(key), **headers}
        async with self.http.post(self.url + path, data=raw, headers=sent) as answer:
            return answer.status, await answer.json(), answer.headers

    async def get(self, path: str, key: str | None = None) -> tuple[int, Any]:
        async with self.http.get(self.url + path, headers=bearer(key)) as answer:
            return answer.status, await answer.json()

    async def delete(self, path: str, key: str | None = None) -> tuple[int, Any]:
        async with self.http.delete(self.url + path, headers=bearer(key)) as answer:
            return answer.status, await answer.json()

    async def events(self, path: str, body: object) -> list[Any]:
        """The data of a stream's events, the last one "[DONE]"."""
        async with self.http.post(self.url + path, json=body) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.content_type == "text/event-stream"
            return read_events(await answer.text())


def read_events(text: str) -> list[Any]:
    events = []
    for block in text.split("\n\n")[:-1]:
        assert block.startswith("data: ")
        assert "\n" not in block
        data = block.removeprefix("data: ")
        events.append(data if data == "[DONE]" else json.loads(data))
    assert text.endswith("\n\n")
    return events


def bearer(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def completion(**fields: Any) -> dict[str, Any]:
    return {"prompt": "Say something.", "max_tokens": 5, **fields}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Say something."}], "max_tokens": 5, **fields}


@asynccontextmanager
async def serving(
    *,
    keys: Keys | None = None,
    tenants: Sequence[TenantSection] = (TenantSection(name="acme"), TenantSection(name="globex")),
    capacity: int = 4,
    speed: float = 200.0,
    start: bool = True,
    journal: Path | None = None,
    engine_args: Mapping[str, Any] | None = None,
    **config: Any,
) -> AsyncIterator[Served]:
    plan = make_plan(
        ServeConfig(
            name="test",
            tenants=tuple(tenants),
            engine=EngineSection(capacity=capacity, args=dict(engine_args or {})),
            speed=speed,
            **config,
        )
    )
    run = LiveRun(plan, clients=True, endless=True)
    gateway = Gateway(
        run, keys or Keys(), model=MODEL, count=count_words, journal=Journal(journal) if journal else None
    )
    port = await gateway.listen("127.0.0.1", 0)
    if start:
        await run.start()
        if gateway.jobs is not None:
            await gateway.jobs.recover()
    try:
        async with aiohttp.ClientSession() as http:
            yield Served(run, gateway, f"http://127.0.0.1:{port}", http)
    finally:
        await run.stop()
        await gateway.close()
        run.scheduler.check()


def two_keys() -> Keys:
    return Keys({"acme": ["env:ACME"], "globex": ["env:GLOBEX"]}, ["env:OPERATOR"], ENVIRON)


async def ended(served: Served, job_id: str, key: str | None = None) -> dict[str, Any]:
    """A job once it has ended."""
    async with asyncio.timeout(20):
        while True:
            status, job = await served.get(f"{JOBS}/{job_id}", key)
            assert status == 200
            if job["status"] not in ("queued", "running"):
                return dict(job)
            await asyncio.sleep(0.01)
