"""What a run adds up to: one row of numbers per finished request, turned into the figures of run.json.

Definitions are in docs/metrics.md. Columns are C doubles, so a million requests cost about 120 MB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, inf, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.core.books import TenantBooks
from scheduler.core.estimate import MEDIUM_TOKENS, SHORT_TOKENS
from scheduler.core.metrics import gap_value, jain
from scheduler.core.types import CATEGORIES, FINISHED, RUNTIME_CLASSES, TIERS, Request, Slo, State

COLUMNS = (
    "tenant",
    "e2e",
    "ttft",
    "engine_ttft",
    "queue_wait",
    "tpot",
    "prompt_tokens",
    "output_tokens",
    "estimate",
    "uncorrected",
    "covered",
    "estimated_class",
    "actual_class",
    "capped",
    "slo_met",
    "gap_sum",
)
LATENCIES = ("e2e", "ttft", "engine_ttft", "queue_wait", "tpot")
_CLASS_INDEX = {name: float(index) for index, name in enumerate(RUNTIME_CLASSES)}
_BLOCK = 256  # ended requests held back; few, for in a live run their prompts may be large

Column = NDArray[np.float64]


class Tally:
    """Fed with every request that has ended; only finished ones have latencies."""

    def __init__(self, slos: Mapping[str, Slo]) -> None:
        self._index = {name: index for index, name in enumerate(slos)}
        self._slos = np.array([(s.ttft_s, s.e2e_s, s.tpot_s) for s in slos.values()]).reshape(-1, 3)
        self._block: list[Request] = []
        self._rows: list[NDArray[np.float64]] = []
        self._gaps: dict[str, dict[int, int]] = {}
        self.bias: dict[str, float] = dict.fromkeys(CATEGORIES, 1.0)
        self.last_end_s = 0.0
        self.rejections: dict[str, int] = {}

    def add(self, request: Request) -> None:
        """One request that has just ended, however it did; looked at when a block of them is full."""
        self._block.append(request)
        if len(self._block) == _BLOCK:
            self._flush()

    def add_gaps(self, tenant: str, gaps: Mapping[int, int]) -> None:
        """Token gaps {gap_bucket: count} of finished requests, where the requests do not carry them."""
        mine = self._gaps.setdefault(tenant, {})
        for bucket, count in gaps.items():
            mine[bucket] = mine.get(bucket, 0) + count

    def _flush(self) -> None:
        """Turn the block into rows, a column at a time: several times cheaper than a request at a time."""
        block, self._block = self._block, []
        if block:
            self.last_end_s = max(self.last_end_s, block[-1].ended_s or 0.0)
        done = [r for r in block if r.state is FINISHED]
        if len(done) < len(block):
            for request in block:
                if request.state is not FINISHED and request.reason:
                    self.rejections[request.reason] = self.rejections.get(request.reason, 0) + 1
        if not done:
            return
        estimates = [r.estimate for r in done]
        self.bias.update(zip([e.category for e in estimates], [r.bias_after for r in done], strict=True))
        names = [r.tenant for r in done]
        for name in set(names).difference(self._index):
            self._index[name] = len(self._index)
            self._slos = np.vstack((self._slos, (inf, inf, inf)))
        tenant = [self._index[name] for name in names]
        arrival = _column([r.arrival_s for r in done])
        dispatched = _column([r.dispatched_s for r in done])
        first = _column([r.first_token_s for r in done])
        last = _column([r.last_token_s for r in done])
        ended = _column([r.ended_s for r in done])
        output = _column([r.output_tokens for r in done])
        cap = _column([r.max_tokens for r in done])
        e2e, ttft = ended - arrival, first - arrival
        tpot = (e2e - ttft) / np.where(output > 1, output - 1, nan)
        slo = self._slos[tenant].T
        met = (ttft <= slo[0]) & (e2e <= slo[1]) & ~(tpot > slo[2])
        rows = (
            tenant,
            e2e,
            ttft,
            first - dispatched,
            dispatched - arrival,
            tpot,
            [r.prompt_tokens for r in done],
            output,
            np.minimum([e.point for e in estimates], cap),
            np.minimum([e.uncorrected for e in estimates], cap),
            output <= [e.upper for e in estimates],
            [_CLASS_INDEX[e.runtime_class] for e in estimates],
            _classes(_column([e.input_tokens for e in estimates]) + output),
            [r.finish == "length" for r in done],
            met,
            np.where(np.isnan(last), ended, last) - first,
        )
        self._rows.append(np.array(rows, dtype=np.float64))
        for request in done:
            if request.gaps:
                self.add_gaps(request.tenant, request.gaps)

    def figures(self, books: Mapping[str, TenantBooks], now: float) -> dict[str, Any]:
        """The part of run.json that is about requests (DESIGN: "Command line")."""
        self._flush()
        table = np.concatenate([np.empty((len(COLUMNS), 0)), *self._rows], axis=1)
        self._rows = [table]
        column: dict[str, Column] = dict(zip(COLUMNS, table, strict=True))
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


def _column(values: Sequence[float | None]) -> Column:
    """None is NaN."""
    return np.array(values, dtype=np.float64)


def _classes(budget: Column) -> Column:
    """Index of the runtime class of each total token budget."""
    return (budget > SHORT_TOKENS).astype(np.float64) + (budget > MEDIUM_TOKENS)


def six(values: Column) -> dict[str, float]:
    """p50, p90, p95, p99 (nearest rank), mean and max; NaN values are left out."""
    ordered = np.sort(values[~np.isnan(values)])
    if not len(ordered):
        return dict.fromkeys(("p50", "p90", "p95", "p99", "mean", "max"), nan)

    def rank(share: float) -> float:
        return float(ordered[max(0, ceil(share * len(ordered)) - 1)])

    return {
        "p50": rank(0.50),
        "p90": rank(0.90),
        "p95": rank(0.95),
        "p99": rank(0.99),
        "mean": float(ordered.mean()),
        "max": float(ordered[-1]),
    }


def _gap_six(gaps: Mapping[int, int], total_s: float) -> dict[str, float]:
    """The same six of token gaps, from their histogram: percentiles to 2.5 %, the mean exact."""
    count = sum(gaps.values())
    if not count:
        return dict.fromkeys(("p50", "p90", "p95", "p99", "mean", "max"), nan)
    buckets = sorted(gaps)

    def rank(share: float) -> float:
        wanted, seen = max(1, ceil(share * count)), 0
        for bucket in buckets:
            seen += gaps[bucket]
            if seen >= wanted:
                return gap_value(bucket)
        raise AssertionError("unreachable: the shares add up to one")

    return {
        "p50": rank(0.50),
        "p90": rank(0.90),
        "p95": rank(0.95),
        "p99": rank(0.99),
        "mean": total_s / count,
        "max": gap_value(buckets[-1]),
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
            row: {
                name: int(((guessed == _CLASS_INDEX[row]) & (true == _CLASS_INDEX[name])).sum())
                for name in RUNTIME_CLASSES
            }
            for row in RUNTIME_CLASSES
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
