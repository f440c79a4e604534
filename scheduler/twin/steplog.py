"""What a simulated GPU did, written down for the token gaps of a whole run: see ``gaps.py``.

Noting which phases it ran, and in which of them each request decoded, costs a few numbers per request.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from struct import Struct

from scheduler.core.metrics import gap_bucket
from scheduler.twin.profile import Profile

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


class StepLog:
    """The phases of one GPU, and the steps that each request decoded in, with its group: what gaps are
    counted by. The GPU itself writes it: this is the hot path of a virtual run.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.phases = bytearray()  # packed, one after another
        self.groups: defaultdict[Hashable, GroupLog] = defaultdict(GroupLog)
