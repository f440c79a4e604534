"""ReadyQueue: one heap per group, lazy removal, and those aside whose tenants may run nothing more.

An entry is live while its ticket is still the request's; leaving the queue (dispatch, cancel, expiry)
resets the ticket. Dead entries stay inside a heap until they come to its top, and then are dropped at once:
the top of a group's heap is always live and may run, and ``_firsts`` holds those of all groups, ready for the
policy to choose from.

What comes to the top and belongs to a tenant at its in-flight limit steps aside, into a heap of its tenant's:
so such a tenant is skipped without a scan. With each further request that it may run one comes back, so that
as many as may run are in the group's heap at least, the best of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain

from scheduler.core.policy import Entry, Policy
from scheduler.core.types import Request

_COMPACT_AT = 1024  # fewer dead entries are not worth a rebuild
_FEW = 64  # so many come back, and one in so many steps aside, one by one; else all do at once


class _Group:
    __slots__ = ("aside", "compact_at", "dead", "heap")

    def __init__(self) -> None:
        self.heap: list[Entry] = []
        self.aside: dict[str, list[Entry]] = {}  # by tenant; the first of each is live
        self.dead = 0  # an upper bound
        self.compact_at = _COMPACT_AT

    def __iter__(self) -> Iterator[Entry]:
        """Every live entry, in no particular order."""
        for heap in (self.heap, *self.aside.values()):
            yield from (entry for entry in heap if entry[3].ticket == entry[2])

    def of(self, tenant: str) -> list[Entry]:
        """The live entries of one tenant, in no particular order. O(n)."""
        heaps = self.heap, self.aside.get(tenant, ())
        return [e for heap in heaps for e in heap if e[3].tenant == tenant and e[3].ticket == e[2]]

    def step_aside(self, entry: Entry) -> None:
        heappush(self.aside.setdefault(entry[3].tenant, []), entry)

    def all_step_aside(self, room: dict[str, int]) -> None:
        """All whose tenants may run nothing more. O(n), and some times faster than one by one."""
        stay = []
        for entry in self.heap:
            request = entry[3]
            if request.ticket == entry[2]:
                if room.get(request.tenant, 1) > 0:
                    stay.append(entry)
                else:
                    self.step_aside(entry)
        heapify(stay)
        self.heap[:] = stay

    def come_back(self, tenant: str, most: float) -> None:
        """The best of its entries that stepped aside, or all; of those that stay, the first is live."""
        aside = self.aside.get(tenant)
        if aside is None:
            return
        if most > _FEW:
            self.heap += aside
            heapify(self.heap)
            aside.clear()
        while aside and (most > 0 or aside[0][3].ticket != aside[0][2]):
            entry = heappop(aside)
            if entry[3].ticket == entry[2]:
                heappush(self.heap, entry)
                most -= 1
        if not aside:
            del self.aside[tenant]

    def compact(self) -> None:
        """Rebuild the heaps of what is live."""
        for heap in (self.heap, *self.aside.values()):
            heap[:] = [entry for entry in heap if entry[3].ticket == entry[2]]
            heapify(heap)
        self.dead = 0
        self.compact_at = max(_COMPACT_AT, len(self.heap) + sum(map(len, self.aside.values())))


class ReadyQueue:
    """Requests that wait, in the order of one policy. O(log n) push and pop.

    ``room`` says how many more requests of a tenant may run, for the tenants that have an in-flight limit.
    It is only read here; who changes it calls ``room_grew`` or ``room_gone``.
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
        self._firsts: dict[str, Entry] = {}  # group -> its first that may run; what a group has at heap[0]
        self.retried: deque[Request] = deque()  # before all others, under every policy

    def push(self, request: Request) -> None:
        """Enqueue by key, or before all others when it has run before; its ticket must be new here."""
        if request.attempts:
            self.retried.append(request)
            return
        major, minor = self._key(request)
        entry = (major, minor, request.ticket, request)
        name = self.policy.group(request) if self._grouped else ""
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group()
        if self._hears_backlogged and name not in self._firsts and not group.aside:
            self.policy.on_backlogged(name)
        if self._room and self._room.get(request.tenant, 1) <= 0:
            group.step_aside(entry)
            return
        heap = group.heap
        heappush(heap, entry)
        if heap[0] is entry:
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
        heap = group.heap
        request = heappop(heap)[3]
        request.ticket = -1
        if heap and (first := heap[0])[3].ticket == first[2] and not self._room:  # as nearly always
            firsts[name] = first
        else:
            self._find_first(name, group)
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
            group = self._groups[name]
            while (entry := firsts.get(name)) is not None and self.policy.lapsed(entry, now):
                _, _, ticket, request = entry
                heapreplace(group.heap, (*self._key(request), ticket, request))
                group.come_back(request.tenant, 1)  # one that stepped aside may be better now
                self._find_first(name, group)

    def forget(self, request: Request) -> None:
        """Told that a request's entry here, if there is one, has died."""
        if request in self.retried:
            self.retried.remove(request)
            return
        name = self.policy.group(request)
        group = self._groups.get(name)
        if group is None:
            return
        group.dead += 1
        if group.dead >= group.compact_at:
            group.compact()
        if group.aside:  # it was perhaps the one that its tenant may run
            group.come_back(request.tenant, min(1, self._room.get(request.tenant, 1)))
        self._find_first(name, group)

    def ahead(self, request: Request) -> int:
        """How many of its tenant's requests come before one that waits here; of those in its group, as the
        policy alone knows in which order groups come. O(those in its group).
        """
        tenant, before = request.tenant, 0
        for retried in self.retried:
            if retried is request:
                return before
            before += retried.tenant == tenant
        mine = self._groups[self.policy.group(request)].of(tenant)
        own = next(entry for entry in mine if entry[3] is request)
        return before + len([entry for entry in mine if entry < own])

    def dismantle(self, max_items: int) -> bool:
        """Throw away up to ``max_items`` entries of a queue that orders no more; True once it is empty."""
        for group in self._groups.values():
            for heap in (group.heap, *group.aside.values()):
                cut = min(max_items, len(heap))
                del heap[len(heap) - cut :]
                max_items -= cut
                if heap:
                    return False
        return True

    def room_grew(self, tenant: str, more: float) -> None:
        """So many more of this tenant's requests may run; ``inf`` for no limit."""
        for name, group in self._groups.items():
            if tenant in group.aside:
                group.come_back(tenant, more)
                self._find_first(name, group)

    def room_gone(self, tenant: str) -> None:
        """This tenant's requests may not run any longer."""
        for name, first in list(self._firsts.items()):
            if first[3].tenant == tenant:
                self._find_first(name, self._groups[name])

    def __iter__(self) -> Iterator[Request]:
        """Every live request, in no particular order; for checks and previews."""
        yield from self.retried
        yield from (entry[3] for entry in chain.from_iterable(self._groups.values()))

    def _first_retried(self) -> Request | None:
        return next((r for r in self.retried if self._room.get(r.tenant, 1) > 0), None)

    def _find_first(self, name: str, group: _Group) -> None:
        """The group's best entry that may run, left at heap[0]; what is dead before it drops out."""
        heap, room, moved = group.heap, self._room, 0
        while heap:
            entry = heap[0]
            request = entry[3]
            if request.ticket == entry[2]:
                if not room or room.get(request.tenant, 1) > 0:
                    self._firsts[name] = entry
                    return
                if moved * _FEW > len(heap):
                    group.all_step_aside(room)
                    continue
                moved += 1
                group.step_aside(entry)
            heappop(heap)
        self._firsts.pop(name, None)
