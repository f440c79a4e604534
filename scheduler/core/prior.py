"""The prior of ``learned``: what other models' answers taught, and how a prompt looks to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import copysign, log
from operator import mul
from typing import Any, NamedTuple

from scheduler.core.estimate import Counter, classify
from scheduler.core.features import BUCKETS, DENSE, SHAPE, read
from scheduler.core.types import Request

MAX_CUE = 3.0  # standard deviations: late feedback makes large steps overshoot
KEPT_PROMPTS, KEPT_CHARS = 2048, 2000

Embed = Callable[[str], Sequence[float]]
"""A prompt's embedding, as long as 1."""


class Prior(NamedTuple):
    """What other models' answers taught (tools/train_prior.py)."""

    level: float  # mean log length
    spread: float  # standard deviation that is left
    mean: tuple[float, ...]  # of each dense feature
    scale: tuple[float, ...]
    dense: tuple[float, ...]  # weights
    words: tuple[float, ...]  # weights by bucket
    embedding: tuple[float, ...] = ()  # weights by dimension, of a prior with an embedding model

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Prior:
        """Raises ValueError unless it was trained for just these features."""
        if document.get("features") != list(DENSE) or len(document["words"]) != BUCKETS:
            raise ValueError("the prior was trained for other features: run tools/train_prior.py again")
        unit = document["unit"]
        return cls(
            document["level"],
            document["spread"],
            tuple(document["mean"]),
            tuple(document["scale"]),
            tuple(document["dense"]),
            tuple(weight * unit for weight in document["words"]),
            tuple(document.get("embedding", ())),
        )


NO_PRIOR = Prior(
    log(300), 0.8, (0.0,) * len(DENSE), (1.0,) * len(DENSE), (0.0,) * len(DENSE), (0.0,) * BUCKETS
)


class Seen(NamedTuple):
    """A prompt as the model sees it."""

    category: str
    input_tokens: int
    cues: Sequence[float]  # standardised
    buckets: tuple[int, ...]
    share: float
    score: float  # the prior's, beyond its level


class PromptReader:
    """A request's prompt as the prior sees it; short ones that come again (a load's templates) are kept."""

    def __init__(self, prior: Prior, counter: Counter, embed: Embed | None = None) -> None:
        if bool(prior.embedding) != (embed is not None):
            raise ValueError("an embedding model and a prior that was trained with it go together")
        self._prior = prior
        self._count = counter
        self._embed = embed
        self._kept = lru_cache(KEPT_PROMPTS)(self._look)
        # Most cue words are not in a prompt: what they are worth absent and present is worked out once.
        shape = len(SHAPE)
        words = list(zip(prior.mean, prior.scale, prior.dense, strict=True))[shape:]
        self._absent = [_bounded(-mean / scale) for mean, scale, _ in words]
        self._present = [0.0] * shape + [_bounded((1 - mean) / scale) for mean, scale, _ in words]
        self._without = sum(-mean / scale * weight for mean, scale, weight in words)
        self._worth = [0.0] * shape + [weight / scale for _, scale, weight in words]

    def __call__(self, request: Request) -> Seen:
        prompt = request.prompt
        if not prompt:
            return Seen(request.category or "short_qa", request.prompt_tokens, (), (), 0.0, 0.0)
        return self._kept(prompt) if len(prompt) <= KEPT_CHARS else self._look(prompt)

    def _look(self, prompt: str) -> Seen:
        prior = self._prior
        shape, present, buckets, share = read(prompt)
        standard = [
            (value - mean) / scale for value, mean, scale in zip(shape, prior.mean, prior.scale, strict=False)
        ]
        score = self._without + sum(map(mul, standard, prior.dense))
        score += share * sum(map(prior.words.__getitem__, buckets))
        cues = [*map(_bounded, standard), *self._absent]
        for place in present:
            cues[place] = self._present[place]
            score += self._worth[place]
        if self._embed is not None:
            score += sum(map(mul, self._embed(prompt), prior.embedding))
        return Seen(classify(prompt), self._count(prompt), cues, buckets, share, score)


def _bounded(cue: float) -> float:
    return cue if -MAX_CUE < cue < MAX_CUE else copysign(MAX_CUE, cue)
