"""Output-length estimates: classification, token counters, and what is learned from completions.

``PaperEstimator`` is the published one (arXiv 2606.02982): keyword category x learned bias x factors.
``faithful=True`` keeps its quirks; by default the safety factor stays out of the ranking value, the
estimate never exceeds max_tokens, and censored answers are taken as the lower bounds that they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from scheduler.core.types import CATEGORIES, Estimate, Outcome, Request

if TYPE_CHECKING:
    from scheduler.core.prior import Meanings

BASE_TOKENS: Mapping[str, int] = {"short_qa": 64, "summary": 256, "technical": 384, "report": 512}
KEYWORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("summary", ("summarize", "summary")),
    ("report", ("detailed", "report", "comprehensive")),
    ("technical", ("architecture", "code", "technical")),
)
_CATEGORY_OF = {word: category for category, words in KEYWORDS for word in words}
SAFETY_FACTOR: Mapping[str, float] = {"premium": 1.2, "standard": 1.0, "batch": 0.8}
MAX_INPUT_FACTOR = 1.5
BIAS_MEMORY = 0.9
EMA_GAIN = 1 - BIAS_MEMORY
MEASURED_RANGE = LEAST_MEASURED, MOST_MEASURED = (0.25, 3.0)

Counter = Callable[[str], int]
T = TypeVar("T")


def classify(prompt: str) -> str:
    """Semantic category by keyword occurrences in the lower-cased prompt; ties go to the first listed."""
    text = prompt.lower()
    scores: dict[str, int] = {}
    for word in _CATEGORY_OF:
        if word in text:
            category = _CATEGORY_OF[word]
            scores[category] = scores.get(category, 0) + text.count(word)
    return max(scores, key=scores.__getitem__) if scores else "short_qa"


def count_words(prompt: str) -> int:
    """Whitespace words, the paper's first token counter."""
    return len(prompt.split())


def input_factor(input_tokens: int) -> float:
    """By how much a longer prompt makes the paper expect a longer answer: 1 for none, at most 1.5."""
    factor = 1 + input_tokens / 1000
    return factor if factor < MAX_INPUT_FACTOR else MAX_INPUT_FACTOR


_KEPT_PROMPTS, _KEPT_CHARS = 4096, 2000


class Readings(dict[str, T]):
    """What was read of a prompt; of short ones it is kept. A hit costs one look-up in C."""

    def __init__(self, read: Callable[[str], T]) -> None:
        self._read = read

    def __missing__(self, prompt: str) -> T:
        reading = self._read(prompt)
        if len(prompt) <= _KEPT_CHARS:
            if len(self) >= _KEPT_PROMPTS:
                self.clear()
            self[prompt] = reading
        return reading


def reading_once(read: Callable[[str], T]) -> Callable[[str], T]:
    """The same function of a prompt, which reads short, repeated ones (a load's templates) once."""
    return Readings(read).__getitem__


class Learned(Protocol):
    """Knows what was learned."""

    def bias(self, tenant: str, category: str) -> float:
        """The learned multiplier in force for this tenant and category."""


class Estimator(Learned, Protocol):
    """Guesses output lengths and learns from how requests really ended."""

    @property
    def name(self) -> str: ...

    @property
    def meanings(self) -> Meanings | None:
        """What it embeds, which is better done before it estimates; None for nothing."""

    def estimate(self, request: Request) -> Estimate: ...

    def observe(self, request: Request, outcome: Outcome) -> None:
        """Learn from an ending. "stop" is a length; every other finish only says "at least this many"."""

    def state(self) -> dict[str, Any]:
        """All that was learned, as JSON can hold it."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state()`` gave. Raises ValueError and changes nothing when it does not fit."""


class PaperEstimator:
    """estimate = int(base x bias[category] x safety[tier] x input_factor), as published (arXiv 2606.02982).

    Calibration is an EMA per category: measured = clamp(output / base, 0.25, 3.0), bias = 0.9 bias + 0.1
    measured, from 1.0. Without ``faithful``: no safety factor, never above max_tokens, and an answer that
    was cut raises the bias when it is longer than believed but never lowers it.
    """

    meanings = None

    def __init__(
        self, *, counter: Counter = count_words, calibrate: bool = True, faithful: bool = False
    ) -> None:
        self.calibrate = calibrate
        self.faithful = faithful
        self._formulas = Readings(lambda prompt: self._formula(classify(prompt), counter(prompt)))
        self._bias = dict.fromkeys(CATEGORIES, 1.0)

    @property
    def name(self) -> str:
        return "paper" if self.calibrate else "paper (no calibration)"

    def estimate(self, request: Request) -> Estimate:
        """O(prompt length); a request without a prompt (a trace) goes by its own label and count."""
        if request.prompt:
            formula = self._formulas[request.prompt]
        else:
            formula = self._formula(request.category or "short_qa", request.prompt_tokens)
        category, input_tokens, base, factor, uncorrected = formula
        if self.faithful:
            safety = SAFETY_FACTOR[request.tier]
            point = int(base * self._bias[category] * safety * factor)
            uncorrected = int(base * safety * factor)
        else:
            point = int(base * self._bias[category] * factor)
            if point > request.max_tokens:
                point = request.max_tokens
        return Estimate(input_tokens, point, request.max_tokens, category, uncorrected)

    @staticmethod
    def _formula(category: str, input_tokens: int) -> tuple[str, int, float, float, int]:
        """What an estimate is made of, whoever asks and whatever was learned."""
        base, factor = float(BASE_TOKENS[category]), input_factor(input_tokens)
        return category, input_tokens, base, factor, int(base * factor)

    def observe(self, request: Request, outcome: Outcome) -> None:
        if not self.calibrate:
            return
        category = request.estimate.category
        bias = self._bias[category]
        measured = outcome.output_tokens / BASE_TOKENS[category]
        if measured < LEAST_MEASURED:
            measured = LEAST_MEASURED
        elif measured > MOST_MEASURED:
            measured = MOST_MEASURED
        if outcome.finish != "stop":
            if self.faithful and outcome.finish != "length":
                return  # the paper's worker only feeds back what ran to its end
            if not self.faithful and measured <= bias:
                return  # "at least this long" says nothing when more was expected
        self._bias[category] = BIAS_MEMORY * bias + EMA_GAIN * measured

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
    meanings = None

    def __init__(self, *, counter: Counter = count_words) -> None:
        self._read = reading_once(lambda prompt: (classify(prompt), counter(prompt)))

    def estimate(self, request: Request) -> Estimate:
        if request.intended_tokens is None:
            raise ValueError(f"request {request.id}: the oracle needs simulated lengths")
        point = min(request.intended_tokens, request.max_tokens)
        category, input_tokens = request.category or "short_qa", request.prompt_tokens
        if request.prompt:
            category, input_tokens = self._read(request.prompt)
        return Estimate(input_tokens, point, point, category, point)

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
    meanings = None

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
