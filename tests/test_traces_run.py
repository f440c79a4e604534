"""Traces run through every policy in virtual time: each request accounted for, bad rows named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scheduler.cli import main
from scheduler.core.policies import POLICIES
from scheduler.load.scenario import ScenarioError, load_scenario
from scheduler.plan import make_plan
from scheduler.virtual import VirtualRun

HEAD = """
name: replayed
engine: {kind: sim, capacity: 4%s}
tenants: [{name: acme, tier: premium, weight: 2}, {name: lab, tier: batch}]
load:
  - {tenant: {acme: 1, lab: 1}, trace: {file: %s, format: %s}}
"""
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:17:{n // 10:02d}.{n % 10}00000,{100 + 37 * n % 900},{1 + 53 * n % 300}\n"
    for n in range(300)
)
MOONCAKE = "".join(
    json.dumps({"timestamp": n * 100, "input_length": length, "output_length": 20, "hash_ids": []}) + "\n"
    for n, length in enumerate([500, 120_000, 30_000, 66_990, 700, 40_000, 90] * 8)
)


def write(folder: Path, text: str, format_: str, args: str = "") -> str:
    (folder / "trace").write_text(text)
    (folder / "replayed.yaml").write_text(HEAD % (args, "trace", format_))
    return str(folder / "replayed.yaml")


def run(path: str, policy: str = "fifo") -> dict[str, Any]:
    return VirtualRun(make_plan(load_scenario(path), policy=policy, clock="virtual")).run()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("text", "format_", "rows"), [(AZURE, "azure", 300), (MOONCAKE, "mooncake", 56)])
def test_every_request_is_accounted_for(
    tmp_path: Path, policy: str, text: str, format_: str, rows: int
) -> None:
    requests = run(write(tmp_path, text, format_), policy)["requests"]
    assert requests["submitted"] == rows
    assert requests["finished"] + requests["rejected"] == rows


def test_what_no_cache_holds_is_turned_away_and_the_rest_runs(tmp_path: Path) -> None:
    """Whatever context was asked for: 120,000, and 66,990 with room for an answer, exceed 67,000."""
    document = run(write(tmp_path, MOONCAKE, "mooncake", ", args: {max_model_len: 200000}"))
    assert document["rejections"] == {"too_long": 16}
    assert document["requests"]["finished"] == 40


def test_a_scenario_may_shorten_the_context(tmp_path: Path) -> None:
    document = run(write(tmp_path, MOONCAKE, "mooncake", ", args: {max_model_len: 2048}"))
    assert document["requests"]["finished"] == 24
    with pytest.raises(ScenarioError, match="max_model_len: 'long' is no number"):
        run(write(tmp_path, MOONCAKE, "mooncake", ", args: {max_model_len: long}"))


def test_latencies_by_tier_go_by_the_tier_of_each_row(tmp_path: Path) -> None:
    """Recorded or not: the token gaps are counted in one way or the other."""
    rows = [
        {"arrival_s": n / 10, "tenant": "acme", "prompt_tokens": 10, "output_tokens": tokens, "tier": tier}
        for n, (tier, tokens) in enumerate([("premium", 20), ("standard", 200)] * 20)
    ]
    path = write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "jsonl")
    text = Path(path).read_text().replace("tenant: {acme: 1, lab: 1}, ", "")
    Path(path).write_text(text + "expect: [latency_s.tiers.standard.e2e.p50 > 1s]\n")
    plan = make_plan(load_scenario(path), clock="virtual")
    document = VirtualRun(plan).run()
    recorded = VirtualRun(plan, out=tmp_path / "run").run()
    assert document["latency_s"] == recorded["latency_s"]
    assert document["expect"][0]["ok"]
    tiers = document["latency_s"]["tiers"]
    assert list(tiers) == ["premium", "standard", "batch"]
    done = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    arrivals = {event["id"]: event for event in done if event["e"] == "queued"}
    for tier in ("premium", "standard"):
        mine = [e for e in done if e["e"] == "finished" and arrivals[e["id"]]["tier"] == tier]
        longest_s = max(event["t"] - arrivals[event["id"]]["arrival_s"] for event in mine)
        assert tiers[tier]["e2e"]["max"] == pytest.approx(longest_s)
        gaps = sum(sum(event["gaps"].values()) for event in mine)
        total_s = sum(event["last_token_s"] - event["first_token_s"] for event in mine)
        assert tiers[tier]["itl"]["mean"] == pytest.approx(total_s / gaps)
    assert tiers["batch"]["e2e"]["p50"] is None


def test_malformed_rows_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, AZURE + "2023-11-16 18:17:40.0,many,3\n", "azure")
    assert main(["run", path, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["requests"]["finished"] == 300
    assert "1 of 301 rows are malformed and left out: line 302: 'many' is not a number" in err


def test_too_many_malformed_rows_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, AZURE + "\x1b[2J,,\n" * 10, "azure")
    assert main(["run", path]) == 2
    err = capsys.readouterr().err
    assert "10 of 310 rows are malformed" in err
    assert "line 302" in err
    assert "\x1b" not in err
