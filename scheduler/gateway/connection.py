"""One client's connection: aiohttp's own, except that every error is answered in OpenAI's shape.

Handlers raise ApiError; aiohttp raises its HTTPException where there is no route, and its parser refuses what
is no HTTP, in words that quote it. All of them pass here, and only answers to what went wrong cost anything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from secrets import token_hex
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError
from aiohttp.web_request import BaseRequest

from scheduler.gateway.bodies import MAX_BODY_BYTES
from scheduler.gateway.errors import ApiError
from scheduler.gateway.response import ITS_ID, REQUEST_ID
from scheduler.live.mistakes import place_of

IDLE_S = 75.0
"""A connection on which no whole request comes for so long is closed."""

log = logging.getLogger(__name__)

# aiohttp logs exceptions with their messages, which may quote what a client has sent.
_silent = logging.Logger("scheduler.gateway.http", logging.CRITICAL + 1)


class Connection(web.RequestHandler):
    """See above; ``handle_error`` and ``finish_response`` are called by aiohttp for each request."""

    __slots__ = ()

    def __init__(self, server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_S,
            auto_decompress=False,  # a body may be a bomb; ``Bodies`` refuses those that are packed
            logger=_silent,
            access_log=_silent,
        )

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Raises ConnectionError where an answer has begun: it can only break off."""
        if request.writer.output_size > 0:
            raise ConnectionError("an error in the middle of an answer")
        if isinstance(exc, ApiError):
            return exc.response()
        return _unexpected(status, exc).response()

    def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        if isinstance(resp, web.HTTPException):
            resp = _refused(resp).response()
        # What ``send_events`` and ``json_response`` have made has it already.
        if isinstance(resp, web.Response) and request.path.startswith("/v1/"):
            resp.headers[REQUEST_ID] = request.get(ITS_ID) or f"req-{token_hex(12)}"
        return super().finish_response(request, resp, start_time)


def _unexpected(status: int, exc: BaseException | None) -> ApiError:
    if isinstance(exc, HttpProcessingError):
        what = "this is no HTTP/1.1 request, or its headers are too long"
        return ApiError(status, what, code="bad_http", close=True)
    if isinstance(exc, ConnectionError | RequestPayloadError):
        return ApiError(400, "the body broke off", close=True)
    # The last line: said to the client and, without the error's words, in the log.
    what = "TimeoutError"  # which aiohttp keeps to itself
    if exc is not None:
        what = place_of(exc)
    log.error("%s", what)
    return ApiError(500, "an error in the server", code="internal_error", close=True)


def _refused(error: web.HTTPException) -> ApiError:
    """aiohttp's own refusals in our shape."""
    match error.status:
        case 404:
            there = "/v1/chat/completions, /v1/completions and /v1/models"
            return ApiError(404, f"there is nothing at this address; there are {there}", code="not_found")
        case 405:
            return ApiError(
                405,
                "this address does not take this method",
                code="method_not_allowed",
                allow=error.headers.get("Allow"),
            )
        case 413:
            return ApiError(413, f"the body is over {MAX_BODY_BYTES} bytes", code="body_too_large")
        case status:
            return ApiError(status, error.reason)
