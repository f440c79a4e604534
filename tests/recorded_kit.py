"""A recorded run with every kind of ending in it, for the tests of what reads one back."""

from __future__ import annotations

from pathlib import Path

from scheduler.load.scenario import load_scenario
from scheduler.plan import make_plan
from scheduler.virtual import VirtualRun

SCENARIO = """
name: recorded
seed: 5
engine: {kind: sim, capacity: 8}
policy: fifo
tenants:
  - {name: acme, tier: premium, weight: 5, slo: {ttft: 2s, e2e: 20s}, max_queued: 25}
  - {name: globex, tier: standard, weight: 3, slo: {e2e: 30s}}
  - {name: lab, tier: batch, weight: 2, ttl: 12s}
load:
  - {tenant: acme, arrivals: {poisson: 2.0}, for: 60s, patience: 25s}
  - {tenant: {globex: 1, lab: 1}, arrivals: {poisson: 2.0}, for: 60s}
timeline:
  - {at: 20s, policy: sjf}
  - {at: 30s, fault: {engine: crash}}
"""


def record(home: Path) -> Path:
    """The run folder, below ``home``."""
    file = home / "recorded.yaml"
    file.write_text(SCENARIO)
    VirtualRun(make_plan(load_scenario(str(file)), clock="virtual"), out=home / "run").run()
    return home / "run"
