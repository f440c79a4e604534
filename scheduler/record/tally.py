"""What a run adds up to: one row of numbers per finished request, turned into the figures of run.json.

Definitions are in docs/metrics.md. Numbers are kept as C doubles: a million requests cost about 120 MB, and
as much again while their figures are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf, nan, sqrt
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.core.books import TenantBooks
from scheduler.core.metrics import gap_rank, gap_value, jain, rank_index
from scheduler.core.types import (
    CATEGORIES,
    FINISHED,
    MEDIUM_TOKENS,
    RUNTIME_CLASSES,
    SHORT_TOKENS,
    TIERS,
    Request,
    Slo,
    State,
)

NUMBERS = (
    "tenant",
    "arrival",
    "dispatched",
    "first",
    "last",
    "ended",
    "prompt_tokens",
    "output_tokens",
    "max_tokens",
    "point",
    "uncorrected",
    "upper",
    "input_tokens",
    "capped",
)
"""What is kept of each finished request."""
LATENCIES = ("e2e", "ttft", "engine_ttft", "queue_wait", "tpot")
_pack = Struct(f"{len(NUMBERS)}d").pack

Column = NDArray[np.float64]


class Tally:
    """Fed with every request that has ended; only finished ones have latencies."""

    def __init__(self, slos: Mapping[str, Slo]) -> None:
        self._index = {name: index for index, name in enumerate(slos)}
        self._slos = np.array([(s.ttft_s, s.e2e_s, s.tpot_s) for s in slos.values()]).reshape(-1, 3)
        self._numbers = bytearray()  # NUMBERS of one request after another, packed
        self._gaps: dict[str, dict[int, int]] = {}
        self.bias: dict[str, float] = dict.fromkeys(CATEGORIES, 1.0)
        self.last_end_s = 0.0
        self.rejections: dict[str, int] = {}

    def add(self, request: Request) -> None:
        """One request that has just ended, however it did."""
        self.last_end_s = request.ended_s or 0.0
        if request.state is not FINISHED:
            if request.reason:
                self.rejections[request.reason] = self.rejections.get(request.reason, 0) + 1
            return
        tenant = self._index.get(request.tenant)
        if tenant is None:
            tenant = self._index[request.tenant] = len(self._index)
            self._slos = np.vstack((self._slos, (inf, inf, inf)))
        estimate = request.estimate
        self._numbers += _pack(
            tenant,
            request.arrival_s,
            request.dispatched_s,
            request.first_token_s,
            request.last_token_s or request.ended_s,
            request.ended_s,
            request.prompt_tokens,
            request.output_tokens,
            request.max_tokens,
            estimate.point,
            estimate.uncorrected,
            estimate.upper,
            estimate.input_tokens,
            request.finish == "length",
        )
        self.bias[estimate.category] = request.bias_after
        if request.gaps:
            self.add_gaps(request.tenant, request.gaps)

    def add_gaps(self, tenant: str, gaps: Mapping[int, int]) -> None:
        """Token gaps {gap_bucket: count} of finished requests, where the requests do not carry them."""
        mine = self._gaps.setdefault(tenant, {})
        for bucket, count in gaps.items():
            mine[bucket] = mine.get(bucket, 0) + count

    def _columns(self) -> dict[str, Column]:
        """The numbers of all finished requests, and what follows from them."""
        copy = bytes(self._numbers)  # a bytearray that is looked into cannot grow
        table = np.frombuffer(copy).reshape(-1, len(NUMBERS))
        n = dict(zip(NUMBERS, table.T, strict=True))
        output, cap = n["output_tokens"], n["max_tokens"]
        e2e, ttft = n["ended"] - n["arrival"], n["first"] - n["arrival"]
        tpot = (e2e - ttft) / np.where(output > 1, output - 1, nan)
        slo = self._slos[n["tenant"].astype(np.intp)].T
        return n | {
            "e2e": e2e,
            "ttft": ttft,
            "engine_ttft": n["first"] - n["dispatched"],
            "queue_wait": n["dispatched"] - n["arrival"],
            "tpot": tpot,
            "estimate": np.minimum(n["point"], cap),
            "uncorrected": np.minimum(n["uncorrected"], cap),
            "covered": output <= n["upper"],
            "estimated_class": _classes(n["input_tokens"] + n["point"]),
            "actual_class": _classes(n["input_tokens"] + output),
            "slo_met": (ttft <= slo[0]) & (e2e <= slo[1]) & ~(tpot > slo[2]),
            "gap_sum": n["last"] - n["first"],
        }

    def figures(self, books: Mapping[str, TenantBooks], now: float) -> dict[str, Any]:
        """The part of run.json that is about requests (docs/run-folder.md)."""
        column = self._columns()
        duration_s = self.last_end_s
        output = float(column["output_tokens"].sum())
        met = float(column["slo_met"].sum())
        ended = sum(sum(tenant.ended.values()) for tenant in books.values())
        capped = int(column["capped"].sum())
        tiers = {name: tuple(t for t, b in books.items() if b.config.tier == name) for name in TIERS}
        return {
            "duration_s": duration_s,
            "requests": _counts(books.values()),
            "finish": {"stop": len(column["capped"]) - capped, "length": capped},
            "tokens": {
                "prompt": int(column["prompt_tokens"].sum()),
                "output": int(output),
                "output_per_s": output / duration_s if duration_s else 0.0,
            },
            "latency_s": {
                "all": self._latencies(column, tuple(books)),
                "tiers": {name: self._latencies(column, who) for name, who in tiers.items() if who},
                "tenants": {
                    name: {
                        **self._latencies(column, (name,)),
                        "requests": _counts((tenant,)),
                        "tokens": self._tokens(column, name),
                    }
                    for name, tenant in books.items()
                },
            },
            "estimate": {**_estimate_figures(column), "bias": dict(self.bias)},
            "fairness": {"jain": jain(books.values(), now)},
            "goodput": {
                "requests_per_s": met / duration_s if duration_s else 0.0,
                "slo_share": met / ended if ended else nan,
            },
            "rejections": dict(sorted(self.rejections.items())),
        }

    def _mask(self, column: Mapping[str, Column], tenants: Iterable[str]) -> NDArray[np.bool_]:
        indices = [self._index[name] for name in tenants if name in self._index]
        return np.isin(column["tenant"], indices)

    def _tokens(self, column: Mapping[str, Column], tenant: str) -> dict[str, int]:
        mask = self._mask(column, (tenant,))
        return {
            "prompt": int(column["prompt_tokens"][mask].sum()),
            "output": int(column["output_tokens"][mask].sum()),
        }

    def _latencies(self, column: Mapping[str, Column], tenants: tuple[str, ...]) -> dict[str, Any]:
        mask = self._mask(column, tenants)
        figures = {name: six(column[name][mask]) for name in LATENCIES}
        gaps: dict[int, int] = {}
        for tenant in tenants:
            for bucket, count in self._gaps.get(tenant, {}).items():
                gaps[bucket] = gaps.get(bucket, 0) + count
        figures["itl"] = _gap_six(gaps, float(column["gap_sum"][mask].sum()))
        return figures


def _classes(budget: Column) -> Column:
    """Index of the runtime class of each total token budget."""
    return (budget > SHORT_TOKENS).astype(np.float64) + (budget > MEDIUM_TOKENS)


def six(values: Column) -> dict[str, float]:
    """p50, p90, p95, p99 (nearest rank), mean and max; NaN values are left out."""
    ordered = np.sort(values[~np.isnan(values)])
    if not len(ordered):
        return dict.fromkeys(("p50", "p90", "p95", "p99", "mean", "max"), nan)

    n = len(ordered)
    return {
        "p50": float(ordered[rank_index(0.50, n)]),
        "p90": float(ordered[rank_index(0.90, n)]),
        "p95": float(ordered[rank_index(0.95, n)]),
        "p99": float(ordered[rank_index(0.99, n)]),
        "mean": float(ordered.mean()),
        "max": float(ordered[-1]),
    }


def _gap_six(gaps: Mapping[int, int], total_s: float) -> dict[str, float]:
    """The same six of token gaps, from their histogram: percentiles to 2.5 %, the mean exact."""
    count = sum(gaps.values())
    if not count:
        return dict.fromkeys(("p50", "p90", "p95", "p99", "mean", "max"), nan)
    return {
        "p50": gap_rank(gaps, 0.50),
        "p90": gap_rank(gaps, 0.90),
        "p95": gap_rank(gaps, 0.95),
        "p99": gap_rank(gaps, 0.99),
        "mean": total_s / count,
        "max": gap_value(max(gaps)),
    }


def _counts(books: Iterable[TenantBooks]) -> dict[str, int]:
    tenants = list(books)
    counts = {"submitted": sum(t.submitted for t in tenants)}
    for state in (State.FINISHED, State.FAILED, State.CANCELLED, State.REJECTED, State.EXPIRED):
        counts[state.value] = sum(t.ended[state] for t in tenants)
    counts["retried"] = sum(t.retried for t in tenants)
    return counts


def _estimate_figures(column: Mapping[str, Column]) -> dict[str, Any]:
    actual, estimate = column["output_tokens"], column["estimate"]
    if not len(actual):
        errors = dict.fromkeys(("mae", "rmse", "uncorrected_mae", "uncorrected_rmse", "spearman"), nan)
        return {**errors, "coverage": nan, "capped_share": nan, "class_accuracy": nan, "class_confusion": {}}
    drift, uncorrected = actual - estimate, actual - column["uncorrected"]
    guessed, true = column["estimated_class"], column["actual_class"]
    return {
        "mae": float(np.abs(drift).mean()),
        "rmse": float(sqrt((drift**2).mean())),
        "uncorrected_mae": float(np.abs(uncorrected).mean()),
        "uncorrected_rmse": float(sqrt((uncorrected**2).mean())),
        "spearman": spearman(estimate, actual),
        "coverage": float(column["covered"].mean()),
        "capped_share": float(column["capped"].mean()),
        "class_accuracy": float((guessed == true).mean()),
        "class_confusion": {
            row: {name: int(((guessed == r) & (true == n)).sum()) for n, name in enumerate(RUNTIME_CLASSES)}
            for r, row in enumerate(RUNTIME_CLASSES)
        },
    }


def _ranks(values: Column) -> Column:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Column = (ends - (counts - 1) / 2)[inverse]
    return means


def spearman(a: Column, b: Column) -> float:
    """Rank correlation; NaN where one side is constant."""
    x, y = _ranks(a), _ranks(b)
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return nan
    return float(np.corrcoef(x, y)[0, 1])
