"""events.jsonl: one line per transition, enough to recompute every figure of run.json.

Counts, categories, estimates, timings and a keyed hash of the prompt; never prompt or answer text unless
``text`` was asked for.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from scheduler.core.events import Event, Kind
from scheduler.core.types import ENDED, Request


class LineMaker:
    """Turns events into lines. ``key`` makes the prompt hashes of different runs unrelated."""

    def __init__(self, key: bytes, *, text: bool) -> None:
        self._key = key
        self._text = text

    def line(self, event: Event) -> str:
        """As docs/run-folder.md has it, without the line's end. Raises ValueError of a NaN or an infinity."""
        fields: dict[str, Any] = {"t": event.at_s, "e": event.kind.value}
        request = event.request
        if request is not None:
            fields["id"] = request.id
            if event.kind is Kind.QUEUED:
                fields |= self._arrival(request)
            elif event.kind is Kind.DISPATCHED:
                fields["replica"] = request.replica
                fields["attempt"] = request.attempts
            elif request.state in ENDED:
                if request.state == "rejected":
                    fields |= self._arrival(request)
                fields |= ending(request)
        fields |= event.detail
        return json.dumps(fields, separators=(",", ":"), allow_nan=False, default=str)

    def _arrival(self, request: Request) -> dict[str, Any]:
        estimate = request.estimate
        fields: dict[str, Any] = {
            "tenant": request.tenant,
            "tier": request.tier,
            "arrival_s": request.arrival_s,
            "prompt_tokens": request.prompt_tokens,
            "max_tokens": request.max_tokens,
            "label": request.category,
            "by": request.submitted_by,
            "input_tokens": estimate.input_tokens,
            "estimate": estimate.point,
            "upper": estimate.upper,
            "uncorrected": estimate.uncorrected,
            "category": estimate.category,
            "class": estimate.runtime_class,
        }
        # What decides besides, of the few requests that have it.
        if request.ttl_s is not None:
            fields["ttl_s"] = request.ttl_s
        if request.streamed:
            fields["streamed"] = True
        if request.acknowledged:
            fields["acknowledged"] = True
        if request.intended_tokens is not None:
            fields["intended_tokens"] = request.intended_tokens
        if request.prompt:
            fields["prompt_hash"] = hmac.new(
                self._key, request.prompt.encode("utf-8", "surrogatepass"), hashlib.sha256
            ).hexdigest()[:16]
            if self._text:
                fields["prompt"] = request.prompt
        return fields


def ending(request: Request) -> Mapping[str, Any]:
    """What is known of a request once it has ended."""
    estimate = request.estimate
    return {
        "tenant": request.tenant,
        "finish": request.finish,
        "reason": request.reason,
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": request.output_tokens,
        "dispatched_s": request.dispatched_s,
        "first_token_s": request.first_token_s,
        "last_token_s": request.last_token_s,
        "attempts": request.attempts,
        "batch_id": request.batch_id,
        "batch_size": request.batch_size,
        "charged": request.charged,
        "backlogged": request.backlogged,
        "estimate": estimate.point,
        "upper": estimate.upper,
        "uncorrected": estimate.uncorrected,
        "class": estimate.runtime_class,
        "bias_before": request.bias_before,
        "bias_after": request.bias_after,
        "gaps": request.gaps,
    }
