"""Expectations: ``PATH OP VALUE`` over a run document, such as ``latency_s.tiers.premium.e2e.p99 < 12s``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

from scheduler.core.bounds import COMPARE
from scheduler.core.durations import parse_duration
from scheduler.core.text import hint

Value = float | str | bool | None

_OPS: Mapping[str, Callable[[Any, Any], bool]] = {**COMPARE, "==": operator.eq, "!=": operator.ne}
_TEXT = re.compile(r"(.*?[^\s<>=!])\s*(<=|>=|==|!=|<|>)\s*([^<>=!].*)")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_REJECTIONS = "rejections."
_OPEN = ("telemetry.", "predictions.")  # what is below depends on the machine and on the run


class Expectation(NamedTuple):
    """One line of ``expect``."""

    text: str
    path: str
    op: str
    value: Value

    def check(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """``{"text", "ok", "value"}``; a value that the run does not have meets nothing but ``== null``."""
        found = look_up(document, self.path.split("."))
        if found is None and self.path.startswith(_REJECTIONS):
            found = 0  # run.json names those that there were
        there = self.value is None or (found is not None and _comparable(found, self.value))
        return {"text": self.text, "ok": there and _OPS[self.op](found, self.value), "value": found}


def evaluate(texts: Iterable[str], document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every expectation against a run document. Raises ValueError on one that cannot be read."""
    return [parse_expect(text).check(document) for text in texts]


def parse_expect(text: str, paths: Mapping[str, object] | None = None) -> Expectation:
    """Read one line; with ``paths`` (of ``paths.valid_paths``) its path and the kind of its value are
    checked too.

    Raises ValueError with what is allowed.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:80]!r} is not `PATH OP VALUE`; OP is one of {' '.join(sorted(_OPS))}")
    path, op, value = match[1], match[2], _value(match[3])
    if op not in ("==", "!=") and (isinstance(value, bool) or not isinstance(value, float)):
        raise ValueError(f"{op} needs a number or a duration, got {match[3][:60]!r}")
    if paths is not None and not path.startswith(_OPEN):
        known = re.sub(r"^switches\.\d+\.", "switches.0.", path)
        if known not in paths:
            allowed = f"allowed are the numbers and words of run.json{hint(path, paths)}"
            raise ValueError(f"no run has the path {path[:80]!r}, {allowed}")
        if value is not None and not _comparable(paths[known], value):
            raise ValueError(
                f"{path} is {_KINDS[type(paths[known])]}, it cannot be compared with {match[3][:60]!r}"
            )
    return Expectation(text, path, op, value)


def look_up(document: Any, parts: Sequence[str]) -> Any:
    """The value at a path, None where there is none. A key may hold dots itself, as a tenant's name does."""
    if not parts:
        return document
    if isinstance(document, Mapping):
        for size in range(1, len(parts) + 1):
            key = ".".join(parts[:size])
            if key in document and (found := look_up(document[key], parts[size:])) is not None:
                return found
    elif isinstance(document, list | tuple) and parts[0].isdecimal() and int(parts[0]) < len(document):
        return look_up(document[int(parts[0])], parts[1:])
    return None


def _value(text: str) -> Value:
    words: Mapping[str, Value] = {"true": True, "false": False, "null": None}
    if text in words:
        return words[text]
    try:
        return parse_duration(text)
    except ValueError:
        pass
    if _NUMBER.fullmatch(text) and isfinite(number := float(text)):
        return number
    return text.strip("'\"")


_KINDS: Mapping[type, str] = {float: "a number", str: "text", bool: "true or false"}


def _comparable(found: object, value: Value) -> bool:
    return _sort(found) is _sort(value)


def _sort(value: object) -> type:
    if isinstance(value, bool):
        return bool
    return float if isinstance(value, int | float) else type(value)
