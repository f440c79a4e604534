"""Training a prior of the ``learned`` estimator, and reading what it is trained on (tools/train_prior.py)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.core.features import BUCKETS, DENSE, read
from scheduler.core.learned import CLIP
from scheduler.core.prior import BOUND, LEAST_TOKENS, MOST_BEYOND, SHORT_TOKENS, Embed
from scheduler.load.jsonrow import answer_if_known, prompt_if_known, read_rows, tokens_if_known
from scheduler.load.prior import prompt_key

MOST_PROMPT_TOKENS = 32_768  # fits the twin's KV cache beside the longest answer
RIDGE = 90.0
STRETCH = 1.4  # a ridge regression shrinks its scores
WORD_SCALE = 6.0  # how much a word may weigh beside a cue
EMBEDDING_SCALE, EMBEDDING_RIDGE = 10.0, 200.0  # of an embedding that is as long as 1
UNIT = 1e-4  # of the words' weights in the file


Matrix = NDArray[np.float64]


class Corpus(NamedTuple):
    """Prompts, their token counts, and the answers' tokens by model."""

    prompts: list[str]
    counts: list[int]
    tokens: dict[str, list[int]]

    def of(self, models: Iterable[str]) -> list[dict[str, int]]:
        """For each prompt, the tokens of these models' answers."""
        chosen = [(model, self.tokens[model]) for model in models]
        return [{model: tokens[at] for model, tokens in chosen} for at in range(len(self.prompts))]


def read_corpus(file: Path) -> Corpus:
    """Of JSON lines with ``prompt`` and ``output_tokens``: a number, or one for each model. Raises ValueError
    naming the line.
    """
    data = Corpus([], [], {})
    try:
        for _ in read_rows(file, partial(_add, data)):
            pass
    except OSError as error:
        raise ValueError(f"{file.name!r} cannot be read: {error}") from None
    return data


def _add(data: Corpus, row: dict[str, Any]) -> None:
    """Raises ValueError that says what is wrong with the row."""
    if not isinstance(prompt := row.get("prompt"), str):
        raise ValueError("prompt (text) is needed")
    answers = row.get("output_tokens")
    by_model = answers if isinstance(answers, dict) else {"model": answers}
    if not by_model or (data.prompts and by_model.keys() != data.tokens.keys()):
        raise ValueError("output_tokens must be a number, or one for each model, the same in every line")
    prompt_tokens = tokens_if_known(row, "prompt_tokens") or max(1, len(prompt.split()))
    if prompt_tokens > MOST_PROMPT_TOKENS:
        raise ValueError(f"prompt_tokens {prompt_tokens}; allowed: 1 to {MOST_PROMPT_TOKENS}")
    for model, count in by_model.items():
        tokens = answer_if_known({model: count}, model)
        if tokens is None:
            raise ValueError(f"output_tokens of {model!r:.60} must be a number")
        data.tokens.setdefault(str(model), []).append(tokens)
    data.prompts.append(prompt_if_known(row))
    data.counts.append(prompt_tokens)


def train(
    prompts: Sequence[str], lengths: Sequence[dict[str, int]], embed: Embed | None = None
) -> dict[str, Any]:
    """The prior as its file holds it. ``lengths[i]`` has the same models for every prompt."""
    models = sorted(lengths[0])
    answers = np.array([[row[model] for model in models] for row in lengths], float)
    target = np.log(answers + SHORT_TOKENS)
    target = (target - target.mean(axis=0)).mean(axis=1)
    dense = np.array([read(prompt).dense for prompt in prompts])
    mean, scale = dense.mean(axis=0), np.maximum(dense.std(axis=0), 0.05)
    parts, ridge = [((dense - mean) / scale).clip(-BOUND, BOUND), WORD_SCALE * _word_matrix(prompts)], RIDGE
    if embed is not None:
        parts, ridge = (
            [*parts, EMBEDDING_SCALE * np.array([embed(prompt) for prompt in prompts])],
            EMBEDDING_RIDGE,
        )
    design = np.hstack(parts)
    # In its dual form: prompts are far fewer than features.
    dual: Matrix = np.linalg.solve(design @ design.T + ridge * np.eye(len(prompts)), target)
    weights = STRETCH * design.T @ dual
    level, spread = _centre(np.log(answers), (design @ weights)[:, None])
    words, embedding = weights[len(DENSE) : len(DENSE) + BUCKETS], weights[len(DENSE) + BUCKETS :]
    return {
        "features": list(DENSE),
        "models": models,
        "prompts": sorted(map(prompt_key, prompts)),
        "level": round(level, 4),
        "spread": round(spread, 4),
        "mean": [round(float(x), 5) for x in mean],
        "scale": [round(float(x), 5) for x in scale],
        "dense": [round(float(x), 5) for x in weights[: len(DENSE)]],
        "unit": UNIT,
        "words": [round(float(x) * WORD_SCALE / UNIT) for x in words],
        "embedding": [round(float(x) * EMBEDDING_SCALE, 5) for x in embedding],
    }


def _centre(logs: Matrix, scores: Matrix) -> tuple[float, float]:
    """Where the level of ``learned`` comes to rest with these scores, and what is left then: errors beyond
    its bound count as the bound.
    """
    level, spread = float(logs.mean()), 0.0
    for _ in range(100):
        errors = logs - level - _beyond(scores, level)
        spread = float((errors - errors.mean(axis=0)).std())
        level += float(errors.clip(-CLIP * spread, CLIP * spread).mean())
    return level, spread


def _beyond(scores: Matrix, level: float) -> Matrix:
    """``Prior.beyond`` of many."""
    tokens = (np.exp(level) + SHORT_TOKENS) * np.exp(scores) - SHORT_TOKENS
    steps = np.log(np.maximum(tokens, LEAST_TOKENS)) - level
    return np.where(steps < 0.0, steps, MOST_BEYOND * np.tanh(steps / MOST_BEYOND))


def _word_matrix(prompts: Sequence[str]) -> Matrix:
    matrix: Matrix = np.zeros((len(prompts), BUCKETS))
    for row, prompt in zip(matrix, prompts, strict=True):
        features = read(prompt)
        for bucket in features.buckets:
            row[bucket] += features.share
    return matrix
