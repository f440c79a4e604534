"""``driftsched bench paper``: the cells it runs, what it counts, and the shape of what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scheduler.bench import paper
from scheduler.bench.paper import bench_paper
from scheduler.bench.paper_cell import Cell, run_cell, scenario_of, slot_use
from scheduler.core.types import Request
from scheduler.engines.models import ModelError

SMALL = Cell("static", "fifo", "whitespace", True, 0, True, scale=0.05)


def test_a_cell_changes_what_it_says_and_nothing_else() -> None:
    scenario = scenario_of(Cell("continuous", "aging", "whitespace", False, 3, False, "l4-eager", "heavy"))
    assert (scenario.policy.spec, scenario.seed, scenario.paper) == ("aging rate=0.01", 3, False)
    assert (scenario.dispatch.microbatch, scenario.engine.gpu) == (None, "l4-eager")
    assert scenario.estimator.calibrate is False
    assert [stream.count for stream in scenario.load] == [1000, 2000]
    assert {stream.lengths.profile for stream in scenario.load if stream.lengths} == {"heavy"}
    assert scenario_of(SMALL).dispatch.microbatch is not None


def test_slot_use() -> None:
    def request(batch_id: int, tokens: int) -> Request:
        return Request("r", "t", "premium", 0.0, 1, 64, batch_id=batch_id, output_tokens=tokens)

    assert slot_use([request(1, 10), request(1, 20), request(2, 30)]) == (10 + 20 + 30) / (2 * 20 + 30)
    assert slot_use([request(-1, 10)]) is None


def test_the_paper_s_effect_is_there_already_in_a_small_run() -> None:
    """Batches of like lengths waste fewer slots, so the backlog of the stress phase drains sooner."""
    fifo, sjf = run_cell(SMALL), run_cell(SMALL._replace(policy="sjf"))
    assert sjf["p50_s"] < fifo["p50_s"]
    assert sjf["slot_use"] > fifo["slot_use"]
    assert sum(map(sum, fifo["confusion"])) == 150
    assert run_cell(SMALL) == fifo


def test_no_feedback_leaves_the_estimates_uncorrected() -> None:
    run = run_cell(SMALL._replace(calibrate=False))
    assert (run["mae"], run["rmse"]) == (run["uncorrected_mae"], run["uncorrected_rmse"])
    assert set(run["bias"].values()) == {1.0}


def test_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_folder(name: str) -> str:
        raise ModelError("prepare it first")

    monkeypatch.setattr(paper, "resolve", no_folder)
    monkeypatch.setattr(paper, "LENGTHS", ("near", "short"))
    told: list[str] = []
    seen: list[tuple[int, int]] = []
    result = bench_paper(
        told.append,
        seeds=1,
        out=tmp_path,
        progress=lambda done, total: seen.append((done, total)),
        processes=0,
        scale=0.01,
    )
    document = json.loads(json.dumps(result.document(), allow_nan=False))
    assert "LEFT OUT" in told[0]
    assert "TOKENIZER HALF IS MISSING" in document["protocol"]
    assert seen[-1] == (32, 32)  # 2 x 5 x 2, and 2 floors x 2 lengths x 2 x 2 of which 4 are among them
    claims = {claim["id"]: claim for claim in document["claims"]}
    assert {"sjf_p50", "sjf_p99", "mae_cut", "rmse_cut", "feedback_ms"} <= set(claims)
    assert (claims["sjf_p50"]["paper"], claims["sjf_p50"]["tolerance"]) == (-42, 4)
    assert all(claim["needs"] for claim in claims.values())
    tables = {row["table"] for row in document["rows"]}
    assert tables == {"latency", "packing", "estimate", "classes", "stability", "sensitivity", "feedback"}
    folders = sorted(folder.name for folder in tmp_path.iterdir())
    assert len(folders) == 20
    assert folders[0] == "continuous-aging-whitespace-calibrated-seed0"
    assert (tmp_path / folders[0] / "run.json").exists()
