"""One request's way back to the client that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from scheduler.core.types import Request
from scheduler.engines.engine import Chunk

MAX_UNREAD = 256 * 1024
"""Characters of a stream that wait for a slow reader; past them it is dropped.

An engine cannot pause one request of its batch without holding its KV cache for whoever does not read, so
the reader goes, not the others' memory.
"""


class SlowReader(Exception):
    """The client reads more slowly than its answer comes, by more than is kept for it."""


class Answer:
    """Filled by the session, read by one client: ``whole()`` or ``async for``. Text is tenant data."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.ended = False
        self._parts: list[str] = []
        self._unread = 0  # characters
        self._attempt = 0
        self._bell: asyncio.Future[None] | None = None

    def on_chunk(self, chunk: Chunk) -> None:
        """Called by the session; what a lost attempt had said is forgotten (nothing of it was delivered)."""
        if self.request.attempts != self._attempt:
            self._attempt = self.request.attempts
            self._parts.clear()
            self._unread = 0
        if chunk.text:
            self._parts.append(chunk.text)
            self._unread += len(chunk.text)
            if self.request.streamed:
                self._ring()

    def on_ended(self) -> None:
        """Called by the session: the request is in one of its final states."""
        self.ended = True
        self._ring()

    def _ring(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def _news(self) -> asyncio.Future[None]:
        self._bell = asyncio.get_running_loop().create_future()
        return self._bell

    async def whole(self) -> str:
        """All of its text, once it has ended."""
        while not self.ended:
            await self._news()
        return "".join(self._parts)

    async def begun(self) -> None:
        """Until there is some text, or its end."""
        while not (self._parts or self.ended):
            await self._news()

    async def __aiter__(self) -> AsyncIterator[str]:
        """Text as it comes, what came meanwhile in one piece. Raises SlowReader, but not of an answer that
        comes at its end alone.
        """
        while True:
            if self.request.streamed and self._unread > MAX_UNREAD:
                raise SlowReader
            if self._parts:
                text = "".join(self._parts)
                self._parts.clear()
                self._unread = 0
                yield text
            elif self.ended:
                return
            else:
                await self._news()
