"""A closed loop of HTTP clients that costs little itself: each connection sends its next request at once.

It speaks just enough HTTP for answers that are all of one length: anything else is a BenchError.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import NamedTuple

from scheduler.bench.result import BenchError

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Load(NamedTuple):
    """What was answered."""

    took_s: float
    latencies_s: list[float]  # ascending
    answer_bytes: int  # of each, headers included

    @property
    def per_s(self) -> float:
        return len(self.latencies_s) / self.took_s


async def closed_loop(port: int, path: str, body: bytes, *, connections: int, seconds: float) -> Load:
    """POST ``body`` as JSON from so many connections for so long. Raises BenchError."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    began_s = time.perf_counter()
    clients = [_Client(head.encode() + body, began_s + seconds, loop) for _ in range(connections)]
    try:
        for client in clients:
            await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
        await asyncio.gather(*(client.done for client in clients))
    except OSError as error:
        raise BenchError(f"a server of the bench does not answer: {error}") from error
    took_s = time.perf_counter() - began_s
    latencies_s = sorted(latency for client in clients for latency in client.latencies_s)
    return Load(took_s, latencies_s, clients[0].answer_bytes)


class _Client(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, request: bytes, until_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.done: asyncio.Future[None] = loop.create_future()
        self.latencies_s: list[float] = []
        self._request = request
        self._until_s = until_s
        self.answer_bytes = 0  # as the first answer says
        self._got = b""
        self._sent_s = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._got = got = self._got + data
        if not self.answer_bytes and (end := got.find(b"\r\n\r\n")) > 0 and (length := _LENGTH.search(got)):
            self.answer_bytes = end + 4 + int(length[1])
        if not self.answer_bytes or len(got) < self.answer_bytes:
            return
        now_s = time.perf_counter()
        if len(got) > self.answer_bytes or not got.startswith(b"HTTP/1.1 200 "):
            self._fail("a server of the bench gave another answer than the first")
            return
        self._got = b""
        self.latencies_s.append(now_s - self._sent_s)
        if now_s < self._until_s:
            self._send()
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail("a server of the bench has closed a connection")

    def _fail(self, why: str) -> None:
        if not self.done.done():
            self.done.set_exception(BenchError(why))
            self._transport.abort()
