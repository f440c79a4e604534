"""One server of ``bench gateway``, in a process of its own.

``python -m scheduler.bench.gateway_child SIDE CORE``: SIDE is ``gateway``, over an engine that costs nothing,
or ``echo``, bare aiohttp. It says its port on stdout, then the CPU seconds that it has used whenever a line
comes on stdin, and ends with it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence

from aiohttp import web

from scheduler.core.estimate import count_words
from scheduler.core.types import Request
from scheduler.engines.engine import Chunk, EngineTelemetry
from scheduler.gateway.config import default_config
from scheduler.gateway.keys import Keys
from scheduler.gateway.server import Gateway
from scheduler.live.heap import calm_collector
from scheduler.live.run import LiveRun
from scheduler.plan import make_plan

CAPACITY = 256
_ANSWER = "word "


class _AtOnce:
    """A stream of one chunk. Not a generator: the event loop keeps track of those, which costs time."""

    def __init__(self, chunk: Chunk) -> None:
        self._chunk: Chunk | None = chunk

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        chunk, self._chunk = self._chunk, None
        if chunk is None:
            raise StopAsyncIteration
        return chunk


class FreeEngine:
    """Answers at once, each token a word: what is left is the gateway. See ``Engine``."""

    capacity = CAPACITY
    detail = "an engine that costs nothing"
    simulated = False  # it takes no part in a clock of its own
    honours_seed = True
    max_model_len = 1 << 20

    @property
    def profile(self) -> None:
        """It takes no time."""

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        return "\n".join(message["content"] for message in messages)

    async def start(self) -> None:
        """Nothing to bring up."""

    def generate(self, request: Request) -> AsyncIterator[Chunk]:
        return _AtOnce(Chunk(request.max_tokens, "length", _ANSWER * request.max_tokens))

    async def abort(self, request_id: str) -> None:
        """Too late: it has ended."""

    async def stop(self) -> None:
        """Nothing to leave behind."""

    def crash(self) -> None:
        """It has no stream to lose."""

    def telemetry(self) -> EngineTelemetry:
        return EngineTelemetry()


async def _gateway() -> int:
    run = LiveRun(make_plan(default_config()), engine=FreeEngine(), clients=True, endless=True)
    gateway = Gateway(run, Keys(), model="free", count=count_words)
    port = await gateway.listen("127.0.0.1", 0)
    await run.start()
    return port


async def _echo() -> int:
    async def echo(http: web.Request) -> web.Response:
        return web.Response(body=await http.read(), content_type="application/json")

    app = web.Application()
    app.add_routes([web.post("/v1/completions", echo)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return int(runner.addresses[0][1])


async def _main(side: str) -> None:
    port = await (_gateway() if side == "gateway" else _echo())
    calm_collector()
    print(port, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(time.process_time(), flush=True)


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(sys.argv[2])})
    asyncio.run(_main(sys.argv[1]))
