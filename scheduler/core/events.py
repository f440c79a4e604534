"""What happened, as the Scheduler and its drivers tell it: one event per transition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from scheduler.core.types import Request


class Kind(StrEnum):
    """Every kind of event there is. The first block carries a request."""

    QUEUED = "queued"
    REJECTED = "rejected"
    DISPATCHED = "dispatched"
    FIRST_TOKEN = "first_token"
    ABORTING = "aborting"
    RETRIED = "retried"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    SWAP_REQUESTED = "swap_requested"
    SWAP_APPLIED = "swap_applied"
    SWITCHED = "switched"  # the driver's word on a swap: as in run.json's switches
    PAUSED = "paused"
    RESUMED = "resumed"
    LIMITS = "limits"
    TENANT = "tenant"
    ESTIMATOR = "estimator"
    ENGINE = "engine"  # started, crashed, restarted, stopped: detail["what"]
    SCENARIO = "scenario"  # started, ended, timeline items: detail["what"]
    DRIFT = "drift"  # a tenant's answers have become longer or shorter, see core/drift.py
    UNSERVED = "unserved"  # a tenant's requests begin to be rejected or to expire; no longer: with "requests"
    SLO = "slo"  # a tenant's window misses its objective, more of it, or meets it again: then with "worst"


class Event(NamedTuple):
    """One thing that happened at ``at_s``; ``detail`` holds numbers and names, never tenant text."""

    at_s: float
    kind: Kind
    request: Request | None
    detail: Mapping[str, Any]


Emit = Callable[[Event], None]
NO_DETAIL: Mapping[str, Any] = {}

_new = tuple.__new__


def about(request: Request, kind: Kind, at_s: float) -> Event:
    """An event that says it all by its kind; there are four for each request, and ``Event(...)`` is slow."""
    return _new(Event, (at_s, kind, request, NO_DETAIL))
