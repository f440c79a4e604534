"""The interface of a scheduling policy: an ordering (the key) and a sharing rule (groups, turns, charges).

A stored key never changes with time, so no heap is ever re-sorted. Keys are pairs of numbers, smaller first;
ties go to the earlier enqueueing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Self

from scheduler.core.types import Request, Tenant

if TYPE_CHECKING:
    from scheduler.core.queue import ReadyQueue

Key = tuple[float, float]
Entry = tuple[float, float, int, Request]
"""A request's place in a queue: its key, its ticket and itself. Tickets are unique, so a comparison never
reaches the request. A heap is fast where entries are flat.
"""


class Policy:
    """The interface, and FIFO's behaviour as its default: one group, no turns, no charges."""

    kind: ClassVar[str]
    summary: ClassVar[str]
    lapses: ClassVar[bool] = False
    """Whether places can lapse; only then is ``lapsed`` asked."""

    @property
    def name(self) -> str:
        """As in lists and records, without parameters."""
        return self.kind

    def bind(self, tenants: Mapping[str, Tenant]) -> None:
        """Given once, before anything is enqueued: the tenants by name, a live view."""

    def key(self, request: Request) -> Key:
        """Place inside the group; asked once, at enqueue or swap, and again right after it has lapsed."""
        return request.arrival_s, 0.0

    def group(self, request: Request) -> str:
        """The queue it shares a turn with: "" (one group), the tier, or the tenant."""
        return ""

    def choose(self, heads: Mapping[str, Entry]) -> str:
        """The group that goes next, among those with a request that may run; O(groups).

        Asking changes nothing: the same answer until something is enqueued, dispatched or settled.
        """
        return min(heads, key=heads.__getitem__)

    def lapsed(self, entry: Entry, now: float) -> bool:
        """Whether this head has lost its place by ``now`` and needs another, which ``key`` may then find by
        this instant.
        """
        return False

    def on_backlogged(self, group: str) -> None:
        """``group`` went from idle to waiting."""

    def on_dispatch(self, request: Request, cost: float) -> None:
        """Take the turn and charge ``cost`` tokens; once per request."""

    def on_settle(self, request: Request, delta: float) -> None:
        """Correct the charge at the end: ``delta`` = actual - charged. Never a turn."""

    def restore(self, charged: Iterable[Request]) -> None:
        """After a swap: take over the charges of what was dispatched and has not ended; no turns."""

    def take(self, queue: ReadyQueue, n: int) -> Iterable[Request]:
        """Up to ``n`` requests to run together; each is charged before the next is chosen."""
        while n > 0 and (request := queue.pop()) is not None:
            n -= 1
            yield request

    def params(self) -> dict[str, float]:
        """Name -> value of everything that can be set."""
        return {name: getattr(self, name) for name in self.param_names()}

    @classmethod
    def param_names(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]

    def describe(self) -> str:
        """Name and parameters, in the form that ``policy_from`` reads: "aging rate=0.01"."""
        return " ".join((self.name, *(f"{key}={_shortest(value)}" for key, value in self.params().items())))

    def fresh(self) -> Self:
        """The same policy before its first request; it has to be bound again."""
        return dataclasses.replace(self)  # type: ignore[type-var]


def _shortest(value: float) -> str:
    """The shortest text that reads as just this number: "0.01", "2000"."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))
