"""A recorded run, played again: its events.jsonl through the same books and windows that the run had.

The log has no line for each token, so the tokens of a request are spread evenly from its first to its last.
Of requests that were still in flight when an interrupted run ended, no tokens are known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from math import floor, inf, nan
from pathlib import Path
from typing import Any, NamedTuple

from scheduler.core.books import Books, TenantBooks, TokenCost
from scheduler.core.events import Event, Kind
from scheduler.core.metrics import WindowMetrics
from scheduler.core.snapshot import take_snapshot
from scheduler.core.swap import SwapRecord
from scheduler.core.types import ENDED, Estimate, Limits, Request, Slo, Snapshot, State, Tenant
from scheduler.record.folders import FolderError

_ENDINGS = {Kind(state.value): state for state in ENDED}


class Step(NamedTuple):
    """One line of the log, or tokens between two lines; what ``data`` holds depends on the kind."""

    at_s: float
    kind: Kind | None  # None: tokens
    request_id: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Recording:
    """A run folder as far as playing it needs it."""

    name: str
    document: Mapping[str, Any]
    tenants: tuple[Tenant, ...]
    steps: tuple[Step, ...]

    @property
    def duration_s(self) -> float:
        return self.steps[-1].at_s if self.steps else 0.0


def read_recording(folder: Path) -> Recording:
    """Raises FolderError, with the file and the line."""
    document_file = folder / "run.json"
    if not document_file.is_file():
        raise FolderError(f"{folder}: no run folder (no run.json in it); `--out DIR` of a run writes one")
    try:
        document = json.loads(document_file.read_text(encoding="utf-8"))
        document["capacity"] = int(document["capacity"])
        document |= {key: str(document[key]) for key in ("scenario", "engine", "engine_detail", "policy")}
        tenants = tuple(_tenant(name, told) for name, told in document.get("tenants", {}).items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(f"{document_file}: not a run document: {error!r:.200}") from error
    steps: list[Step] = []
    log_file = folder / "events.jsonl"
    try:
        with open(log_file, encoding="utf-8") as log:
            for line in log:
                steps.append(_step(json.loads(line)))
    except OSError as error:
        raise FolderError(f"{log_file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        where = f"{log_file}:{len(steps) + 1}"
        raise FolderError(f"{where}: not a line of an event log: {error!r:.200}") from error
    steps += _tokens(steps)
    # Stable: lines of one instant keep their order; a request's last tokens come before its end.
    steps.sort(key=lambda step: (step.at_s, step.kind is not None))
    return Recording(folder.name, document, tenants, tuple(steps))


def _tenant(name: str, told: Mapping[str, Any]) -> Tenant:
    slo = {key: inf if value is None else float(value) for key, value in told["slo"].items()}
    return Tenant(name, str(told["tier"]), float(told["weight"]), Slo(**slo), Limits(**told["limits"]))


def _step(line: Mapping[str, Any]) -> Step:
    """Raises KeyError, TypeError, ValueError."""
    at_s, kind, request_id = _seconds(line["t"]), Kind(line["e"]), str(line.get("id", ""))
    data: dict[str, Any]
    if not request_id:
        data = {key: value for key, value in line.items() if key not in ("t", "e")}
        _ = [data[key] for key in _NEEDS.get(kind, ())]
    else:
        data = _arrival(line) if kind in (Kind.QUEUED, Kind.REJECTED) else {}
        if kind in _ENDINGS:
            data |= _ending(line)
    return Step(at_s, kind, request_id, data)


# What playing a line that is about no request reads.
_NEEDS: Mapping[Kind, tuple[str, ...]] = {
    Kind.SWAP_REQUESTED: ("to", "by"),
    Kind.SWAP_APPLIED: ("from", "to", "queued", "by"),
    Kind.SWITCHED: ("from", "to", "queued", "took_ms"),
    Kind.TENANT: ("tenant", "weight"),
    Kind.ENGINE: ("what",),
    Kind.SCENARIO: ("what",),
    Kind.RECORD: ("what",),
    Kind.SLO: ("tenant", "share"),
    Kind.DRIFT: ("tenant", "before", "after"),
    Kind.ESTIMATOR: ("to",),
}


def _seconds(value: object) -> float:
    """Raises ValueError for what is no instant of a run."""
    seconds = float(str(value))
    if not 0 <= seconds < inf:
        raise ValueError(f"{value!r:.40} is no instant")
    return seconds


def _arrival(line: Mapping[str, Any]) -> dict[str, Any]:
    estimate = Estimate(
        input_tokens=int(line["input_tokens"]),
        point=float(line["estimate"]),
        upper=float(line.get("upper", nan)),  # not in the logs of earlier versions
        category=str(line["category"]),
        runtime_class=str(line["class"]),
        uncorrected=float(line["uncorrected"]),
    )
    return {
        "tenant": str(line["tenant"]),
        "tier": str(line["tier"]),
        "arrival_s": float(line["arrival_s"]),
        "prompt_tokens": int(line["prompt_tokens"]),
        "max_tokens": int(line["max_tokens"]),
        "estimate": estimate,
    }


def _ending(line: Mapping[str, Any]) -> dict[str, Any]:
    instants = {
        name: None if line[name] is None else _seconds(line[name])
        for name in ("dispatched_s", "first_token_s", "last_token_s")
    }
    if line["e"] == Kind.FINISHED and None in instants.values():
        raise ValueError("a finished request without its instants")
    return {
        **instants,
        "finish": str(line["finish"]),
        "reason": str(line["reason"]),
        "output_tokens": int(line["output_tokens"]),
        "bias_after": float(line["bias_after"]),
    }


def _tokens(steps: Iterable[Step]) -> Iterator[Step]:
    """Steps without a kind: what each request generated, second by second."""
    for step in steps:
        first_s, last_s = step.data.get("first_token_s"), step.data.get("last_token_s")
        if step.kind not in _ENDINGS or first_s is None or last_s is None:
            continue
        told, count = 0, step.data["output_tokens"]
        at_s, span_s = first_s, max(last_s - first_s, 1e-9)
        while told < count:
            upto = count if at_s >= last_s else 1 + floor((count - 1) * (at_s - first_s) / span_s)
            yield Step(at_s, None, step.request_id, {"tokens": upto - told, "first": told == 0})
            told, at_s = upto, min(at_s + max(1.0, span_s / 1000), last_s)


class _Policy(NamedTuple):
    name: str

    def describe(self) -> str:
        return self.name


class _Slots(NamedTuple):
    capacity: int


class _Learned:
    """The multipliers as the log tells them."""

    def __init__(self) -> None:
        self._bias: dict[tuple[str, str], float] = {}

    def learn(self, tenant: str, category: str, bias: float) -> None:
        self._bias[tenant, category] = self._bias["", category] = bias

    def bias(self, tenant: str, category: str) -> float:
        return self._bias.get((tenant, category), 1.0)


class Playback:
    """The state of a recorded run at one instant, which moves forward; ``restart`` goes back to the start.

    ``emit`` hears every event that is about no single request.
    """

    def __init__(
        self, recording: Recording, emit: Callable[[Event], None] = lambda event: None, window_s: float = 60.0
    ) -> None:
        self.recording = recording
        self._emit = emit
        self._window_s = window_s
        self.restart()

    def restart(self) -> None:
        """Back to before the first event."""
        self.now = 0.0
        self._next = 0
        self._active: dict[str, Request] = {}
        self.books = Books(TokenCost())
        self.metrics = WindowMetrics((), self._window_s)
        for tenant in self.recording.tenants:
            self._add(tenant)
        self.policy = _Policy(self.recording.document["policy"])
        self.slots = _Slots(self.recording.document["capacity"])
        self.swaps: list[SwapRecord] = []
        self.swap: None = None  # in the log a swap takes no time
        self.paused = False
        self.estimator = _Learned()

    def active(self) -> Iterable[Request]:
        """Everything queued or in flight, in order of arrival."""
        return self._active.values()

    def play_to(self, at_s: float) -> None:
        """Everything that happened until then; never back."""
        steps = self.recording.steps
        while self._next < len(steps) and steps[self._next].at_s <= at_s:
            step = steps[self._next]
            self._next += 1
            self.now = max(self.now, step.at_s)
            self._play(step)
        self.now = max(self.now, at_s)

    def snapshot(self) -> Snapshot:
        return take_snapshot(self, self.now)

    def _add(self, tenant: Tenant) -> None:
        self.books.add_tenant(tenant)
        self.metrics.add_tenant(tenant.name)

    def _play(self, step: Step) -> None:
        match step.kind:
            case None:
                self._tokens(step)
            case Kind.QUEUED:
                self._arrived(step)
                self._move(self._active[step.request_id], State.QUEUED)
            case Kind.REJECTED:
                self._arrived(step)
                self._ended(step, State.REJECTED)
            case Kind.DISPATCHED if step.request_id in self._active:
                self._move(self._active[step.request_id], State.RUNNING)
            case Kind.RETRIED if step.request_id in self._active:
                request = self._active[step.request_id]
                self._move(request, State.QUEUED)
                if not request.attempts:  # counted once, however often it is tried
                    self.books.tenants[request.tenant].retried += 1
                request.attempts += 1
            case kind if kind in _ENDINGS and step.request_id in self._active:
                self._ended(step, _ENDINGS[kind])
            case kind if not step.request_id:
                self._happened(kind, step)

    def _happened(self, kind: Kind, step: Step) -> None:
        """An event that is about no request."""
        told = step.data
        match kind:
            case Kind.SWAP_APPLIED:
                self.policy = _Policy(told["to"])
                record = SwapRecord(
                    step.at_s, step.at_s, told["from"], told["to"], told["queued"], told["by"]
                )
                self.swaps.append(record)
            case Kind.PAUSED | Kind.RESUMED:
                self.paused = kind is Kind.PAUSED
            case Kind.TENANT if told["tenant"] in self.books.tenants:
                config = self.books.tenant(told["tenant"]).config
                self.books.set_tenant(config.changed(told["weight"], None))
        self._emit(Event(step.at_s, kind, None, told))

    def _arrived(self, step: Step) -> None:
        told = {key: value for key, value in step.data.items() if key in _REQUEST_FIELDS}
        request = Request(step.request_id, **told)
        if request.tenant not in self.books.tenants:
            self._add(Tenant(request.tenant, request.tier))
        request.cost = self.books.estimated_cost(request)
        self._active[request.id] = request
        self.books.tenants[request.tenant].submitted += 1

    def _tokens(self, step: Step) -> None:
        request = self._active.get(step.request_id)
        if request is not None:
            prompt_tokens = request.prompt_tokens if step.data["first"] else 0
            self.metrics.on_tokens(request.tenant, step.data["tokens"], prompt_tokens, self.now)

    def _ended(self, step: Step, state: State) -> None:
        request = self._active[step.request_id]
        for name, value in step.data.items():
            setattr(request, name, value)
        request.ended_s = step.at_s
        self._move(request, state)
        del self._active[request.id]
        tenant = self.books.tenants[request.tenant]
        tenant.ended[state] += 1
        self.metrics.on_ended(request, step.at_s, tenant.config.slo)
        if state is State.FINISHED:
            self.estimator.learn(request.tenant, request.estimate.category, request.bias_after)
            self.metrics.on_observed(request, self.estimator)

    def _move(self, request: Request, state: State) -> None:
        """From the queue into flight, back, or out."""
        tenant: TenantBooks = self.books.tenants[request.tenant]
        for load in (self.books.totals, tenant):
            queued = (state is State.QUEUED) - (request.state is State.QUEUED)
            load.queued += queued
            load.queued_tokens += queued * request.cost
            load.in_flight += (state is State.RUNNING) - (request.state is State.RUNNING)
        request.state = state


_REQUEST_FIELDS = frozenset(field.name for field in fields(Request))
