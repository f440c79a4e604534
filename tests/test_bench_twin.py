"""``bench twin`` whole, on a simulated engine whose profile it is not told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from struct import iter_unpack
from typing import Any

import pytest

from scheduler.bench.twin import Played, Sizes, judge, play
from scheduler.engines.simulated import SimulatedEngine
from scheduler.live import run as live_run
from scheduler.live.run import LiveRun
from scheduler.load.scenario import Scenario
from scheduler.plan import Plan, make_plan
from scheduler.twin.fit import StepSample
from scheduler.twin.gpu import Gpu
from scheduler.twin.profile_file import load_profile, profile_text
from scheduler.twin.steplog import StepLog

HIDDEN = replace(
    load_profile("cpu", "smollm2"),
    fixed_s=0.030,
    floor_s=0.033,
    per_context_token_s=9e-6,
    per_sequence_s=0.0015,
    per_prefill_token_s=0.0003,
)


class Watched(SimulatedEngine):
    """Keeps every step that it makes, and like vLLM takes two requests more than it batches."""

    @property
    def capacity(self) -> int:
        return self._capacity + 2

    async def start(self) -> None:
        await super().start()
        self.log = StepLog(self.profile)
        self._gpu = Gpu(self.profile, self._capacity, track_gaps=True, log=self.log)

    def steps(self) -> list[StepSample]:
        samples = []
        for batch, context, prefill, steps in iter_unpack("=4q", self.log.phases):
            for step in range(1, steps + 1):
                step_prefill = prefill if step == 1 else 0
                step_context = context + step * batch
                seconds = self.profile.step_s(batch, step_context, step_prefill)
                samples.append(StepSample(seconds, batch, step_context, step_prefill))
        return samples


class Hidden:
    """A simulated engine as the subject of the bench."""

    def __init__(self, folder: Path, capacity: int) -> None:
        self.capacity = capacity + 2
        self.blank = load_profile("cpu", "smollm2")  # not the one that it runs
        self.slower = 1.0  # times, in what is no calibration
        self._file = folder / "hidden.yaml"

    def plan(self, scenario: Scenario) -> Plan:
        times = 1.0 if scenario.name.startswith("calibration") else self.slower
        file = self._file.with_stem(f"hidden-{times}")
        file.write_text(profile_text(HIDDEN.slower(times)), encoding="utf-8")
        engine = scenario.engine.model_copy(update={"kind": "sim", "gpu": str(file)})
        return make_plan(scenario.model_copy(update={"engine": engine, "speed": 200.0}))

    async def play(self, plan: Plan) -> Played:
        run = LiveRun(plan)
        played = await play(run, [])
        assert isinstance(run.engine, Watched)
        return played._replace(steps=run.engine.steps())


@pytest.fixture
def hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hidden:
    def make(plan: Plan, clock: Any, **_: object) -> Watched:
        assert plan.profile is not None
        return Watched(plan.profile, plan.capacity, clock)

    monkeypatch.setattr(live_run, "make_engine", make)
    return Hidden(tmp_path, 8)


async def test_an_engine_that_it_does_not_know_is_predicted(hidden: Hidden) -> None:
    said: list[str] = []
    sizes = Sizes(requests=60, concurrency=8, repeats=2)
    result, profile = await judge(hidden, sizes, said.append)
    fit, prompts, *rows = result.rows
    assert profile.per_sequence_s == pytest.approx(HIDDEN.per_sequence_s, rel=0.02)
    assert fit["handover_ms"] < 1.0
    assert prompts["in_both"] == 0
    assert prompts["calibration"] > 50
    assert prompts["scenarios"] > 60
    assert len(rows) == 20
    assert all(abs(row["error"]) < 0.01 for row in rows if row["tolerance"] is not None)
    assert all(abs(row["error"]) < 0.06 for row in rows)  # the tails of 60: a single one, a step later
    assert all(claim.ok for claim in result.claims)
    assert len(result.claims) == 10
    assert {(row["scenario"], row["policy"]) for row in rows} == {("steady", "fifo"), ("rush", "weighted")}
    assert "rush, run 2 of 2" in said


async def test_a_machine_that_has_become_slower_is_told_from_a_wrong_model(hidden: Hidden) -> None:
    hidden.slower = 1.25
    result, _ = await judge(hidden, Sizes(requests=60, concurrency=8, repeats=1), lambda line: None)
    rows = [row for row in result.rows if row.get("tolerance") is not None]
    assert all(abs(row["error_at_own_pace"]) < 0.02 for row in rows)
    (missed,) = (row for row in rows if (row["scenario"], row["figure"]) == ("rush", "output_per_s"))
    assert missed["error"] == pytest.approx(0.25, abs=0.03)
    assert any(not claim.ok for claim in result.claims), (
        "they are on what was predicted from the calibrations"
    )
