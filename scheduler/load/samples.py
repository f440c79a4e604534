"""Prompts and answer lengths drawn from a file of JSON lines, such as a set of real prompts.

A line is an object with ``prompt``, and where known ``prompt_tokens``, ``category`` and ``output_tokens``:
a number, or an object with one for each model.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from scheduler.core.estimate import classify
from scheduler.core.types import CATEGORIES
from scheduler.load.jsonrow import answer_if_known, prompt_if_known, read_rows, tokens_if_known
from scheduler.load.yamlfile import did_you_mean

MAX_SAMPLES = 200_000


class Sample(NamedTuple):
    """One line; None where the file does not say."""

    prompt: str
    category: str
    prompt_tokens: int | None
    output_tokens: int | None


def read_samples(file: str, needed: str, model: str | None = None) -> list[Sample]:
    """The whole file, each line with what is ``needed`` of it: ``prompt`` or ``output_tokens``.

    Raises ValueError naming the line that cannot be used.
    """
    rows = read_rows(Path(file), partial(_sample, needed=needed, model=model))
    samples = list(islice(rows, MAX_SAMPLES + 1))
    name = Path(file).name
    if len(samples) > MAX_SAMPLES:
        raise ValueError(f"{name!r}: more than {MAX_SAMPLES} lines, the most allowed")
    if not samples:
        raise ValueError(f"{name!r} holds no lines")
    return samples


def _sample(row: dict[str, Any], *, needed: str, model: str | None) -> Sample:
    prompt = prompt_if_known(row)
    category = row.get("category") or classify(prompt)
    if category not in CATEGORIES:
        raise ValueError(f"unknown category {category!r:.40}; {did_you_mean(category, CATEGORIES)}")
    prompt_tokens = tokens_if_known(row, "prompt_tokens")
    output_tokens = answer_if_known(_by_model(row, needed, model), "output_tokens")
    sample = Sample(prompt, category, prompt_tokens, output_tokens)
    if not getattr(sample, needed):
        raise ValueError(f"{needed} is needed")
    return sample


def _by_model(row: dict[str, Any], needed: str, model: str | None) -> dict[str, Any]:
    """The row with the one model's output_tokens."""
    lengths = row.get("output_tokens")
    if not isinstance(lengths, dict):
        return row
    if needed != "output_tokens":
        return {}  # whose are meant is not said, and need not be
    if model is None:
        raise ValueError(
            f"output_tokens is given for each model: `model` is needed; {did_you_mean('', lengths)}"
        )
    if model not in lengths:
        raise ValueError(f"no output_tokens for the model {model!r:.60}; {did_you_mean(model, lengths)}")
    return {"output_tokens": lengths[model]}


class Shuffled:
    """Samples in random order, each once before any comes again."""

    __slots__ = ("_left", "_rng", "_samples")

    def __init__(self, samples: Sequence[Sample], rng: Random) -> None:
        self._samples = samples
        self._rng = rng
        self._left: list[Sample] = []

    def draw(self) -> Sample:
        if not self._left:
            self._left = list(self._samples)
            self._rng.shuffle(self._left)
        return self._left.pop()
