"""run.json: the document that says what a run was and what came of it (docs/run-folder.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any

from scheduler.core.scheduler import Scheduler
from scheduler.record.tally import Tally

SCHEMA = 1


def run_document(
    header: Mapping[str, Any],
    scheduler: Scheduler,
    tally: Tally,
    *,
    now: float,
    wall_s: float,
    interrupted: bool,
    failure: str | None,
    switches: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, Any]],
    telemetry: Mapping[str, Any],
    loop_lag_ms: Mapping[str, float | None],
) -> dict[str, Any]:
    """``header`` names the run (version, scenario, engine, policy at the start, seed ...); the rest is what
    happened; ``failure`` says why the engine was given up, if it was. Numbers that JSON has no word for
    (nothing was measured) are null.
    """
    figures = tally.figures(scheduler.books, now)
    document = {
        "schema": SCHEMA,
        **header,
        "interrupted": interrupted,
        "failure": failure,
        "duration_s": figures.pop("duration_s"),
        "wall_s": wall_s,
        **figures,
        "switches": list(switches),
        "predictions": list(predictions),
        "telemetry": telemetry,
        "loop_lag_ms": loop_lag_ms,
        "expect": [],
    }
    result: dict[str, Any] = finite(document)
    return result


def run_json(value: object) -> dict[str, Any]:
    """A run.json as one that we know how to read. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("run.json is no object")
    if (schema := value.get("schema")) != SCHEMA:
        raise ValueError(f"run.json has schema {schema!r:.40}, this version reads {SCHEMA}")
    return value


def finite(value: Any, word: Callable[[float], str | None] = lambda number: None) -> Any:
    """The same document with every number that JSON cannot hold (NaN, infinity) as null, or its ``word``."""
    if isinstance(value, float):
        return value if isfinite(value) else word(value)
    if isinstance(value, Mapping):
        return {str(key): finite(item, word) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item, word) for item in value]
    return value
