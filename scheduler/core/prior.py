"""The prior of ``learned``: what other models' answers taught, and how a prompt looks to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import copysign, exp, log, tanh
from operator import gt, lt, mul, sub
from typing import Any, NamedTuple

from scheduler.core.estimate import Counter, classify, reading_once
from scheduler.core.features import BUCKETS, DENSE, MAX_CHARS, SHAPE, read
from scheduler.core.types import Request

BOUND = 3.0  # of a dense feature, in standard deviations: no single odd prompt may say everything
SHORT_TOKENS = 100.0  # added to an answer before the logarithm: whether it had 2 or 20 says little
LEAST_TOKENS = 30.0  # expected of any prompt
MOST_BEYOND = (
    0.8  # above the level, in the log: a model has a usual length, and few prompts make it double that
)
TERMS = BUCKETS + len(DENSE)
KEPT_MEANINGS = 65_536  # of more prompts than ever wait: each is asked for again at its request's end

Embed = Callable[[str], Sequence[float]]
"""A prompt's embedding, as long as 1, of its first ``MAX_CHARS`` characters; may be asked in any thread."""


class Prior(NamedTuple):
    """What other models' answers taught (tools/train_prior.py)."""

    level: float  # log tokens of a prompt that scores 0
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
            tuple(weight * unit if weight else 0.0 for weight in document["words"]),
            tuple(document.get("embedding", ())),
        )

    def beyond(self, score: float) -> float:
        """What a score adds to the log length: it stands for a step of log(tokens + SHORT_TOKENS), which
        flattens out upwards.
        """
        tokens = (exp(self.level) + SHORT_TOKENS) * exp(score) - SHORT_TOKENS
        step = log(tokens if tokens > LEAST_TOKENS else LEAST_TOKENS) - self.level
        return step if step < 0.0 else MOST_BEYOND * tanh(step / MOST_BEYOND)


NO_PRIOR = Prior(
    log(300), 0.8, (0.0,) * len(DENSE), (1.0,) * len(DENSE), (0.0,) * len(DENSE), (0.0,) * BUCKETS
)


def bounded(standard: float) -> float:
    """A standardized input, cut: one far outside what was trained on must not carry the estimate away."""
    return standard if -BOUND < standard < BOUND else copysign(BOUND, standard)


@dataclass(slots=True)
class Seen:
    """A prompt as the model sees it. Not frozen for the reason that an Estimate is not."""

    category: str
    input_tokens: int
    terms: tuple[int, ...]  # the buckets of its words and, beyond them, its cues: below ``TERMS``
    share: float  # of each term
    score: float  # the prior's
    beyond: float  # what that adds to the log length
    expected: float  # tokens, by that alone


class Meanings:
    """What the embeddings of prompts add to their scores. Each takes milliseconds and is worked out once,
    when it is first asked for or before.
    """

    def __init__(self, prior: Prior, embed: Embed) -> None:
        self._weights = prior.embedding
        self._embed = embed
        self._kept: OrderedDict[int, float] = OrderedDict()  # by the prompt's hash; 0.0: to be done without

    def __call__(self, prompt: str) -> float:
        kept = self._kept.get(_hash(prompt))
        return self._work_out(prompt) if kept is None else kept

    def __contains__(self, prompt: str) -> bool:
        return bool(self._kept.get(_hash(prompt)))

    def prepare(self, prompt: str) -> None:
        """Before it is asked for; may be done in any thread."""
        if prompt not in self:
            self._work_out(prompt)

    def forgo(self, prompt: str) -> None:
        """Do without, unless it is there or until it is prepared."""
        if _hash(prompt) not in self._kept:
            self._keep(prompt, 0.0)

    def _work_out(self, prompt: str) -> float:
        worth = float(sum(map(mul, self._embed(prompt[:MAX_CHARS]), self._weights)))
        self._keep(prompt, worth)
        return worth

    def _keep(self, prompt: str, worth: float) -> None:
        self._kept[_hash(prompt)] = worth
        if len(self._kept) > KEPT_MEANINGS:
            self._kept.popitem(last=False)


def _hash(prompt: str) -> int:
    return hash(prompt[:MAX_CHARS])


class PromptReader:
    """A request's prompt as the prior sees it; short ones that come again (a load's templates) are kept."""

    def __init__(self, prior: Prior, counter: Counter, embed: Embed | None = None) -> None:
        if bool(prior.embedding) != (embed is not None):
            raise ValueError("an embedding model and a prior that was trained with it go together")
        self._prior = prior
        self._count = counter
        self.meanings = None if embed is None else Meanings(prior, embed)
        self._kept = reading_once(self._look)
        # What does not change with the prompt is worked out once. Most cue words are not in a prompt: their
        # worth when absent is in the constant.
        features = list(zip(prior.mean, prior.scale, prior.dense, strict=True))
        shape, cues = features[: len(SHAPE)], features[len(SHAPE) :]
        self._low = [mean - BOUND * scale for mean, scale, _ in shape]
        self._high = [mean + BOUND * scale for mean, scale, _ in shape]
        self._slopes = [weight / scale for _, scale, weight in shape]
        absent = [bounded(-mean / scale) * weight for mean, scale, weight in cues]
        present = [bounded((1 - mean) / scale) * weight for mean, scale, weight in cues]
        self._constant = sum(absent) - sum(mean * weight / scale for mean, scale, weight in shape)
        self._worth = dict(enumerate(map(sub, present, absent), len(SHAPE)))

    def __call__(self, request: Request) -> Seen:
        prompt = request.prompt
        if not prompt:
            return self._seen(request.category or "short_qa", request.prompt_tokens, (), 0.0, 0.0)
        seen = self._kept(prompt)
        if self.meanings is None:
            return seen
        score = seen.score + self.meanings(prompt)
        return self._seen(seen.category, seen.input_tokens, seen.terms, seen.share, score)

    def _look(self, prompt: str) -> Seen:
        prior = self._prior
        shape, cues, buckets, share = read(prompt)
        if any(map(gt, shape, self._high)) or any(map(lt, shape, self._low)):
            shape = tuple(map(min, self._high, map(max, self._low, shape)))
        score = (
            self._constant
            + sum(map(mul, self._slopes, shape))
            + sum(map(self._worth.__getitem__, cues))
            + share * sum(map(prior.words.__getitem__, buckets))
        )
        terms = (*buckets, *map(BUCKETS.__add__, cues))
        return self._seen(classify(prompt), self._count(prompt), terms, share, score)

    def _seen(
        self, category: str, input_tokens: int, terms: tuple[int, ...], share: float, score: float
    ) -> Seen:
        beyond = self._prior.beyond(score)
        return Seen(category, input_tokens, terms, share, score, beyond, exp(self._prior.level + beyond))
