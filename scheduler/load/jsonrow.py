"""Rows of JSON, as files of traces, prompts and lengths have them: null is as good as nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

MAX_ROW_TOKENS = 10_000_000
MAX_LINE = 1 << 20  # characters

T = TypeVar("T")


def read_rows(file: Path, read: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """What ``read`` makes of each line's object; lines without anything in them are left out.

    Raises OSError, and ValueError naming the line that is none or for which ``read`` raises one.
    """
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(iter(partial(lines.readline, MAX_LINE), ""), start=1):
            if not line.strip():
                continue
            try:
                row = read(json_object(line))
            except ValueError as error:
                raise ValueError(f"{file.name!r} line {number}: {error!s:.200}") from None
            yield row


def json_object(line: str) -> dict[str, Any]:
    """Raises ValueError."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not a JSON object: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise ValueError("not a JSON object: nested too deep") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def prompt_if_known(row: Mapping[str, object]) -> str:
    """Empty where there is none. JSON can spell half a surrogate pair, which no tokenizer takes: here it is a
    "?". Raises ValueError.
    """
    prompt = row.get("prompt") or ""
    if not isinstance(prompt, str):
        raise ValueError("prompt is not text")
    return prompt.encode("utf-8", "replace").decode()


def tokens_if_known(row: Mapping[str, object], key: str) -> int | None:
    """Raises ValueError."""
    value = row.get(key)
    return None if value is None else as_tokens(value, key)


def answer_if_known(row: Mapping[str, object], key: str) -> int | None:
    """The same of a model's answer: where it said nothing the end was a token, too."""
    return 1 if row.get(key) == 0 else tokens_if_known(row, key)


def as_tokens(value: object, what: str) -> int:
    """A number of tokens, 10.0 as good as 10; ``what`` names it in the message. Raises ValueError."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_ROW_TOKENS:
        raise ValueError(f"{what} {value!r:.40} is not a number of tokens from 1 to {MAX_ROW_TOKENS}")
    return value
