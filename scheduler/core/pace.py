"""How fast a tenant may send: two token buckets, each holding one minute's worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from scheduler.core.types import Limits


@dataclass(slots=True)
class Bucket:
    """Full at first; an amount over the whole of it is let through when it is full, and paid off after."""

    level: float = inf
    at_s: float = 0.0

    def wait_s(self, per_minute: float, amount: float, now: float) -> float:
        """Seconds until ``amount`` may be taken; 0 for now. Nothing is taken."""
        self.level = min(per_minute, self.level + (now - self.at_s) * per_minute / 60)
        self.at_s = now
        missing = min(amount, per_minute) - self.level
        return missing * 60 / per_minute if missing > 1e-9 else 0.0


@dataclass(slots=True)
class Pace:
    """Requests and tokens per minute of one tenant."""

    retry_after_s: float = 0.0  # of the last refusal
    _requests: Bucket = field(default_factory=Bucket)
    _tokens: Bucket = field(default_factory=Bucket)

    def is_full(self, limits: Limits, now: float) -> bool:
        """Whether even a request of one token would be turned away. Nothing is taken."""
        requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
        return (requests is not None and self._requests.wait_s(requests, 1, now) > 0) or (
            tokens is not None and self._tokens.wait_s(tokens, 1, now) > 0
        )

    def admit(self, limits: Limits, tokens: float, now: float) -> str:
        """The reason to turn a request of so many tokens away, or "" and it counts."""
        requests_per_minute, tokens_per_minute = limits.requests_per_minute, limits.tokens_per_minute
        if requests_per_minute is not None:
            self.retry_after_s = self._requests.wait_s(requests_per_minute, 1, now)
            if self.retry_after_s:
                return "tenant_requests_per_minute"
        if tokens_per_minute is not None:
            self.retry_after_s = self._tokens.wait_s(tokens_per_minute, tokens, now)
            if self.retry_after_s:
                return "tenant_tokens_per_minute"
            self._tokens.level -= tokens
        if requests_per_minute is not None:
            self._requests.level -= 1
        return ""
