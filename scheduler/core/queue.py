"""ReadyQueue: one heap per tenant, groups above, lazy removal.

An entry is live while its ticket is still the request's; leaving the queue (dispatch, cancel, expiry)
resets the ticket. Dead entries stay inside the tenants' heaps until they come to the top, and then are
dropped at once: the top of a heap is always live.

Above the tenants' heaps each group keeps a heap of their tops, lazily: what has been a top stays there. What
is dead, or whose tenant may run nothing more, is dropped when it surfaces; what is left on top is the
group's first, and ``_firsts`` holds those of all groups, ready for the policy to choose from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace

from scheduler.core.policy import Entry, Policy
from scheduler.core.types import Request

_COMPACT_AT = 1024  # fewer dead entries are not worth a rebuild


class _Group:
    __slots__ = ("dead", "heads", "tenants")

    def __init__(self) -> None:
        self.dead: dict[str, int] = {}  # tenant -> dead entries in its heap, an upper bound; empty for none
        self.heads: list[Entry] = []
        self.tenants: dict[str, list[Entry]] = {}

    def add_head(self, heap: list[Entry]) -> None:
        """The top of a tenant's heap has changed without being taken."""
        heads, tenants = self.heads, self.tenants
        if len(heads) > _COMPACT_AT + 2 * len(tenants):
            heads[:] = [heap[0] for heap in tenants.values() if heap]
            heapify(heads)
        elif heap:
            heappush(heads, heap[0])


class ReadyQueue:
    """Requests that wait, in the order of one policy. O(log n) push and pop.

    ``room`` says how many more requests of a tenant may run, for the tenants that have an in-flight limit.
    It is only read here; who changes it calls ``room_changed``.
    """

    def __init__(self, policy: Policy, room: dict[str, int]) -> None:
        self.policy = policy
        self.lapses = policy.lapses
        kind = type(policy)  # hooks that it has left empty are not called for each request
        self.hears_dispatch = kind.on_dispatch is not Policy.on_dispatch
        self.hears_settle = kind.on_settle is not Policy.on_settle
        self._hears_backlogged = kind.on_backlogged is not Policy.on_backlogged
        self._grouped = kind.group is not Policy.group
        self._key = policy.key  # that of a sharing rule is its ordering's
        self._room = room
        self._groups: dict[str, _Group] = {}
        self._firsts: dict[str, Entry] = {}  # group -> its first that may run; what a group has at heads[0]
        self.retried: deque[Request] = deque()  # before all others, under every policy

    def push(self, request: Request) -> None:
        """Enqueue by key, or before all others when it has run before; its ticket must be new here."""
        if request.attempts:
            self.retried.append(request)
            return
        major, minor = self._key(request)
        entry = (major, minor, request.ticket, request)
        name = self.policy.group(request) if self._grouped else ""
        tenant = request.tenant
        try:
            group = self._groups[name]
            heap = group.tenants[tenant]
        except KeyError:
            group = self._groups.setdefault(name, _Group())
            heap = group.tenants.setdefault(tenant, [])
        heappush(heap, entry)
        if heap[0] is entry:
            first = self._firsts.get(name)
            if self._hears_backlogged and first is None and sum(map(len, group.tenants.values())) == 1:
                self.policy.on_backlogged(name)
            if not self._room or self._room.get(tenant, 1) > 0:
                heappush(group.heads, entry)
                if first is None or entry < first:
                    self._firsts[name] = entry

    def pop(self) -> Request | None:
        """The next request that may run, or None; it has no ticket any more."""
        if self.retried and (retried := self._first_retried()) is not None:
            self.retried.remove(retried)
            retried.ticket = -1
            return retried
        firsts = self._firsts
        if not firsts:
            return None
        name = self.policy.choose(firsts) if self._grouped else ""
        group = self._groups[name]
        heads = group.heads
        request = heads[0][3]
        request.ticket = -1
        heap = group.tenants[request.tenant]
        heappop(heap)
        if group.dead and heap and heap[0][3].ticket != heap[0][2]:
            _drop_dead(heap)
        if heap:
            heapreplace(heads, heap[0])
        else:
            heappop(heads)
        if heads and heads[0][3].ticket == heads[0][2] and not self._room:  # as nearly always
            firsts[name] = heads[0]
        else:
            self._find_first(name, heads)
        return request

    def peek(self) -> Request | None:
        """What pop() would return."""
        if self.retried and (retried := self._first_retried()) is not None:
            return retried
        firsts = self._firsts
        return firsts[self.policy.choose(firsts)][3] if firsts else None

    def pick(self, request: Request) -> bool:
        """Take this one out, wherever it stands; False when it may not run. For micro-batches."""
        if self._room.get(request.tenant, 1) <= 0:
            return False
        request.ticket = -1
        self.forget(request)
        return True

    def lapse(self, now: float) -> None:
        """Give the heads whose place has lapsed a new one; for a policy that ``lapses``."""
        firsts = self._firsts
        for name in list(firsts):
            while (entry := firsts.get(name)) is not None and self.policy.lapsed(entry, now):
                _, _, ticket, request = entry
                request.ticket = -1
                self.forget(request)
                request.ticket = ticket
                self.push(request)

    def forget(self, request: Request) -> None:
        """Told that a request's entry here, if there is one, has died."""
        if request in self.retried:
            self.retried.remove(request)
            return
        name, tenant = self.policy.group(request), request.tenant
        group = self._groups.get(name)
        heap = group.tenants.get(tenant) if group is not None else None
        if group is None or not heap:
            return
        if heap[0][3] is request:
            _drop_dead(heap)
            group.add_head(heap)
            self._find_first(name, group.heads)
            return
        dead = group.dead[tenant] = group.dead.get(tenant, 0) + 1
        if dead >= _COMPACT_AT and dead * 2 > len(heap):
            heap[:] = [entry for entry in heap if entry[3].ticket == entry[2]]
            heapify(heap)  # its top stays where it is
            del group.dead[tenant]

    def ahead(self, request: Request) -> int:
        """How many of its tenant's requests come before one that waits here; of those in its group, as the
        policy alone knows in which order groups come. O(those).
        """
        tenant, before = request.tenant, 0
        for retried in self.retried:
            if retried is request:
                return before
            before += retried.tenant == tenant
        heap = self._groups[self.policy.group(request)].tenants[tenant]
        own = next(entry for entry in heap if entry[3] is request)
        return before + len([entry for entry in heap if entry < own and entry[3].ticket == entry[2]])

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

    def room_changed(self, tenant: str) -> None:
        """This tenant's requests may run again, or may no longer."""
        for name, group in self._groups.items():
            if heap := group.tenants.get(tenant):
                group.add_head(heap)  # it may have been dropped as blocked
                self._find_first(name, group.heads)

    def __iter__(self) -> Iterator[Request]:
        """Every live request, in no particular order; for checks and previews."""
        yield from self.retried
        for group in self._groups.values():
            for heap in group.tenants.values():
                yield from (entry[3] for entry in heap if entry[3].ticket == entry[2])

    def _first_retried(self) -> Request | None:
        return next((r for r in self.retried if self._room.get(r.tenant, 1) > 0), None)

    def _find_first(self, name: str, heads: list[Entry]) -> None:
        """The group's best entry that may run, left at heads[0]; what is dead or blocked drops out."""
        room = self._room
        while heads:
            entry = heads[0]
            request = entry[3]
            if request.ticket == entry[2] and (not room or room.get(request.tenant, 1) > 0):
                self._firsts[name] = entry
                return
            heappop(heads)
        self._firsts.pop(name, None)


def _drop_dead(heap: list[Entry]) -> None:
    """Down to the first that is live."""
    while heap and heap[0][3].ticket != heap[0][2]:
        heappop(heap)
