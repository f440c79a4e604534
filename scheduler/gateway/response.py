"""Two answers that are not quite aiohttp's: a stream of events, and a whole completion in one write.

For the latter aiohttp collects, checks and serializes headers anew each time, which is a tenth of what a
request costs here. All other answers are aiohttp's own.
"""

from __future__ import annotations

from email.utils import formatdate
from functools import lru_cache
from time import time

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.web_request import BaseRequest


def json_response(http: web.Request, body: bytes) -> web.StreamResponse:
    """200, with a body that is JSON."""
    if http.version != HttpVersion11 or not http.keep_alive:
        return web.Response(body=body, content_type="application/json")
    return _Written(b"%sContent-Length: %d\r\n\r\n%s" % (_head(int(time())), len(body), body))


def event_stream() -> web.StreamResponse:
    """200, for server-sent events."""
    return web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )


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
