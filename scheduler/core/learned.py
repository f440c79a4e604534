"""``learned``: the length read off the words of the prompt, by a prior that ships and is adapted online.

The logarithm of the length is the sum of
- a level, a slope on the prior's score, and a slope on log max_tokens: a Kalman filter;
- what the served model makes of each cue and each hashed word beyond the prior: gradient steps;
- an offset of the (tenant, category), that of the category where there is little of its own.

All parts learn from the same error. An answer that was cut says "at least this long": its error is the one
expected of a normal variable above that bound (Tobit), close to zero where more was believed anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import copysign, erfc, exp, isfinite, log, pi, sqrt
from operator import mul, sub, truediv
from typing import Any, NamedTuple

from scheduler.core.conformal import Margin
from scheduler.core.estimate import Counter, classify, count_words, runtime_class
from scheduler.core.features import BUCKETS, DENSE, read
from scheduler.core.types import CATEGORIES, Estimate, Outcome, Request

CLIP = 2.0  # standard deviations: one answer of a page and a half must not move everything
SLOPE = 1.3  # a ridge regression shrinks its scores
VARIANCE = (0.05, 0.02, 0.001)  # of level and slopes before anything was seen, in variances of an answer
WANDER = (1e-4, 1e-5, 0.0)  # what they change per answer
CUE_RATE, WORD_RATE, OFFSET_RATE = 0.0015, 0.03, 0.0125
MAX_CUE = 3.0  # standard deviations: late feedback makes large steps overshoot
TOWARDS_MEAN = 0.12  # of the variance; 0 is the median and 0.5 the mean of a log-normal
MAX_CELLS = 10_000
KEPT_PROMPTS, KEPT_CHARS = 2048, 2000
USUAL_MAX_TOKENS = log(1024)


class Prior(NamedTuple):
    """What other models' answers taught (tools/train_prior.py)."""

    level: float  # mean log length
    spread: float  # standard deviation that is left
    mean: tuple[float, ...]  # of each dense feature
    scale: tuple[float, ...]
    dense: tuple[float, ...]  # weights
    words: tuple[float, ...]  # weights by bucket

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
        )


NO_PRIOR = Prior(
    log(300), 0.8, (0.0,) * len(DENSE), (1.0,) * len(DENSE), (0.0,) * len(DENSE), (0.0,) * BUCKETS
)


class _Seen(NamedTuple):
    """A prompt as the model sees it."""

    category: str
    input_tokens: int
    cues: Sequence[float]  # standardised
    buckets: tuple[int, ...]
    share: float
    score: float  # the prior's, beyond its level


class LearnedEstimator:
    """O(prompt length) for a prompt that is new, within 100 us for usual ones."""

    name = "learned"

    def __init__(self, *, counter: Counter = count_words, prior: Prior = NO_PRIOR) -> None:
        self.prior = prior
        self.margin = Margin(1.28 * prior.spread)
        self._count = counter
        self._read = lru_cache(KEPT_PROMPTS)(self._look)
        self._weights = [prior.level, SLOPE, 0.0]
        self._covariance = [[VARIANCE[i] if i == j else 0.0 for j in range(3)] for i in range(3)]
        self._variance = prior.spread**2
        self._cues = [0.0] * len(DENSE)
        self._words = [0.0] * BUCKETS
        self._offsets: dict[tuple[str, str], float] = {}  # by tenant and category; tenant "" is all

    @property
    def coverage(self) -> float:
        """Share of the last answers within their upper estimate; NaN before the first."""
        return self.margin.coverage

    def estimate(self, request: Request) -> Estimate:
        seen = self._seen(request)
        cap = request.max_tokens
        mu = self._mu(seen, request)
        believed = exp(min(20.0, mu + TOWARDS_MEAN * self._variance))
        uncorrected = min(cap, exp(self.prior.level + seen.score))
        point = min(float(cap), believed)
        return Estimate(
            seen.input_tokens,
            point,
            min(cap, self.margin.upper(believed)),
            seen.category,
            runtime_class(seen.input_tokens + point),
            uncorrected,
        )

    def observe(self, request: Request, outcome: Outcome) -> None:
        tokens = outcome.output_tokens
        if tokens < 1:
            return
        cut = outcome.finish not in ("stop", "length")
        self.margin.observe(request.estimate.upper, tokens, censored=cut)
        seen = self._seen(request)
        error = log(tokens) - self._mu(seen, request)
        deviation = sqrt(self._variance)
        if outcome.finish == "stop":
            square = min(error * error, 9 * self._variance)
        else:
            z = max(-8.0, min(8.0, error / deviation))
            hazard = exp(-z * z / 2) * sqrt(2 / pi) / erfc(z / sqrt(2))
            error, square = deviation * hazard, self._variance * (1 + z * hazard)
        self._variance = max(0.01, self._variance + 0.02 * (square - self._variance))
        self._learn(seen, request, max(-CLIP * deviation, min(CLIP * deviation, error)))

    def bias(self, tenant: str, category: str) -> float:
        """What the tenant's offset and the level make of the prior's estimate."""
        return exp(self._weights[0] - self.prior.level + self._offset(tenant, category))

    def _seen(self, request: Request) -> _Seen:
        prompt = request.prompt
        if not prompt:
            category = request.category or "short_qa"
            return _Seen(category, request.prompt_tokens, (), (), 0.0, 0.0)
        return self._read(prompt) if len(prompt) <= KEPT_CHARS else self._look(prompt)

    def _look(self, prompt: str) -> _Seen:
        prior = self.prior
        dense, buckets, share = read(prompt)
        cues = list(map(truediv, map(sub, dense, prior.mean), prior.scale))
        score = sum(map(mul, cues, prior.dense)) + share * sum(map(prior.words.__getitem__, buckets))
        cues = [cue if -MAX_CUE < cue < MAX_CUE else copysign(MAX_CUE, cue) for cue in cues]
        return _Seen(classify(prompt), self._count(prompt), cues, buckets, share, score)

    def _inputs(self, seen: _Seen, request: Request) -> tuple[float, float, float]:
        return (1.0, seen.score, log(request.max_tokens) - USUAL_MAX_TOKENS)

    def _mu(self, seen: _Seen, request: Request) -> float:
        level, slope, cap_slope = self._weights
        mu: float = (
            level
            + slope * seen.score
            + cap_slope * (log(request.max_tokens) - USUAL_MAX_TOKENS)
            + sum(map(mul, seen.cues, self._cues))
            + seen.share * sum(map(self._words.__getitem__, seen.buckets))
            + self._offset(request.tenant, seen.category)
        )
        return mu

    def _offset(self, tenant: str, category: str) -> float:
        offsets = self._offsets
        return offsets.get(("", category), 0.0) + offsets.get((tenant, category), 0.0)

    def _learn(self, seen: _Seen, request: Request, error: float) -> None:
        inputs, covariance = self._inputs(seen, request), self._covariance
        gain = [sum(map(mul, row, inputs)) for row in covariance]
        scale = 1 / (1 + sum(map(mul, gain, inputs)))
        for i in range(3):
            self._weights[i] += gain[i] * scale * error
            for j in range(3):
                covariance[i][j] -= gain[i] * gain[j] * scale
            covariance[i][i] += WANDER[i]
        step = CUE_RATE * error
        if seen.cues:
            self._cues = [weight + step * cue for weight, cue in zip(self._cues, seen.cues, strict=True)]
        step = WORD_RATE * error * seen.share
        words = self._words
        for bucket in seen.buckets:
            words[bucket] += step
        for key in (("", seen.category), (request.tenant, seen.category)):
            if key in self._offsets or len(self._offsets) < MAX_CELLS:
                self._offsets[key] = self._offsets.get(key, 0.0) + OFFSET_RATE * error

    def state(self) -> dict[str, Any]:
        return {
            "kind": "learned",
            "features": list(DENSE),
            "margin": self.margin.log_margin,
            "variance": self._variance,
            "weights": list(self._weights),
            "covariance": [list(row) for row in self._covariance],
            "cues": list(self._cues),
            "words": [[bucket, weight] for bucket, weight in enumerate(self._words) if weight],
            "offsets": [[*key, offset] for key, offset in self._offsets.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        try:
            if state["kind"] != "learned" or state["features"] != list(DENSE):
                raise ValueError
            margin, variance = _numbers([state["margin"], state["variance"]], 2)
            weights = _numbers(state["weights"], 3)
            covariance = [_numbers(row, 3) for row in state["covariance"]]
            cues = _numbers(state["cues"], len(DENSE))
            words = [0.0] * BUCKETS
            for bucket, weight in state["words"]:
                words[bucket] = _numbers([weight], 1)[0]
            offsets = {(str(t), str(c)): _numbers([x], 1)[0] for t, c, x in state["offsets"]}
            if len(covariance) != 3 or variance <= 0 or any(c not in CATEGORIES for _, c in offsets):
                raise ValueError
        except (KeyError, TypeError, ValueError, IndexError):
            raise ValueError("not a state of the learned estimator with these features") from None
        self.margin, self._variance, self._offsets = Margin(margin), variance, offsets
        self._weights, self._covariance, self._cues, self._words = weights, covariance, cues, words


def _numbers(values: Any, count: int) -> list[float]:
    numbers = [float(value) for value in values]
    if len(numbers) != count or not all(map(isfinite, numbers)):
        raise ValueError
    return numbers
