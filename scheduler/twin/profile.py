"""GPU profiles: what one engine step costs and how much fits.

A step of a batch takes ``max(floor_s, fixed_s + per_context_token_s x context) + per_sequence_s x batch +
per_prefill_token_s x prefill`` seconds. ``context`` counts the tokens in the batch's KV cache once the step
is done, ``prefill`` the prompt tokens computed in it. Above a knee each further sequence, or prefill token,
costs so much more: a device that computes less than it reads does some of it for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import inf


@dataclass(frozen=True, slots=True)
class Profile:
    """One model on one device. Times are seconds; the defaults cost nothing."""

    gpu: str
    model: str
    detail: str  # one line for people: "simulated NVIDIA L4, Qwen1.5-1.8B-Chat"
    provenance: str  # where the figures come from and what they were checked against
    kv_tokens: int  # tokens the KV cache holds; the twin has no blocks
    max_model_len: int  # longest prompt + output, tokens
    max_num_batched_tokens: int  # token budget of one step: one per decoding sequence, the rest prefill
    fixed_s: float  # reading the weights
    floor_s: float = 0.0  # no step is shorter than this and its per-sequence and prefill parts
    per_context_token_s: float = 0.0  # reading the KV cache
    per_sequence_s: float = 0.0
    batch_knee: float = inf  # sequences
    per_sequence_above_s: float = 0.0  # on top of per_sequence_s
    per_prefill_token_s: float = 0.0
    prefill_knee: float = inf  # tokens
    per_prefill_token_above_s: float = 0.0  # on top of per_prefill_token_s

    def __post_init__(self) -> None:
        if max(self.floor_s, self.fixed_s) <= 0.0:
            raise ValueError("a profile needs a positive floor_s or fixed_s: a step cannot take no time")

    @property
    def name(self) -> str:
        return f"{self.gpu}/{self.model}"

    def slower(self, times: float) -> Profile:
        """The same device with something else to do: every step takes so many times as long."""
        costs = (field.name for field in fields(self) if field.name.endswith("_s"))
        return replace(self, **{name: getattr(self, name) * times for name in costs})

    def step_s(self, batch: int, context: int, prefill: int = 0) -> float:
        """Duration of one step (seconds) of ``batch`` sequences."""
        base_s = max(self.floor_s, self.fixed_s + self.per_context_token_s * context)
        return base_s + self.sequences_s(batch) + self.prefill_s(prefill)

    def sequences_s(self, batch: int) -> float:
        """What the sequences of a batch add to a step, whatever their context."""
        cost_s = self.per_sequence_s * batch
        if batch > self.batch_knee:
            cost_s += self.per_sequence_above_s * (batch - self.batch_knee)
        return cost_s

    def prefill_s(self, prefill: int) -> float:
        """What prompt tokens add to the step that computes them."""
        cost_s = self.per_prefill_token_s * prefill
        if prefill > self.prefill_knee:
            cost_s += self.per_prefill_token_above_s * (prefill - self.prefill_knee)
        return cost_s
