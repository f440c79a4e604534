"""``bench policies`` over one seed: what docs/policies.md promises of them holds."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from scheduler.bench import policies
from scheduler.bench.result import BadInput


def test_the_policies_keep_what_is_promised_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "SEEDS", (1,))
    monkeypatch.setattr(policies, "POLICIES", ("fifo", policies.ORACLE, "two-class", "fair+two-class"))
    told: list[str] = []
    result = policies.bench_policies(told.append)
    assert [claim.id for claim in result.claims if not claim.ok] == []
    assert len(result.claims) == 15
    assert {row["load"] for row in result.rows} == {line.partition(":")[0] for line in told}
    for row in result.rows:
        latencies = [row[figure] for figure in ("e2e_p50_s", "e2e_p95_s", "e2e_p99_s", "e2e_max_s")]
        assert all(lower <= higher for lower, higher in pairwise([0.0, *latencies])), row
    best, oracle, fifo = (
        next(
            row["e2e_p50_s"]
            for row in result.rows
            if (row["load"], row["policy"], row["tier"]) == ("burst", policy, "all")
        )
        for policy in ("two-class", policies.ORACLE, "fifo")
    )
    assert oracle < best < fifo, "knowing every length is the limit"


def test_a_trace_that_is_no_trace_is_refused_before_minutes_are_spent(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    with pytest.raises(BadInput, match="no such file"):
        policies.bench_policies(print, file)
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n", encoding="utf-8")
    with pytest.raises(BadInput, match="no request"):
        policies.bench_policies(print, file)
