"""Errors as OpenAI's clients read them, and the one table from a request's ending to an HTTP status.

Messages are ours: they name parameters, bounds and what to do, and never quote a prompt, a key or an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import ceil, isfinite
from typing import Any

from aiohttp import web

from scheduler.core.types import Rejected, Request, State

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}

LATER_S = 5
"""Retry-After where nothing better is known (seconds): an engine that starts or comes back."""

_REJECTIONS: Mapping[str, str] = {
    "queue_full": "the server's queue is full",
    "tokens_full": "the server's queue holds as many tokens as it may",
    "tenant_queue_full": "your queue is full",
    "tenant_tokens_full": "your queue holds as many tokens as it may",
    "tenant_requests_per_minute": "you have sent as many requests as you may in a minute",
    "tenant_tokens_per_minute": "you have sent as many tokens as you may in a minute",
}


class ApiError(Exception):
    """An answer that is an error: status, what is wrong, which parameter, a code for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        allow: str | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.allow = allow  # the methods that there are
        self.close = close  # the connection, after it

    def body(self) -> dict[str, Any]:
        """{"error": {...}} as OpenAI shapes it."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> web.Response:
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, ceil(self.retry_after_s)))
        if self.allow is not None:
            headers["Allow"] = self.allow
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        response = web.Response(
            status=self.status,
            body=json.dumps(self.body()).encode(),
            content_type="application/json",
            headers=headers,
        )
        if self.close:
            response.force_close()
        return response


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400."""
    return ApiError(400, message, param=param, code=code)


def unavailable(what: str, code: str, *, close: bool = False) -> ApiError:
    """503: there is no engine to wait for, or not yet."""
    return ApiError(503, what, code=code, retry_after_s=LATER_S, close=close)


def over_context(max_model_len: int | None) -> ApiError:
    """413."""
    return ApiError(
        413,
        f"the prompt and max_tokens together are over the model's context of {max_model_len} tokens",
        code="context_length_exceeded",
    )


def turned_away(rejected: Rejected, max_model_len: int | None) -> ApiError:
    """The answer to a request that was not admitted."""
    if rejected.reason == "too_long":
        return over_context(max_model_len)
    after_s = rejected.retry_after_s if isfinite(rejected.retry_after_s) else LATER_S
    what = _REJECTIONS.get(rejected.reason, "the server is full")
    return ApiError(429, f"{what}; try again later", code=rejected.reason, retry_after_s=after_s)


def ending(request: Request) -> ApiError | None:
    """The error with which a request has ended; None when it has finished."""
    match request.state:
        case State.FINISHED:
            return None
        case State.EXPIRED:
            return ApiError(
                429, "it waited in the queue for as long as it may", code="expired", retry_after_s=LATER_S
            )
        case State.CANCELLED:
            return unavailable("the request was cancelled by the server", "cancelled")
        case _ if request.reason == "engine_lost":
            return unavailable("the engine was lost while it answered", "engine_lost")
        case _:
            return ApiError(500, "the engine failed this request", code="engine_error")
