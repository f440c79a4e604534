"""``driftsched bench paper``: the paper's whole matrix in virtual time, with the spread that it did not give.

Everything here is simulated; the step model and its provenance are in ``twin/profiles``.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from scheduler.bench.paper_cell import Cell, run_cell
from scheduler.bench.result import Claim, Result
from scheduler.core.estimate import PaperEstimator
from scheduler.core.policies import PAPER_POLICIES
from scheduler.core.types import RUNTIME_CLASSES, TIERS, Outcome, Request
from scheduler.engines.models import ModelError, load_counter, resolve

DISPATCHES = ("static", "continuous")
FLOORS = {"l4": "bandwidth-bound, 16 ms", "l4-eager": "eager, 24 ms"}
LENGTHS = ("sat", "near", "mod", "short", "heavy")

Found = dict[Cell, dict[str, Any]]
Progress = Callable[[int, int], None]

PROTOCOL = (
    "Simulated NVIDIA L4 with Qwen1.5-1.8B-Chat, virtual time, {seeds} seeds, {quirks}. 1000 requests to "
    "learn on, the queue drains, then 2000 requests 5-30 ms apart; latencies are end to end over those 2000. "
    "static: micro-batches of 32 that wait 10 ms and block on their longest answer; continuous: 32 slots. "
    "Length profile near and the bandwidth-bound step floor of 16 ms except in the sensitivity table. "
    "Changes are between runs of the same seed; figures are medians over seeds, in brackets lowest and "
    "highest. Run folders (--out) are those of the first seed."
)


def bench_paper(
    tell: Callable[[str], None],
    *,
    seeds: int,
    faithful: bool = False,
    out: Path | None,
    progress: Progress,
    processes: int | None = None,
    scale: float = 1.0,
) -> Result:
    """Some minutes on two cores. For tests: ``processes`` 0 stays in this one, ``scale`` shrinks the runs."""
    counters = ["whitespace"]
    try:
        load_counter(resolve("smollm2"))
        counters.append("tokenizer")
    except ModelError as error:
        tell(f"LEFT OUT: the half with the tokenizer as counter. {error}")
    matrix = [
        Cell(dispatch, policy, counter, calibrate, seed, faithful, scale=scale)
        for seed, dispatch, policy, counter, calibrate in product(
            range(seeds), DISPATCHES, PAPER_POLICIES, counters, (True, False)
        )
    ]
    grid = [
        Cell(dispatch, policy, "whitespace", True, seed, faithful, gpu, lengths, scale)
        for gpu, lengths, dispatch, policy, seed in product(
            FLOORS, LENGTHS, DISPATCHES, ("fifo", "sjf"), range(seeds)
        )
    ]
    found = _run_all(list(dict.fromkeys([*matrix, *grid])), out, progress, processes)
    quirks = "the paper's quirks kept" if faithful else "without the paper's quirks"
    left_out = "" if "tokenizer" in counters else " THE TOKENIZER HALF IS MISSING: no smollm2 folder here."
    result = Result("paper", PROTOCOL.format(seeds=seeds, quirks=quirks) + left_out)
    feedback_us = feedback_cost_us()
    for rows in (
        _latency_rows(found, counters),
        _packing_rows(found),
        _estimate_rows(found, counters),
        _class_rows(found, counters),
        _stability_rows(found),
        _sensitivity_rows(found),
        [{"table": "feedback", "what": "observe, bias before, after", "us_per_request": feedback_us}],
    ):
        result.rows.extend(rows)
    result.claims.extend(_claims(found, counters, feedback_us))
    return result


def _run_all(cells: Sequence[Cell], out: Path | None, progress: Progress, processes: int | None) -> Found:
    def folder(cell: Cell) -> Path | None:
        return out if cell.seed == 0 and (cell.gpu, cell.lengths) == ("l4", "near") else None

    if processes == 0:
        return _collect(cells, map(run_cell, cells, map(folder, cells)), progress)
    # Spawned: a forked child would inherit whatever threads and event loops are here.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=context) as pool:
        return _collect(cells, pool.map(run_cell, cells, map(folder, cells), chunksize=4), progress)


def _collect(cells: Sequence[Cell], results: Iterable[dict[str, Any]], progress: Progress) -> Found:
    found: Found = {}
    for cell, figures in zip(cells, results, strict=True):
        found[cell] = figures
        progress(len(found), len(cells))
    return found


def _select(found: Found, **wanted: Any) -> list[dict[str, Any]]:
    """In the order of the seeds; of the main matrix unless told otherwise."""
    wanted = {"gpu": "l4", "lengths": "near", **wanted}
    return [
        figures
        for cell, figures in found.items()
        if all(getattr(cell, name) == value for name, value in wanted.items())
    ]


def _changes(after: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Change in percent, pair by pair."""
    return [100.0 * (a[key] / b[key] - 1.0) for a, b in zip(after, before, strict=True)]


def _learned(runs: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Change in percent that calibration brings to an error, against the same run's uncorrected estimates."""
    return [100.0 * (run[key] / run[f"uncorrected_{key}"] - 1.0) for run in runs]


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Over the seeds."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def _latency_rows(found: Found, counters: Sequence[str]) -> Iterator[dict[str, Any]]:
    for dispatch, counter, calibrate, policy in product(DISPATCHES, counters, (True, False), PAPER_POLICIES):
        same = partial(_select, found, dispatch=dispatch, counter=counter, calibrate=calibrate)
        runs, fifo = same(policy=policy), same(policy="fifo")
        yield {
            "table": "latency",
            "dispatch": dispatch,
            "counter": counter,
            "calibrated": calibrate,
            "policy": policy,
            "p50_s": _spread([run["p50_s"] for run in runs]),
            "p50_vs_fifo_%": _spread(_changes(runs, fifo, "p50_s")),
            "p99_s": _spread([run["p99_s"] for run in runs]),
            "p99_vs_fifo_%": _spread(_changes(runs, fifo, "p99_s")),
            "p50_s_by_tier": {tier: median(run["tier_p50_s"][tier] for run in runs) for tier in TIERS},
        }


def _packing_rows(found: Found) -> Iterator[dict[str, Any]]:
    """Where the P99 comes from: batches of like lengths waste fewer slots, so the backlog drains sooner."""
    for policy in PAPER_POLICIES:
        main = partial(_select, found, counter="whitespace", calibrate=True)
        static, fifo = main(policy=policy, dispatch="static"), main(policy="fifo", dispatch="static")
        moving = main(policy=policy, dispatch="continuous")
        yield {
            "table": "packing",
            "policy": policy,
            "slot_use": _spread([run["slot_use"] for run in static]),
            "drain_s": _spread([run["drain_s"] for run in static]),
            "drain_vs_fifo_%": _spread(_changes(static, fifo, "drain_s")),
            "p99_static_vs_fifo_%": _spread(_changes(static, fifo, "p99_s")),
            "p99_continuous_vs_fifo_%": _spread(
                _changes(moving, main(policy="fifo", dispatch="continuous"), "p99_s")
            ),
            "p50_continuous_vs_static_fifo_%": _spread(_changes(moving, fifo, "p50_s")),
        }


def _estimate_rows(found: Found, counters: Sequence[str]) -> Iterator[dict[str, Any]]:
    for dispatch, counter in product(DISPATCHES, counters):
        on, off = (_select(found, dispatch=dispatch, counter=counter, calibrate=c) for c in (True, False))
        yield {
            "table": "estimate",
            "dispatch": dispatch,
            "counter": counter,
            "mae_off": _spread([run["mae"] for run in off]),
            "mae_on": _spread([run["mae"] for run in on]),
            "mae_cut_%": _spread(_changes(on, off, "mae")),
            "rmse_off": _spread([run["rmse"] for run in off]),
            "rmse_on": _spread([run["rmse"] for run in on]),
            "rmse_cut_%": _spread(_changes(on, off, "rmse")),
        }


def _class_rows(found: Found, counters: Sequence[str]) -> Iterator[dict[str, Any]]:
    for counter, calibrate in product(counters, (True, False)):
        runs = _select(found, counter=counter, calibrate=calibrate, dispatch="static", policy="fifo")
        for index, name in enumerate(RUNTIME_CLASSES):
            counts = [median(run["confusion"][index][column] for run in runs) for column in range(3)]
            yield {
                "table": "classes",
                "counter": counter,
                "calibrated": calibrate,
                "accuracy": _spread([run["class_accuracy"] for run in runs]),
                "estimated": name,
                **{f"was_{true}": count for true, count in zip(RUNTIME_CLASSES, counts, strict=True)},
            }


def _stability_rows(found: Found) -> Iterator[dict[str, Any]]:
    """Whether feedback makes queues or tails less steady, and where the bias comes to rest."""
    for policy, calibrate in product(("fifo", "sjf"), (True, False)):
        runs = _select(found, policy=policy, calibrate=calibrate, dispatch="static", counter="whitespace")
        p99s = [run["p99_s"] for run in runs]
        yield {
            "table": "stability",
            "policy": policy,
            "calibrated": calibrate,
            "p99_s": _spread(p99s),
            "p99_range_%": 100.0 * (max(p99s) - min(p99s)) / median(p99s),
            "queue_peak": _spread([run["queue_peak"] for run in runs]),
            "queue_change_per_s": _spread([run["queue_change"] for run in runs]),
            "bias_wobble": _spread([run["bias_wobble"] for run in runs]),
            "bias": {name: median(run["bias"][name] for run in runs) for name in runs[0]["bias"]},
        }


def _sensitivity_rows(found: Found) -> Iterator[dict[str, Any]]:
    for gpu, lengths in product(FLOORS, LENGTHS):
        of = partial(_select, found, gpu=gpu, lengths=lengths, counter="whitespace", calibrate=True)
        fifo, sjf = of(dispatch="static", policy="fifo"), of(dispatch="static", policy="sjf")
        moving, moving_sjf = (of(dispatch="continuous", policy=policy) for policy in ("fifo", "sjf"))
        yield {
            "table": "sensitivity",
            "floor": FLOORS[gpu],
            "lengths": lengths,
            "static_sjf_p50_%": _spread(_changes(sjf, fifo, "p50_s")),
            "static_sjf_p99_%": _spread(_changes(sjf, fifo, "p99_s")),
            "continuous_sjf_p50_%": _spread(_changes(moving_sjf, moving, "p50_s")),
            "continuous_sjf_p99_%": _spread(_changes(moving_sjf, moving, "p99_s")),
            "mae_cut_%": _spread(_learned(fifo, "mae")),
            "rmse_cut_%": _spread(_learned(fifo, "rmse")),
            "continuous_fifo_vs_static_p50_%": _spread(_changes(moving, fifo, "p50_s")),
            "continuous_fifo_vs_static_p99_%": _spread(_changes(moving, fifo, "p99_s")),
        }


def feedback_cost_us() -> float:
    """Microseconds of wall time to learn from one completion; the better of three rounds."""
    estimator = PaperEstimator(faithful=True)
    request = Request("r", "premium", "premium", 0.0, 12, 512, "Write a detailed report on caching")
    request = replace(request, estimate=estimator.estimate(request))
    requests, rounds = 20_000, []
    for _ in range(3):
        started = time.perf_counter()
        for number in range(requests):
            estimator.bias("premium", request.estimate.category)
            estimator.observe(request, Outcome("stop", 300 + number % 200))
            estimator.bias("premium", request.estimate.category)
        rounds.append((time.perf_counter() - started) / requests * 1e6)
    return min(rounds)


def _claims(found: Found, counters: Sequence[str], feedback_us: float) -> Iterator[Claim]:
    yield from _sjf_claims(found)
    yield from _calibration_claims(found, counters)
    yield _policy_claim(found)
    if "tokenizer" in counters:
        yield _tokenizer_claim(found)
    yield Claim(
        "feedback_ms",
        0.5,
        feedback_us / 1e3,
        feedback_us < 500.0,
        paper=0.5,
        tolerance=0.0,
        needs="state in the process; the paper keeps it in Redis",
    )


def _near(id_: str, paper: float, ours: float, tolerance: float, needs: str) -> Claim:
    return Claim(id_, paper, ours, abs(ours - paper) <= tolerance, tolerance, paper, needs)


def _sjf_claims(found: Found) -> Iterator[Claim]:
    """What SJF gains over FIFO, and where the gain at the tail comes from."""
    main = partial(_select, found, counter="whitespace", calibrate=True)
    fifo, sjf = (main(dispatch="static", policy=policy) for policy in ("fifo", "sjf"))
    moving, moving_sjf = (main(dispatch="continuous", policy=policy) for policy in ("fifo", "sjf"))
    batches = "static micro-batches of 32, answers near their max_tokens, a step bound by memory bandwidth"
    yield _near("sjf_p50", -42.0, median(_changes(sjf, fifo, "p50_s")), 4.0, batches)
    slots = [median(run["slot_use"] for run in runs) for runs in (fifo, sjf)]
    sooner = -median(_changes(sjf, fifo, "drain_s"))
    unpacked = median(_changes(moving_sjf, moving, "p99_s"))
    packing = (
        f"{batches}; batch packing does it: slot use {slots[0]:.2f} to {slots[1]:.2f}, so the backlog drains "
        f"in {sooner:.0f} % less time; under continuous dispatch, with no packing, P99 changes by "
        f"{unpacked:+.1f} %"
    )
    yield _near("sjf_p99", -16.0, median(_changes(sjf, fifo, "p99_s")), 4.0, packing)


def _calibration_claims(found: Found, counters: Sequence[str]) -> Iterator[Claim]:
    """By how much calibration cuts the error of the estimates."""
    fifo = {"dispatch": "static", "counter": "whitespace", "policy": "fifo", "calibrate": True}
    for id_, key, paper in (("mae_cut", "mae", -38.8), ("rmse_cut", "rmse", -40.5)):
        cuts = [
            change
            for dispatch, counter, policy in product(DISPATCHES, counters, PAPER_POLICIES)
            for change in _changes(
                _select(found, dispatch=dispatch, counter=counter, policy=policy, calibrate=True),
                _select(found, dispatch=dispatch, counter=counter, policy=policy, calibrate=False),
                key,
            )
        ]
        by_lengths = {
            lengths: median(_learned(_select(found, lengths=lengths, **fifo), key)) for lengths in LENGTHS
        }
        shown = ", ".join(f"{lengths} {cut:.0f}" for lengths, cut in by_lengths.items())
        needs = f"answers that are off the base by a constant factor; by length profile: {shown} %"
        needs += f"; over {len(cuts)} pairs of runs {min(cuts):.1f} to {max(cuts):.1f} %"
        yield _near(id_, paper, median(cuts), 5.0, needs)


def _policy_claim(found: Found) -> Claim:
    """That the policy matters more than calibration."""
    main = partial(_select, found, dispatch="static", counter="whitespace")
    on = {policy: main(policy=policy, calibrate=True) for policy in PAPER_POLICIES}
    off = {policy: main(policy=policy, calibrate=False) for policy in PAPER_POLICIES}
    by_policy = max(abs(median(_changes(on[policy], on["fifo"], "p50_s"))) for policy in PAPER_POLICIES)
    by_feedback = max(abs(median(_changes(on[policy], off[policy], "p50_s"))) for policy in PAPER_POLICIES)
    return Claim(
        "policy_over_calibration",
        0.0,
        by_policy - by_feedback,
        by_policy > by_feedback,
        needs=f"no more than this: P50 moves by up to {by_policy:.1f} % with the policy, "
        f"{by_feedback:.1f} % with calibration",
    )


def _tokenizer_claim(found: Found) -> Claim:
    """That a true token count keeps the bias near one."""
    words, tokens = (
        median(
            sum(abs(bias - 1.0) for bias in run["bias"].values()) / len(run["bias"])
            for run in _select(found, counter=counter, calibrate=True)
        )
        for counter in ("whitespace", "tokenizer")
    )
    return Claim(
        "tokenizer_keeps_bias_near_1",
        0.0,
        tokens,
        tokens < 0.5 * words,
        needs="more than a counter: the bias is output / base, which no counter enters; mean distance "
        f"from 1 {words:.3f} with words, {tokens:.3f} with tokens",
    )
