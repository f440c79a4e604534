"""Scenario files that are right: the documented example, what ships, defaults, names and paths."""

# ruff: noqa: E501 (the example as it stands in the documentation)

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest
from pydantic import ValidationError

from scheduler.core.types import Limits, Slo, Tenant
from scheduler.load.scenario import load_scenario, shipped_scenarios

EXAMPLE = """\
name: drift-shock
seed: 7
engine: {kind: sim, gpu: l4, model: qwen1.5-1.8b-chat, capacity: 32, args: {max_model_len: 2048}}
dispatch: continuous                          # or {microbatch: {size: 32, wait: 10ms}}
policy: fifo                                  # or {name: aging, rate: 0.01}
estimator: {kind: paper, counter: whitespace, calibrate: true}
paper: false
tenants:
  - {name: acme, tier: premium, weight: 5, slo: {ttft: 2s, e2e: 20s}, max_queued: 500}
  - {name: batch-lab, tier: batch, weight: 2}
load:                                         # streams add up
  - {tenant: acme, arrivals: {poisson: 4.0}, mix: {short_qa: 0.7, report: 0.3}, for: 120s,
     max_tokens: base, lengths: {profile: near}, sampling: {temperature: 0.7}, patience: 30s}
  - {tenant: {acme: 1, batch-lab: 1}, arrivals: {uniform: {min: 50ms, max: 150ms}}, count: 1000, prompts: paper}
  - {tenant: batch-lab, arrivals: {bursts: {rate: 6, base: 1, busy: 10s, idle: 30s}}, from: 30s, for: 60s}
  - {tenant: acme, after: drained, trace: {file: azure.csv, format: azure, speed: 10}}
timeline:
  - {at: 40s, policy: sjf}
  - {at: 60s, burst: {tenant: batch-lab, rate: 40, for: 10s}}
  - {at: 70s, drift: {tenant: acme, output_scale: 2.0}}
  - {at: 80s, tenant: {name: acme, weight: 1}}
  - {at: 90s, fault: {engine: crash}}
expect:
  - latency_s.tiers.premium.e2e.p99 < 12s
  - requests.failed == 0
"""
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    (tmp_path / "azure.csv").write_text(AZURE)
    (tmp_path / "example.yaml").write_text(EXAMPLE)
    return tmp_path / "example.yaml"


def test_the_example_of_the_format_loads(example: Path) -> None:
    scenario = load_scenario(str(example))
    first, uniform, bursts, trace = scenario.load
    assert (scenario.name, scenario.seed, scenario.policy.spec) == ("drift-shock", 7, "fifo")
    assert scenario.tenants[0].to_core() == Tenant(
        "acme", "premium", 5, Slo(2, 20, inf), Limits(max_queued=500)
    )
    assert (first.for_s, first.patience_s, first.max_tokens and first.max_tokens["report"]) == (120, 30, 512)
    assert uniform.arrivals is not None
    assert uniform.arrivals.uniform is not None
    assert (uniform.arrivals.uniform.min_s, uniform.arrivals.uniform.max_s) == (0.05, 0.15)
    assert (bursts.from_s, bursts.for_s) == (30, 60)
    assert trace.trace is not None
    assert trace.trace.file == str(example.parent / "azure.csv")
    assert [item.at_s for item in scenario.timeline] == [40, 60, 70, 80, 90]


def test_a_scenario_is_frozen(example: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_scenario(str(example)).seed = 8


@pytest.mark.parametrize(
    ("old", "new", "path", "value"),
    [
        (
            "dispatch: continuous",
            "dispatch: {microbatch: {size: 8, wait: 5ms}}",
            "dispatch.microbatch.wait_s",
            0.005,
        ),
        ("policy: fifo", "policy: {name: aging, rate: 0.05}", "policy.spec", "aging rate=0.05"),
        ("policy: fifo", "policy: aging rate=0.05", "policy.spec", "aging rate=0.05"),
        ("paper: false", "max_inflight_tokens: kv", "max_inflight_tokens", "kv"),
        ("paper: false", "max_inflight_tokens: 60000", "max_inflight_tokens", 60000),
        ("paper: false", "limits: {max_queued: 9, ttl: 1.5m}", "limits.limits", Limits(9, None, None, 90)),
        ("paper: false", "paper: true", "paper", True),
        ("seed: 7", "seed: 0x10", "seed", 16),
        ("seed: 7", "seed: 0xDE0B6B3A763FFFF", "seed", 10**18 - 1),
        ("seed: 7", "seed: 7.0", "seed", 7),
        ("paper: false", "max_inflight_tokens: 26e3", "max_inflight_tokens", 26000),
    ],
)
def test_other_ways_to_write_it(example: Path, old: str, new: str, path: str, value: object) -> None:
    example.write_text(EXAMPLE.replace(old, new))
    found: object = load_scenario(str(example))
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_a_path_goes_before_a_shipped_name(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(example.parent)
    example.rename("demo")
    assert load_scenario("demo").name == "drift-shock"


@pytest.mark.parametrize("name", shipped_scenarios())
def test_what_ships_loads_and_says_what_it_is(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.expect
    assert shipped_scenarios()[name] == scenario.description != ""


def test_the_papers_two_phases() -> None:
    learning, stress = load_scenario("paper").load
    assert (learning.count, stress.count, stress.after) == (1000, 2000, "drained")
    assert learning.mix == {"short_qa": 0.40, "summary": 0.25, "technical": 0.25, "report": 0.10}
    assert stress.mix == {"short_qa": 0.10, "summary": 0.20, "technical": 0.40, "report": 0.30}
    gaps = [s.arrivals.uniform for s in (learning, stress) if s.arrivals and s.arrivals.uniform]
    assert [(gap.min_s, gap.max_s) for gap in gaps] == [(0.05, 0.15), (0.005, 0.03)]


def test_l4_paper_is_the_papers_load_on_its_engine() -> None:
    paper, l4 = load_scenario("paper"), load_scenario("l4-paper")
    unlike = {"lengths": None, "sampling": None}
    assert [s.model_copy(update=unlike) for s in l4.load] == [s.model_copy(update=unlike) for s in paper.load]
    assert l4.engine.model == "Qwen/Qwen1.5-1.8B-Chat"
    assert l4.engine.args == {
        "dtype": "float16",
        "max_model_len": 2048,
        "enforce_eager": True,
        "gpu_memory_utilization": 0.70,
    }
