"""What the twin says of requests that a real engine has answered, and how far that is from what was seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from statistics import fmean
from typing import Any

from scheduler.bench.burst import ReadyMade
from scheduler.bench.result import Claim
from scheduler.core.types import Request
from scheduler.plan import Plan
from scheduler.record.tally import Tally
from scheduler.twin.gpu import Gpu, GpuEvent
from scheduler.twin.profile import Profile
from scheduler.twin.simulate import Simulation

TOLERANCES = {
    "output_per_s": 0.03,
    "e2e_s.p50": 0.05,
    "e2e_s.p90": 0.05,
    "e2e_s.p99": 0.10,
    "ttft_s.p50": 0.10,
}
GAPS = 1.5  # times the gap between repeats of the real run are forgiven, where that is more


class Distant(Gpu[Request]):
    """A GPU that hears of a request some time after it was sent."""

    def __init__(self, profile: Profile, max_num_seqs: int, delay_s: float) -> None:
        super().__init__(profile, max_num_seqs, first_token_events=False)
        self._delay_s = delay_s
        self._coming: deque[tuple[float, Request, int, int]] = deque()

    def start(self, key: Request, prompt_tokens: int, output_tokens: int, group: Hashable = "") -> None:
        self._coming.append((self._now + self._delay_s, key, prompt_tokens, output_tokens))

    def next_event(self) -> float:
        event_s = super().next_event()
        return min(event_s, self._coming[0][0]) if self._coming else event_s

    def advance(self, now: float) -> list[GpuEvent[Request]]:
        events = super().advance(now)
        while self._coming and self._coming[0][0] <= now:
            super().start(*self._coming.popleft()[1:])
        return events


def predict(
    plan: Plan, requests: Iterable[Request], profile: Profile, capacity: int, delay_s: float
) -> dict[str, Any]:
    """Figures of run.json for these requests, of which only what came in and how long the answers were is
    looked at.
    """
    again = [_again(request) for request in requests]
    scheduler = plan.scheduler(capacity=capacity)
    tally = Tally()
    gpu = Distant(profile, plan.capacity, delay_s)
    Simulation(scheduler, [gpu], ReadyMade(again), on_ended=tally.add).run()
    return tally.figures(scheduler.books, tally.last_end_s)


def _again(request: Request) -> Request:
    """A fresh one whose answer gets as long, and ends in the same way."""
    tokens = request.output_tokens or request.forced_tokens
    return Request(
        *(request.id, request.tenant, request.tier, request.arrival_s),
        *(request.prompt_tokens, request.max_tokens, request.prompt, request.category),
        intended_tokens=tokens,
        forced_tokens=None if request.finish == "stop" else tokens,
    )


def compare(
    predicted: dict[str, Any], at_own_pace: Sequence[dict[str, Any]], observed: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """One row for each figure."""
    rows = []
    names = (
        "output_per_s",
        *(f"{kind}_s.{rank}" for kind in ("ttft", "tpot", "e2e") for rank in ("p50", "p90", "p99")),
    )
    for name in names:
        values = [_figure(document, name) for document in observed]
        ours, mean = _figure(predicted, name), fmean(values)
        gap = (max(values) - min(values)) / mean
        tolerance = TOLERANCES.get(name)
        rows.append(
            {
                "figure": name,
                "predicted": ours,
                "observed": mean,
                "error": ours / mean - 1.0,
                "error_at_own_pace": fmean(_figure(document, name) for document in at_own_pace) / mean - 1.0,
                "gap": gap,
                "tolerance": tolerance,
                "allowed": None if tolerance is None else max(tolerance, GAPS * gap),
            }
        )
    return rows


def claims(scenario: str, rows: Iterable[dict[str, Any]]) -> list[Claim]:
    """On the size of each error that has a tolerance."""
    return [
        Claim(
            f"{scenario}_{row['figure']}_error",
            row["allowed"],
            abs(row["error"]),
            abs(row["error"]) <= row["allowed"],
            row["tolerance"],
        )
        for row in rows
        if row["tolerance"] is not None
    ]


def _figure(document: dict[str, Any], name: str) -> float:
    if name == "output_per_s":
        return float(document["tokens"][name])
    kind, _, rank = name.partition("_s.")
    return float(document["latency_s"]["all"][kind][rank])
