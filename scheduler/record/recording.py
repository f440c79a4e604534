"""A run folder read back to be played: run.json, the lines of events.jsonl and the rows of telemetry.csv.

The log has no line for each token, so the tokens of a request are spread evenly from its first to its last.
"""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import floor, inf
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from scheduler.core.events import Kind
from scheduler.core.types import ENDED, TIERS, Estimate, Limits, Slo, State, Tenant
from scheduler.record.document import run_json
from scheduler.record.errors import MALFORMED, FolderError, why

ENDINGS: Mapping[Kind, State] = {Kind(state.value): state for state in ENDED}
_OF_REQUESTS = {*ENDINGS, Kind.QUEUED, Kind.DISPATCHED, Kind.FIRST_TOKEN, Kind.ABORTING, Kind.RETRIED}

T = TypeVar("T")


class Step(NamedTuple):
    """One line of the log, or tokens between two lines; what ``data`` holds depends on the kind."""

    at_s: float
    kind: Kind | None  # None: tokens
    request_id: str
    data: Mapping[str, Any]


Sample = Mapping[str, float | None]
"""A row of telemetry.csv: {column: number, None where nothing was read}."""


@dataclass(frozen=True)
class Recording:
    """A run folder as far as playing it needs it."""

    name: str
    document: Mapping[str, Any]
    tenants: tuple[Tenant, ...]
    steps: tuple[Step, ...]
    telemetry: tuple[Sample, ...] = ()  # by time; none of a run in virtual time

    @property
    def duration_s(self) -> float:
        return self.steps[-1].at_s if self.steps else 0.0

    def machine(self, at_s: float) -> Sample:
        """The latest row of telemetry at an instant; empty where there is none."""
        rows = bisect_right(self.telemetry, at_s, key=_elapsed)
        return self.telemetry[rows - 1] if rows else {}


def read_recording(folder: Path) -> Recording:
    """Raises FolderError, with the file and the line."""
    document, tenants = read_document(folder)
    steps = list(read_log(folder, as_step))
    steps += list(_tokens(steps))
    # Stable: lines of one instant keep their order; a request's last tokens come before its end.
    steps.sort(key=lambda step: (step.at_s, step.kind is not None))
    return Recording(
        folder.name, document, tenants, tuple(steps), tuple(_telemetry(folder / "telemetry.csv"))
    )


def read_document(folder: Path) -> tuple[dict[str, Any], tuple[Tenant, ...]]:
    """run.json, and the tenants that it names. Raises FolderError."""
    document_file = folder / "run.json"
    if not document_file.is_file():
        raise FolderError(
            f"{folder}: no run folder (no run.json in it); `--out DIR` of a run writes one at its end"
        )
    try:
        document = run_json(_json(document_file.read_text(encoding="utf-8")))
        document["capacity"] = int(document["capacity"])
        document |= {key: str(document[key]) for key in ("scenario", "engine", "engine_detail", "policy")}
        tenants = tuple(as_tenant(name, told) for name, told in document["tenants"].items())
    except (OSError, *MALFORMED) as error:
        raise FolderError(f"{document_file}: not a run document: {why(error)}") from error
    return document, tenants


def read_log(folder: Path, read: Callable[[Mapping[str, Any]], T]) -> Iterator[T]:
    """What ``read`` makes of each line of events.jsonl, one after the other.

    Raises FolderError, with the number of the line for which ``read`` raises one of MALFORMED.
    """
    log_file, number = folder / "events.jsonl", 1
    try:
        with open(log_file, encoding="utf-8") as log:
            for line in log:
                yield read(_json(line))
                number += 1
    except OSError as error:
        raise FolderError(f"{log_file}: {error.strerror}") from error
    except MALFORMED as error:
        raise FolderError(f"{log_file}:{number}: not a line of an event log: {why(error)}") from error


def _whole(digits: str) -> int:
    """Raises ValueError for what is too long for a count: it could be neither reckoned with nor drawn."""
    if len(digits.removeprefix("-")) > 18:
        raise ValueError(f"{digits[:20]}... is too large a number")
    return int(digits)


_json = json.JSONDecoder(parse_int=_whole).decode


def _telemetry(file: Path) -> Iterator[Sample]:
    """Nothing where there is no such file. Raises FolderError."""
    if not file.is_file():
        return
    with open(file, newline="", encoding="utf-8") as text:
        rows = csv.DictReader(text)
        try:
            for row in rows:
                sample = {name: float(cell) if cell else None for name, cell in row.items()}
                _elapsed(sample)
                yield sample
        except MALFORMED as error:
            # A row that cannot be read has not been counted.
            unread = isinstance(error, csv.Error | UnicodeDecodeError)
            where = f"{file}:{rows.line_num + 1 if unread else rows.line_num}"
            raise FolderError(f"{where}: not a row of telemetry: {why(error)}") from error


def _elapsed(sample: Sample) -> float:
    """Seconds of the run. Raises KeyError, ValueError."""
    return _seconds(sample["elapsed_s"])


def as_tenant(name: str, told: Mapping[str, Any]) -> Tenant:
    """Of run.json, or of the line of one that came later. Raises one of MALFORMED."""
    slo = {key: inf if value is None else float(value) for key, value in told["slo"].items()}
    return Tenant(name, _tier(told), float(told["weight"]), Slo(**slo), _limits(told["limits"]))


def as_step(line: Mapping[str, Any]) -> Step:
    """Raises one of MALFORMED for what no log holds."""
    at_s, kind, request_id = _seconds(line["t"]), Kind(line["e"]), line.get("id", "")
    if not isinstance(request_id, str) or (kind in _OF_REQUESTS and not request_id):
        raise ValueError(f"{request_id!r:.40} is no request's id")
    if not request_id:
        return Step(at_s, kind, "", _happening(kind, line))
    data = _arrival(line) if kind in (Kind.QUEUED, Kind.REJECTED) else {}
    if kind in ENDINGS:
        data |= _ending(line)
    return Step(at_s, kind, request_id, data)


def _happening(kind: Kind, line: Mapping[str, Any]) -> dict[str, Any]:
    """What a line tells that is about no request. Raises one of MALFORMED."""
    data = {key: _checked(key, value) for key, value in line.items() if key not in ("t", "e")}
    needed = _NEEDS.get(kind, ())
    if kind is Kind.ENGINE:
        needed += _ENGINE_NEEDS.get(data["what"], ())
    _ = [data[key] for key in needed]
    match kind:
        case Kind.LIMITS:
            _limits(data["limits"])
        case Kind.TENANT if "tier" in data:
            data["added"] = as_tenant(data["tenant"], data)
        case Kind.TENANT:
            data["limits"] = _limits(data["limits"])
            changed = dict(data["changed"]).items()
            data["changed"] = {name: None if value is None else float(value) for name, value in changed}
        case Kind.UNSERVED if "requests" in data:
            _seconds(data["over_s"])
        case Kind.DRIFT if data["before"] <= 0:
            raise ValueError("a drift from nothing")
    return data


# What playing a line that is about no request reads.
_NEEDS: Mapping[Kind, tuple[str, ...]] = {
    Kind.SWAP_REQUESTED: ("to", "by"),
    Kind.SWAP_APPLIED: ("from", "to", "queued", "by"),
    Kind.SWITCHED: ("from", "to", "queued", "took_ms"),
    Kind.TENANT: ("tenant", "weight", "limits"),
    Kind.LIMITS: ("limits",),
    Kind.ENGINE: ("what",),
    Kind.SCENARIO: ("what",),
    Kind.UNSERVED: ("tenant", "what", "reason"),
    Kind.SLO: ("tenant", "share"),
    Kind.DRIFT: ("tenant", "before", "after"),
    Kind.ESTIMATOR: ("to",),
}
_ENGINE_NEEDS: Mapping[str, tuple[str, ...]] = {
    "crashed": ("lost",),
    "restarted": ("away_s",),
    "dead": ("why",),
}
_TEXTS = frozenset(("by", "from", "reason", "tenant", "to", "what", "why"))
_NUMBERS = frozenset((
    "after", "away_s", "before", "lost", "over_s", "queued",
    "replica", "requests", "share", "took_ms", "weight", "worst",
))  # fmt: skip


def _checked(key: str, value: Any) -> Any:
    """Raises TypeError for what is not of its name's kind."""
    kind = str if key in _TEXTS else int | float if key in _NUMBERS else object
    if not isinstance(value, kind):
        raise TypeError(key)
    return value


def _limits(told: Mapping[str, Any]) -> Limits:
    """Raises TypeError."""
    if not all(value is None or isinstance(value, int | float) for value in told.values()):
        raise TypeError("limits")
    return Limits(**told)


def _seconds(value: object) -> float:
    """Raises ValueError for what is no instant of a run."""
    seconds = float(str(value))
    if not 0 <= seconds < inf:
        raise ValueError(f"{value!r:.40} is no instant")
    return seconds


def _tier(told: Mapping[str, Any]) -> str:
    """Raises KeyError, ValueError: a policy that shares by tiers would look for it in vain."""
    if (tier := told["tier"]) not in TIERS:
        raise ValueError(f"{tier!r:.40} is no tier")
    return str(tier)


def _arrival(line: Mapping[str, Any]) -> dict[str, Any]:
    estimate = Estimate(
        input_tokens=int(line["input_tokens"]),
        point=float(line["estimate"]),
        upper=float(line["upper"]),
        category=str(line["category"]),
        uncorrected=float(line["uncorrected"]),
    )
    return {
        "tenant": str(line["tenant"]),
        "tier": _tier(line),
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
        "output_tokens": _whole(str(int(line["output_tokens"]))),
        "bias_after": float(line["bias_after"]),
        "estimated": {
            "point": float(line["estimate"]),
            "upper": float(line["upper"]),
            "uncorrected": float(line["uncorrected"]),
        },
    }


def _tokens(steps: Iterable[Step]) -> Iterator[Step]:
    """Steps without a kind: what each request generated, second by second."""
    for step in steps:
        first_s, last_s = step.data.get("first_token_s"), step.data.get("last_token_s")
        if step.kind not in ENDINGS or first_s is None or last_s is None:
            continue
        told, count = 0, step.data["output_tokens"]
        at_s, span_s = first_s, max(last_s - first_s, 1e-9)
        while told < count:
            upto = count if at_s >= last_s else 1 + floor((count - 1) * (at_s - first_s) / span_s)
            yield Step(at_s, None, step.request_id, {"tokens": upto - told, "first": told == 0})
            told, at_s = upto, min(at_s + max(1.0, span_s / 1000), last_s)
