"""A run document as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def summary(document: Mapping[str, Any]) -> str:
    """A dozen lines: what ran, what came of it, latencies by tier."""
    requests, tokens, estimate = document["requests"], document["tokens"], document["estimate"]
    lines = [
        f"{document['scenario']}: {document['policy']} on {document['engine_detail']}, "
        f"{document['dispatch']}, capacity {document['capacity']}, {document['clock']} time",
        f"requests   {_counts(requests)}",
        *([f"rejected   {_counts(rejections)}"] if (rejections := document["rejections"]) else []),
        f"tokens     {tokens['output']} out, {_number(tokens['output_per_s'])}/s "
        f"over {_number(document['duration_s'])} s",
        f"estimate   mean absolute error {_number(estimate['mae'])} tokens "
        f"(uncorrected {_number(estimate['uncorrected_mae'])})",
        f"fairness   Jain {_number(document['fairness']['jain'])}, "
        f"SLOs met by {_percent(document['goodput']['slo_share'])}",
        "",
        f"{'seconds':10} {'e2e p50':>9} {'p95':>9} {'p99':>9} {'ttft p50':>9} {'p95':>9} {'p99':>9}",
    ]
    latency = document["latency_s"]
    for name, row in (("all", latency["all"]), *latency["tiers"].items()):
        cells = (row[metric][rank] for metric in ("e2e", "ttft") for rank in ("p50", "p95", "p99"))
        lines.append(f"{name:10} " + " ".join(f"{_number(cell):>9}" for cell in cells))
    for switch in document["switches"]:
        lines.append(
            f"switch     at {_number(switch['at_s'])} s: {switch['from']} → {switch['to']}, "
            f"{switch['queued']} queued, {_number(switch['took_ms'])} ms"
        )
    if expected := document["expect"]:
        met = sum(expectation["ok"] for expectation in expected)
        lines.append(f"expect     {met} of {len(expected)} met")
    return "\n".join(lines)


def load_ended(requests: Mapping[str, int]) -> str:
    """The last event of a run's load."""
    return f"all load has ended: {_counts(requests)}"


def _counts(requests: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in requests.items() if count or name == "finished")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
