"""``learned``: the length read off the words of the prompt, by a prior that ships and is adapted online.

The logarithm of the length is the sum of
- a level, a slope on what the prior expects, and a slope on log max_tokens: a Kalman filter;
- what the served model makes of each hashed word and cue beyond the prior: gradient steps that get smaller
  as more has been seen;
- offsets of the category, of the tenant, and of the tenant in that category: a Kalman filter each. When a
  tenant's answers change for good, its own start anew.

All parts learn from the same error. An answer that was cut says "at least this long": its error is the one
expected of a normal variable above that bound (Tobit), close to zero where more was believed anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import erfc, exp, isfinite, log, pi, sqrt
from typing import Any

from scheduler.core.conformal import Margin
from scheduler.core.drift import Cusum
from scheduler.core.estimate import Counter, count_words
from scheduler.core.features import DENSE
from scheduler.core.kalman import Offset, Three, Weights
from scheduler.core.prior import NO_PRIOR, TERMS, Embed, Prior, PromptReader, Seen
from scheduler.core.types import CATEGORIES, Estimate, Outcome, Request

CLIP = 1.4  # standard deviations: one answer of a page and a half must not move everything
# All variances are in variances of an answer: what is not known before anything was seen, and what changes
# with each answer.
VARIANCE, WANDER = (0.2, 0.03, 0.001), (2e-6, 0.0, 0.0)  # of level and slopes
OF_CATEGORY, OF_TENANT, OF_BOTH = (0.1, 1e-6), (0.01, 7e-5), (0.01, 2e-5)
ALARM = 5.0
CHANGED_TENANT, CHANGED_BOTH = 0.2, 0.05  # variance after a change point
TERM_RATE = 0.1  # of the gradient steps at first
SETTLE, LEAST_RATE = 200, 0.1  # answers after which they have halved, and the share that they keep
TOWARDS_MEAN = 0.06  # of the variance; 0 is the median and 0.5 the mean of a log-normal
MAX_LOG = 20.0  # of an estimate
MAX_TENANTS = 2500
USUAL_MAX_TOKENS = log(1024)


class _Tenant:
    """What sets one tenant apart."""

    __slots__ = ("categories", "cusum", "offset")

    def __init__(self) -> None:
        self.offset = Offset(*OF_TENANT)
        self.categories = {category: Offset(*OF_BOTH) for category in CATEGORIES}
        self.cusum = Cusum(ALARM)

    def learn(self, category: str, error: float, deviation: float) -> None:
        if self.cusum.add(error / deviation):
            self.offset.variance = CHANGED_TENANT
            for offset in self.categories.values():
                offset.variance = CHANGED_BOTH
        self.offset.learn(error)
        self.categories[category].learn(error)


class LearnedEstimator:
    """O(prompt length) for a prompt that is new, within 100 us for usual ones."""

    def __init__(
        self, *, counter: Counter = count_words, prior: Prior = NO_PRIOR, embed: Embed | None = None
    ) -> None:
        """Raises ValueError unless ``embed`` and a prior that was trained with it come together."""
        self.name = "learned" if embed is None else "learned (embeddings)"
        self.prior = prior
        self.margin = Margin(1.28 * prior.spread)
        self._read = PromptReader(prior, counter, embed)
        self.meanings = self._read.meanings
        self._weights = Weights((prior.level, 1.0, 0.0), VARIANCE, WANDER)
        self._variance = prior.spread**2
        self._terms = [0.0] * TERMS
        self._categories = _common_offsets()
        self._tenants: dict[str, _Tenant] = {}
        self._answers = 0

    @property
    def coverage(self) -> float:
        """Share of the last answers within their upper estimate; NaN before the first."""
        return self.margin.coverage

    def estimate(self, request: Request) -> Estimate:
        seen, cap = self._read(request), request.max_tokens
        inputs = self._inputs(seen, cap)
        mu = self._mu(inputs, seen, request.tenant) + TOWARDS_MEAN * self._variance
        believed = exp(mu if mu < MAX_LOG else MAX_LOG)
        point = believed if believed < cap else float(cap)
        upper = self.margin.upper(believed)
        uncorrected = exp(self.prior.level + inputs[1])
        return Estimate(
            seen.input_tokens,
            point,
            upper if upper < cap else cap,
            seen.category,
            uncorrected if uncorrected < cap else cap,
        )

    def observe(self, request: Request, outcome: Outcome) -> None:
        tokens = outcome.output_tokens
        if tokens < 1:
            return
        cut = outcome.finish not in ("stop", "length")
        self.margin.observe(request.estimate.upper, tokens, censored=cut)
        seen = self._read(request)
        inputs = self._inputs(seen, request.max_tokens)
        error = log(tokens) - self._mu(inputs, seen, request.tenant)
        variance = self._variance
        deviation = sqrt(variance)
        if outcome.finish == "stop":
            square = min(error * error, 9 * variance)
        else:
            z = max(-8.0, min(8.0, error / deviation))
            hazard = exp(-z * z / 2) * sqrt(2 / pi) / erfc(z / sqrt(2))
            error, square = deviation * hazard, variance * (1 + z * hazard)
        self._variance = max(0.01, variance + 0.02 * (square - variance))
        bound = CLIP * deviation
        error = bound if error > bound else -bound if error < -bound else error
        self._weights.learn(inputs, error)
        self._learn(seen, request.tenant, error, deviation)

    def bias(self, tenant: str, category: str) -> float:
        """What the tenant's offset and the level make of the prior's estimate."""
        return exp(self._weights.values[0] - self.prior.level + self._offset(tenant, category))

    def _inputs(self, seen: Seen, max_tokens: int) -> Three:
        """Of the level and the slopes."""
        return 1.0, self.prior.beyond(seen.score), log(max_tokens) - USUAL_MAX_TOKENS

    def _mu(self, inputs: Three, seen: Seen, tenant: str) -> float:
        level, slope, cap_slope = self._weights.values
        _, beyond, cap = inputs
        words: float = seen.share * sum(map(self._terms.__getitem__, seen.terms))
        return level + slope * beyond + cap_slope * cap + words + self._offset(tenant, seen.category)

    def _offset(self, tenant: str, category: str) -> float:
        common = self._categories[category].value
        own = self._tenants.get(tenant)
        return common if own is None else common + own.offset.value + own.categories[category].value

    def _learn(self, seen: Seen, tenant: str, error: float, deviation: float) -> None:
        self._answers += 1
        step = error * max(LEAST_RATE, SETTLE / (SETTLE + self._answers))
        by, terms = TERM_RATE * step * seen.share, self._terms
        for term in seen.terms:
            terms[term] += by
        self._categories[seen.category].learn(error)
        own = self._tenants.get(tenant)
        if own is None and len(self._tenants) < MAX_TENANTS:
            own = self._tenants[tenant] = _Tenant()
        if own is not None:
            own.learn(seen.category, error, deviation)

    def state(self) -> dict[str, Any]:
        offsets: list[Any] = [
            [None, category, offset.value, offset.variance] for category, offset in self._categories.items()
        ]
        for tenant, own in self._tenants.items():
            offsets.append([tenant, None, own.offset.value, own.offset.variance])
            offsets += [[tenant, name, each.value, each.variance] for name, each in own.categories.items()]
        return {
            "kind": "learned",
            "features": list(DENSE),
            "answers": self._answers,
            "margin": self.margin.log_margin,
            "variance": self._variance,
            "weights": list(self._weights.values),
            "covariance": list(map(list, self._weights.covariance)),
            "terms": [[term, weight] for term, weight in enumerate(self._terms) if weight],
            "offsets": offsets,
            "sums": {tenant: [own.cusum.above, own.cusum.below] for tenant, own in self._tenants.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        categories, tenants = _common_offsets(), dict[str, _Tenant]()
        weights, terms = Weights((0.0, 0.0, 0.0), VARIANCE, WANDER), [0.0] * TERMS
        try:
            if state["kind"] != "learned" or state["features"] != list(DENSE):
                raise ValueError
            margin, variance, answers = _numbers([state["margin"], state["variance"], state["answers"]], 3)
            weights.values = _three(state["weights"])
            first, second, third = map(_three, state["covariance"])
            weights.covariance = first, second, third
            for term, weight in state["terms"]:
                terms[term] = _numbers([weight], 1)[0]
            for tenant, category, *saved in state["offsets"]:
                if tenant is None:
                    offset = categories[category]
                else:
                    own = tenants.setdefault(str(tenant), _Tenant())
                    offset = own.offset if category is None else own.categories[category]
                offset.value, offset.variance = _numbers(saved, 2)
            for tenant, own in tenants.items():
                own.cusum.above, own.cusum.below = _numbers(state["sums"][tenant], 2)
            if variance <= 0 or answers < 0:
                raise ValueError
        except (KeyError, TypeError, ValueError, IndexError):
            raise ValueError("not a state of the learned estimator with these features") from None
        self.margin, self._variance, self._answers = Margin(margin), variance, int(answers)
        self._weights, self._terms = weights, terms
        self._categories, self._tenants = categories, tenants


def _common_offsets() -> dict[str, Offset]:
    return {category: Offset(*OF_CATEGORY) for category in CATEGORIES}


def _three(values: Any) -> Three:
    a, b, c = _numbers(values, 3)
    return a, b, c


def _numbers(values: Any, count: int) -> list[float]:
    numbers = [float(value) for value in values]
    if len(numbers) != count or not all(map(isfinite, numbers)):
        raise ValueError
    return numbers
