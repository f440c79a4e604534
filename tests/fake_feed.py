"""A scripted run for the dashboard's tests: deterministic, lively, and it records every command it gets.

Run as a program it opens the dashboard on itself, in real time.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from scheduler.core.metrics import NO_PERCENTILES
from scheduler.core.policies import policy_from
from scheduler.core.types import Limits, Percentiles, Slo, Snapshot, TenantSnapshot
from scheduler.engines.engine import EngineTelemetry
from scheduler.live.view import CommandError, Health, Notice, Predicted, Preview, View

STEP_S = 0.25
CAPACITY = 32
SLO = Slo(ttft_s=4.0, e2e_s=20.0)
LIMITS = Limits(max_queued=500)
EPOCH = 1_795_300_000.0  # wall clock at run time 0
POLICIES = {
    "fifo": "arrival order",
    "priority": "premium, then standard, then batch; arrival order inside",
    "weighted": "ten turns: five premium, three standard, two batch",
    "sjf": "smallest token budget first",
    "aging": "tier rank less 0.01 for each second waited",
}
SCENARIOS = {
    "demo": "two minutes, three tenants, a burst, a drift shock",
    "noisy-neighbour": "one tenant floods, the others should not notice",
    "overload": "twice what the engine can serve",
}
EIGHT = (
    ("acme-chat", "premium", 4.0, 1.6, 1.04),
    ("globex-batch", "batch", 1.0, 2.4, 2.19),
    ("initech-rag", "premium", 2.0, 2.0, 0.82),
    ("umbrella", "standard", 1.0, 1.2, 1.10),
    ("hooli-code", "standard", 2.0, 2.2, 1.33),
    ("stark-agents", "standard", 2.0, 0.9, 0.96),
    ("wayne-eval", "batch", 1.0, 0.8, 1.03),
    ("soylent", "standard", 4.0, 1.1, 1.22),
)


@dataclass
class Lane:
    """One tenant's made-up state."""

    name: str
    tier: str
    weight: float
    rate: float  # arrivals per second
    true_drift: float
    limits: Limits = LIMITS
    slo: Slo = SLO
    queued: float = 0.0
    running: float = 0.0
    submitted: int = 0
    finished: int = 0
    bias: float = 1.0
    drift: float = math.nan
    burst: list[tuple[float, float]] = field(default_factory=list)  # rate, until


def latency(mean_s: float) -> Percentiles:
    return Percentiles(0.7 * mean_s, 1.5 * mean_s, 1.9 * mean_s, 2.6 * mean_s, mean_s, 3.0 * mean_s)


class FakeFeed:
    """Implements ``Feed``. Time moves by ``advance``, or with the wall clock when ``live``."""

    def __init__(
        self, tenants: Sequence[tuple[str, str, float, float, float]] = EIGHT, *, live: bool = False
    ) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.lanes = [Lane(*tenant) for tenant in tenants]
        self.now = 0.0
        self.policy = "fifo"
        self.policies_before: list[str] = []
        self.since = 0.0
        self.paused = False
        self.changes: dict[str, Any] = {}  # fields of the View to override
        self.asked: list[tuple[str, ...]] = []  # previews
        self.refuse = ""  # when set, every verb is refused with this
        self.breaks_at = math.inf  # from this instant on, ``view`` raises
        self._notices: list[Notice] = []
        self._random = random.Random(7)
        self._live = live
        self._last_s = time.monotonic()
        self.notice("record", "runs/2026-11-21-120351")
        self.notice("scenario", "demo started", marker=True)

    # What the dashboard sees

    def view(self) -> View:
        if self._live:
            steps = int((time.monotonic() - self._last_s) / STEP_S)
            self._last_s += steps * STEP_S
            self.advance(steps * STEP_S)
        if self.now >= self.breaks_at:
            raise RuntimeError("broken \x1b[31mfeed")
        mean_s = self._wait_s() + 1.2
        in_flight = round(sum(lane.running for lane in self.lanes))
        finished = sum(lane.finished for lane in self.lanes)
        snapshot = Snapshot(
            now=self.now,
            policy=self.policy,
            policy_since_s=self.since,
            swap=None,
            paused=self.paused,
            capacity=CAPACITY,
            queued=round(sum(lane.queued for lane in self.lanes)),
            in_flight=in_flight,
            tenants=tuple(self._tenant(lane) for lane in self.lanes),
            ttft=latency(mean_s - 0.8),
            e2e=latency(mean_s),
            queue_wait=latency(mean_s - 1.0),
            drift_ratio=1.1,
            tokens_per_s=131.0 * in_flight,
            counts={
                "submitted": sum(lane.submitted for lane in self.lanes),
                "finished": finished,
                "rejected": 0,
                "expired": 0,
                "failed": 0,
            },
        )
        view = View(
            snapshot=snapshot,
            engine=EngineTelemetry(running=in_flight, waiting=0, kv_use=0.18 + 0.43 * in_flight / CAPACITY),
            engine_kind="sim",
            engine_detail="simulated NVIDIA L4, Qwen1.5-1.8B-Chat",
            engine_state="ready",
            simulated=True,
            speed=1.0,
            scenario="demo",
            scenario_elapsed_s=min(self.now, 120.0),
            scenario_total_s=120.0,
            scenario_done=self.now >= 120.0,
            recording="runs/2026-11-21-120351",
            recorded_bytes=int(17_500 * self.now),
            loop_lag_p99_ms=1.4,
            health=Health(cpu_share=0.41, memory_share=0.38, steal_share=0.0, pressure_some=0.06),
            estimator="tenant (mean)",
        )
        return replace(view, **self.changes)

    def notices(self, after: int = 0) -> Sequence[Notice]:
        return self._notices[after:]

    def policies(self) -> Mapping[str, str]:
        return POLICIES

    def scenarios(self) -> Mapping[str, str]:
        return SCENARIOS

    # What it asks

    def _called(self, *call: Any) -> None:
        if self.refuse:
            raise CommandError(self.refuse)
        self.calls.append(call)

    def switch_policy(self, spec: str, by: str = "operator") -> None:
        self._called("switch_policy", spec)
        queued = round(sum(lane.queued for lane in self.lanes))
        text = f"{self.policy} → {spec}: {queued} queued re-ranked in 3.0 ms by {by}"
        self.notice("policy", text, marker=True)
        self.policies_before.append(self.policy)
        self.policy, self.since = spec, self.now

    def preview(self, specs: Sequence[str] = ()) -> None:
        if self.refuse:
            raise CommandError(self.refuse)
        self.asked.append(tuple(specs))

    def previewed(self) -> Preview | None:
        """Every policy is a little faster than the one before it, and batch pays for it."""
        names = dict.fromkeys([self.policy, *(policy_from(name).describe() for name in POLICIES)])
        return Preview(
            self.now,
            120.0,
            self.policy,
            {
                name: Predicted(
                    figures := {
                        "e2e.p50": 12.0 - place,
                        "e2e.p99": 80.0 + 9 * place,
                        "tiers.premium.e2e.p99": 70.0 - 3 * place,
                        "longest_wait_s": 75.0 + 9 * place,
                    },
                    {figure: 0.9 * value for figure, value in figures.items()},
                    {figure: 1.2 * value for figure, value in figures.items()},
                    ("globex-batch", "wayne-eval") if place else (),
                )
                for place, name in enumerate(names)
            },
            done=True,
        )

    def undo_policy(self, by: str = "operator") -> None:
        self._called("undo_policy")
        if not self.policies_before:
            raise CommandError("nothing to undo: the policy has not been switched in this run")
        self.policy, self.since = self.policies_before.pop(), self.now

    def switch_estimator(self, kind: str, by: str = "operator") -> None:
        self._called("switch_estimator", kind)
        self.notice("policy", f"estimator {kind} by {by}", marker=True)

    def inject(self, scenario: str, by: str = "operator") -> None:
        self._called("inject", scenario)
        self.notice("scenario", f"{scenario} injected by {by}", marker=True)

    def burst(self, tenant: str, rate: float, seconds: float, by: str = "operator") -> None:
        self._called("burst", tenant, rate, seconds)
        lane = next(lane for lane in self.lanes if lane.name == tenant)
        lane.burst.append((rate, self.now + seconds))
        self.notice("scenario", f"burst: {tenant} +{rate:g} requests/s for {seconds:g} s", marker=True)

    def stop_loads(self, by: str = "operator") -> None:
        self._called("stop_loads")
        self.notice("scenario", "loads stopped", marker=True)

    def pause(self, by: str = "operator") -> None:
        self._called("pause")
        self.paused = True

    def resume(self, by: str = "operator") -> None:
        self._called("resume")
        self.paused = False

    def set_tenant(
        self, name: str, *, weight: float | None = None, limits: Limits | None = None, by: str = "operator"
    ) -> None:
        self._called("set_tenant", name, weight, limits)
        lane = next(lane for lane in self.lanes if lane.name == name)
        lane.weight = lane.weight if weight is None else weight
        lane.limits = lane.limits if limits is None else limits

    # How it moves

    def notice(self, kind: str, text: str, *, marker: bool = False) -> None:
        self._notices.append(Notice(len(self._notices) + 1, self.now, EPOCH + self.now, kind, text, marker))

    def advance(self, seconds: float) -> None:
        """Let the run go on for so long, in whole steps of ``STEP_S``."""
        for _ in range(int(seconds / STEP_S + 1e-9)):
            self._step()

    def _wait_s(self) -> float:
        return sum(lane.queued for lane in self.lanes) / 14.0

    def _step(self) -> None:
        self.now = round(self.now + STEP_S, 6)
        if self.now == 30.0 and len(self.lanes) > 1:
            self.lanes[1].burst.append((12.0, 48.0))
            self.notice("scenario", f"burst: {self.lanes[1].name} +12 requests/s for 18 s", marker=True)
        if self.now == 42.0 and len(self.lanes) > 1:
            self.notice("drift", f"{self.lanes[1].name} actual/estimated ×2.35 for 10 s (240, 564 tokens)")
        if self.now == 46.0 and len(self.lanes) > 4:
            self.notice("slo", f"{self.lanes[4].name} p99 5.1 s > 4 s")
        for lane in self.lanes:
            lane.burst = [(rate, until) for rate, until in lane.burst if until > self.now]
            rate = lane.rate + sum(rate for rate, _ in lane.burst)
            arrivals = sum(self._random.random() < rate * STEP_S / 8 for _ in range(8))
            lane.submitted += arrivals
            lane.queued += arrivals
            done = min(lane.running, lane.running * STEP_S / 2.2)
            lane.running -= done
            lane.finished = int(lane.finished + done + self._random.random())
            if lane.finished > 3:
                noise = self._random.gauss(0.0, 0.03)
                wave = 0.12 * math.sin(self.now / 9 + len(lane.name))
                lane.drift = lane.true_drift / lane.bias + wave + noise
                lane.bias += 0.006 * (lane.true_drift - lane.bias)
        if not self.paused:
            free = CAPACITY - sum(lane.running for lane in self.lanes)
            waiting = sum(lane.queued for lane in self.lanes)
            for lane in self.lanes:
                taken = min(lane.queued, free * lane.queued / waiting) if waiting else 0.0
                lane.queued -= taken
                lane.running += taken

    def _tenant(self, lane: Lane) -> TenantSnapshot:
        running = sum(other.running for other in self.lanes) or 1.0
        wait_s = self._wait_s() * (0.6 if lane.tier == "premium" else 1.3)
        seen = lane.finished > 0
        estimated = 120.0 + 30 * len(lane.name)
        return TenantSnapshot(
            name=lane.name,
            tier=lane.tier,
            weight=lane.weight,
            limits=lane.limits,
            slo=lane.slo,
            queued=round(lane.queued),
            queued_tokens=300.0 * lane.queued,
            in_flight=round(lane.running),
            submitted=lane.submitted,
            finished=lane.finished,
            ended_otherwise=0,
            share=lane.running / running,
            tokens_per_s=131.0 * lane.running,
            ttft=latency(wait_s + 0.4) if seen else NO_PERCENTILES,
            e2e=latency(wait_s + 1.2) if seen else NO_PERCENTILES,
            slo_share=max(0.0, 1.0 - wait_s / 30) if seen else math.nan,
            estimated_tokens=estimated,
            actual_tokens=estimated * lane.drift,
            drift_ratio=lane.drift,
            capped_share=0.1,
            bias=lane.bias,
            converged=abs(lane.bias - lane.true_drift) < 0.05,
            oldest_wait_s=wait_s if lane.queued >= 1 else 0.0,
            coverage=0.88 + 0.01 * (len(lane.name) % 5) if seen else math.nan,
        )


def many(count: int) -> list[tuple[str, str, float, float, float]]:
    """So many tenants with small loads."""
    tiers = ("premium", "standard", "batch")
    return [
        (f"tenant-{i:02}", tiers[i % 3], 1.0 + i % 4, 12 / count, 0.7 + 0.1 * (i % 9)) for i in range(count)
    ]


async def _drained(hurried: asyncio.Event) -> None:
    """Takes a while, unless it is hurried."""
    with suppress(TimeoutError):
        await asyncio.wait_for(hurried.wait(), 2.0)


def main() -> int:
    """Open the dashboard on a run of its own; an argument is the log file that takes what others print."""
    from driftui.app import run_dashboard
    from driftui.terminal import own_terminal

    log = own_terminal(Path(sys.argv[1])) if len(sys.argv) > 1 else nullcontext()
    with log:
        feed = FakeFeed(live=True)
        feed.advance(5.0)
        if "--break" in sys.argv:
            feed.breaks_at = feed.now + 1.0
        hurried = asyncio.Event()
        return asyncio.run(run_dashboard(feed, on_quit=partial(_drained, hurried), on_hurry=hurried.set))


if __name__ == "__main__":
    sys.exit(main())
