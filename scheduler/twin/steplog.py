"""The token gaps of a whole run, counted at its end and all at once.

A sequence that decodes gets a token from every step, so its gaps are the durations of the steps between its
first and its last token. Noting which phases a GPU ran, and in which of them each request decoded, costs a
few numbers per request; the histograms come from closed forms over those, in numpy. The figures are those
of counting gap by gap (``Gpu(track_gaps=True)``), which a run that records every request still does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import pairwise
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.core.metrics import GAP_FLOOR_S, GAP_LOG_GROWTH, gap_bucket
from scheduler.twin.profile import Profile

_STEPS_AT_ONCE = 1 << 20

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

pack_phase = Struct("=4q").pack
"""Batch, context before the phase, prompt tokens in its first step, steps."""
pack_run = Struct("=2q").pack
"""The steps that the GPU had done when an uninterrupted run of decoding began and when it ended."""


class GroupLog:
    """What the requests of one group did, such as those of a tenant."""

    __slots__ = ("gaps", "runs")

    def __init__(self) -> None:
        self.runs = bytearray()  # packed, one after another
        self.gaps: dict[int, int] = {}  # gaps that are no step's duration

    def gap(self, gap_s: float) -> None:
        """One gap across a preemption."""
        bucket = gap_bucket(gap_s)
        self.gaps[bucket] = self.gaps.get(bucket, 0) + 1


class _Groups(dict[Hashable, GroupLog]):
    def __missing__(self, group: Hashable) -> GroupLog:
        log = self[group] = GroupLog()
        return log


class StepLog:
    """The phases of one GPU, and the steps that each request decoded in, with its group: what gaps are
    counted by. The GPU itself writes it: this is the hot path of a virtual run.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self.phases = bytearray()  # packed, one after another
        self.groups: dict[Hashable, GroupLog] = _Groups()

    def histograms(self) -> Mapping[Any, Mapping[int, int]]:
        """Group -> {gap_bucket: count} over all its requests."""
        table = _table(self.phases, 4)
        steps_done = np.cumsum(table[:, 3])
        groups = {group: log for group, log in self.groups.items() if log.runs}
        running = {group: _running(_table(log.runs, 2).T, steps_done) for group, log in groups.items()}
        counts = {group: np.zeros(0, dtype=np.int64) for group in groups}
        for begin, end in _slices(steps_done):
            bucket, first, steps = self._steps(table[begin:end])
            for group, (decoding, began) in running.items():
                gaps = np.bincount(bucket, np.repeat(decoding[begin:end], steps))
                gaps -= np.bincount(bucket[first], began[begin:end], len(gaps))
                counts[group] = _sum(counts[group], gaps.astype(np.int64))
        histograms = {group: dict(log.gaps) for group, log in groups.items()}
        for group, found in counts.items():
            mine = histograms[group]
            for at in np.flatnonzero(found).tolist():
                mine[at] = mine.get(at, 0) + int(found[at])
        return histograms

    def _steps(self, table: Ints) -> tuple[Ints, Ints, Ints]:
        """The bucket of every single step of some phases; where in it each phase begins, and how many steps
        that has.
        """
        profile = self._profile
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
