"""The GPU model of ``scheduler.twin.gpu`` one step and one token at a time: slow, short, obvious.

The same interface, without ``next_event``. Tests hold the real one to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, NamedTuple

from scheduler.core.metrics import gap_bucket
from scheduler.twin.gpu import GpuState
from scheduler.twin.profile import Profile


@dataclass(eq=False)
class Sequence:
    key: str
    prompt: int
    output: int
    generated: int = 0
    computed: int = 0  # tokens in the KV cache
    chunk: int = 0  # tokens computed in the step under way
    first_s: float = 0.0
    last_s: float = 0.0
    decoding: bool = False
    cancelled: bool = False
    gaps: dict[int, int] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.output


Event = tuple[Literal["first", "done"], Sequence]


class Told(NamedTuple):
    """What an event of either model says, in plain figures."""

    at_s: float
    key: str
    kind: str
    tokens: int
    first_s: float
    gaps: dict[int, int] | None


def told(events: Iterable[tuple[str, Any]]) -> list[Told]:
    return [
        Told(s.first_s, s.key, kind, 1, s.first_s, None)
        if kind == "first"
        else Told(s.last_s, s.key, kind, s.length, s.first_s, s.gaps)
        for kind, s in events
    ]


class SteppingGpu:
    def __init__(self, profile: Profile, max_num_seqs: int) -> None:
        self.profile = profile
        self.max_num_seqs = max_num_seqs
        self.running: list[Sequence] = []  # in the order of admission
        self.waiting: list[Sequence] = []
        self.boundary_s = -inf  # where the step under way began, or where the next one may
        self.end_s: float | None = None  # of the step under way
        self.step_s = 0.0
        self.steps = self.preemptions = 0
        self.now = 0.0

    def start(self, key: str, prompt_tokens: int, output_tokens: int) -> None:
        if not self.running and not self.waiting:
            self.boundary_s = self.now
        self.waiting.append(Sequence(key, prompt_tokens, output_tokens))

    def cancel(self, key: str) -> int:
        (sequence,) = (s for s in self.running + self.waiting if s.key == key and not s.cancelled)
        sequence.cancelled = True
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        elif self.end_s is None:
            self.running.remove(sequence)
        return sequence.generated

    def tokens(self, key: str) -> int:
        (sequence,) = (s for s in self.running + self.waiting if s.key == key and not s.cancelled)
        return sequence.generated

    def state(self) -> GpuState:
        return GpuState(
            running=sum(not s.cancelled for s in self.running),
            waiting=len(self.waiting),
            kv_tokens=sum(s.computed + s.chunk for s in self.running),
            preemptions=self.preemptions,
            steps=self.steps,
            step_s=self.step_s,  # of the step under way, else of the latest
        )

    def crash(self) -> list[str]:
        lost = [s.key for s in self.running + self.waiting if not s.cancelled]
        self.running, self.waiting, self.end_s = [], [], None
        return lost

    def advance(self, now: float) -> list[Event]:
        self.now = now
        events: list[Event] = []
        while True:
            if self.end_s is None:
                if self.boundary_s >= now or not (self.running or self.waiting):
                    return events
                self.begin_step()
            assert self.end_s is not None
            if self.end_s > now:
                return events
            events += self.end_step()

    def begin_step(self) -> None:
        kv = self.profile.kv_tokens
        budget = self.profile.max_num_batched_tokens
        preempted: list[Sequence] = []
        scheduled: list[Sequence] = []
        for sequence in list(self.running):
            if sequence in preempted:
                break
            sequence.chunk = min(sequence.prompt + sequence.generated - sequence.computed, budget)
            while sum(s.computed + s.chunk for s in self.running) > kv and sequence not in preempted:
                victim = self.running.pop()
                victim.computed = victim.chunk = 0
                victim.decoding = False
                self.waiting.insert(0, victim)
                preempted.append(victim)
            if sequence not in preempted:
                scheduled.append(sequence)
                budget -= sequence.chunk
        self.preemptions += len(preempted)
        while self.waiting and not preempted and len(self.running) < self.max_num_seqs and budget > 0:
            sequence = self.waiting[0]
            need = sequence.prompt + sequence.generated
            if sum(s.computed + s.chunk for s in self.running) + need > kv:
                break
            self.running.append(self.waiting.pop(0))
            scheduled.append(sequence)
            sequence.chunk = min(need, budget)
            budget -= sequence.chunk
        assert scheduled == self.running
        prefill = sum(s.chunk for s in self.running if not s.decoding)
        context = sum(s.computed + s.chunk for s in self.running)
        self.step_s = self.profile.step_s(len(self.running), context, prefill)
        self.end_s = self.boundary_s + self.step_s

    def end_step(self) -> list[Event]:
        assert self.end_s is not None
        now = self.boundary_s = self.end_s
        self.end_s = None
        self.steps += 1
        self.running = [s for s in self.running if not s.cancelled]
        firsts: list[Event] = []
        dones: list[Event] = []
        for sequence in list(self.running):
            sequence.computed += sequence.chunk
            sequence.chunk = 0
            if sequence.computed < sequence.prompt + sequence.generated:
                continue
            sequence.generated += 1
            sequence.decoding = True
            if sequence.generated == 1:
                sequence.first_s = now
                firsts.append(("first", sequence))
            else:
                bucket = gap_bucket(now - sequence.last_s)
                sequence.gaps[bucket] = sequence.gaps.get(bucket, 0) + 1
            sequence.last_s = now
            if sequence.generated == sequence.output:
                self.running.remove(sequence)
                dones.append(("done", sequence))
        return firsts + dones
