"""Slots: which replica may take the next request, under continuous dispatch or in micro-batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from scheduler.core.types import Request


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The paper's worker: up to ``size`` requests, waiting at most ``wait_s`` for more, then blocking."""

    size: int = 32
    wait_s: float = 0.010


@dataclass(slots=True, eq=False)
class Replica:
    """One engine as the scheduler sees it."""

    index: int
    capacity: int
    # Streams that it may have now: its capacity; 0 while its engine is away or a suspect runs alone.
    room: int
    up: bool = True
    running: int = 0  # streams that have not ended
    reserved_tokens: float = 0.0  # prompt + upper estimate of what runs; only where they are bounded
    alone: Request | None = None  # a suspect that runs by itself, see Scheduler.on_engine_lost
    held: list[Request] = field(default_factory=list)  # micro-batches only: what of its batch has ended


class Slots:
    """All replicas, and the micro-batch that is being handed out."""

    def __init__(
        self,
        capacities: Sequence[int],
        batch: MicroBatch | None = None,
        max_inflight_tokens: float | None = None,
    ) -> None:
        self.replicas = [Replica(index, capacity, capacity) for index, capacity in enumerate(capacities)]
        # Where there is but one, nobody has to look for the freest.
        self.only = self.replicas[0] if len(self.replicas) == 1 else None
        self.batch = batch
        self.max_inflight_tokens = max_inflight_tokens  # on each replica
        self.batches = 0
        self.waiting_since_s: float | None = None  # since when an idle replica waits for a batch to fill
        self.handout: deque[Request] = deque()

    @property
    def capacity(self) -> int:
        return sum(replica.capacity for replica in self.replicas)

    def freest(self) -> Replica:
        """The replica with the most free slots, which may be none."""
        return max(self.replicas, key=lambda replica: replica.room - replica.running)

    def idle(self) -> Replica | None:
        """A replica for a micro-batch."""
        return next((replica for replica in self.replicas if replica.room and not replica.running), None)

    def fits(self, request: Request, replica: Replica) -> bool:
        """Whether its prompt and upper estimate can be reserved; alone anything may run."""
        if self.max_inflight_tokens is None or not replica.running:
            return True
        needed = request.prompt_tokens + request.estimate.upper
        return replica.reserved_tokens + needed <= self.max_inflight_tokens

    def isolate(self, request: Request, replica: Replica) -> None:
        """It runs there by itself from now on."""
        replica.alone, replica.room = request, 0

    def reserve(self, request: Request, replica: Replica) -> None:
        """Where tokens in flight are bounded: its prompt and upper estimate count from now on."""
        replica.reserved_tokens += request.prompt_tokens + request.estimate.upper

    def end(self, request: Request) -> Replica:
        """Its stream has ended; returns where it ran."""
        replica = self.replicas[request.replica]
        replica.running -= 1
        if self.max_inflight_tokens is not None:
            replica.reserved_tokens -= request.prompt_tokens + request.estimate.upper
        if replica.alone is not None:
            replica.alone, replica.room = None, replica.capacity
        return replica

    def recount(self, request: Request, prompt_tokens: int) -> None:
        """Its prompt has so many tokens, as its engine counts."""
        if self.max_inflight_tokens is not None:
            self.replicas[request.replica].reserved_tokens += prompt_tokens - request.prompt_tokens
        request.prompt_tokens = prompt_tokens

    def batch_closes(self, queued: int, now: float) -> bool:
        """Whether a micro-batch closes now on an idle replica; else its wait goes on."""
        assert self.batch is not None
        if not queued:
            self.waiting_since_s = None
            return False
        if self.waiting_since_s is None:
            self.waiting_since_s = now
        if queued < self.batch.size and now < self.waiting_since_s + self.batch.wait_s:
            return False
        self.waiting_since_s = None
        return True

    def hand_out(self, batch: Sequence[Request]) -> None:
        """Number a new micro-batch; its requests are handed out one by one."""
        self.batches += 1
        for request in batch:
            request.batch_id, request.batch_size = self.batches, len(batch)
        self.handout.extend(batch)

    def lose(self, replica: Replica) -> None:
        """Its engine died, and with it all that ran there."""
        replica.up = False
        replica.alone = None
        replica.room = replica.running = 0
        replica.reserved_tokens = 0.0

    def restore(self, replica: Replica) -> None:
        """Its engine is back."""
        replica.up, replica.room = True, replica.capacity

    def next_timer(self) -> float:
        """When a waiting micro-batch must close; inf when none waits."""
        if self.batch is None or self.waiting_since_s is None:
            return inf
        return self.waiting_since_s + self.batch.wait_s

    def check(self, in_flight: Sequence[Request]) -> None:
        """Raise AssertionError unless the replicas count just these requests, each where it says it is."""
        for replica in self.replicas:
            mine = [r for r in in_flight if r.replica == replica.index]
            assert {id(r) for r in replica.held} == {id(r) for r in mine if r.finish}
            assert replica.running == len(mine) - len(replica.held) <= replica.capacity
            assert replica.room == (replica.capacity if replica.up and replica.alone is None else 0)
            if self.max_inflight_tokens is not None:
                reserved = sum(r.prompt_tokens + r.estimate.upper for r in mine if not r.finish)
                assert abs(replica.reserved_tokens - reserved) < 1e-3
        assert all(0 <= r.replica < len(self.replicas) for r in in_flight)
