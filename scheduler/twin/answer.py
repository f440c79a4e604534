"""How long a simulated engine's answer gets."""

from __future__ import annotations

from scheduler.core.types import Request


def answer(request: Request) -> tuple[int, str]:
    """(output tokens, finish) of a request that carries its intended length.

    A model that ends just at the cap says "stop": the end-of-text token is its last one. Without an intended
    length (a client of the gateway, no scenario) the answer runs to max_tokens.
    """
    if request.forced_tokens is not None:
        return min(request.forced_tokens, request.max_tokens), "length"
    if request.intended_tokens is not None and request.intended_tokens <= request.max_tokens:
        return max(1, request.intended_tokens), "stop"
    return request.max_tokens, "length"
