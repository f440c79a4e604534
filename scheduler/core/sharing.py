"""Sharing rules: whose turn it is. What goes first inside a group is left to an ordering, ``inside``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf, isfinite
from random import Random
from typing import ClassVar, Self

from scheduler.core.orderings import Fifo
from scheduler.core.policy import Entry, Key, Policy
from scheduler.core.types import TIER_RANK, Request, Tenant


@dataclass(slots=True)
class Sharing(Policy):
    """A rule over groups, and the ordering inside each of them; one ordering for all, so that a size is
    short or long by what everybody asks for.
    """

    inside: Policy = field(default_factory=Fifo)
    tenants: Mapping[str, Tenant] = field(default_factory=dict, init=False, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.kind if type(self.inside) is Fifo else f"{self.kind}+{self.inside.name}"

    def bind(self, tenants: Mapping[str, Tenant]) -> None:
        self.tenants = tenants
        self.inside.bind(tenants)

    @property
    def lapses(self) -> bool:  # type: ignore[override]
        return self.inside.lapses

    @property
    def key(self) -> Callable[[Request], Key]:
        return self.inside.key

    def lapsed(self, entry: Entry, now: float) -> bool:
        return self.inside.lapsed(entry, now)

    @classmethod
    def param_names(cls) -> list[str]:
        return [field.name for field in dataclasses.fields(cls) if field.init and field.name != "inside"]

    def params(self) -> dict[str, float]:
        return {**Policy.params(self), **self.inside.params()}

    def fresh(self) -> Self:
        return dataclasses.replace(self, inside=self.inside.fresh())


@dataclass(slots=True)
class StrictTiers(Sharing):
    """``priority`` with an ordering of its own inside each tier."""

    kind: ClassVar[str] = "priority"
    summary: ClassVar[str] = "premium before standard before batch"

    def group(self, request: Request) -> str:
        return request.tier

    def choose(self, heads: Mapping[str, Entry]) -> str:
        return min(heads, key=TIER_RANK.__getitem__)


TURNS = ("premium",) * 5 + ("standard",) * 3 + ("batch",) * 2
_TURNS_FROM = [TURNS[turn:] + TURNS[:turn] for turn in range(len(TURNS))]


@dataclass(slots=True)
class Weighted(Sharing):
    """A cycle of ten turns, PPPPPSSSBB; the pointer advances past empty tiers."""

    kind: ClassVar[str] = "weighted"
    summary: ClassVar[str] = "ten turns: five premium, three standard, two batch; empty tiers are skipped"
    turn: int = field(default=0, init=False)

    def group(self, request: Request) -> str:
        return request.tier

    def choose(self, heads: Mapping[str, Entry]) -> str:
        return next(filter(heads.__contains__, _TURNS_FROM[self.turn]))

    def on_dispatch(self, request: Request, cost: float) -> None:
        skipped = _TURNS_FROM[self.turn].index(request.tier)
        self.turn = (self.turn + skipped + 1) % len(TURNS)


@dataclass(slots=True)
class Fair(Sharing):
    """Tokens served are shared by weight: each tenant has a counter of tokens / weight, the lowest goes next.

    The estimated cost is charged at dispatch and corrected at the end. Who was idle saved little up: its
    counter is lifted to ``credit`` below the ``floor``, the highest with which anybody was served so far, as
    it stood before the charge. The credit lets those who stay within their share have their bursts while
    somebody floods.
    """

    kind: ClassVar[str] = "fair"
    summary: ClassVar[str] = "tokens by tenant weight: who was served least goes next"
    credit: float = 2000.0  # tokens by weight
    counters: dict[str, float] = field(default_factory=dict, init=False, compare=False, repr=False)
    floor: float = field(default=0.0, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.credit < inf:
            raise ValueError(f"credit: {self.credit!r} is not allowed; tokens by weight, 0 or more")

    def group(self, request: Request) -> str:
        return request.tenant

    def choose(self, heads: Mapping[str, Entry]) -> str:
        counters = self.counters
        return min(heads, key=lambda name: (counters[name], heads[name]))

    def on_backlogged(self, group: str) -> None:
        self.counters[group] = max(self.counters.get(group, 0.0), self.floor - self.credit)

    def on_dispatch(self, request: Request, cost: float) -> None:
        self.floor = max(self.floor, self.counters.get(request.tenant, 0.0))
        self._charge(request, cost)

    def on_settle(self, request: Request, delta: float) -> None:
        self._charge(request, delta)

    def restore(self, charged: Iterable[Request]) -> None:
        for request in charged:
            self._charge(request, request.charged)

    def _charge(self, request: Request, tokens: float) -> None:
        name = request.tenant
        self.counters[name] = self.counters.get(name, 0.0) + tokens / self.tenants[name].weight


@dataclass(slots=True)
class Lottery(Sharing):
    """Each dispatch is drawn among the tenants that wait, by weight: shares of turns, not of tokens.

    The next draw is made at dispatch, so that looking ahead sees what will be popped.
    """

    kind: ClassVar[str] = "lottery"
    summary: ClassVar[str] = "drawn by tenant weight, again for each dispatch"
    seed: float = 0
    rng: Random = field(init=False, compare=False, repr=False)
    draw: float = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isfinite(self.seed):
            raise ValueError(f"seed: {self.seed} is not allowed; any finite number")
        self.rng = Random(self.seed)
        self.draw = self.rng.random()

    def group(self, request: Request) -> str:
        return request.tenant

    def choose(self, heads: Mapping[str, Entry]) -> str:
        names = sorted(heads)
        sums = list(accumulate(self.tenants[name].weight for name in names))
        ticket = self.draw * sums[-1]
        return next(name for name, bound in zip(names, sums, strict=True) if ticket < bound)

    def on_dispatch(self, request: Request, cost: float) -> None:
        self.draw = self.rng.random()
