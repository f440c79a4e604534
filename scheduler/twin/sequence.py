"""One request inside the simulated GPU."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.core.metrics import gap_bucket


class Sequence:
    """A prompt and the answer that grows behind it. Token counts; times in seconds."""

    __slots__ = (
        "_gaps",
        "_gaps_base",
        "computed",
        "first_s",
        "generated",
        "id",
        "last_s",
        "order",
        "origin",
        "output",
        "prompt",
    )

    # Set where they begin to mean something: this object is made once for every request of a simulation.
    computed: int  # tokens in the KV cache while partly prefilled
    origin: int  # while decoding, tokens generated = GPU steps done - origin
    first_s: float
    last_s: float  # of the last token before a preemption
    _gaps_base: Mapping[int, int]  # the GPU's histogram when this run of decoding began

    def __init__(self, request_id: str, prompt: int, output: int) -> None:
        self.id = request_id
        self.prompt = prompt
        self.output = output
        self.order = -1  # place in the order of admission; -1 while waiting and once it is gone
        self.generated = 0  # tokens at the latest admission or preemption
        self._gaps: dict[int, int] | None = None  # up to and across the latest preemption

    # A sequence that decodes gets a token from every step, so its gaps are the GPU's step durations: the
    # difference of the GPU's histogram {gap_bucket: count} between two moments.

    def begin_gaps(self, step_gaps: Mapping[int, int], now: float) -> None:
        """Its decoding begins with a token at ``now``, with the GPU's histogram standing at ``step_gaps``."""
        self._gaps_base = step_gaps
        if self._gaps is not None:
            bucket = gap_bucket(now - self.last_s)
            self._gaps[bucket] = self._gaps.get(bucket, 0) + 1

    def end_gaps(self, step_gaps: Mapping[int, int]) -> dict[int, int]:
        """Its decoding ends, or is interrupted: its gaps so far."""
        base = self._gaps_base
        gaps = self._gaps if self._gaps is not None else {}
        for bucket, count in step_gaps.items():
            count -= base.get(bucket, 0)
            if count:
                gaps[bucket] = gaps.get(bucket, 0) + count
        self._gaps = gaps
        return gaps
