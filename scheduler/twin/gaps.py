"""The token gaps of a whole run, counted at its end and all at once.

A sequence that decodes gets a token from every step, so its gaps are the durations of the steps between its
first and its last token: the histograms come out of a ``StepLog`` by closed forms, in numpy. The figures are
those of counting gap by gap (``Gpu(track_gaps=True)``), which a run that records every request still does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.core.metrics import GAP_FLOOR_S, GAP_LOG_GROWTH
from scheduler.twin.profile import Profile
from scheduler.twin.steplog import StepLog

_STEPS_AT_ONCE = 1 << 20

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def histograms(log: StepLog) -> Mapping[Any, Mapping[int, int]]:
    """Group -> {gap_bucket: count} over all its requests."""
    table = _table(log.phases, 4)
    steps_done = np.cumsum(table[:, 3])
    groups = {group: its for group, its in log.groups.items() if its.runs}
    running = {group: _running(_table(its.runs, 2).T, steps_done) for group, its in groups.items()}
    counts = {group: np.zeros(0, dtype=np.int64) for group in groups}
    for begin, end in _slices(steps_done):
        bucket, first, steps = _steps(log.profile, table[begin:end])
        for group, (decoding, began) in running.items():
            found = np.bincount(bucket, np.repeat(decoding[begin:end], steps))
            found -= np.bincount(bucket[first], began[begin:end], len(found))
            counts[group] = _sum(counts[group], found.astype(np.int64))
    return {group: _with(its.gaps, counts[group]) for group, its in groups.items()}


def _with(gaps: Mapping[int, int], counts: Ints) -> Mapping[int, int]:
    """Both together."""
    total = dict(gaps)
    for bucket in np.flatnonzero(counts).tolist():
        total[bucket] = total.get(bucket, 0) + int(counts[bucket])
    return total


def _steps(profile: Profile, table: Ints) -> tuple[Ints, Ints, Ints]:
    """The bucket of every single step of some phases; where in it each phase begins, and how many steps
    that has.
    """
    batch, context, prefill, steps = table.T
    first = np.cumsum(steps) - steps
    step = np.arange(1, steps.sum() + 1) - np.repeat(first, steps)
    # As a Phase adds them up, to the last bit.
    sequences_s = _costs(profile.sequences_s, batch)
    start_s = profile.fixed_s + sequences_s + profile.per_context_token_s * context
    slope_s = profile.per_context_token_s * batch
    floor_s = profile.floor_s + sequences_s
    duration_s = np.repeat(start_s, steps) + np.repeat(slope_s, steps) * step
    np.maximum(duration_s, np.repeat(floor_s, steps), out=duration_s)
    duration_s[first] += _costs(profile.prefill_s, prefill)
    return _buckets(duration_s), first, steps


def _table(packed: bytearray, columns: int) -> Ints:
    return np.frombuffer(packed, dtype=np.int64).reshape(-1, columns)


def _costs(cost_s: Callable[[int], float], counts: Ints) -> Floats:
    """Of each; reckoned once for every number up to the largest."""
    table = np.array([cost_s(count) for count in range(counts.max(initial=0) + 1)])
    costs: Floats = table[counts]
    return costs


def _buckets(gap_s: Floats) -> Ints:
    """``gap_bucket`` of each."""
    return np.where(gap_s > GAP_FLOOR_S, np.log(gap_s / GAP_FLOOR_S) / GAP_LOG_GROWTH, 0).astype(np.int64)


def _running(runs: Ints, steps_done: Ints) -> tuple[Floats, Floats]:
    """For each phase, of one group: how many got a token from its steps; how many got their first one, which
    ends no gap, from its first step. ``steps_done`` is counted at the phases' ends.
    """
    phases = len(steps_done)
    # A run of decoding begins and ends with a phase: the first that goes past these steps.
    began, ended = np.searchsorted(steps_done, runs, side="right")
    began_in = np.bincount(began, minlength=phases + 1)
    decoding = np.cumsum(began_in - np.bincount(ended, minlength=phases + 1))[:phases]
    return decoding.astype(np.float64), began_in[:phases].astype(np.float64)


def _slices(steps_done: Ints) -> Iterator[tuple[int, int]]:
    """Ranges of phases of about ``_STEPS_AT_ONCE`` steps each."""
    if not len(steps_done):
        return
    block = steps_done // _STEPS_AT_ONCE
    bounds = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(steps_done)]
    yield from pairwise(bounds)


def _sum(a: Ints, b: Ints) -> Ints:
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total
