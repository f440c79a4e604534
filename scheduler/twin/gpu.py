"""A GPU running one model under vLLM's scheduling, sans IO: it is told the time and says when to ask again.

The model, step by step (vLLM v1 with chunked prefill, prefix caching off):

1. Every decoding sequence gets one token per step; a prompt that is partly prefilled gets its next chunk.
   Where the KV cache cannot take them, the latest admitted sequence is preempted: it goes back to the head of
   the queue and is prefilled again, answer so far included.
2. Waiting sequences are admitted in order while a slot is free, their whole prompt fits the KV cache and the
   step's token budget is not used up; the last one may get a chunk only. (vLLM admits none in the step of a
   preemption; here the head, just preempted, would not fit.)
3. The step takes what ``Profile.step_s`` says. Whoever has no prompt left to prefill gets a token at its end.

KV is counted in tokens, not blocks. Nothing is stepped: a *phase* (``phase.py``) is a run of steps with the
same batch and has a closed form, so the model jumps from one change of the batch to the next. A change within
a phase cuts it short at the next step boundary. ``tests/stepping_gpu.py`` is the same model token by token;
the tests hold one to the other.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Hashable
from math import inf
from operator import itemgetter
from typing import Generic, Literal, NamedTuple

from scheduler.core.metrics import gap_bucket
from scheduler.twin.phase import Phase
from scheduler.twin.profile import Profile
from scheduler.twin.sequence import K, Sequence
from scheduler.twin.steplog import StepLog, pack_phase, pack_run


class NeverFits(ValueError):
    """A sequence is longer than the whole KV cache: it would wait for ever."""


# A sequence got its first token, at its ``first_s``, or its last one, at its ``last_s``.
GpuEvent = tuple[Literal["first", "done"], Sequence[K]]


class GpuState(NamedTuple):
    """What the engine would report of itself."""

    running: int
    waiting: int
    kv_tokens: int  # in use
    preemptions: int  # since the start
    steps: int  # since the start
    step_s: float  # duration of the step under way, else of the latest; 0 before the first


class Gpu(Generic[K]):
    """One simulated GPU. Times are seconds on the caller's origin and must never decrease. A sequence goes by
    the key that its caller gives it: a request, its id, whatever can be a key of a dict.

    Time passes in ``advance`` alone; what else is called happens at the instant where that stopped. First
    ``cancel`` and ``start``, then ``next_event``: that fixes the step that begins there. A ``start`` after it
    still joins that step, a ``cancel`` waits for its end.
    """

    def __init__(
        self,
        profile: Profile,
        max_num_seqs: int,
        *,
        first_token_events: bool = True,
        track_gaps: bool = False,
        log: StepLog | None = None,
        now: float = 0.0,
    ) -> None:
        if not 1 <= max_num_seqs <= profile.max_num_batched_tokens:
            raise ValueError(
                f"max_num_seqs is {max_num_seqs}; allowed: 1 to {profile.max_num_batched_tokens}, "
                f"max_num_batched_tokens of {profile.name}"
            )
        self.profile = profile
        self.max_num_seqs = max_num_seqs
        self._first_token_events = first_token_events
        self._track_gaps = track_gaps
        self._watch_first_tokens = first_token_events or track_gaps
        self._log = log
        self._kv_tokens = profile.kv_tokens
        self._step_tokens = profile.max_num_batched_tokens
        self._now = now
        self._preemptions = self._admissions = 0
        self._step = 0  # steps done at the boundary below
        self._phase = Phase(profile, max_num_seqs)
        self._step_gaps: dict[int, int] = {}  # durations of all steps so far, as {gap_bucket: count}
        self._clear()

    def _clear(self) -> None:
        self._sequences: dict[K, Sequence[K]] = {}
        self._waiting: deque[Sequence[K]] = deque()
        self._finishing: list[tuple[int, int, Sequence[K]]] = []  # sorted: (step it ends at, order, sequence)
        self._partial: Sequence[K] | None = None  # the one whose prefill takes more steps
        self._leaving: list[Sequence[K]] = []  # cancelled in a step that is under way
        # The boundary from which the next phase starts, or started if one is planned; the state at it.
        self._boundary_s = self._due_s = self._now  # due: the next event of the phase, or its plan
        self._batch = 0  # sequences that run
        self._context = 0  # tokens in the KV cache; in a phase, so that its step j ends with + j x batch
        self._planned = False
        # Of the first step of the phase:
        self._starting: list[Sequence[K]] = []  # those who decode from it on
        self._prefill = 0  # tokens
        self._budget = 0  # tokens left

    def start(self, key: K, prompt_tokens: int, output_tokens: int, group: Hashable = "") -> None:
        """Hand over a sequence that will generate exactly ``output_tokens``. The log is kept by ``group``.

        Raises NeverFits, and ValueError for a key that is here already or lengths that make no sense.
        """
        if output_tokens < 1 or prompt_tokens < 0 or prompt_tokens + output_tokens - 1 > self._kv_tokens:
            what = f"{prompt_tokens} prompt and {output_tokens} output tokens"
            if output_tokens < 1 or prompt_tokens < 0:
                raise ValueError(f"{what}; allowed: at least 0 and 1")
            raise NeverFits(f"{what}; the KV cache holds {self._kv_tokens}")
        if key in self._sequences:
            raise ValueError("this sequence is here already")
        group_log = None if self._log is None else self._log.groups[group]
        self._sequences[key] = sequence = Sequence(key, prompt_tokens, output_tokens, group_log)
        self._waiting.append(sequence)
        # Behind another one that waits, nothing changes for anybody.
        if self._planned and len(self._waiting) == 1 and self._batch < self.max_num_seqs:
            if self._now == self._boundary_s:
                self._plan()
            if self._now > self._boundary_s or self._leaving:
                self._due_s = self._phase.cut(self._now)

    def cancel(self, key: K) -> int:
        """Take a sequence out and return the tokens it has generated. Raises KeyError for an unknown one.

        To the caller it is gone at once; the step under way still runs to its end with it.
        """
        sequence = self._sequences.pop(key)
        tokens = self._tokens(sequence)
        if sequence.order < 0:
            self._waiting.remove(sequence)  # those behind it may fit where it did not
        elif self._planned:
            self._leaving.append(sequence)
        else:
            self._leave(sequence)
        sequence.order = -1
        if self._planned:
            self._due_s = self._phase.cut(self._now)  # no first token comes before
        return tokens

    def next_event(self) -> float:
        """When ``advance`` is to be called next; inf when idle. It may then have nothing to tell."""
        if not self._planned:
            if not (self._batch or self._waiting):
                return inf
            self._plan()
        return self._due_s

    def advance(self, now: float) -> list[GpuEvent[K]]:
        """Everything up to and including ``now`` in time order; at one instant, first tokens come first."""
        if now < self._now:
            raise ValueError(f"time went back from {self._now!r} to {now!r} s")
        self._now = now
        events: list[GpuEvent[K]] = []
        while self._due_s <= now:
            if self._planned:
                if self._watch_first_tokens and self._starting:
                    self._give_first_tokens(events)
                else:
                    self._finish_phase(events)
            elif self._due_s == now:
                break  # more may start or be cancelled at this very instant
            elif self._batch or self._waiting:
                self._plan()
            else:
                self._boundary_s = self._due_s = now
        return events

    def tokens(self, key: K) -> int:
        """Tokens a sequence has generated by now. Raises KeyError for an unknown or ended one."""
        return self._tokens(self._sequences[key])

    def state(self) -> GpuState:
        phase = self._phase
        done = held = 0
        latest = phase.steps
        if self._planned:
            done = phase.steps_done(self._now)
            held = latest = done + 1  # the step under way has its room already
        return GpuState(
            running=self._batch - len(self._leaving),
            waiting=len(self._waiting),
            kv_tokens=self._context + held * self._batch,
            preemptions=self._preemptions,
            steps=self._step + done,
            step_s=phase.duration_s(latest) if latest else 0.0,
        )

    def crash(self) -> list[K]:
        """Lose every sequence; returns their keys in the order they were started."""
        lost = list(self._sequences)
        if self._planned and (done := self._phase.steps_done(self._now)):
            self._phase.steps = done
            self._finish_phase([])  # nobody's end is among these steps
        self._clear()
        return lost

    def _give_first_tokens(self, events: list[GpuEvent[K]]) -> None:
        """End of the first step of the phase, for those who decode from it on."""
        if self._track_gaps:
            first_s, first_bucket = self._phase.at(1), gap_bucket(self._phase.duration_s(1))
            base = self._step_gaps.copy()
            base[first_bucket] = base.get(first_bucket, 0) + 1  # the step of the first token is no gap
            for sequence in self._starting:
                sequence.begin_gaps(base, first_s)
        if self._first_token_events:
            for sequence in self._starting:
                if sequence.order >= 0 and not sequence.generated:
                    events.append(("first", sequence))
        self._starting = []
        self._due_s = self._phase.end_s

    def _finish_phase(self, events: list[GpuEvent[K]]) -> None:
        phase, log = self._phase, self._log
        batch, context, steps = self._batch, self._context, phase.steps
        if self._track_gaps:
            phase.count_into(self._step_gaps)
        if log is not None:
            log.phases += pack_phase(batch, context, self._prefill, steps)
        self._boundary_s = self._due_s = end_s = phase.end_s
        self._planned = False
        self._starting = []
        self._step = step = self._step + steps
        context += steps * batch
        if self._leaving:
            self._context = context
            while self._leaving:
                self._leave(self._leaving.pop())
            batch, context = self._batch, self._context
        finishing = self._finishing
        while finishing and finishing[0][0] == step:
            sequence = finishing.pop(0)[2]
            batch -= 1
            context -= sequence.prompt + sequence.output - 1
            del self._sequences[sequence.key]
            sequence.last_s = end_s
            if self._track_gaps:
                sequence.end_gaps(self._step_gaps)
            if (group_log := sequence.log) is not None:
                group_log.runs += pack_run(sequence.began, step)
                if sequence.generated:
                    sequence.log_interruptions(group_log)
            events.append(("done", sequence))
        self._batch, self._context = batch, context

    def _leave(self, sequence: Sequence[K]) -> None:
        """Give back slot and KV of a sequence that ran and will not come to its end, at a boundary."""
        self._batch -= 1
        self._context -= self._held(sequence)
        if sequence is self._partial:
            self._partial = None
        else:
            self._finishing = [entry for entry in self._finishing if entry[2] is not sequence]

    # Planning

    def _plan(self) -> None:
        """Fix the step that begins at the boundary, or let more join it, and set up the phase: its steps
        until the batch may change for another reason than a call.
        """
        batch, context, kv_tokens = self._batch, self._context, self._kv_tokens
        if self._planned:
            budget, prefill = self._budget, self._prefill
        else:
            self._planned = True
            budget, prefill = self._step_tokens - batch, 0
            if self._partial is not None or context + batch > kv_tokens:
                budget, prefill = self._go_on(budget)
                batch, context = self._batch, self._context
        # Admit from the head of the queue what slots, KV and the step's token budget allow.
        waiting, step, max_num_seqs = self._waiting, self._step, self.max_num_seqs
        while waiting and batch < max_num_seqs and budget > 0:
            sequence = waiting[0]
            chunk = sequence.prompt
            if context + batch + chunk > kv_tokens:
                break
            waiting.popleft()
            sequence.order = self._admissions = order = self._admissions + 1
            if chunk <= budget:  # as _decode does; a call is felt here
                sequence.began = step
                insort(self._finishing, (step + sequence.output, order, sequence))
                self._starting.append(sequence)
            else:
                sequence.computed = chunk = budget
                self._partial = sequence
            budget -= chunk
            prefill += chunk
            batch += 1
            context += chunk - 1
        self._batch, self._context, self._budget, self._prefill = batch, context, budget, prefill
        if self._partial is not None or (budget == 0 and waiting and batch < max_num_seqs):
            steps = 1
        else:
            steps = self._finishing[0][0] - step
            if context + steps * batch > kv_tokens:
                steps = (kv_tokens - context) // batch
        self._due_s = self._phase.begin(self._boundary_s, batch, context, prefill, steps)
        if self._starting:
            first_s = self._phase.first_s
            for sequence in self._starting:
                if sequence.generated:
                    sequence.resumed_s = first_s
                else:
                    sequence.first_s = first_s
            if self._first_token_events:
                self._due_s = first_s

    def _go_on(self, budget: int) -> tuple[int, int]:
        """Those who run go on where KV allows: the others are preempted, a prompt gets its next chunk.
        Returns the tokens left of the step's budget and those prefilled.
        """
        missing = chunk = 1  # what a decoding sequence computes
        partial = self._partial
        if partial is not None:
            missing = partial.prompt - partial.computed
            chunk = min(missing, budget + 1)
        while self._context + self._batch + chunk - 1 > self._kv_tokens:
            self._preempt()
            chunk = 1
        if partial is None or self._partial is None:
            return budget, 0
        partial.computed += chunk
        self._context += chunk - 1
        if chunk == missing:
            self._partial = None
            self._decode(partial)
        return budget - chunk + 1, chunk

    def _preempt(self) -> None:
        """Send the latest admitted sequence back to the head of the queue."""
        victim = self._partial
        if victim is None:
            victim = max(self._finishing, key=itemgetter(1))[2]
            if self._track_gaps:
                victim.last_s = self._boundary_s
                victim.end_gaps(self._step_gaps)
            if self._log is not None:
                victim.note_run(self._step, self._boundary_s)
            victim.interrupt(self._step)
        self._leave(victim)
        victim.order = -1
        self._waiting.appendleft(victim)
        self._preemptions += 1

    def _decode(self, sequence: Sequence[K]) -> None:
        """Its prefill ends with the step that is planned: a token a step from that one on."""
        sequence.began = step = self._step
        insort(self._finishing, (step + sequence.output, sequence.order, sequence))
        self._starting.append(sequence)

    # Sequences

    def _tokens(self, sequence: Sequence[K]) -> int:
        if sequence.order < 0 or sequence is self._partial:
            return sequence.generated
        done = self._phase.steps_done(self._now) if self._planned else 0
        return sequence.generated + self._step + done - sequence.began

    def _held(self, sequence: Sequence[K]) -> int:
        """Tokens of the KV cache that a running sequence holds at the boundary."""
        if sequence is self._partial:
            return sequence.computed
        # The latest token is computed, and cached, in the step after.
        return sequence.prompt + self._step - sequence.began - 1
