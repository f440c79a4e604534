"""A profile fitted to the step times of an engine: once, from a calibration, or kept current during a run.

The step model of ``profile.py`` is linear but for its knees: a floor is one in the context (below it a step
costs the floor, above it the floor and so much for each further token), and there may be one in the batch and
one in the prefill. For given knees the rest is linear least squares with costs that cannot be negative, and
each knee is the best of a few, if one is any better than none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.twin.profile import Profile

MIN_STEPS = 32
"""Fewer steps than this say nothing."""

WINDOW_STEPS, REFIT_STEPS = 1024, 128
"""What a live fit looks back on (half a minute of a busy engine, or less), and when it looks again."""

_ROUNDS = 8  # of reweighting; it settles in about five
_TUNING = 2.0  # residuals above so many standard deviations count less (Huber)
_GROSS = 3.0  # a step this many times longer than its like: something else had the machine
_PLACES = 12  # where a knee is looked for
_LEAST_S = 1e-6  # a step takes some time, whatever is in it
_WORTH_A_KNEE = 12.0  # times what a step adds to the loss: by so much a knee must cut it, or there is none

Floats = NDArray[np.float64]


class StepSample(NamedTuple):
    """One step of an engine as it was seen."""

    duration_s: float
    batch: int  # sequences in it
    context: int  # tokens in their KV cache once it is done
    prefill: int  # prompt tokens computed in it

    def expected_s(self, profile: Profile) -> float:
        """How long it takes by a profile."""
        return profile.step_s(self.batch, self.context, self.prefill)


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted profile and how well it fits."""

    profile: Profile
    steps: int  # used
    dropped: int  # left out as gross
    median_error: float  # of a single step, as a share of its predicted duration


class _Knees(NamedTuple):
    """Where costs rise: in context tokens, sequences and prefill tokens. Those of 0 and inf are none."""

    context: float = 0.0
    batch: float = inf
    prefill: float = inf


class _Try(NamedTuple):
    """The best costs for some knees."""

    knees: _Knees
    costs: Floats
    loss: float
    features: Floats

    def rank(self) -> float:
        """Its loss; with a floor above which reading the weights would take less than no time, inf."""
        return self.loss if self.costs[0] >= self.costs[1] * self.knees.context else inf


def fit_profile(samples: Sequence[StepSample], base: Profile, *, find_knees: bool = True) -> Fit:
    """``base`` with its step costs fitted anew. Without ``find_knees`` they stay where ``base`` has them.

    Steps count by their relative error, far-off ones less. In the end all costs are scaled so that the steps
    add up to the time that they took, for latencies are sums of steps. Raises ValueError for fewer than
    ``MIN_STEPS``.
    """
    if len(samples) < MIN_STEPS:
        raise ValueError(f"{len(samples)} engine steps were seen; at least {MIN_STEPS} are needed for a fit")
    seconds, batch, context, prefill = np.array(samples, dtype=np.float64).T
    roughly = np.array([step.expected_s(base) for step in samples])

    def at(knees: _Knees) -> _Try:
        features = np.stack(
            [
                np.ones_like(context),
                np.maximum(context - knees.context, 0.0),
                batch,
                np.maximum(batch - knees.batch, 0.0),
                prefill,
                np.maximum(prefill - knees.prefill, 0.0),
            ],
            axis=1,
        )
        return _Try(knees, *_robust(features, seconds, roughly), features)

    best = at(_knees(base))
    if find_knees:
        best = at(_Knees())
        for name, values in (("context", context), ("prefill", prefill[prefill > 0.0]), ("batch", batch)):
            best = _with_knee(best, name, values, at)
    knees, costs, predicted = best.knees, best.costs, best.features @ best.costs
    kept = seconds < _GROSS * predicted
    costs = costs * (seconds[kept].sum() / predicted[kept].sum())
    level_s, per_context_s, per_sequence_s, sequence_above_s, per_prefill_s, prefill_above_s = costs.tolist()
    profile = replace(
        base,
        fixed_s=max(_LEAST_S, level_s - per_context_s * knees.context),
        floor_s=level_s if knees.context else 0.0,
        per_context_token_s=per_context_s,
        per_sequence_s=per_sequence_s,
        batch_knee=knees.batch,
        per_sequence_above_s=sequence_above_s,
        per_prefill_token_s=per_prefill_s,
        prefill_knee=knees.prefill,
        per_prefill_token_above_s=prefill_above_s,
    )
    error = np.abs(seconds[kept] / predicted[kept] - 1.0)
    return Fit(profile, int(kept.sum()), int((~kept).sum()), float(np.median(error)))


def _with_knee(before: _Try, name: str, values: Floats, at: Callable[[_Knees], _Try]) -> _Try:
    """With the best knee in ``name``, or as before where none is worth it."""
    if not len(values):
        return before

    def best_of(places: Sequence[float]) -> _Try:
        return min((at(before.knees._replace(**{name: place})) for place in places), key=_Try.rank)

    places = np.quantile(values, np.linspace(0.02, 0.98, _PLACES)).tolist()
    best = best_of(places)
    place = places.index(getattr(best.knees, name))
    around = np.linspace(places[max(0, place - 1)], places[min(place + 1, _PLACES - 1)], _PLACES).tolist()
    best = min(best, best_of(around), key=_Try.rank)
    worth = _WORTH_A_KNEE * best.loss / len(best.features)
    return best if best.rank() < before.loss - worth else before


def at_pace_of(samples: Sequence[StepSample], profile: Profile) -> Profile:
    """``profile`` at the pace of these steps: they add up to the time that they took, gross ones left out."""
    pairs = [(step.duration_s, step.expected_s(profile)) for step in samples]
    kept = [(seconds, predicted) for seconds, predicted in pairs if seconds < _GROSS * predicted]
    return profile.slower(sum(seconds for seconds, _ in kept) / sum(predicted for _, predicted in kept))


class LiveFit:
    """The latest steps of a run. ``add`` costs next to nothing; ``profile`` some milliseconds, but only once
    in ``REFIT_STEPS``.
    """

    def __init__(self) -> None:
        self._steps: deque[StepSample] = deque(maxlen=WINDOW_STEPS)
        self._seen = 0
        self._fitted: tuple[int, Profile, Profile] | None = None  # steps seen, base, result

    def add(self, step: StepSample) -> None:
        """One more step of the engine."""
        self._steps.append(step)
        self._seen += 1

    def profile(self, base: Profile) -> Profile | None:
        """``base`` with costs as the latest steps show them; None until there are ``MIN_STEPS``."""
        if len(self._steps) < MIN_STEPS:
            return None
        fitted = self._fitted
        if fitted is None or self._seen - fitted[0] >= REFIT_STEPS or fitted[1] != base:
            steps = [*self._steps, *_anchors(base, self._steps)]
            self._fitted = fitted = self._seen, base, fit_profile(steps, base, find_knees=False).profile
        return fitted[2]


def _anchors(base: Profile, steps: Collection[StepSample]) -> list[StepSample]:
    """A few steps far apart as ``base`` has them, at the pace of those seen: they hold down the costs that a
    run does not vary.
    """
    expected_s = sum(step.expected_s(base) for step in steps)
    pace = sum(step.duration_s for step in steps) / expected_s
    kinds = ((1, 64, 0), (1, 64, 64), (8, 1024, 0), (8, 1024, 256), (32, 8192, 0), (32, 8192, 512))
    return [StepSample(pace * base.step_s(*kind), *kind) for kind in kinds]


def _knees(profile: Profile) -> _Knees:
    context = 0.0  # tokens up to which the floor holds
    if profile.floor_s > profile.fixed_s and profile.per_context_token_s:
        context = (profile.floor_s - profile.fixed_s) / profile.per_context_token_s
    return _Knees(context, profile.batch_knee, profile.prefill_knee)


def _robust(features: Floats, seconds: Floats, roughly: Floats) -> tuple[Floats, float]:
    """Costs by iteratively reweighted least squares, and the Huber loss in relative errors. ``roughly`` is
    what to begin with: by the seconds themselves, one step that was seen too short would outweigh the rest.
    """
    weights = 1.0 / roughly**2
    loss = 0.0
    for _ in range(_ROUNDS):
        costs = _non_negative(features, seconds, weights)
        predicted = features @ costs
        error = seconds / predicted - 1.0
        spread = max(1e-9, 1.4826 * float(np.median(np.abs(error))))
        far = np.maximum(np.abs(error) / (_TUNING * spread), 1.0)
        weights = 1.0 / (far * predicted**2)
        loss = float((error**2 * (2.0 / far - 1.0 / far**2)).sum())
    return costs, loss


def _non_negative(features: Floats, seconds: Floats, weights: Floats) -> Floats:
    """Weighted least squares without negative costs: the best of all choices of those that are not zero."""
    weighted = features * weights[:, None]
    gram, target = weighted.T @ features, weighted.T @ seconds
    best, gain = np.zeros(len(target)), 0.0
    for size in range(len(target), 0, -1):
        for chosen in combinations(range(len(target)), size):
            index = list(chosen)
            solved, *_ = np.linalg.lstsq(gram[np.ix_(index, index)], target[index], rcond=None)
            if solved.min() >= 0.0 and (found := float(solved @ target[index])) > gain:
                best, gain = np.zeros(len(target)), found
                best[index] = solved
        if size == len(target) and gain:
            break  # nothing had to be held at zero
    return best
