"""Bodies of requests: read within bounds of size, time and how much a tenant sends at once; then as JSON."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any, NoReturn

from aiohttp import hdrs, web

from scheduler.gateway.errors import LATER_S, ApiError, bad

Body = Mapping[str, Any]

MAX_BODY_BYTES = 4 << 20
BODY_S = 30.0
"""Seconds within which a body has to come."""

MAX_COMING_BYTES = 128 << 20
"""Of one tenant's bodies at a time: a client that sends slowly holds memory, and may be thousands."""

MAX_PARTS = 100_000
"""Strings, commas and brackets of a body. Megabytes of empty lists take half a second of the event loop."""

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


def read_json(raw: bytes) -> Body:
    """A JSON object out of a body. Raises ApiError 400, 413; no part of the body is in the message."""
    if len(raw) > MAX_PARTS and _crowded(raw):
        raise ApiError(413, f"the body has more than {MAX_PARTS} parts", code="body_too_large")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad(f"the body is not UTF-8 (byte {error.start})", code="invalid_utf8") from None
    try:
        data = _DECODER.decode(text)
    except RecursionError:
        raise bad("the body is nested too deeply", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise bad(
            f"the body is not JSON (line {error.lineno}, column {error.colno})", code="invalid_json"
        ) from None
    except _Twice:
        raise bad("an object in the body has the same name twice", code="invalid_json") from None
    except ValueError:  # a number of thousands of digits, NaN, Infinity
        raise bad("the body holds a number that JSON does not have", code="invalid_json") from None
    if not isinstance(data, dict):
        raise bad("the body must be a JSON object", code="invalid_json")
    return data


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


# A string that does not end goes to the end of the body: looked for again at each quote, it would take hours.
_PART = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+|[\[{,]', re.DOTALL)


def _crowded(raw: bytes) -> bool:
    if sum(raw.count(each) for each in (b"[", b"{", b",")) <= MAX_PARTS:
        return False  # wherever they are
    return next(islice(_PART.finditer(raw), MAX_PARTS, None), None) is not None


class _Twice(ValueError):
    """Which of the two is meant?"""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Twice
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_once)
