"""Output-length estimates: classification, token counters, and what is learned from completions.

``PaperEstimator`` is the published one (PAPER: "The pipeline"): keyword category x learned bias x factors.
``faithful=True`` keeps its quirks; by default the safety factor stays out of the ranking value, the
estimate never exceeds max_tokens, and censored answers are taken as the lower bounds that they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import inf
from typing import Any, Protocol

from scheduler.core.types import CATEGORIES, Estimate, Outcome, Request

BASE_TOKENS: Mapping[str, int] = {"short_qa": 64, "summary": 256, "technical": 384, "report": 512}
KEYWORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("summary", ("summarize", "summary")),
    ("report", ("detailed", "report", "comprehensive")),
    ("technical", ("architecture", "code", "technical")),
)
SAFETY_FACTOR: Mapping[str, float] = {"premium": 1.2, "standard": 1.0, "batch": 0.8}
MAX_INPUT_FACTOR = 1.5
SHORT_TOKENS, MEDIUM_TOKENS = 128, 512
BIAS_MEMORY = 0.9
MEASURED_RANGE = (0.25, 3.0)

Counter = Callable[[str], int]


def classify(prompt: str) -> str:
    """Semantic category by keyword occurrences in the lower-cased prompt; ties go to the first listed."""
    text = prompt.lower()
    best, best_score = "short_qa", 0
    for category, words in KEYWORDS:
        score = 0
        for word in words:
            if word in text:
                score += text.count(word)
        if score > best_score:
            best, best_score = category, score
    return best


def count_words(prompt: str) -> int:
    """Whitespace words, the paper's first token counter."""
    return len(prompt.split())


def runtime_class(budget: float) -> str:
    """short <= 128 < medium <= 512 < long, of a total token budget (input + output tokens)."""
    return "short" if budget <= SHORT_TOKENS else "medium" if budget <= MEDIUM_TOKENS else "long"


def input_factor(input_tokens: int) -> float:
    return min(MAX_INPUT_FACTOR, 1 + input_tokens / 1000)


_KEPT_PROMPTS, _KEPT_CHARS = 4096, 2000


def prompt_reader(count: Counter) -> Callable[[str], tuple[str, int]]:
    """A function from a prompt to (category, input tokens) that reads short, repeated prompts (a load's
    templates) once.
    """

    def read(prompt: str) -> tuple[str, int]:
        return classify(prompt), count(prompt)

    kept = lru_cache(_KEPT_PROMPTS)(read)
    return lambda prompt: kept(prompt) if len(prompt) <= _KEPT_CHARS else read(prompt)


class Learned(Protocol):
    """Knows what was learned."""

    def bias(self, tenant: str, category: str) -> float:
        """The learned multiplier in force for this tenant and category."""


class Estimator(Learned, Protocol):
    """Guesses output lengths and learns from how requests really ended."""

    @property
    def name(self) -> str: ...

    def estimate(self, request: Request) -> Estimate: ...

    def observe(self, request: Request, outcome: Outcome) -> None:
        """Learn from an ending. "stop" is a length; every other finish only says "at least this many"."""

    def state(self) -> dict[str, Any]:
        """All that was learned, as JSON can hold it."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state()`` gave. Raises ValueError and changes nothing when it does not fit."""


class PaperEstimator:
    """estimate = int(base x bias[category] x safety[tier] x input_factor) (PAPER: "The pipeline").

    Calibration is an EMA per category: measured = clamp(output / base, 0.25, 3.0), bias = 0.9 bias + 0.1
    measured, from 1.0. Without ``faithful``: no safety factor, never above max_tokens, and an answer that
    was cut raises the bias when it is longer than believed but never lowers it.
    """

    def __init__(
        self, *, counter: Counter = count_words, calibrate: bool = True, faithful: bool = False
    ) -> None:
        self.calibrate = calibrate
        self.faithful = faithful
        self._read = prompt_reader(counter)
        self._bias = dict.fromkeys(CATEGORIES, 1.0)

    @property
    def name(self) -> str:
        return "paper" if self.calibrate else "paper (no calibration)"

    def estimate(self, request: Request) -> Estimate:
        """O(prompt length); a request without a prompt (a trace) goes by its own label and count."""
        if request.prompt:
            category, input_tokens = self._read(request.prompt)
        else:
            category = request.category or "short_qa"
            input_tokens = request.prompt_tokens
        base = BASE_TOKENS[category]
        factor = 1 + input_tokens / 1000 if input_tokens < 500 else MAX_INPUT_FACTOR
        if self.faithful:
            safety = SAFETY_FACTOR[request.tier]
            point = int(base * self._bias[category] * safety * factor)
            uncorrected = int(base * safety * factor)
        else:
            point = int(base * self._bias[category] * factor)
            if point > request.max_tokens:
                point = request.max_tokens
            uncorrected = int(base * factor)
        budget = input_tokens + point
        return Estimate(
            input_tokens,
            point,
            request.max_tokens,
            category,
            "short" if budget <= SHORT_TOKENS else "medium" if budget <= MEDIUM_TOKENS else "long",
            uncorrected,
        )

    def observe(self, request: Request, outcome: Outcome) -> None:
        if not self.calibrate:
            return
        censored = outcome.finish != "stop"
        if self.faithful and outcome.finish not in ("stop", "length"):
            return  # the paper's worker only feeds back what ran to its end
        category = request.estimate.category
        low, high = MEASURED_RANGE
        measured = outcome.output_tokens / BASE_TOKENS[category]
        measured = low if measured < low else high if measured > high else measured
        bias = self._bias[category]
        if censored and not self.faithful and measured <= bias:
            return  # "at least this long" says nothing when more was expected
        self._bias[category] = BIAS_MEMORY * bias + (1 - BIAS_MEMORY) * measured

    def bias(self, tenant: str, category: str) -> float:
        return self._bias[category]

    def state(self) -> dict[str, Any]:
        return {"kind": "paper", "bias": dict(self._bias)}

    def restore(self, state: Mapping[str, Any]) -> None:
        bias = state.get("bias")
        if (
            state.get("kind") != "paper"
            or not isinstance(bias, Mapping)
            or set(bias) != set(CATEGORIES)
            or not all(isinstance(value, int | float) and 0 < value < inf for value in bias.values())
        ):
            raise ValueError(
                f"not a state of the paper estimator; it has a bias above 0 for each of {CATEGORIES}"
            )
        self._bias = {category: float(bias[category]) for category in CATEGORIES}


class Oracle:
    """Knows the true lengths of simulated requests: the limit line, for virtual time only."""

    name = "oracle"

    def __init__(self, *, counter: Counter = count_words) -> None:
        self._read = prompt_reader(counter)

    def estimate(self, request: Request) -> Estimate:
        if request.intended_tokens is None:
            raise ValueError(f"request {request.id}: the oracle needs simulated lengths")
        point = min(request.intended_tokens, request.max_tokens)
        category, input_tokens = request.category or "short_qa", request.prompt_tokens
        if request.prompt:
            category, input_tokens = self._read(request.prompt)
        return Estimate(input_tokens, point, point, category, runtime_class(input_tokens + point), point)

    def observe(self, request: Request, outcome: Outcome) -> None:
        """Nothing is left to learn."""

    def bias(self, tenant: str, category: str) -> float:
        return 1.0

    def state(self) -> dict[str, Any]:
        return {"kind": "oracle"}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state.get("kind") != "oracle":
            raise ValueError("not a state of the oracle")


class Given:
    """Estimates made elsewhere, which the requests carry already: of a recorded run, of a played future."""

    name = "given"

    def estimate(self, request: Request) -> Estimate:
        return request.estimate

    def observe(self, request: Request, outcome: Outcome) -> None:
        """What is learned on the way changes none of them."""

    def bias(self, tenant: str, category: str) -> float:
        return 1.0

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """There is nothing to take over."""
