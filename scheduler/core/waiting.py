"""Everything that waits: the queue that orders, the one that a swap is filling, suspects, TTLs, room.

The two queues share ``room`` and the requests' tickets, so what leaves one is dead in the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import chain
from math import inf

from scheduler.core.policy import Policy
from scheduler.core.queue import ReadyQueue
from scheduler.core.swap import Swap
from scheduler.core.types import Request

_SWEEP_AT = 1024  # fewer expiries are not worth a sweep


class WaitingRoom:
    """Who waits and in which order; knows nothing of slots, estimates and books."""

    def __init__(self, policy: Policy) -> None:
        self.room: dict[str, int] = {}  # tenant -> further requests that may run, where limited
        self.queue = ReadyQueue(policy, self.room)
        self.swap: Swap | None = None
        self.retired: ReadyQueue | None = None  # the queue before the last swap, see retire
        self.suspects: list[Request] = []  # aboard two crashes; they run alone
        self._tickets = 0
        self.expiries: list[tuple[float, int, Request]] = []  # a heap; empty where nobody has a TTL
        self._sweep_at = _SWEEP_AT

    # -- in and out ----------------------------------------------------------------------------------

    def enter(self, request: Request) -> None:
        """Give it a ticket and a place."""
        self._tickets = request.ticket = self._tickets + 1
        self.queue.push(request)
        if self.swap is not None:
            self.swap.queue.push(request)

    def suspect(self, request: Request) -> None:
        """Give it a ticket, and a place of its own."""
        self._tickets = request.ticket = self._tickets + 1
        self.suspects.append(request)

    def pop_suspect(self) -> Request:
        """The first suspect, whatever its tenant's limit."""
        request = self.suspects.pop(0)
        request.ticket = -1
        return request

    def remove(self, request: Request) -> None:
        """It waits no longer, wherever it stood."""
        request.ticket = -1
        if request in self.suspects:
            self.suspects.remove(request)
            return
        self.queue.forget(request)
        if self.swap is not None:
            self.swap.queue.forget(request)

    def ahead(self, request: Request) -> int:
        """How many of its tenant's requests go before one that waits: ``ReadyQueue.ahead``."""
        return 0 if request in self.suspects else self.queue.ahead(request)

    # -- TTLs ----------------------------------------------------------------------------------------

    def expire_at(self, when_s: float, request: Request) -> None:
        """It may wait until then."""
        heappush(self.expiries, (when_s, request.ticket, request))
        if len(self.expiries) > self._sweep_at:
            self._sweep()

    def _sweep(self) -> None:
        """Forget what waits no longer, lest it be kept until its time would have come."""
        self.expiries[:] = [expiry for expiry in self.expiries if expiry[2].ticket == expiry[1]]
        heapify(self.expiries)
        self._sweep_at = max(_SWEEP_AT, 2 * len(self.expiries))

    def expired(self, now: float) -> Iterator[Request]:
        """What still waits and may not any more; the caller removes each before it takes the next."""
        while self.expiries and self.expiries[0][0] <= now:
            _, ticket, request = heappop(self.expiries)
            if request.ticket == ticket:
                yield request

    def next_expiry_s(self) -> float:
        """inf for never."""
        expiries = self.expiries
        while expiries and expiries[0][2].ticket != expiries[0][1]:
            heappop(expiries)
        return expiries[0][0] if expiries else inf

    # -- in-flight limits of tenants -----------------------------------------------------------------

    def set_room(self, tenant: str, room: int | None) -> None:
        """So many more of this tenant may run; None for no limit."""
        self.room.pop(tenant, None)
        if room is not None:
            self.room[tenant] = room
        for queue in self._queues():
            if room is None or room > 0:
                queue.room_grew(tenant, inf if room is None else room)
            else:
                queue.room_gone(tenant)

    def take_room(self, tenant: str) -> None:
        """One more of its requests runs."""
        if tenant in self.room:
            self.room[tenant] -= 1
            if self.room[tenant] == 0:
                for queue in self._queues():
                    queue.room_gone(tenant)

    def give_room(self, tenant: str) -> None:
        """One of its requests runs no longer."""
        if tenant in self.room:
            self.room[tenant] += 1
            if self.room[tenant] > 0:
                for queue in self._queues():
                    queue.room_grew(tenant, 1)

    def _queues(self) -> list[ReadyQueue]:
        """That which orders, and that which a swap is filling."""
        return [self.queue] if self.swap is None else [self.queue, self.swap.queue]

    # -- swaps ---------------------------------------------------------------------------------------

    def begin_swap(self, policy: Policy, active: Iterable[Request], now: float, by: str) -> Swap:
        """Start filling a queue under ``policy``; a swap that is under way is given up.

        ``active`` is only copied: looking at each of 100,000 requests would take as long as some slices.
        """
        present = list(active)
        if self.suspects:
            present = [r for r in present if r not in self.suspects]
        self.swap = Swap(ReadyQueue(policy, self.room), present, self._tickets, now, by)
        return self.swap

    def end_swap(self, swap: Swap, in_flight: Iterable[Request]) -> None:
        """The filled queue orders from now on; its policy takes over the charges of what has run."""
        self.swap = None
        self.retired, self.queue = self.queue, swap.queue
        swap.queue.policy.restore(chain(in_flight, swap.queue.retried, self.suspects))

    def retire(self, max_items: int) -> bool:
        """Free the queue that a swap has replaced, a slice at a time; True once it is gone."""
        if self.retired is None or self.retired.dismantle(max_items):
            self.retired = None
        return self.retired is None

    def __iter__(self) -> Iterator[Request]:
        yield from self.queue
        yield from self.suspects
