"""Events as lines for people: the dashboard's event list and the progress on stderr."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scheduler.core.events import Event, Kind
from scheduler.live.view import Notice

_KEPT = 500


class Notices:
    """The last 500 notices. Texts may hold names out of files; who draws them cleans them."""

    def __init__(self) -> None:
        self._kept: deque[Notice] = deque(maxlen=_KEPT)
        self._seq = 0
        self.listeners: list[Callable[[Notice], None]] = []  # told of every notice at once

    def on_event(self, event: Event) -> None:
        """Most events are no news to an operator, those of a single request never."""
        if (line := _line(event)) is not None:
            kind, text, marker = line
            self.add(event.at_s, kind, text, marker=marker)

    def add(self, at_s: float, kind: str, text: str, *, marker: bool = False) -> None:
        self._seq += 1
        notice = Notice(self._seq, at_s, time.time(), kind, text, marker)
        self._kept.append(notice)
        for listen in self.listeners:
            listen(notice)

    def after(self, seq: int) -> Sequence[Notice]:
        """Those with a higher number, oldest first."""
        return [notice for notice in self._kept if notice.seq > seq]


def _line(event: Event) -> tuple[str, str, bool] | None:
    """(kind, text, marker) of an event worth a line."""
    detail = event.detail
    by = f" by {detail['by']}" if detail.get("by") else ""
    match event.kind:
        case Kind.SWITCHED:
            # In this order because a narrow screen cuts the end.
            ranked = f"{detail['queued']} queued re-ranked in {detail['took_ms']:.1f} ms"
            return "policy", f"{detail['from']} → {detail['to']}: {ranked}{by}", True
        case Kind.SCENARIO:
            return "scenario", str(detail["what"]) + by, True
        case Kind.ENGINE:
            return "engine", _engine(event), detail["what"] != "stopped"
        case Kind.PAUSED:
            return "pause", f"dispatch paused{by}", True
        case Kind.RESUMED:
            return "pause", f"dispatch resumed{by}", True
        case Kind.TENANT if "tier" in detail:
            return "tenant", f"{detail['tenant']} added: {detail['tier']}, weight {detail['weight']:g}", False
        case Kind.TENANT:
            return "tenant", f"{detail['tenant']}: {_changed(detail)}{by}", False
        case Kind.LIMITS:
            return "limits", f"overall limits set{by}", False
        case Kind.ESTIMATOR:
            return "policy", f"estimator {detail['to']}{by}", True
        case Kind.DRIFT:
            before, after = detail["before"], detail["after"]
            ratios = f"actual/uncorrected {before:.2f} → {after:.2f}"
            return "drift", f"{detail['tenant']}: answers ×{after / before:.2f} ({ratios})", False
        case Kind.UNSERVED:
            return "limits", f"{detail['tenant']}: {_unserved(detail)}", False
        case Kind.SLO:
            again = f" again; {detail['worst']:.0%} at worst" if "worst" in detail else ""
            return (
                "slo",
                f"{detail['tenant']}: {detail['share']:.0%} of requests meet their SLO{again}",
                False,
            )
        case _:
            return None


def _changed(detail: Mapping[str, Any]) -> str:
    """What is new of a tenant, in the words of scenario files."""
    told = []
    for name, value in detail["changed"].items():
        key, unit = name.removesuffix("_s"), "s" if name.endswith("_s") else ""
        told.append(f"no {key}" if value is None else f"{key} {value:.10g}{unit}")
    return ", ".join(told) or "nothing changed"


def _unserved(detail: Mapping[str, Any]) -> str:
    rejected = detail["what"] == "rejected"
    if "requests" in detail:
        told = f"{detail['requests']} in {detail['over_s']:.0f} s"
        return f"no more requests {'are rejected' if rejected else 'expire'}; {told}"
    return f"requests are rejected ({detail['reason']})" if rejected else "requests expire in the queue"


def _engine(event: Event) -> str:
    detail = event.detail
    match detail["what"]:
        case "crashed":
            requests = "request" if detail["lost"] == 1 else "requests"
            return f"engine lost with {detail['lost']} {requests} in flight"
        case "restarted":
            return f"engine is back after {detail['away_s']:.1f} s"
        case "dead":
            return f"engine stopped for good: {detail['why']}"
        case what:
            return f"engine {what}"
