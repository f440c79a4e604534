"""ReadyQueue: one heap per tenant, groups above, lazy removal.

An entry is the policy's key, flattened, then the request's ticket and the request itself. Tickets are
unique, so a comparison never reaches the request. An entry is live while its ticket is still the
request's; leaving the queue (dispatch, cancel, expiry) only resets the ticket, and dead entries fall out
when they come to the top. Above the tenants' heaps each group keeps a heap of their heads, under the same
laziness: a head that was displaced, died or is blocked is dropped when it surfaces.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

from scheduler.core.policy import Policy
from scheduler.core.types import Request

Entry = tuple[Any, ...]

_COMPACT_AT = 1024  # dead entries of one tenant below this are not worth a rebuild


class _Group:
    __slots__ = ("heads", "tenants")

    def __init__(self) -> None:
        self.heads: list[Entry] = []
        self.tenants: dict[str, list[Entry]] = {}


class ReadyQueue:
    """Requests that wait, in the order of one policy. O(log n) push and pop.

    ``room`` says how many more requests of a tenant may run, for the tenants that have an in-flight limit.
    It is shared with the Scheduler: a pop takes from it, and who raises it from zero calls ``wake``.
    """

    def __init__(self, policy: Policy, room: dict[str, int]) -> None:
        self.policy = policy
        self._room = room
        self._groups: dict[str, _Group] = {}
        self.retried: deque[Request] = deque()  # before all others, under every policy
        self._dead: dict[str, int] = {}  # tenant -> dead entries, an upper bound

    def push(self, request: Request) -> None:
        """Enqueue by key, or before all others when it has run before; its ticket must be new here."""
        if request.attempts:
            self.retried.append(request)
            return
        policy, tenant, ticket = self.policy, request.tenant, request.ticket
        key = policy.key(request)
        entry: Entry = (*key, ticket, request) if type(key) is tuple else (key, ticket, request)
        name = policy.group(request)
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group()
        heads = group.heads
        if not heads or (heads[0][-1].ticket != heads[0][-2] and self._head(group) is None):
            policy.on_backlogged(name)
        heap = group.tenants.get(tenant)
        if heap is None:
            heap = group.tenants[tenant] = []
        heappush(heap, entry)
        if heap[0] is entry:
            heappush(heads, entry)

    def pop(self) -> Request | None:
        """The next request that may run, or None; it has no ticket any more."""
        request = self._pop_first() if self.retried else None
        if request is None:
            group = self._choose()
            if group is None:
                return None
            request = self._take_head(group)
        request.ticket = -1
        if request.tenant in self._room:
            self._room[request.tenant] -= 1
        return request

    def peek(self) -> Request | None:
        """What pop() would return."""
        if (first := next(self._waiting_first(), None)) is not None:
            return first
        group = self._choose()
        return None if group is None else group.heads[0][-1]

    def pick(self, request: Request) -> bool:
        """Take this one out, wherever it stands; False when it may not run. For micro-batches."""
        if self._room.get(request.tenant, 1) <= 0:
            return False
        request.ticket = -1
        self.forget(request)
        if request.tenant in self._room:
            self._room[request.tenant] -= 1
        return True

    def lapse(self, now: float) -> None:
        """Give the heads whose place has lapsed a new one; for a policy that ``lapses``."""
        for name in list(self._groups):
            group = self._groups[name]
            while (entry := self._head(group)) is not None and self.policy.lapsed(entry, now):
                self.push(self._take_head(group))

    def forget(self, request: Request) -> None:
        """Told that a request's entry here has died; rebuilds a tenant's heap that is mostly dead."""
        if request in self.retried:
            self.retried.remove(request)
            return
        tenant = request.tenant
        dead = self._dead[tenant] = self._dead.get(tenant, 0) + 1
        if dead < _COMPACT_AT:
            return
        for group in self._groups.values():
            heap = group.tenants.get(tenant, [])
            if dead * 2 > len(heap):
                heap[:] = [entry for entry in heap if entry[-1].ticket == entry[-2]]
                heapify(heap)
                if heap:
                    heappush(group.heads, heap[0])
                self._dead[tenant] = 0

    def dismantle(self, max_items: int) -> bool:
        """Throw away up to ``max_items`` entries of a queue that orders no more; True once it is empty."""
        for group in self._groups.values():
            for heap in (group.heads, *group.tenants.values()):
                cut = min(max_items, len(heap))
                del heap[len(heap) - cut :]
                max_items -= cut
                if heap:
                    return False
        return True

    def wake(self, tenant: str) -> None:
        """This tenant's requests may run again."""
        for group in self._groups.values():
            if heap := group.tenants.get(tenant):
                heappush(group.heads, heap[0])

    def __iter__(self) -> Iterator[Request]:
        """Every live request, in no particular order; for checks and previews."""
        yield from self.retried
        for group in self._groups.values():
            for heap in group.tenants.values():
                yield from (entry[-1] for entry in heap if entry[-1].ticket == entry[-2])

    def _pop_first(self) -> Request | None:
        request = next(self._waiting_first(), None)
        if request is not None:
            self.retried.remove(request)
        return request

    def _waiting_first(self) -> Iterator[Request]:
        return (r for r in self.retried if self._room.get(r.tenant, 1) > 0)

    def _choose(self) -> _Group | None:
        groups = self._groups
        if len(groups) == 1:
            (group,) = groups.values()
            return None if self._head(group) is None else group
        heads = {name: head for name, group in groups.items() if (head := self._head(group)) is not None}
        if not heads:
            return None
        return groups[self.policy.choose(heads) if len(heads) > 1 else next(iter(heads))]

    def _take_head(self, group: _Group) -> Request:
        """Remove what ``_head`` has found."""
        heads = group.heads
        request: Request = heads[0][-1]
        heap = group.tenants[request.tenant]
        heappop(heap)
        if heap:
            heapreplace(heads, heap[0])
        else:
            heappop(heads)
        return request

    def _head(self, group: _Group) -> Entry | None:
        """The group's best entry that may run, left at heads[0]; dead and blocked ones above it drop out."""
        heads, room = group.heads, self._room
        while heads:
            entry = heads[0]
            request = entry[-1]
            heap = group.tenants[request.tenant]
            if heap and heap[0] is entry:
                if request.ticket == entry[-2]:
                    if not room or room.get(request.tenant, 1) > 0:
                        return entry
                else:
                    while heap and heap[0][-1].ticket != heap[0][-2]:
                        heappop(heap)
                    if heap:
                        heappush(heads, heap[0])  # sorts after the dead one, which is dropped now
            heappop(heads)
        return None
