"""How a simulated engine's answer ends, and how long it gets."""

from __future__ import annotations

from functools import cache, partial

from scheduler.core.types import Outcome, Request

# Made once for each length: nobody changes them.
_stop, _length = cache(partial(Outcome, "stop")), cache(partial(Outcome, "length"))


def answer(request: Request) -> Outcome:
    """How a request that carries its intended length will end if it is let.

    A model that ends just at the cap says "stop": the end-of-text token is its last one. A forced length
    below the cap stands for an answer that ended by itself, one at the cap for any that is cut there. Without
    an intended length (a client of the gateway, no scenario) the answer runs to max_tokens.
    """
    tokens = request.forced_tokens
    if tokens is not None:
        return _stop(tokens) if tokens < request.max_tokens else _length(request.max_tokens)
    tokens = request.intended_tokens
    if tokens is not None and tokens <= request.max_tokens:
        return _stop(tokens or 1)
    return _length(request.max_tokens)
