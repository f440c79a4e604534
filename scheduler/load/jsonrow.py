"""Rows of JSON, as files of traces, prompts and lengths have them: null is as good as nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_ROW_TOKENS = 10_000_000


def json_object(line: str) -> dict[str, Any]:
    """Raises ValueError, RecursionError."""
    row = json.loads(line)
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
