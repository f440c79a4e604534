"""Admission: may this request wait here, and if not, why and when to come back."""

from __future__ import annotations

from collections import deque

from scheduler.core.books import Counts, TenantBooks, Totals
from scheduler.core.types import Limits, Rejected, Request

REASONS = (
    "too_long",  # prompt + max_tokens does not fit the model's context
    "queue_full",  # the overall limit of queued requests
    "tokens_full",  # the overall limit of queued tokens
    "tenant_queue_full",
    "tenant_tokens_full",
    "tenant_requests_per_minute",
    "tenant_tokens_per_minute",
)
"""Every reason for which a request is turned away."""

_TURNOVER_SPAN_S = 60.0


def admit(request: Request, tenant: TenantBooks, totals: Counts, limits: Limits, now: float) -> str:
    """The limit that turns this request away, one of REASONS, or "" to let it wait."""
    if request.acknowledged:
        return ""
    if limits.max_queued is not None and totals.queued >= limits.max_queued:
        return "queue_full"
    if (
        limits.max_queued_tokens is not None
        and totals.queued_tokens + request.cost > limits.max_queued_tokens
    ):
        return "tokens_full"
    own = tenant.config.limits
    if own.max_queued is not None and tenant.queued >= own.max_queued:
        return "tenant_queue_full"
    if own.max_queued_tokens is not None and tenant.queued_tokens + request.cost > own.max_queued_tokens:
        return "tenant_tokens_full"
    if own.requests_per_minute is None and own.tokens_per_minute is None:
        return ""
    return tenant.pace.admit(
        own, request.prompt_tokens + min(request.estimate.point, request.max_tokens), now
    )


def is_full(tenant: TenantBooks, totals: Counts, limits: Limits, now: float) -> bool:
    """Whether anything that this tenant sends now would be turned away. Asking takes nothing."""
    own = tenant.config.limits
    return _no_room(totals, limits) or _no_room(tenant, own) or tenant.pace.is_full(own, now)


def _no_room(counts: Counts, limits: Limits) -> bool:
    requests, tokens = limits.max_queued, limits.max_queued_tokens
    return (requests is not None and counts.queued >= requests) or (
        tokens is not None and counts.queued_tokens >= tokens
    )


class Turnover:
    """How fast requests leave the queue: over the last minute, or the last one in which any did."""

    def __init__(self) -> None:
        self._marks = deque([(0.0, 0)])  # instants, a second apart, and how many had left by then
        self.interval_s = 0.0  # from one to the next; 0 as long as nothing is known

    def look(self, totals: Totals, now: float) -> None:
        """To be called whenever a request comes, before it counts as one."""
        marks = self._marks
        if now - marks[-1][0] >= 1.0:
            marks.append((now, totals.left))
            while now - marks[0][0] > _TURNOVER_SPAN_S:
                marks.popleft()
            (since_s, before), (_, left) = marks[0], marks[-1]
            if left > before:
                self.interval_s = (now - since_s) / (left - before)


def rejection(reason: str, tenant: TenantBooks, queued: int, interval_s: float) -> Rejected:
    """Come back when about half of what waits now has left; when there is room in the minute; never for a
    prompt too long.
    """
    if reason == "too_long":
        return Rejected(reason, float("inf"))
    if reason.endswith("_per_minute"):
        return Rejected(reason, tenant.pace.retry_after_s)
    return Rejected(reason, max(0.1, queued / 2 * interval_s))
