"""A recorded run's decisions, made again: the inputs of its log, at their times, through a fresh Scheduler.

The log says what came in (arrivals with their estimates, cancels, what the engine finished and when, swaps,
pauses, crashes, new limits) and what was decided (rejections, dispatches). The inputs are given to a
Scheduler in the order of the log; wherever the run dispatched, the Scheduler is asked for all that it would,
and must name the same requests in the same order. Times are the log's own, so the engine of the run may be a
real one.

``driftsched replay DIR --check`` is this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from scheduler.core.estimate import Given
from scheduler.core.events import Kind
from scheduler.core.lifecycle import SchedulerError, UnknownTenant
from scheduler.core.policies import Policy, policy_from
from scheduler.core.scheduler import Scheduler
from scheduler.core.slots import MicroBatch
from scheduler.core.types import Estimate, Limits, Outcome, Request, Tenant
from scheduler.record.errors import MALFORMED, why
from scheduler.record.recording import as_step, as_tenant, read_document, read_log

_EVERYTHING = 1 << 62


class NotRedoable(Exception):
    """The run did something that its log does not hold in full; says what."""


@dataclass(frozen=True, slots=True)
class Redone:
    """``difference`` says where the decisions part, and is "" where they are the same to the end."""

    dispatched: int
    difference: str = ""


def check(folder: Path) -> Redone:
    """Make a run's decisions again by the Scheduler that its run.json describes.

    Raises FolderError, NotRedoable.
    """
    document, tenants = read_document(folder)
    try:
        scheduler, requests = _scheduler(document, tenants), int(document["requests"]["submitted"])
    except MALFORMED as error:
        raise NotRedoable(
            f"its run.json does not hold all that its decisions hung on: {why(error)}"
        ) from error
    return redo(folder, scheduler, requests)


def _scheduler(told: Mapping[str, Any], tenants: tuple[Tenant, ...]) -> Scheduler:
    """A new one as the run's was."""
    micro = re.match(r"microbatch (\d+)/", told["dispatch"])
    return Scheduler(
        policy_from(told["policy"]),
        Given(),
        tenants,
        capacities=(told["capacity"],),
        batch=None if micro is None else MicroBatch(int(micro[1])),
        limits=Limits(**told["limits"]),
        max_inflight_tokens=told["max_inflight_tokens"],
        max_model_len=told["max_model_len"],
    )


def redo(folder: Path, scheduler: Scheduler, requests: int) -> Redone:
    """``scheduler`` is a new one as the run's was, with ``core.estimate.Given`` for its estimator;
    ``requests`` is how many the run had.

    Raises FolderError, NotRedoable.
    """
    # request id -> tokens of its prompt and its answer as the engine counted them: its last line has them
    counted = dict(filter(None, read_log(folder, _counted)))
    if len(counted) != requests:
        raise NotRedoable(
            f"of its {requests} requests, its log has the ends of {len(counted)}: it is not whole"
        )
    return _Redo(scheduler, counted).play(folder)


def _counted(event: Mapping[str, Any]) -> tuple[str, tuple[int, int]] | None:
    as_step(event)  # every line is looked at before the first decision
    if "finish" not in event:
        return None
    return event["id"], (int(event["prompt_tokens"]), int(event["output_tokens"]))


class _Redo:
    def __init__(self, scheduler: Scheduler, counted: Mapping[str, tuple[int, int]]) -> None:
        self._scheduler = scheduler
        self._counted = counted
        self._expected: list[str] = []  # dispatched one after the other, the last of them at ...
        self._at_s = 0.0
        self._dispatched = 0

    def play(self, folder: Path) -> Redone:
        for difference in read_log(folder, self._follow):
            if difference:
                return Redone(self._dispatched, difference)
        return Redone(self._dispatched, self._decide())

    def _follow(self, event: Mapping[str, Any]) -> str:
        """One line; what differs, or ""."""
        if event["e"] == Kind.DISPATCHED:
            self._expected.append(event["id"])
            self._at_s = float(event["t"])
            return ""
        if difference := self._decide():
            return difference
        try:
            return self._apply(event)
        except UnknownTenant as error:
            raise NotRedoable(f"at {event['t']:.6f} s: {error}; its log does not tell of it") from error
        except SchedulerError as error:  # the run had dispatched it
            return f"at {event['t']:.6f} s: {error}"

    def _decide(self) -> str:
        """Hold what would be dispatched now against what was since the last input."""
        if not self._expected:
            return ""
        at_s, expected, self._expected = self._at_s, self._expected, []
        decided: list[str] = []
        slots = self._scheduler.slots
        if slots.batch is not None:
            slots.waiting_since_s = -inf  # what closed it, a full batch or a timer, is the run's affair
        while (request := self._scheduler.next_dispatch(at_s)) is not None:
            decided.append(request.id)
        for logged, redone in zip(expected, decided, strict=False):
            if logged != redone:
                return f"at {at_s:.6f} s the run dispatched {logged}, now it would be {redone}"
            self._dispatched += 1
        if len(decided) != len(expected):
            return (
                f"at {at_s:.6f} s the run dispatched {len(expected)} requests, now it would be {len(decided)}"
            )
        return ""

    def _apply(self, event: Mapping[str, Any]) -> str:
        """One input; a difference where the Scheduler answers it otherwise than the run's did."""
        scheduler, now = self._scheduler, event["t"]
        match event["e"]:
            case Kind.QUEUED | Kind.REJECTED:
                rejected = scheduler.submit(_request(event), now)
                reason = "" if rejected is None else rejected.reason
                if reason != event.get("reason", ""):
                    return f"at {now:.6f} s {event['id']}: {event.get('reason', '')!r}, now {reason!r}"
            case Kind.FIRST_TOKEN:
                scheduler.on_first_token(event["id"], now)
                if (counted := self._counted.get(event["id"])) is not None:
                    scheduler.on_prompt_counted(event["id"], counted[0])
                    scheduler.on_tokens(event["id"], counted[1], now)
            case Kind.ABORTING:
                scheduler.cancel(event["id"], now)
            case Kind.FINISHED | Kind.FAILED | Kind.CANCELLED | Kind.EXPIRED:
                self._end(event)
            case Kind.SWAP_REQUESTED:
                scheduler.begin_swap(_policy(event["to"]), now, by=event["by"])
            case Kind.SWAP_APPLIED:
                scheduler.swap_step(now, _EVERYTHING)
            case Kind.PAUSED:
                scheduler.pause(now)
            case Kind.RESUMED:
                scheduler.resume(now)
            case Kind.ENGINE if event["what"] == "crashed":
                scheduler.on_engine_lost(event.get("replica", 0), now)
            case Kind.ENGINE if event["what"] in ("started", "restarted"):
                scheduler.on_engine_up(event.get("replica", 0))
            case Kind.TENANT if "tier" in event:
                scheduler.add_tenant(as_tenant(event["tenant"], event))
            case Kind.TENANT:
                tenant = scheduler.books.tenant(event["tenant"]).config
                scheduler.set_tenant(tenant.changed(event["weight"], Limits(**event["limits"])), now)
            case Kind.LIMITS:
                scheduler.set_limits(Limits(**event["limits"]), now)
            case Kind.ESTIMATOR:
                what = "what was waiting was estimated anew, which the log does not hold"
                raise NotRedoable(f"at {now:.6f} s the estimator was changed: {what}")
        return ""

    def _end(self, event: Mapping[str, Any]) -> None:
        scheduler, now = self._scheduler, event["t"]
        request = scheduler.get(event["id"])
        if request is None:
            return  # it went with its engine
        if request.replica < 0:  # it waits
            scheduler.expire(now) if event["e"] == Kind.EXPIRED else scheduler.cancel(request.id, now)
            return
        scheduler.on_complete(request.id, now, Outcome(event["finish"], self._counted[request.id][1]))


def _policy(spec: str) -> Policy:
    try:
        return policy_from(spec)
    except ValueError as error:
        raise NotRedoable(str(error)) from error


def _request(event: Mapping[str, Any]) -> Request:
    request = Request(
        *(event["id"], event["tenant"], event["tier"], float(event["arrival_s"])),
        *(int(event["prompt_tokens"]), int(event["max_tokens"])),
        ttl_s=event.get("ttl_s"),
        streamed=event.get("streamed", False),
        acknowledged=event.get("acknowledged", False),
    )
    request.estimate = Estimate(
        input_tokens=event["input_tokens"],
        point=event["estimate"],
        upper=event["upper"],
        category=event["category"],
        uncorrected=event["uncorrected"],
    )
    return request
