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
from scheduler.core.kalman import Offset, Plane
from scheduler.core.prior import NO_PRIOR, TERMS, Embed, Prior, PromptReader, Seen
from scheduler.core.types import CATEGORIES, Estimate, Outcome, Request

CLIP = 1.4  # standard deviations: one answer of a page and a half must not move everything
# All variances are in variances of an answer: what is not known before anything was seen, and what changes
# with each answer.
VARIANCE, WANDER = (0.2, 0.03, 0.001), 2e-6  # of level and slopes; of the level alone
OF_CATEGORY, OF_TENANT, OF_BOTH = (0.1, 1e-6), (0.01, 7e-5), (0.01, 2e-5)
ALARM = 5.0
CHANGED_TENANT, CHANGED_BOTH = 0.2, 0.05  # variance after a change point
TERM_RATE = 0.1  # of the gradient steps at first
SETTLE, LEAST_RATE = 200, 0.1  # answers after which they have halved, and the share that they keep
TOWARDS_MEAN = 0.1  # of the variance; 0 is the median and 0.5 the mean of a log-normal
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
        self._plane = Plane((prior.level, 1.0, 0.0), VARIANCE, WANDER)
        self._variance = prior.spread**2
        self._terms = [0.0] * TERMS
        self._categories = _common_offsets()
        self._tenants: dict[str, _Tenant] = {}
        self._answers = 0

    def estimate(self, request: Request) -> Estimate:
        seen, cap = self._read(request), request.max_tokens
        mu = self._mu(seen, log(cap) - USUAL_MAX_TOKENS, request.tenant) + TOWARDS_MEAN * self._variance
        believed = exp(mu if mu < MAX_LOG else MAX_LOG)
        upper, uncorrected = believed * self.margin.factor, seen.expected
        return Estimate(
            seen.input_tokens,
            believed if believed < cap else float(cap),
            upper if upper < cap else cap,
            seen.category,
            uncorrected if uncorrected < cap else cap,
        )

    def observe(self, request: Request, outcome: Outcome) -> None:
        tokens, finish = outcome.output_tokens, outcome.finish
        if tokens < 1:
            return
        self.margin.observe(request.estimate.upper, tokens, finish not in ("stop", "length"))
        seen, cap, tenant = self._read(request), log(request.max_tokens) - USUAL_MAX_TOKENS, request.tenant
        error = log(tokens) - self._mu(seen, cap, tenant)
        variance = self._variance
        deviation = sqrt(variance)
        if finish == "stop":
            square, most = error * error, 9 * variance
            square = square if square < most else most
        else:
            z = max(-8.0, min(8.0, error / deviation))
            hazard = exp(-z * z / 2) * sqrt(2 / pi) / erfc(z / sqrt(2))
            error, square = deviation * hazard, variance * (1 + z * hazard)
        variance += 0.02 * (square - variance)
        self._variance = variance if variance > 0.01 else 0.01
        bound = CLIP * deviation
        error = bound if error > bound else -bound if error < -bound else error
        self._plane.learn(seen.beyond, cap, error)
        self._learn(seen, tenant, error, deviation)

    def bias(self, tenant: str, category: str) -> float:
        """What the tenant's offset and the level make of the prior's estimate."""
        return exp(self._plane.values[0] - self.prior.level + self._offset(tenant, category))

    def _mu(self, seen: Seen, cap: float, tenant: str) -> float:
        level, slope, cap_slope = self._plane.values
        words: float = seen.share * sum(map(self._terms.__getitem__, seen.terms))
        return level + slope * seen.beyond + cap_slope * cap + words + self._offset(tenant, seen.category)

    def _offset(self, tenant: str, category: str) -> float:
        common, own = self._categories[category].value, self._tenants.get(tenant)
        return common if own is None else common + own.offset.value + own.categories[category].value

    def _learn(self, seen: Seen, tenant: str, error: float, deviation: float) -> None:
        self._answers = answers = self._answers + 1
        rate = SETTLE / (SETTLE + answers)
        by = TERM_RATE * (rate if rate > LEAST_RATE else LEAST_RATE) * error * seen.share
        terms, category = self._terms, seen.category
        for term in seen.terms:
            terms[term] += by
        self._categories[category].learn(error)
        own = self._tenants.get(tenant)
        if own is None and len(self._tenants) < MAX_TENANTS:
            own = self._tenants[tenant] = _Tenant()
        if own is not None:
            own.learn(category, error, deviation)

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
            "weights": list(self._plane.values),
            "covariance": list(self._plane.covariance),
            "terms": [[term, weight] for term, weight in enumerate(self._terms) if weight],
            "offsets": offsets,
            "sums": {tenant: [own.cusum.above, own.cusum.below] for tenant, own in self._tenants.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        categories, tenants = _common_offsets(), dict[str, _Tenant]()
        plane, terms = Plane((0.0, 0.0, 0.0), VARIANCE, WANDER), [0.0] * TERMS
        try:
            if state["kind"] != "learned" or state["features"] != list(DENSE):
                raise ValueError
            margin, variance, answers = _numbers([state["margin"], state["variance"], state["answers"]], 3)
            level, slope, cap_slope = _numbers(state["weights"], 3)
            plane.values = level, slope, cap_slope
            aa, ab, ac, bb, bc, cc = _numbers(state["covariance"], 6)
            plane.covariance = aa, ab, ac, bb, bc, cc
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
        self._plane, self._terms = plane, terms
        self._categories, self._tenants = categories, tenants


def _common_offsets() -> dict[str, Offset]:
    return {category: Offset(*OF_CATEGORY) for category in CATEGORIES}


def _numbers(values: Any, count: int) -> list[float]:
    numbers = [float(value) for value in values]
    if len(numbers) != count or not all(map(isfinite, numbers)):
        raise ValueError
    return numbers
