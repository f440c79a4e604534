"""Scheduling policies: an ordering (the key) and a sharing rule (groups, turns, charges).

A stored key never changes with time, so no heap is ever re-sorted. Keys are numbers or flat tuples of
numbers, smaller first; ties go to the earlier enqueueing. To add a policy, write its few lines here and
name it in ``_POLICIES``; the conformance suite then runs over it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar

from scheduler.core.types import TIER_RANK, Request

if TYPE_CHECKING:
    from scheduler.core.queue import ReadyQueue

Key = float | tuple[float, ...]


class Policy:
    """The interface, and FIFO's behaviour as its default: one group, no turns, no charges."""

    name: ClassVar[str]
    summary: ClassVar[str]

    def key(self, request: Request) -> Key:
        """Place inside the group; asked once, at enqueue or swap."""
        return request.arrival_s

    def group(self, request: Request) -> str:
        """The queue it shares a turn with: "" (one group), the tier, or the tenant."""
        return ""

    def choose(self, heads: Mapping[str, tuple[Any, ...]]) -> str:
        """The group that goes next, among those with a request that may run; O(groups)."""
        return min(heads, key=heads.__getitem__)

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

    def describe(self) -> str:
        """Name and parameters, in the form that ``policy_from`` reads: "aging rate=0.01"."""
        params = (f"{key}={value:g}" for key, value in _params(self).items())
        return " ".join((self.name, *params))


@dataclass(slots=True)
class Fifo(Policy):
    """Oldest arrival over all tiers."""

    name: ClassVar[str] = "fifo"
    summary: ClassVar[str] = "oldest arrival first, over all tenants"


@dataclass(slots=True)
class Priority(Policy):
    """Strict premium > standard > batch, FIFO inside."""

    name: ClassVar[str] = "priority"
    summary: ClassVar[str] = "premium before standard before batch, oldest first inside"

    def key(self, request: Request) -> Key:
        return (TIER_RANK[request.tier], request.arrival_s)


@dataclass(slots=True)
class Sjf(Policy):
    """Smallest total token budget over all tiers, ties by arrival."""

    name: ClassVar[str] = "sjf"
    summary: ClassVar[str] = "shortest job first: smallest estimated token budget"

    def key(self, request: Request) -> Key:
        estimate = request.estimate
        return (estimate.input_tokens + estimate.point, request.arrival_s)


@dataclass(slots=True)
class Aging(Policy):
    """Lowest tier rank - rate x seconds waited (PAPER: 0.01), as the static key arrival + rank / rate.

    All scores fall at the same rate, so their order never changes: dividing by the rate and dropping the
    common -now leaves a key fixed at arrival. Rate 0 is strict priority.
    """

    name: ClassVar[str] = "aging"
    summary: ClassVar[str] = "tier rank minus rate x seconds waited, lowest first"
    rate: float = 0.01

    def __post_init__(self) -> None:
        if not (isfinite(self.rate) and self.rate >= 0):
            raise ValueError(
                f"rate: {self.rate} is not allowed; a number of tier ranks per second, 0 or more"
            )

    def key(self, request: Request) -> Key:
        rank = TIER_RANK[request.tier]
        if self.rate == 0:
            return (rank, request.arrival_s)
        return (request.arrival_s + rank / self.rate, request.arrival_s)


TURNS = ("premium",) * 5 + ("standard",) * 3 + ("batch",) * 2


@dataclass(slots=True)
class Weighted(Policy):
    """A cycle of ten turns, PPPPPSSSBB; the pointer advances past empty tiers; FIFO inside."""

    name: ClassVar[str] = "weighted"
    summary: ClassVar[str] = "ten turns: five premium, three standard, two batch; empty tiers are skipped"
    turn: int = dataclasses.field(default=0, init=False)

    def group(self, request: Request) -> str:
        return request.tier

    def _next_turn(self, allowed: Iterable[str]) -> int:
        return next(
            at for at in range(self.turn, self.turn + len(TURNS)) if TURNS[at % len(TURNS)] in allowed
        )

    def choose(self, heads: Mapping[str, tuple[Any, ...]]) -> str:
        return TURNS[self._next_turn(heads) % len(TURNS)]

    def on_dispatch(self, request: Request, cost: float) -> None:
        self.turn = (self._next_turn((request.tier,)) + 1) % len(TURNS)


_POLICIES: Mapping[str, type[Policy]] = {p.name: p for p in (Fifo, Priority, Weighted, Sjf, Aging)}

POLICIES: Mapping[str, str] = {name: policy.summary for name, policy in _POLICIES.items()}
"""Name -> one line that says what it does."""


def _params(policy: Policy) -> dict[str, float]:
    return {f.name: getattr(policy, f.name) for f in dataclasses.fields(policy) if f.init}  # type: ignore[arg-type]


def policy_from(spec: str | Mapping[str, Any]) -> Policy:
    """A fresh policy from "sjf", "aging rate=0.05" or {"name": "aging", "rate": 0.05}.

    Raises ValueError that says what is wrong and what is allowed.
    """
    given = _parse(spec) if isinstance(spec, str) else dict(spec)
    name = given.pop("name", None)
    kind = _POLICIES.get(name) if isinstance(name, str) else None
    if kind is None:
        near = difflib.get_close_matches(str(name), _POLICIES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown policy {name!r}; allowed: {', '.join(_POLICIES)}{hint}")
    allowed = [f.name for f in dataclasses.fields(kind) if f.init]  # type: ignore[arg-type]
    for key, value in given.items():
        if key not in allowed:
            takes = f"takes {', '.join(allowed)}" if allowed else "takes no parameters"
            raise ValueError(f"policy {name}: unknown parameter {key!r}; it {takes}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"policy {name}: {key} must be a number, not {value!r}")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"policy {name}: {error}") from None


def _parse(text: str) -> dict[str, Any]:
    name, *pairs = text.split() or [""]
    given: dict[str, Any] = {"name": name}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            given[key] = float(value)
        except ValueError:
            raise ValueError(f"policy {name}: {pair!r} is not of the form parameter=number") from None
    return given
