"""Recorded arrivals, streamed: Azure 2023 and 2024, BurstGPT, Mooncake, and JSON lines of our own.

A malformed row is left out, counted, and named with its line; above ``max_bad_share`` the trace is refused.
One row is in memory at a time. A trace says nothing of categories unless a row of ours does: none is made
up from the output length, since an estimator that saw it would know the answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from scheduler.core.durations import LONGEST_S
from scheduler.core.types import CATEGORIES, TIERS
from scheduler.load.jsonrow import as_tokens, json_object, prompt_if_known, tokens_if_known
from scheduler.load.stream import Trace

MAX_LINE = 1 << 20  # bytes
NAMED_ROWS = 3  # malformed rows that a message shows
_MOST = 1e300  # a number in JSON may have more digits than a float can hold


class TraceError(ValueError):
    """The trace cannot be used; the message names the file and the lines."""


class Row(NamedTuple):
    """One request of a trace; None or "" where the trace does not say."""

    at_s: float
    prompt_tokens: int | None
    output_tokens: int | None
    max_tokens: int | None = None
    tenant: str = ""
    tier: str = ""
    prompt: str = ""
    category: str = ""


class Summary(NamedTuple):
    """What a whole pass over a trace found."""

    rows: int  # that are requests; like the malformed ones, those before `from` too
    bad: int
    named: str  # the first malformed rows: their lines, and what is wrong
    longest: int  # answer, tokens; 0 if no row says
    uncounted: bool  # some prompt is there without its number of tokens


OnBad = Callable[[int, str], None]
Parse = Callable[[str], Row | None]  # None: a row that is fine and yet no request


def rows(trace: Trace, tenants: frozenset[str] | None = None) -> Iterator[Row]:
    """The trace's requests in the run's time. ``tenants``: those that rows must name, None if they need not.

    Raises TraceError where the file as a whole is not what its format says.
    """
    return _in_range(_read(trace, tenants, lambda line, what: None), trace)


def scan(trace: Trace, tenants: frozenset[str] | None = None) -> Summary:
    """Read it all, once as long as the file stays as it is.

    Raises TraceError if too many rows are malformed, or none is left.
    """
    try:
        status = os.stat(trace.file)
    except OSError as error:
        raise _unreadable(trace, error) from None
    return _scan(trace, tenants, (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=16)
def _scan(trace: Trace, tenants: frozenset[str] | None, version: tuple[int, int]) -> Summary:
    """``version`` tells the file from what it was, so that another is read anew."""
    name = Path(trace.file).name
    bad: list[tuple[int, str]] = []
    count = longest = used = bad_count = 0
    uncounted = False

    def note(line: int, what: str) -> None:
        nonlocal bad_count
        bad_count += 1
        if len(bad) < NAMED_ROWS:
            bad.append((line, what))

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in _read(trace, tenants, note):
            count += 1
            yield row

    for row in _in_range(counted(), trace):
        used += 1
        longest = max(longest, row.output_tokens or 0)
        uncounted = uncounted or row.prompt_tokens is None
    named = "; ".join(f"line {line}: {what}" for line, what in bad)
    found = f"{bad_count} of {count + bad_count} rows are malformed"
    if bad_count > trace.max_bad_share * (count + bad_count):
        raise TraceError(f"{name!r}: {found}, allowed is a share of {trace.max_bad_share:g}: {named}")
    if not used:
        left = "no request is left between `from` and `until`" if count else "there is no request in it"
        raise TraceError(f"{name!r}: {left}" + (f", {found}: {named}" if bad_count else ""))
    return Summary(count, bad_count, named, longest, uncounted)


def _unreadable(trace: Trace, error: OSError) -> TraceError:
    return TraceError(f"{Path(trace.file).name!r} cannot be read: {error.strerror}")


def _in_range(parsed: Iterator[Row], trace: Trace) -> Iterator[Row]:
    left = trace.limit
    for row in parsed:
        if row.at_s >= trace.until_s or left == 0:
            return
        if row.at_s >= trace.from_s:
            left = None if left is None else left - 1
            yield row._replace(at_s=(row.at_s - trace.from_s) / trace.speed)


def _read(trace: Trace, tenants: frozenset[str] | None, on_bad: OnBad) -> Iterator[Row]:
    """All rows that are requests, in the trace's own time."""
    try:
        with open(trace.file, "rb") as file:
            yield from _parsed(file, trace, tenants, on_bad)
    except OSError as error:
        raise _unreadable(trace, error) from None


def _parsed(
    file: BufferedReader, trace: Trace, tenants: frozenset[str] | None, on_bad: OnBad
) -> Iterator[Row]:
    lines = _lines(file)
    name = Path(trace.file).name
    if trace.format in _COLUMNS:
        _, header = next(lines, (1, ""))
        parse = _csv_parser(trace.format, header or "", name)
    else:
        parse = _mooncake if trace.format == "mooncake" else _ours(tenants)
    previous = 0.0
    for number, line in lines:
        if line is None:
            on_bad(number, f"longer than {MAX_LINE} bytes, or not UTF-8")
            continue
        if not line.strip():
            continue
        try:
            row = parse(line)
            if row is not None and row.at_s < previous:
                raise ValueError("arrives before the row above it")
            if row is not None and row.at_s > LONGEST_S:
                raise ValueError(
                    f"arrives {row.at_s:g} s after the start, allowed are 10 years: subtract the first time"
                )
        except ValueError as error:
            on_bad(number, f"{error!s:.120}")
            continue
        if row is not None:
            previous = row.at_s
            yield row


def _lines(file: BufferedReader) -> Iterator[tuple[int, str | None]]:
    """(line number, text); None for a line that cannot be one."""
    number = 0
    while raw := file.readline(MAX_LINE):
        number += 1
        whole = raw.endswith(b"\n") or len(raw) < MAX_LINE
        while not whole:
            rest = file.readline(MAX_LINE)
            whole, raw = rest.endswith(b"\n") or len(rest) < MAX_LINE, b"\xff"
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            yield number, None


_COLUMNS: Mapping[str, tuple[str, str, str]] = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
}


def _csv_parser(format_: str, header: str, name: str) -> Parse:
    found = [column.strip().strip('"') for column in header.split(",")]
    wanted = _COLUMNS[format_]
    missing = [column for column in wanted if column not in found]
    if missing:
        shown = ", ".join(f"{column[:40]!r}" for column in found[:8])
        raise TraceError(
            f"{name!r} line 1: no column {', '.join(missing)}, which {format_} has; found {shown}"
        )
    at, prompt, output = (found.index(column) for column in wanted)
    origin: float | None = None

    def parse(line: str) -> Row | None:
        nonlocal origin
        cells = [cell.strip().strip('"') for cell in line.split(",")]
        if len(cells) != len(found):
            raise ValueError(f"{len(cells)} columns, the header has {len(found)}")
        if format_ == "burstgpt":
            if _whole(cells[output]) == 0:
                return None  # BurstGPT's mark of a request that failed at the source
            at_s = _time(_number(cells[at]))
        else:
            clock_s = _timestamp(cells[at])
            origin = clock_s if origin is None else origin
            at_s = clock_s - origin
        prompt_tokens, output_tokens = (
            as_tokens(_whole(cells[place]), found[place]) for place in (prompt, output)
        )
        return Row(at_s, prompt_tokens, output_tokens)

    return parse


def _mooncake(line: str) -> Row:
    row = json_object(line)
    at_ms = _time(row.get("timestamp"), "timestamp")
    prompt_tokens, output_tokens = (as_tokens(row.get(key), key) for key in ("input_length", "output_length"))
    return Row(at_ms / 1000.0, prompt_tokens, output_tokens)


def _ours(tenants: frozenset[str] | None) -> Parse:
    def parse(line: str) -> Row:
        row = json_object(line)
        prompt, tier, category = prompt_if_known(row), row.get("tier"), row.get("category")
        prompt_tokens = tokens_if_known(row, "prompt_tokens")
        if not prompt and prompt_tokens is None:
            raise ValueError("prompt or prompt_tokens is needed")
        return Row(
            _time(row.get("arrival_s"), "arrival_s"),
            prompt_tokens,
            tokens_if_known(row, "output_tokens"),
            tokens_if_known(row, "max_tokens"),
            "" if tenants is None else _one_of(row.get("tenant"), "tenant", tenants),
            _one_of(tier, "tier", TIERS) if tier else "",
            prompt,
            _one_of(category, "category", CATEGORIES) if category else "",
        )

    return parse


def _one_of(value: object, what: str, allowed: frozenset[str] | tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{what} {value!r:.40} is not one of {', '.join(sorted(allowed)):.200}")
    return value


def _timestamp(text: str) -> float:
    when = datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is not a number") from None


def _whole(text: str) -> int:
    number = _number(text)
    if not number.is_integer():
        raise ValueError(f"{text[:40]!r} is not a whole number")
    return int(number)


def _time(value: object, what: str = "time") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        raise ValueError(f"{what} {value!r:.40} is not a number of at least 0")
    return float(value)
