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
    up: bool = True
    running: dict[str, Request] = field(default_factory=dict)
    reserved_tokens: float = 0.0
    alone: Request | None = None  # a suspect that runs by itself, see Scheduler.on_engine_lost
    held: list[Request] = field(default_factory=list)  # micro-batches only: what of its batch has ended

    @property
    def free(self) -> int:
        """Slots that may be filled now."""
        return self.capacity - len(self.running) if self.up and self.alone is None else 0

    def start(self, request: Request) -> None:
        request.replica = self.index
        self.running[request.id] = request
        self.reserved_tokens += request.prompt_tokens + request.estimate.upper

    def end(self, request: Request) -> None:
        del self.running[request.id]
        self.reserved_tokens -= request.prompt_tokens + request.estimate.upper
        if self.alone is request:
            self.alone = None

    def fits(self, request: Request, max_inflight_tokens: float) -> bool:
        """Whether its prompt and upper estimate can be reserved; alone anything may run."""
        needed = request.prompt_tokens + request.estimate.upper
        return not self.running or self.reserved_tokens + needed <= max_inflight_tokens

    def lose(self) -> list[Request]:
        """The engine died: returns what it ran."""
        self.up = False
        self.alone = None
        self.reserved_tokens = 0.0
        lost = list(self.running.values())
        self.running.clear()
        return lost


class Slots:
    """All replicas, and the micro-batch that is being handed out."""

    def __init__(self, capacities: Sequence[int], batch: MicroBatch | None) -> None:
        self.replicas = [Replica(index, capacity) for index, capacity in enumerate(capacities)]
        self.batch = batch
        self.batches = 0
        self.waiting_since_s: float | None = None  # since when an idle replica waits for a batch to fill
        self.handout: deque[Request] = deque()

    @property
    def capacity(self) -> int:
        return sum(replica.capacity for replica in self.replicas)

    def pick(self) -> Replica | None:
        """The replica with the most free slots, for a micro-batch an idle one; None when there is none."""
        if self.batch is not None:
            return next((r for r in self.replicas if r.free and not r.running and not r.held), None)
        replicas = self.replicas
        best = replicas[0] if len(replicas) == 1 else max(replicas, key=lambda replica: replica.free)
        full = not best.up or best.alone is not None or len(best.running) >= best.capacity
        return None if full else best

    def batch_closes(self, queued: int, now: float) -> bool:
        """Whether a micro-batch closes now on an idle replica; else its wait goes on."""
        assert self.batch is not None
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

    def lose(self, replica_index: int) -> list[Request]:
        """A replica died: returns what it ran, handed out or not."""
        self.handout = deque(r for r in self.handout if r.replica != replica_index)
        return self.replicas[replica_index].lose()

    def next_timer(self) -> float:
        """When a waiting micro-batch must close; inf when none waits."""
        if self.batch is None or self.waiting_since_s is None:
            return inf
        return self.waiting_since_s + self.batch.wait_s

    def check(self, in_flight: Sequence[Request]) -> None:
        """Raise AssertionError unless the replicas hold just these requests, none of them twice."""
        mine = [r for replica in self.replicas for r in (*replica.running.values(), *replica.held)]
        assert len(mine) == len(in_flight)
        assert {id(r) for r in mine} == {id(r) for r in in_flight}
        assert all(len(replica.running) <= replica.capacity for replica in self.replicas)
