"""The token gaps of a whole run, counted at its end and all at once.

A sequence that decodes gets a token from every step, so its gaps are the durations of the steps between its
first and its last token. Noting which phases a GPU ran, and in which of them each request decoded, costs a
few numbers per request; the histograms come from closed forms over those, in numpy. The figures are those
of counting gap by gap (``Gpu(track_gaps=True)``), which a run that records every request still does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.core.metrics import GAP_FLOOR_S, GAP_LOG_GROWTH, gap_bucket
from scheduler.twin.profile import Profile

_STEPS_AT_ONCE = 1 << 20

Ints = NDArray[np.int64]


class StepLog:
    """The phases of one GPU, and the steps that each request decoded in, with its group: what gaps are
    counted by, such as its tenant.

    Lists that the GPU itself extends, of plain numbers: this is the hot path of a virtual run.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self.phases: list[int] = []
        """Of each: batch, context before it, prompt tokens in its first step, steps."""
        self.runs: list[Any] = []
        """Of each uninterrupted run of decoding: group, the steps done when it began and when it ended."""
        self._gaps: dict[Hashable, dict[int, int]] = {}  # group -> gaps that are no step's duration

    def gap(self, group: Hashable, gap_s: float) -> None:
        """One gap across a preemption."""
        gaps, bucket = self._gaps.setdefault(group, {}), gap_bucket(gap_s)
        gaps[bucket] = gaps.get(bucket, 0) + 1

    def histograms(self) -> Mapping[Any, Mapping[int, int]]:
        """Group -> {gap_bucket: count} over all its requests."""
        table: Ints = np.array(self.phases, dtype=np.int64).reshape(-1, 4)
        steps_done = np.cumsum(table[:, 3])
        names = {name: number for number, name in enumerate(dict.fromkeys(self.runs[::3]))}
        whose = np.array([names[name] for name in self.runs[::3]])
        marks: Ints = np.array([self.runs[1::3], self.runs[2::3]], dtype=np.int64)
        running = {name: _running(marks[:, whose == number], steps_done) for name, number in names.items()}
        counts = {group: np.zeros(0, dtype=np.int64) for group in running}
        for begin, end in _slices(steps_done):
            phase, step, bucket = self._steps(table[begin:end])
            for group, (all_steps, first_step) in running.items():
                weights = np.where(step == 1, first_step[begin:end][phase], all_steps[begin:end][phase])
                found = np.bincount(bucket, weights).astype(np.int64)
                counts[group] = _sum(counts[group], found)
        gaps = {group: dict(self._gaps.get(group, {})) for group in counts}
        for group, found in counts.items():
            for bucket in np.flatnonzero(found).tolist():
                gaps[group][bucket] = gaps[group].get(bucket, 0) + int(found[bucket])
        return gaps

    def _steps(self, table: Ints) -> tuple[Ints, Ints, Ints]:
        """Every single step of some phases: its phase, its number in it from 1, its bucket."""
        profile = self._profile
        batch, context, prefill, steps = table.T
        phase = np.repeat(np.arange(len(table)), steps)
        step = np.arange(1, len(phase) + 1) - np.repeat(np.cumsum(steps) - steps, steps)
        # As a Phase adds them up, to the last bit.
        sequences_s = _costs(profile.sequences_s, batch)
        start_s = profile.fixed_s + sequences_s + profile.per_context_token_s * context
        slope_s = profile.per_context_token_s * batch
        floor_s = profile.floor_s + sequences_s
        duration_s = np.maximum(floor_s[phase], start_s[phase] + slope_s[phase] * step)
        duration_s[step == 1] += _costs(profile.prefill_s, prefill)
        return phase, step, _buckets(duration_s)


def _costs(cost_s: Callable[[int], float], counts: Ints) -> NDArray[np.float64]:
    """Of each; reckoned once for every number up to the largest."""
    table = np.array([cost_s(count) for count in range(counts.max(initial=0) + 1)])
    costs: NDArray[np.float64] = table[counts]
    return costs


def _buckets(gap_s: NDArray[np.float64]) -> Ints:
    """``gap_bucket`` of each."""
    return np.where(gap_s > GAP_FLOOR_S, np.log(gap_s / GAP_FLOOR_S) / GAP_LOG_GROWTH, 0).astype(np.int64)


def _running(runs: Ints, steps_done: Ints) -> tuple[Ints, Ints]:
    """For each phase, of one group: how many got a token from its steps; how many had a gap end in its first
    one, which is no gap for those whose first token it gave. ``steps_done`` is counted at the phases' ends.
    """
    phases = len(steps_done)
    # A run of decoding begins and ends with a phase: the first that goes past these steps.
    began, ended = np.searchsorted(steps_done, runs, side="right")
    began_in = np.bincount(began, minlength=phases + 1)
    running = np.cumsum(began_in - np.bincount(ended, minlength=phases + 1))[:phases]
    return running, running - began_in[:phases]


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
