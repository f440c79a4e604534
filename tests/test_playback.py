"""A recorded run played again: the same counts and percentiles as its run.json, at any instant."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from recorded_kit import SCENARIO, record

from scheduler.core.metrics import WindowMetrics
from scheduler.core.types import Snapshot
from scheduler.load.scenario import load_scenario
from scheduler.plan import make_plan
from scheduler.record.errors import FolderError
from scheduler.record.playback import Playback
from scheduler.record.recording import Recording, read_recording
from scheduler.virtual import VirtualRun

Json = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every kind of ending in it."""
    return record(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="module")
def recording(folder: Path) -> Recording:
    return read_recording(folder)


@pytest.fixture(scope="module")
def document(folder: Path) -> Json:
    found: Json = json.loads((folder / "run.json").read_text())
    return found


def at_the_end(recording: Recording) -> Snapshot:
    """With a window over the whole run."""
    playback = Playback(recording, window_s=1e9)
    playback.play_to(recording.duration_s)
    return playback.snapshot()


def test_the_counts_at_the_end_are_those_of_the_run(recording: Recording, document: Json) -> None:
    shown = at_the_end(recording)
    assert shown.counts == document["requests"]
    assert (shown.queued, shown.in_flight) == (0, 0)
    for tenant in shown.tenants:
        told = document["latency_s"]["tenants"][tenant.name]["requests"]
        assert (tenant.submitted, tenant.finished) == (told["submitted"], told["finished"])


def test_the_percentiles_over_the_whole_run_are_those_of_the_run(
    recording: Recording, document: Json
) -> None:
    shown, latency = at_the_end(recording), document["latency_s"]
    for name in ("ttft", "e2e", "queue_wait"):
        assert getattr(shown, name)._asdict() == pytest.approx(latency["all"][name])
    for tenant in shown.tenants:
        assert tenant.e2e._asdict() == pytest.approx(latency["tenants"][tenant.name]["e2e"])


def test_tokens_tenants_policy_and_multipliers(recording: Recording, document: Json) -> None:
    shown = at_the_end(recording)
    output_per_s = document["tokens"]["output"] / recording.duration_s
    assert shown.tokens_per_s >= output_per_s  # of cancelled requests, too
    assert shown.tokens_per_s == pytest.approx(output_per_s, rel=0.1)
    assert shown.policy == "sjf"
    assert shown.policy_since_s == 20.0
    assert shown.capacity == 8
    acme, globex, lab = shown.tenants
    assert (acme.tier, acme.weight, acme.slo.ttft_s, acme.slo.tpot_s) == ("premium", 5, 2.0, math.inf)
    assert (globex.limits.max_queued, lab.limits.ttl_s) == (None, 12.0)
    assert shown.category_bias == pytest.approx(document["estimate"]["bias"])


def test_what_was_aborted_has_taught_the_estimator_too(tmp_path: Path) -> None:
    """Short of patience, so that many are given up while they run."""
    (tmp_path / "hasty.yaml").write_text(SCENARIO.replace("patience: 25s", "patience: 6s"))
    run = VirtualRun(make_plan(load_scenario(str(tmp_path / "hasty.yaml"))), out=tmp_path / "run")
    metrics = run.scheduler.metrics = WindowMetrics(run.scheduler.books.tenants, window_s=1e9)
    assert run.run()["requests"]["cancelled"] > 10
    playback = Playback(recording := read_recording(tmp_path / "run"))
    playback.play_to(recording.duration_s)
    for name, window in playback.metrics.tenants.items():
        assert window.categories == metrics.tenants[name].categories
        assert len(window.biases) == len(metrics.tenants[name].biases)


def copied(folder: Path, to: Path, log: list[Json]) -> Recording:
    """The same run with another log."""
    (to / "run.json").write_text((folder / "run.json").read_text())
    (to / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return read_recording(to)


def test_an_estimate_made_anew_while_it_waited_counts(folder: Path, tmp_path: Path) -> None:
    log = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    for line in log:
        if line["e"] == "finished":
            line |= {"estimate": line["output_tokens"] / 2, "upper": line["output_tokens"] - 1}
    shown = at_the_end(copied(folder, tmp_path, log))
    assert shown.drift_ratio == 2.0
    assert shown.coverage == 0.0


def test_more_tokens_than_can_be_counted_are_no_answer(folder: Path, tmp_path: Path) -> None:
    log = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    next(line for line in log if line["e"] == "finished")["output_tokens"] = 1e308
    with pytest.raises(FolderError, match="is too large a number"):
        copied(folder, tmp_path, log)


def test_the_machine_at_an_instant(folder: Path, tmp_path: Path) -> None:
    assert read_recording(folder).machine(30.0) == {}  # virtual time has none
    telemetry = tmp_path / "telemetry.csv"
    telemetry.write_text("elapsed_s,cpu_share,gpu_share\n0.2,0.5,\n1.2,0.75,\n")
    recording = copied(folder, tmp_path, [{"t": 3.0, "e": "paused"}])
    assert recording.machine(0.1) == {}
    assert recording.machine(1.1) == {"elapsed_s": 0.2, "cpu_share": 0.5, "gpu_share": None}
    assert recording.machine(99.0)["cpu_share"] == 0.75


def test_telemetry_that_is_no_text_has_a_first_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "telemetry.csv").write_bytes(b"\xff")
    with pytest.raises(FolderError, match=r"telemetry.csv:1: not a row of telemetry: it is no text in UTF-8"):
        copied(folder, tmp_path, [])


@pytest.mark.parametrize("row", ["1.0,high", "x,0.5", ",0.5", "1.0,0.5,7", "-1,0.5", "1.0," + "5" * 200_000])
def test_a_broken_row_of_telemetry_is_named(folder: Path, tmp_path: Path, row: str) -> None:
    (tmp_path / "telemetry.csv").write_text(f"elapsed_s,cpu_share\n0.2,0.5\n{row}\n")
    with pytest.raises(FolderError, match=r"telemetry.csv:3: not a row of telemetry"):
        copied(folder, tmp_path, [])


def test_going_back_shows_what_was_shown_before(recording: Recording) -> None:
    playback = Playback(recording)
    playback.play_to(25.0)
    before = playback.snapshot()
    assert before.queued > 0
    assert 0 < before.in_flight <= 8
    playback.play_to(50.0)
    playback.restart()
    playback.play_to(25.0)
    again = playback.snapshot()
    assert (again.counts, again.queued, again.e2e, again.policy) == (
        before.counts,
        before.queued,
        before.e2e,
        before.policy,
    )


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"no run folder \(no run.json in it\)"):
        read_recording(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        '{"t":1.0,"e":"finis',
        "[]",
        '{"t":1.0}',
        '{"t":"x","e":"queued","id":"r"}',
        '{"t":1.0,"e":"unheard-of"}',
        '{"t":1.0,"e":"queued","id":"r0"}',
        '{"t":1.0,"e":"finished","id":"r0"}',
        '{"t":1.0,"e":"dispatched"}',
        '{"t":1.0,"e":"aborting","id":[]}',
        '{"t":1.0,"e":"swap_applied"}',
        '{"t":1.0,"e":"estimator"}',
        '{"t":1.0,"e":"limits"}',
        '{"t":1.0,"e":"tenant","tenant":"acme","weight":1}',
        '{"t":1.0,"e":"tenant","tenant":"acme","weight":1,"limits":{},"changed":3}',
        '{"t":1.0,"e":"unserved","tenant":"acme","what":"rejected","reason":"","requests":1}',
        '{"t":1.0,"e":"tenant","tenant":{},"weight":1,"limits":{},"changed":{}}',
        '{"t":1.0,"e":"tenant","tenant":"acme","weight":1,"limits":{"max_queued":"x"},"changed":{}}',
        '{"t":1.0,"e":"tenant","tenant":"new","tier":"batch","weight":"1","slo":{},"limits":{}}',
        '{"t":1.0,"e":"tenant","tenant":"new","tier":"batch","weight":1,"slo":[],"limits":{}}',
        '{"t":1.0,"e":"limits","limits":3}',
        '{"t":1.0,"e":"swap_applied","from":"fifo","to":null,"queued":1,"by":"x"}',
        '{"t":1.0,"e":"switched","from":"fifo","to":"sjf","queued":1,"took_ms":"x"}',
        '{"t":1.0,"e":"engine","what":"crashed"}',
        '{"t":1.0,"e":"engine","what":"crashed","lost":{}}',
        '{"t":1.0,"e":"engine","what":"restarted"}',
        '{"t":1.0,"e":"engine","what":"dead"}',
        '{"t":1.0,"e":"engine","what":"started","replica":"first"}',
        '{"t":1.0,"e":"drift","tenant":"acme","before":0,"after":2}',
        '{"t":1.0,"e":"drift","tenant":"acme","before":1,"after":"2"}',
        '{"t":1.0,"e":"slo","tenant":"acme","share":"x"}',
        '{"t":1.0,"e":"slo","tenant":"acme","share":0.5,"worst":null}',
        '{"t":NaN,"e":"paused"}',
        "[" * 100_000,
    ],
)
def test_a_broken_line_is_named(folder: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "run.json").write_text((folder / "run.json").read_text())
    lines = (folder / "events.jsonl").read_text().splitlines()
    (tmp_path / "events.jsonl").write_text("\n".join([*lines[:4], line]) + "\n")
    with pytest.raises(FolderError, match=r"events.jsonl:5: not a line of an event log"):
        read_recording(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting property name"),
        ("[]", "no object"),
        ("{}", "schema None, this version reads 1"),
        ('{"schema": 2}', "schema 2, this version reads 1"),
        ('{"schema": 1, "policy": "fifo"}', "'capacity' is missing"),
        ('{"schema": 1, "capacity": "x"}', "invalid literal"),
        ('{"schema": 1, "capacity": 1e400}', "infinity"),
        ("[" * 100_000, "nested too deep"),
        ("\0\udcff", "no text in UTF-8"),
    ],
)
def test_a_broken_document_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "run.json").write_text(text, errors="surrogateescape")
    with pytest.raises(FolderError, match=rf"run.json: not a run document: .*{says}"):
        read_recording(tmp_path)
