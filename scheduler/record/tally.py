"""What a run adds up to: one row of numbers per finished request, turned into the figures of run.json.

Definitions are in docs/metrics.md. Numbers are kept as C doubles: a million requests cost about 120 MB, and
as much again while their figures are made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import nan
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.core.books import Books
from scheduler.core.metrics import NO_PERCENTILES, SHARES, gap_rank, gap_value, jain, rank_index
from scheduler.core.types import (
    CATEGORIES,
    FINISHED,
    MEDIUM_TOKENS,
    REJECTED,
    RUNTIME_CLASSES,
    SHORT_TOKENS,
    TIERS,
    Percentiles,
    Request,
)

Group = tuple[str, str]
"""A tenant, and the tier of those of its requests: a trace or a client may say another than the tenant's."""

NUMBERS = (
    "group",
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

    def __init__(self) -> None:
        self._groups: dict[Group, int] = {}  # numbered as they come
        self._numbers = bytearray()  # NUMBERS of one request after another, packed
        self._gaps: dict[Group, dict[int, int]] = {}
        self.bias: dict[str, float] = dict.fromkeys(CATEGORIES, 1.0)
        self.last_end_s = 0.0
        self.rejections: dict[str, int] = {}

    def add(self, request: Request) -> None:
        """One request that has just ended, however it did."""
        self.last_end_s = request.ended_s or 0.0
        if request.state is not FINISHED:
            if request.state is REJECTED:
                self.rejections[request.reason] = self.rejections.get(request.reason, 0) + 1
            return
        group = request.tenant, request.tier
        number = self._groups.get(group)
        if number is None:
            number = self._groups[group] = len(self._groups)
        estimate = request.estimate
        self._numbers += _pack(
            number,
            request.arrival_s,
            request.dispatched_s,
            request.first_token_s,
            request.last_token_s,
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
            self.add_gaps(group, request.gaps)

    def add_gaps(self, group: Group, gaps: Mapping[int, int]) -> None:
        """Token gaps {gap_bucket: count} of finished requests, where the requests do not carry them."""
        mine = self._gaps.setdefault(group, {})
        for bucket, count in gaps.items():
            mine[bucket] = mine.get(bucket, 0) + count

    def _columns(self, books: Books) -> dict[str, Column]:
        """The numbers of all finished requests, and what follows from them."""
        table = np.frombuffer(self._numbers).reshape(-1, len(NUMBERS))
        # A copy, each column in one piece: a bytearray that is looked into cannot grow.
        n = dict(zip(NUMBERS, table.T.copy(), strict=True))
        output, cap = n["output_tokens"], n["max_tokens"]
        e2e, ttft = n["ended"] - n["arrival"], n["first"] - n["arrival"]
        tpot = (e2e - ttft) / np.where(output > 1, output - 1, nan)
        slos = [books.configs[tenant].slo for tenant, _ in self._groups]
        bounds = np.array([(slo.ttft_s, slo.e2e_s, slo.tpot_s) for slo in slos]).reshape(-1, 3)
        most_ttft, most_e2e, most_tpot = bounds[n["group"].astype(np.intp)].T
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
            "slo_met": (ttft <= most_ttft) & (e2e <= most_e2e) & ~(tpot > most_tpot),
            "gap_sum": n["last"] - n["first"],
        }

    def figures(self, books: Books, now: float) -> dict[str, Any]:
        """The part of run.json that is about requests (docs/run-folder.md)."""
        column = self._columns(books)
        duration_s = self.last_end_s
        met = float(column["slo_met"].sum())
        ended = sum(sum(tenant.ended.values()) for tenant in books.tenants.values())
        capped = int(column["capped"].sum())
        tiers = {tenant.tier for tenant in books.configs.values()} | {tier for _, tier in self._groups}
        return {
            "duration_s": duration_s,
            "requests": books.counts(),
            "finish": {"stop": len(column["capped"]) - capped, "length": capped},
            "tokens": self._tokens(column, self._groups),
            "latency_s": {
                "all": self._latencies(column, self._groups),
                "tiers": {
                    name: self._latencies(column, [group for group in self._groups if group[1] == name])
                    for name in TIERS
                    if name in tiers
                },
                "tenants": {name: self._of_tenant(column, name, books) for name in books.tenants},
            },
            "estimate": {**_estimate_figures(column), "bias": dict(self.bias)},
            "fairness": {"jain": jain(books.tenants.values(), now)},
            "goodput": {
                "requests_per_s": met / duration_s if duration_s else 0.0,
                "slo_share": met / ended if ended else nan,
            },
            "rejections": dict(sorted(self.rejections.items())),
        }

    def _of_tenant(self, column: Mapping[str, Column], name: str, books: Books) -> dict[str, Any]:
        groups = [group for group in self._groups if group[0] == name]
        return {
            **self._latencies(column, groups),
            "requests": books.counts(name),
            "tokens": self._tokens(column, groups),
        }

    def _tokens(self, column: Mapping[str, Column], groups: Collection[Group]) -> dict[str, Any]:
        mask = self._mask(column, groups)
        prompt, output = (int(column[f"{kind}_tokens"][mask].sum()) for kind in ("prompt", "output"))
        per_s = output / self.last_end_s if self.last_end_s else 0.0
        return {"prompt": prompt, "output": output, "output_per_s": per_s}

    def _mask(self, column: Mapping[str, Column], groups: Collection[Group]) -> NDArray[np.bool_]:
        return np.isin(column["group"], [self._groups[group] for group in groups])

    def _latencies(self, column: Mapping[str, Column], groups: Collection[Group]) -> dict[str, Any]:
        mask = self._mask(column, groups)
        figures = {name: _six(column[name][mask]) for name in LATENCIES}
        gaps: dict[int, int] = {}
        for group in groups:
            for bucket, count in self._gaps.get(group, {}).items():
                gaps[bucket] = gaps.get(bucket, 0) + count
        figures["itl"] = _gap_six(gaps, float(column["gap_sum"][mask].sum()))
        return figures


def _classes(budget: Column) -> Column:
    """Index of the runtime class of each total token budget."""
    return (budget > SHORT_TOKENS).astype(np.float64) + (budget > MEDIUM_TOKENS)


def _six(values: Column) -> dict[str, float]:
    """p50, p90, p95, p99 (nearest rank), mean and max; NaN values are left out."""
    ordered = np.sort(values[~np.isnan(values)])
    if not len(ordered):
        return NO_PERCENTILES._asdict()
    ranks = (float(ordered[rank_index(share, len(ordered))]) for share in SHARES)
    return Percentiles._make((*ranks, float(ordered.mean()), float(ordered[-1])))._asdict()


def _gap_six(gaps: Mapping[int, int], total_s: float) -> dict[str, float]:
    """The same six of token gaps, from their histogram: percentiles to 2.5 %, the mean exact."""
    count = sum(gaps.values())
    if not count:
        return NO_PERCENTILES._asdict()
    ranks = (gap_rank(gaps, share) for share in SHARES)
    return Percentiles._make((*ranks, total_s / count, gap_value(max(gaps))))._asdict()


def _estimate_figures(column: Mapping[str, Column]) -> dict[str, Any]:
    actual, estimate = column["output_tokens"], column["estimate"]
    if not len(actual):
        errors = dict.fromkeys(("mae", "rmse", "uncorrected_mae", "uncorrected_rmse", "spearman"), nan)
        return {**errors, "coverage": nan, "capped_share": nan, "class_accuracy": nan, "class_confusion": {}}
    (mae, rmse), uncorrected = mae_rmse(actual - estimate), mae_rmse(actual - column["uncorrected"])
    guessed, true = column["estimated_class"], column["actual_class"]
    return {
        "mae": mae,
        "rmse": rmse,
        "uncorrected_mae": uncorrected[0],
        "uncorrected_rmse": uncorrected[1],
        "spearman": spearman(estimate, actual),
        "coverage": float(column["covered"].mean()),
        "capped_share": float(column["capped"].mean()),
        "class_accuracy": float((guessed == true).mean()),
        "class_confusion": {
            row: {name: int(((guessed == r) & (true == n)).sum()) for n, name in enumerate(RUNTIME_CLASSES)}
            for r, row in enumerate(RUNTIME_CLASSES)
        },
    }


def mae_rmse(errors: Column) -> tuple[float, float]:
    """Mean absolute and root mean square error, in the errors' unit."""
    return float(np.abs(errors).mean()), float(np.sqrt((errors**2).mean()))


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
