"""One request inside the simulated GPU."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

from scheduler.core.metrics import gap_bucket
from scheduler.twin.steplog import GroupLog, pack_run

K = TypeVar("K", bound=Hashable)


class Run(NamedTuple):
    """An uninterrupted run of decoding: the GPU's steps done at its start and end, and its outer tokens."""

    began: int
    ended: int
    first_s: float
    last_s: float


class Sequence(Generic[K]):
    """A prompt and the answer that grows behind it. Token counts; times in seconds."""

    __slots__ = (
        "_gaps_base",
        "_runs",
        "began",
        "computed",
        "first_s",
        "gaps",
        "generated",
        "key",
        "last_s",
        "log",
        "order",
        "output",
        "prompt",
        "resumed_s",
    )

    # Set where they begin to mean something: this object is made once for every request of a simulation.
    computed: int  # tokens in the KV cache while partly prefilled
    began: int  # the GPU's steps done when it began to decode: a token came with each since
    first_s: float
    last_s: float  # of the last token, or of the last before a preemption
    resumed_s: float  # of the first token after one
    _gaps_base: Mapping[int, int]  # the GPU's histogram when this run of decoding began
    _runs: list[Run]  # of decoding that ended in a preemption

    def __init__(self, key: K, prompt: int, output: int, log: GroupLog | None) -> None:
        self.key = key
        self.log = log
        # Tokens to prefill, and then to generate: a preemption adds to the one what it takes off the other.
        self.prompt = prompt
        self.output = output
        self.order = -1  # place in the order of admission; -1 while waiting and once it is gone
        self.generated = 0  # tokens at the latest preemption
        self.gaps: dict[int, int] | None = None  # {gap_bucket: count} at its end, where they are tracked

    @property
    def length(self) -> int:
        """Tokens of the whole answer."""
        return self.generated + self.output

    def interrupt(self, step: int) -> None:
        """It is preempted after the GPU's step ``step``: what it has generated will be prefilled anew."""
        done = step - self.began
        self.generated += done
        self.prompt += done
        self.output -= done
        self.began = step

    # A sequence that decodes gets a token from every step, so its gaps are the GPU's step durations: the
    # difference of the GPU's histogram {gap_bucket: count} between two moments.

    def begin_gaps(self, step_gaps: Mapping[int, int], now: float) -> None:
        """Its decoding begins with a token at ``now``, with the GPU's histogram standing at ``step_gaps``."""
        self._gaps_base = step_gaps
        if self.gaps is not None:  # it was preempted
            bucket = gap_bucket(now - self.last_s)
            self.gaps[bucket] = self.gaps.get(bucket, 0) + 1

    def end_gaps(self, step_gaps: Mapping[int, int]) -> None:
        """Its decoding ends, or is interrupted: ``gaps`` are those so far."""
        base = self._gaps_base
        self.gaps = gaps = self.gaps or {}
        for bucket, count in step_gaps.items():
            count -= base.get(bucket, 0)
            if count:
                gaps[bucket] = gaps.get(bucket, 0) + count

    # The same in a StepLog: the steps that it decoded in, and its gaps across preemptions.

    def note_run(self, ended: int, last_s: float) -> None:
        """It is preempted after the GPU's step ``ended``; its last token was at ``last_s``."""
        if not self.generated:
            self._runs = [Run(self.began, ended, self.first_s, last_s)]
        else:
            self._runs.append(Run(self.began, ended, self.resumed_s, last_s))

    def log_interruptions(self, log: GroupLog) -> None:
        """It got its last token after being preempted."""
        resumed_s = self.resumed_s
        for run in reversed(self._runs):
            log.runs += pack_run(run.began, run.ended)
            log.gap(resumed_s - run.last_s)
            resumed_s = run.first_s
