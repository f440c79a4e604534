"""Virtual time: repeatable, the same figures recorded or not, and shortcuts that change nothing."""

from __future__ import annotations

import json
import random
from math import inf
from pathlib import Path
from typing import Any

import pytest

from scheduler.core.estimate import PaperEstimator, classify, count_words
from scheduler.core.events import Event, Kind
from scheduler.core.types import Request, State
from scheduler.load.scenario import Scenario, load_scenario
from scheduler.plan import make_plan
from scheduler.record.playback import Playback
from scheduler.record.recording import read_recording
from scheduler.twin.gaps import histograms
from scheduler.twin.gpu import Gpu
from scheduler.twin.profile import Profile
from scheduler.twin.steplog import StepLog
from scheduler.virtual import VirtualRun

BUSY = """
name: busy
seed: 3
engine: {kind: sim, capacity: 8}
policy: sjf
tenants:
  - {name: acme, tier: premium, weight: 5, slo: {ttft: 2s, e2e: 20s}, max_queued: 30}
  - {name: lab, tier: batch, weight: 2, ttl: 12s}
load:
  - {tenant: {acme: 2, lab: 1}, arrivals: {poisson: 4.0}, for: 60s, patience: 25s}
timeline:
  - {at: 20s, policy: fair}
  - {at: 30s, fault: {engine: crash}}
"""


def scenario(folder: Path, text: str = BUSY) -> Scenario:
    (folder / "busy.yaml").write_text(text, encoding="utf-8")
    return load_scenario(str(folder / "busy.yaml"))


def steady(document: dict[str, Any]) -> dict[str, Any]:
    """Without what the wall clock decides."""
    for switch in document["switches"]:
        switch["took_ms"] = 0.0
    return document | {"wall_s": 0.0}


def test_a_run_is_the_same_recorded_or_not_token_gaps_included(tmp_path: Path) -> None:
    """Recorded, gaps are counted request by request; unrecorded, at the end and all at once."""
    plan = make_plan(scenario(tmp_path), clock="virtual")
    recorded = steady(VirtualRun(plan, out=tmp_path / "run").run())
    assert all(recorded["requests"][kind] for kind in ("cancelled", "expired", "retried"))
    assert recorded["latency_s"]["all"]["itl"]["p50"] > 0
    assert steady(VirtualRun(plan).run()) == recorded


def test_an_engine_that_is_away_does_not_crash_again(tmp_path: Path) -> None:
    """Nor come back twice: the second time would let others run beside one that has to run alone."""
    again = BUSY + "  - {at: 35s, fault: {engine: crash}}\n"
    once, twice = (
        steady(VirtualRun(make_plan(scenario(tmp_path, text), clock="virtual")).run())
        for text in (BUSY, again)
    )
    assert once == twice


def test_one_seed_gives_one_log(tmp_path: Path) -> None:
    plan = make_plan(scenario(tmp_path), clock="virtual")
    logs = []
    for name in ("first", "second"):
        VirtualRun(plan, out=tmp_path / name).run()
        logs.append((tmp_path / name / "events.jsonl").read_bytes())
    first, second = logs
    assert first.count(b"\n") > 500
    assert b'"e":"switched"' in first
    assert first == second


def test_a_recorded_run_tells_of_objectives_and_of_who_is_not_served(tmp_path: Path) -> None:
    """As a live one does; what is told is in the log, and comes again when that is played."""
    told: list[Event] = []
    plan = make_plan(scenario(tmp_path, BUSY.replace("max_queued: 30", "max_queued: 10")), clock="virtual")
    VirtualRun(plan, out=tmp_path / "run", on_change=told.append).run()
    kinds = {(event.kind.value, event.detail["tenant"], event.detail.get("what")) for event in told}
    assert {("slo", "acme", None), ("unserved", "acme", "rejected"), ("unserved", "lab", "expired")} <= kinds
    assert [event.at_s for event in told] == sorted(event.at_s for event in told)
    again: list[Event] = []
    Playback(read_recording(tmp_path / "run"), again.append).play_to(1e6)
    told_again = [event for event in again if event.kind in (Kind.SLO, Kind.UNSERVED, Kind.DRIFT)]
    assert [(event.at_s, dict(event.detail)) for event in told_again] == [
        (event.at_s, dict(event.detail)) for event in told
    ]


def test_a_change_of_the_estimator_is_no_switch_of_the_policy(tmp_path: Path) -> None:
    """It ranks what waits anew, as a switch does."""
    text = BUSY.replace(
        "timeline:", "timeline:\n  - {at: 10s, estimator: tenant}\n  - {at: 25s, estimator: paper}"
    )
    plan = make_plan(scenario(tmp_path, text), clock="virtual")
    run = VirtualRun(plan, out=tmp_path / "run")
    document = run.run()
    assert [switch["at_s"] for switch in document["switches"]] == [20.0]
    log = (tmp_path / "run" / "events.jsonl").read_text()
    assert [log.count(f'"e":"{kind}"') for kind in ("estimator", "swap_applied", "switched")] == [2, 3, 1]
    playback = Playback(read_recording(tmp_path / "run"))
    playback.play_to(59.0)
    assert playback.snapshot().policy_since_s == run.scheduler.swaps[-1].applied_s == 20.0


def test_a_run_that_is_stopped_cancels_what_is_left(tmp_path: Path) -> None:
    ended: list[Request] = []

    def on_ended(request: Request) -> None:
        ended.append(request)
        if len(ended) == 60:
            run.simulation.stop()

    run = VirtualRun(make_plan(scenario(tmp_path), clock="virtual"), on_ended=on_ended)
    document = run.run()
    counts = document["requests"]
    assert document["interrupted"]
    assert run.scheduler.idle
    assert counts["submitted"] == len(ended) < 240
    left = ended[60:]
    assert {request.ended_s for request in left if request.state is State.CANCELLED} == {run.simulation.now}
    assert sum(request.dispatched_s is not None for request in left) >= 7, "some ran, and some waited"
    assert sum(request.dispatched_s is None for request in left) > 0
    run.scheduler.check()


def test_in_a_micro_batch_all_tokens_come_at_once(tmp_path: Path) -> None:
    text = BUSY.replace("policy: sjf", "policy: sjf\ndispatch: {microbatch: {size: 8, wait: 10ms}}")
    for out in (None, tmp_path / "run"):
        latency = VirtualRun(make_plan(scenario(tmp_path, text), clock="virtual"), out=out).run()["latency_s"]
        assert latency["all"]["itl"]["p50"] is None
        assert latency["all"]["tpot"]["max"] == 0.0
        assert latency["all"]["ttft"] == latency["all"]["e2e"]


def test_a_template_is_read_once_and_estimated_as_if_each_time(tmp_path: Path) -> None:
    """Category and length of a prompt are kept: they equal those of the whole path, request by request."""
    plan = make_plan(scenario(tmp_path, BUSY.replace("60s, patience", "600s, patience")), clock="virtual")
    workload, kept = plan.workload(), PaperEstimator()
    seen = 0
    while (now := workload.next_time()) < inf:
        for request in workload.take(now):
            if not isinstance(request, Request):
                continue
            seen += 1
            estimate = kept.estimate(request)
            assert estimate == PaperEstimator().estimate(request)
            assert (estimate.category, estimate.input_tokens) == (
                classify(request.prompt),
                count_words(request.prompt),
            )
            assert request.prompt_tokens == count_words(request.prompt)
    assert seen > 2000


@pytest.mark.parametrize("kv_tokens", [100_000, 900], ids=["roomy", "with preemptions"])
def test_gaps_of_the_log_are_those_of_the_requests(kv_tokens: int) -> None:
    profile = Profile(
        "test", "test", "", "", kv_tokens, kv_tokens, 64,
        fixed_s=0.0101, floor_s=0.0123, per_context_token_s=7e-6,
        per_sequence_s=3e-4, batch_knee=5, per_sequence_above_s=4e-4,
        per_prefill_token_s=1e-4, prefill_knee=20, per_prefill_token_above_s=2e-4,
    )  # fmt: skip
    rng = random.Random(kv_tokens)
    log = StepLog(profile)
    both: list[Gpu[str]] = [
        Gpu(profile, 12, track_gaps=True),
        Gpu(profile, 12, first_token_events=False, log=log),
    ]
    gaps: dict[str, dict[int, int]] = {"a": {}, "b": {}}
    live: dict[str, str] = {}
    now = 0.0
    for number in range(400):
        now += rng.expovariate(8.0)
        ended = [[sequence for kind, sequence in gpu.advance(now) if kind == "done"] for gpu in both]
        assert [(s.last_s, s.key) for s in ended[0]] == [(s.last_s, s.key) for s in ended[1]]
        for sequence in ended[0]:
            mine = gaps[live.pop(sequence.key)]
            for bucket, count in (sequence.gaps or {}).items():
                mine[bucket] = mine.get(bucket, 0) + count
        if live and rng.random() < 0.1:
            gone = rng.choice(sorted(live))
            del live[gone]
            for gpu in both:
                gpu.cancel(gone)
        lengths = rng.randint(0, 90), rng.randint(1, 160)
        live[str(number)] = rng.choice("ab")
        for gpu in both:
            gpu.start(str(number), *lengths, live[str(number)])
    assert (both[0].state().preemptions > 20) is (kv_tokens == 900)
    assert histograms(log) == gaps


def test_a_recorded_run_has_its_change_points(tmp_path: Path) -> None:
    text = """
name: doubled
tenants: [{name: acme}]
load: [{tenant: acme, arrivals: {poisson: 2.0}, for: 200s, lengths: {profile: near}, max_tokens: 3000}]
timeline: [{at: 100s, drift: {output_scale: 2.5}}]
"""
    told: list[Event] = []
    plan = make_plan(scenario(tmp_path, text), clock="virtual")
    VirtualRun(plan, out=tmp_path / "run", on_change=told.append).run()
    text = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[-1]["what"].startswith("all load has ended: ")
    (line,) = (line for line in lines if line["e"] == "drift")
    (change,) = told
    assert line["tenant"] == "acme"
    assert line["t"] == pytest.approx(change.at_s)
    assert 100 < change.at_s < 150
