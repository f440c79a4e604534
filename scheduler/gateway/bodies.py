"""Bodies of requests, read within bounds of size, time and, for each tenant, of how much may come at once."""

from __future__ import annotations

import asyncio
from collections import Counter

from aiohttp import hdrs, web

from scheduler.gateway.errors import LATER_S, ApiError

MAX_BODY_BYTES = 4 << 20
BODY_S = 30.0
"""Seconds within which a body has to come."""

MAX_COMING_BYTES = 128 << 20
"""Of one tenant's bodies at a time: a client that sends slowly holds memory, and may be thousands."""

_JSON = "application/json"


class Bodies:
    """Reads them; ``coming`` is what bodies may take that are being read, by who sends them (bytes)."""

    def __init__(self) -> None:
        self.coming: Counter[str] = Counter()

    async def read(self, http: web.Request, who: str) -> bytes:
        """Raises ApiError 408, 415, 429, and aiohttp's 413."""
        # A page in somebody's browser can post anything but this type without being asked first.
        if http.headers.get("Content-Type") != _JSON and http.content_type != _JSON:
            raise ApiError(415, "Content-Type must be application/json")
        if hdrs.CONTENT_ENCODING in http.headers:
            raise ApiError(415, "a body with Content-Encoding is not unpacked here; send it as it is")
        if http.content.is_eof():  # it came with the headers
            raw = http.content.read_nowait()
            if len(raw) > MAX_BODY_BYTES:
                raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, len(raw))
            return raw
        size = MAX_BODY_BYTES if http.content_length is None else min(http.content_length, MAX_BODY_BYTES)
        if self.coming[who] + size > MAX_COMING_BYTES:
            raise ApiError(
                429,
                "you are sending too much at a time; try again later",
                code="tenant_bodies_full",
                retry_after_s=LATER_S,
            )
        self.coming[who] += size
        try:
            async with asyncio.timeout(BODY_S):
                return await http.read()
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {BODY_S:g} s") from None
        finally:
            self.coming[who] -= size
