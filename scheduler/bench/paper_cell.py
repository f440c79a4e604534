"""One run of the paper's experiment in virtual time, boiled down to the figures that its claims are about."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scheduler.core.metrics import percentiles
from scheduler.core.types import CATEGORIES, RUNTIME_CLASSES, TIERS, Request
from scheduler.load.scenario import Scenario, load_scenario
from scheduler.load.schema import Dispatch, PolicySection
from scheduler.load.stream import Lengths
from scheduler.plan import make_plan
from scheduler.record.tally import mae_rmse
from scheduler.virtual import VirtualRun

STRESS = "stress"  # the stream whose latencies count: the policy has nothing to decide before it


class Cell(NamedTuple):
    """One run."""

    dispatch: str  # static (the paper's micro-batches) or continuous
    policy: str
    counter: str  # whitespace or tokenizer
    calibrate: bool
    seed: int
    faithful: bool
    gpu: str = "l4"
    lengths: str = "near"
    scale: float = 1.0  # of the number of requests, for tests

    @property
    def folder(self) -> str:
        feedback = "calibrated" if self.calibrate else "uncalibrated"
        return f"{self.dispatch}-{self.policy}-{self.counter}-{feedback}-seed{self.seed}"


def scenario_of(cell: Cell) -> Scenario:
    """The shipped scenario ``paper`` with the cell's changes."""
    base = load_scenario("paper")
    load = tuple(
        stream.model_copy(
            update={
                "lengths": Lengths.model_validate({"profile": cell.lengths}),
                "count": max(1, round((stream.count or 0) * cell.scale)),
            }
        )
        for stream in base.load
    )
    tokenizer = "smollm2" if cell.counter == "tokenizer" else None
    estimator = base.estimator.model_copy(update={"counter": cell.counter, "calibrate": cell.calibrate})
    return base.model_copy(
        update={
            "engine": base.engine.model_copy(update={"gpu": cell.gpu, "tokenizer": tokenizer}),
            "dispatch": base.dispatch if cell.dispatch == "static" else Dispatch(),
            "policy": PolicySection(spec=cell.policy),
            "estimator": estimator,
            "paper": cell.faithful,
            "load": load,
            "seed": cell.seed,
            "expect": (),
        }
    )


def run_cell(cell: Cell, out: Path | None = None) -> dict[str, Any]:
    """Run it; the figures are of the stress phase where they are latencies, of all requests elsewhere."""
    done: list[Request] = []
    words = ["bench", "paper", *(["--paper-faithful"] if cell.faithful else [])]
    plan = make_plan(scenario_of(cell), clock="virtual", invocation=words)
    folder = None if out is None else out / cell.folder
    document = VirtualRun(plan, out=folder, on_ended=done.append).run()
    stress = [r for r in done if r.submitted_by == STRESS]
    e2e = percentiles(_ended(r) - r.arrival_s for r in stress)
    actual = np.array([r.output_tokens for r in done], dtype=float)
    mae, rmse = mae_rmse(actual - _estimates(done, cell.faithful, corrected=True))
    uncorrected = mae_rmse(actual - _estimates(done, cell.faithful, corrected=False))
    return {
        "p50_s": e2e.p50,
        "p99_s": e2e.p99,
        "tier_p50_s": {
            tier: percentiles(_ended(r) - r.arrival_s for r in stress if r.tier == tier).p50 for tier in TIERS
        },
        "drain_s": max(map(_ended, stress)) - min(r.arrival_s for r in stress),
        "slot_use": slot_use(stress),
        "mae": mae,
        "rmse": rmse,
        "uncorrected_mae": uncorrected[0],
        "uncorrected_rmse": uncorrected[1],
        "class_accuracy": document["estimate"]["class_accuracy"],
        "confusion": [
            [document["estimate"]["class_confusion"][row][column] for column in RUNTIME_CLASSES]
            for row in RUNTIME_CLASSES
        ],
        "bias": document["estimate"]["bias"],
        "bias_wobble": _wobble(done),
        **_queue(stress),
    }


def _ended(request: Request) -> float:
    assert request.ended_s is not None
    return request.ended_s


def _estimates(done: Iterable[Request], faithful: bool, *, corrected: bool) -> Any:
    """Estimated output tokens; the paper's may exceed max_tokens, which no answer can."""
    pairs = ((r.estimate.point if corrected else r.estimate.uncorrected, r.max_tokens) for r in done)
    return np.array([point if faithful else min(point, cap) for point, cap in pairs])


def slot_use(requests: Iterable[Request]) -> float | None:
    """Share of a micro-batch's slots that are at work: tokens / (size x longest), over all batches.

    None where requests are dispatched one by one.
    """
    batches: dict[int, list[int]] = {}
    for request in requests:
        if request.batch_id >= 0:
            batches.setdefault(request.batch_id, []).append(request.output_tokens)
    held = sum(len(tokens) * max(tokens) for tokens in batches.values())
    return sum(map(sum, batches.values())) / held if held else None


def _wobble(done: list[Request]) -> float:
    """Standard deviation of the learned bias over the last half of a category's completions; their mean."""
    spreads = []
    for category in CATEGORIES:
        biases = [r.bias_after for r in done if r.estimate.category == category]
        if biases:
            spreads.append(float(np.std(biases[len(biases) // 2 :])))
    return float(np.mean(spreads))


def _queue(stress: list[Request]) -> dict[str, float]:
    """Peak of the queue, and how much it changes from one second to the next, in requests."""
    arrivals = np.sort([r.arrival_s for r in stress])
    starts = np.sort([r.dispatched_s if r.dispatched_s is not None else _ended(r) for r in stress])
    seconds = np.arange(arrivals[0], starts[-1] + 1.0)
    depth = np.searchsorted(arrivals, seconds, "right") - np.searchsorted(starts, seconds, "right")
    return {
        "queue_peak": float(depth.max()),
        "queue_change": float(np.abs(np.diff(depth)).mean()) if len(depth) > 1 else 0.0,
    }
