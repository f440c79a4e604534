"""The named policies: orderings, sharing rules, and a sharing rule with an ordering inside ("fair+sjf").

To add a policy, write its few lines in ``orderings`` or ``sharing`` and name it here; the conformance suite
then runs over it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from scheduler.core.orderings import AgedSjf, Aging, Edf, Fifo, Packed, Priority, Sjf, ThreeClass, TwoClass
from scheduler.core.policy import Policy
from scheduler.core.sharing import Fair, Lottery, Sharing, StrictTiers, Weighted
from scheduler.core.text import hint

__all__ = ["INSIDE", "PAPER_POLICIES", "POLICIES", "SHARING", "Policy", "policy_from"]

_ALONE: Mapping[str, type[Policy]] = {
    policy.kind: policy
    for policy in (
        *(Fifo, Priority, Weighted, Sjf, Aging),
        *(TwoClass, ThreeClass, AgedSjf, Fair, Edf, Lottery, Packed),
    )
}
SHARING: Mapping[str, type[Sharing]] = {rule.kind: rule for rule in (Fair, StrictTiers, Weighted, Lottery)}
INSIDE: Mapping[str, type[Policy]] = {
    ordering.kind: ordering for ordering in (Fifo, Sjf, TwoClass, ThreeClass, AgedSjf, Edf)
}
"""Orderings that a sharing rule takes; without one it is ``fifo``."""

PAPER_POLICIES = ("fifo", "priority", "weighted", "sjf", "aging")
"""Those of the paper (arXiv 2606.02982)."""

_SUGGESTED = ("fair+two-class", "fair+sjf", "priority+two-class")


def _summary(name: str) -> str:
    rule, _, ordering = name.partition("+")
    return f"{SHARING[rule].summary}; inside, {INSIDE[ordering].summary}"


POLICIES: Mapping[str, str] = {name: policy.summary for name, policy in _ALONE.items()} | {
    name: _summary(name) for name in _SUGGESTED
}
"""Name -> one line that says what it does. Every other combination SHARING+INSIDE is allowed, too."""


def policy_from(spec: str | Mapping[str, Any]) -> Policy:
    """A fresh policy from "sjf", "fair+two-class q=0.4" or {"name": "aging", "rate": 0.05}.

    Raises ValueError that says what is wrong and what is allowed.
    """
    given = _parse(spec) if isinstance(spec, str) else dict(spec)
    name = given.pop("name", None)
    kinds = _kinds(name)
    allowed = [param for kind in kinds for param in kind.param_names()]
    for key, value in given.items():
        if key not in allowed:
            takes = f"takes {', '.join(allowed)}" if allowed else "takes no parameters"
            raise ValueError(f"policy {name}: unknown parameter {key!r}; it {takes}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"policy {name}: {key} must be a number, not {value!r}")
    try:
        outer, *inner = (
            {key: value for key, value in given.items() if key in kind.param_names()} for kind in kinds
        )
        return kinds[0](**outer, **({"inside": kinds[1](**inner[0])} if inner else {}))
    except ValueError as error:
        raise ValueError(f"policy {name}: {error}") from None


def _kinds(name: object) -> tuple[type[Policy], ...]:
    """One class, or a sharing rule and an ordering. Raises ValueError."""
    if isinstance(name, str):
        if name in _ALONE:
            return (_ALONE[name],)
        rule, _, ordering = name.partition("+")
        if rule in SHARING and ordering in INSIDE:
            return (SHARING[rule], INSIDE[ordering])
    combined = f"or one of {', '.join(SHARING)} + one of {', '.join(INSIDE)}"
    raise ValueError(
        f"unknown policy {name!r}; allowed: {', '.join(_ALONE)}, {combined}{hint(name, POLICIES)}"
    )


def _parse(text: str) -> dict[str, Any]:
    name, *pairs = re.sub(r"\s*\+\s*", "+", text).split() or [""]  # "fair + sjf", too
    given: dict[str, Any] = {"name": name}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key in given:
            raise ValueError(f"policy {name}: {key} is given twice")
        try:
            given[key] = float(value)
        except ValueError:
            raise ValueError(f"policy {name}: {pair!r} is not of the form parameter=number") from None
    return given
