"""The paths of run.json, which expectations are about. Without what makes it: a check waits for no numpy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from scheduler.core.admission import REASONS
from scheduler.core.books import Books
from scheduler.core.types import CATEGORIES, RUNTIME_CLASSES, Limits, Percentiles, Slo


def valid_paths(tenants: Iterable[str], tiers: Iterable[str]) -> Mapping[str, float | str | bool]:
    """Every path that ends in a value of run.json, with an example of its kind; a list is shown by item 0."""
    six = dict.fromkeys(Percentiles._fields, 0.0)
    latency = dict.fromkeys(("e2e", "ttft", "engine_ttft", "queue_wait", "tpot", "itl"), six)
    requests = dict.fromkeys(Books().counts(), 0.0)
    tokens = dict.fromkeys(("prompt", "output", "output_per_s"), 0.0)
    tenant = {**latency, "requests": requests, "tokens": tokens}
    estimate = (
        *("mae", "rmse", "uncorrected_mae", "uncorrected_rmse"),
        *("spearman", "coverage", "capped_share", "class_accuracy"),
    )
    limits = {field.name: 0.0 for field in fields(Limits)}
    slo = {field.name: 0.0 for field in fields(Slo)}
    configured = {"tier": "", "weight": 0.0, "slo": slo, "limits": limits}
    classes = dict.fromkeys(RUNTIME_CLASSES, 0.0)
    words = (
        *("version", "scenario", "engine", "engine_detail", "dispatch", "clock", "failure"),
        *("policy", "estimator", "counter"),
    )
    switch = {"at_s": 0.0, "from": "", "to": "", "queued": 0.0, "took_ms": 0.0, "by": ""}
    run: dict[str, Any] = {
        **dict.fromkeys(words, ""),
        **dict.fromkeys(("schema", "capacity", "seed", "duration_s", "wall_s"), 0.0),
        **dict.fromkeys(("paper", "interrupted", "guarded", "autopilot", "calibrated"), False),
        "tenants": dict.fromkeys(tenants, configured),
        "limits": limits,
        **dict.fromkeys(("max_inflight_tokens", "max_model_len"), 0.0),
        "requests": requests,
        "finish": {"stop": 0.0, "length": 0.0},
        "tokens": tokens,
        "latency_s": {
            "all": latency,
            "tiers": dict.fromkeys(tiers, latency),
            "tenants": dict.fromkeys(tenants, tenant),
        },
        "estimate": {
            **dict.fromkeys(estimate, 0.0),
            "class_confusion": dict.fromkeys(classes, classes),
            "bias": dict.fromkeys(CATEGORIES, 0.0),
        },
        "fairness": {"jain": 0.0},
        "goodput": {"requests_per_s": 0.0, "slo_share": 0.0},
        "rejections": dict.fromkeys(REASONS, 0.0),
        "switches": [switch],
        "loop_lag_ms": dict.fromkeys(("p50", "p99", "max"), 0.0),
    }
    return dict(leaves(run))


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a document, each with its path."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        yield path, node
        return
    for key, value in items:
        yield from leaves(value, f"{path}.{key}" if path else str(key))
