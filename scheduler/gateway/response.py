"""Two answers that are not quite aiohttp's: a stream of events, and a whole completion in one write.

For the latter aiohttp collects, checks and serializes headers anew each time, which is a tenth of what a
request costs here. All other answers are aiohttp's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from email.utils import formatdate
from functools import lru_cache
from time import time

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.web_request import BaseRequest

from scheduler.live.answer import SlowReader

REQUEST_ID = "X-Request-Id"
"""Header of every answer of the OpenAI API: what clients log, and of a request its id in the run folder."""
ITS_ID = web.RequestKey("id", str)
"""Of what a client asks: the id of the scheduler's request, once there is one."""
STALL_S = 30.0
"""Seconds that a client may read nothing of a stream before it is dropped."""
_NO_WAIT_BYTES = 65_536
"""What an empty transport takes without making its writer wait; a timeout would cost more than the write."""


def json_response(http: web.Request, body: bytes, request_id: str) -> web.StreamResponse:
    """200, with a body that is JSON."""
    if http.version != HttpVersion11 or not http.keep_alive:
        return web.Response(body=body, content_type="application/json")
    head = _head(int(time()))
    return _Written(
        b"%sX-Request-Id: %s\r\nContent-Length: %d\r\n\r\n%s" % (head, request_id.encode(), len(body), body)
    )


async def send_events(
    http: web.Request, events: AsyncGenerator[bytes], headers: Mapping[str, str] = {}
) -> web.StreamResponse:
    """200, server-sent events as they come; they end where the client goes away or reads too slowly, for
    which they may raise SlowReader.
    """
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", **headers}
    )
    transport = http.transport
    try:
        await response.prepare(http)
        if transport is None:
            raise ConnectionError
        async for event in events:
            if len(event) <= _NO_WAIT_BYTES and not transport.get_write_buffer_size():
                await response.write(event)
                continue
            async with asyncio.timeout(STALL_S):
                await response.write(event)
        await response.write_eof()
    except (SlowReader, TimeoutError):
        if transport is not None:
            transport.abort()
    except ConnectionError:
        pass  # it went away between two events
    finally:
        await events.aclose()
    return response


class _Written(web.StreamResponse):
    """Bytes with their headers: ``headers``, ``force_close`` and on_response_prepare change nothing in them.
    The connection stays open.
    """

    keep_alive = True
    _writer: AbstractStreamWriter

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter:
        self._writer = request.writer
        return self._writer

    async def write_eof(self, data: bytes = b"") -> None:
        await self._writer.write_eof(self._data)


@lru_cache(1)
def _head(now_s: int) -> bytes:
    return (
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        f"Date: {formatdate(now_s, usegmt=True)}\r\nServer: {SERVER_SOFTWARE}\r\n"
    ).encode()
