"""The run folder: every figure of run.json can be recomputed from events.jsonl, naively."""

from __future__ import annotations

import csv
import json
import math
import stat
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_kit import complete, dispatch_all, make_request, make_scheduler, submit_all
from recorded_kit import record

from scheduler.core.estimate import BASE_TOKENS
from scheduler.core.events import Event, Kind
from scheduler.core.metrics import gap_value
from scheduler.core.types import TIERS, Limits, Request, Slo, Tenant
from scheduler.load.scenario import Scenario, load_scenario
from scheduler.plan import make_plan
from scheduler.record.paths import leaves, valid_paths
from scheduler.record.recorder import DEPTH_COLUMNS, METRICS_COLUMNS, Recorder
from scheduler.record.summary import summary
from scheduler.record.tally import Tally, spearman
from scheduler.record.writer import FileWriter
from scheduler.virtual import VirtualRun

Json = dict[str, Any]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Json, list[Json], Path]:
    """A run with every kind of ending in it: its document, its events, its folder."""
    folder = record(tmp_path_factory.mktemp("recorded"))
    document = json.loads((folder / "run.json").read_text())
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return document, events, folder


def arrivals_and_ends(events: list[Json]) -> tuple[dict[str, Json], dict[str, Json]]:
    arrivals = {e["id"]: e for e in events if e["e"] in ("queued", "rejected")}
    kinds = ("finished", "failed", "cancelled", "rejected", "expired")
    return arrivals, {e["id"]: e for e in events if e["e"] in kinds}


def six(values: list[float]) -> Json:
    ordered = sorted(values)
    ranks = {f"p{n}": ordered[max(0, math.ceil(n / 100 * len(ordered)) - 1)] for n in (50, 90, 95, 99)}
    return {**ranks, "mean": math.fsum(ordered) / len(ordered), "max": ordered[-1]}


def near(ours: Any, theirs: Any) -> bool:
    return bool(ours == pytest.approx(theirs, rel=1e-9, abs=1e-9))


def test_the_run_has_every_kind_of_ending(recorded: tuple[Json, list[Json], Path]) -> None:
    requests = recorded[0]["requests"]
    assert all(requests[kind] > 0 for kind in ("finished", "cancelled", "rejected", "expired", "retried"))


def test_counts_finishes_and_tokens(recorded: tuple[Json, list[Json], Path]) -> None:
    document, events, _ = recorded
    arrivals, ends = arrivals_and_ends(events)
    counts = {kind: sum(e["e"] == kind for e in ends.values()) for kind in document["requests"]}
    counts |= {"submitted": len(arrivals), "retried": len({e["id"] for e in events if e["e"] == "retried"})}
    assert document["requests"] == counts
    done = [e for e in ends.values() if e["e"] == "finished"]
    assert document["finish"] == {kind: sum(e["finish"] == kind for e in done) for kind in ("stop", "length")}
    duration = max(e["t"] for e in ends.values())
    output = sum(e["output_tokens"] for e in done)
    assert document["duration_s"] == duration
    assert document["tokens"]["prompt"] == sum(e["prompt_tokens"] for e in done)
    assert document["tokens"]["output"] == output
    assert near(document["tokens"]["output_per_s"], output / duration)
    rates = [tenant["tokens"]["output_per_s"] for tenant in document["latency_s"]["tenants"].values()]
    assert near(sum(rates), output / duration)
    reasons = [e["reason"] for e in ends.values() if e["e"] == "rejected"]
    assert document["rejections"] == {reason: reasons.count(reason) for reason in set(reasons)}


def test_expectations_may_be_about_all_that_a_run_tells(recorded: tuple[Json, list[Json], Path]) -> None:
    document = recorded[0]
    open_ended = {"telemetry", "predictions", "expect", "invocation"}
    told = {path for path, _ in leaves({k: v for k, v in document.items() if k not in open_ended})}
    paths = set(valid_paths(document["tenants"], document["latency_s"]["tiers"]))
    assert [path for path in told ^ paths if not path.startswith("rejections.")] == []


def test_latencies(recorded: tuple[Json, list[Json], Path]) -> None:
    document, events, _ = recorded
    arrivals, ends = arrivals_and_ends(events)
    latency = document["latency_s"]
    groups: list[tuple[Json, Any]] = [(latency["all"], lambda a: True)]
    groups += [(row, lambda a, t=tier: a["tier"] == t) for tier, row in latency["tiers"].items()]
    groups += [(row, lambda a, t=name: a["tenant"] == t) for name, row in latency["tenants"].items()]
    for row, belongs in groups:
        done = [
            (arrivals[id_], e) for id_, e in ends.items() if e["e"] == "finished" and belongs(arrivals[id_])
        ]
        metrics: dict[str, list[float]] = {
            "e2e": [e["t"] - a["arrival_s"] for a, e in done],
            "ttft": [e["first_token_s"] - a["arrival_s"] for a, e in done],
            "engine_ttft": [e["first_token_s"] - e["dispatched_s"] for _, e in done],
            "queue_wait": [e["dispatched_s"] - a["arrival_s"] for a, e in done],
            "tpot": [
                (e["t"] - e["first_token_s"]) / (e["output_tokens"] - 1)
                for _, e in done
                if e["output_tokens"] > 1
            ],
        }
        for name, values in metrics.items():
            assert near(row[name], six(values)), name
        gaps = [
            gap_value(int(bucket))
            for _, e in done
            for bucket, count in (e["gaps"] or {}).items()
            for _ in range(count)
        ]
        expected = six(gaps)
        total = sum(e["last_token_s"] - e["first_token_s"] for _, e in done)
        assert near(row["itl"], {**expected, "mean": total / len(gaps)})


def test_tenants_books(recorded: tuple[Json, list[Json], Path]) -> None:
    document, events, _ = recorded
    arrivals, ends = arrivals_and_ends(events)
    for name, row in document["latency_s"]["tenants"].items():
        mine = {id_: e for id_, e in ends.items() if arrivals[id_]["tenant"] == name}
        done = [e for e in mine.values() if e["e"] == "finished"]
        assert row["tokens"]["output"] == sum(e["output_tokens"] for e in done)
        assert row["requests"]["submitted"] == len(mine)
        assert row["requests"]["expired"] == sum(e["e"] == "expired" for e in mine.values())


def test_estimates(recorded: tuple[Json, list[Json], Path]) -> None:
    document, events, _ = recorded
    arrivals, ends = arrivals_and_ends(events)
    done = [(arrivals[id_], e) for id_, e in ends.items() if e["e"] == "finished"]
    figures = document["estimate"]
    for prefix, key in (("", "estimate"), ("uncorrected_", "uncorrected")):
        drift = [e["output_tokens"] - min(e[key], a["max_tokens"]) for a, e in done]
        assert near(figures[f"{prefix}mae"], sum(map(abs, drift)) / len(drift))
        assert near(figures[f"{prefix}rmse"], math.sqrt(sum(d * d for d in drift) / len(drift)))
    assert near(figures["coverage"], sum(e["output_tokens"] <= e["upper"] for _, e in done) / len(done))
    assert near(figures["capped_share"], sum(e["finish"] == "length" for _, e in done) / len(done))

    def classed(tokens: float) -> str:
        return "short" if tokens <= 128 else "medium" if tokens <= 512 else "long"

    pairs = [(e["class"], classed(a["input_tokens"] + e["output_tokens"])) for a, e in done]
    assert near(figures["class_accuracy"], sum(x == y for x, y in pairs) / len(pairs))
    for row, columns in figures["class_confusion"].items():
        assert columns == {column: pairs.count((row, column)) for column in columns}
    bias = dict.fromkeys(figures["bias"], 1.0)
    for arrival, end in sorted(done, key=lambda pair: pair[1]["t"]):
        bias[arrival["category"]] = end["bias_after"]
    assert near(figures["bias"], bias)
    ranks = [_ranks([min(a["estimate"], a["max_tokens"]) for a, _ in done])]
    ranks.append(_ranks([e["output_tokens"] for _, e in done]))
    assert near(figures["spearman"], _pearson(*ranks))


def test_ties_share_their_mean_rank() -> None:
    tied, other = np.array([1.0, 2.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0, 40.0])
    assert spearman(tied, other) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman(tied, tied) == pytest.approx(1.0)
    assert math.isnan(spearman(tied, np.ones(4)))


def _ranks(values: list[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def _pearson(x: list[float], y: list[float]) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return covariance / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def test_fairness_and_goodput(recorded: tuple[Json, list[Json], Path]) -> None:
    document, events, _ = recorded
    arrivals, ends = arrivals_and_ends(events)
    weights = {"acme": 5.0, "globex": 3.0, "lab": 2.0}
    served = dict.fromkeys(weights, 0.0)
    for id_, end in ends.items():
        if end["backlogged"] and end["dispatched_s"] is not None:
            tenant = arrivals[id_]["tenant"]
            served[tenant] += (end["prompt_tokens"] + 2 * end["output_tokens"]) / weights[tenant]
    backlogged, waiting = dict.fromkeys(weights, 0.0), {name: set[str]() for name in weights}
    since: dict[str, float] = {}
    for event in events:
        if "id" not in event or event["e"] == "rejected":
            continue
        tenant = arrivals[event["id"]]["tenant"]
        queue = waiting[tenant]
        before = len(queue)
        if event["e"] in ("queued", "retried"):
            queue.add(event["id"])
        else:
            queue.discard(event["id"])
        if queue and not before:
            since[tenant] = event["t"]
        elif before and not queue:
            backlogged[tenant] += event["t"] - since[tenant]
    rates = [served[name] / backlogged[name] for name in weights if backlogged[name] >= 1.0]
    assert len(rates) > 1
    assert near(document["fairness"]["jain"], sum(rates) ** 2 / (len(rates) * sum(r * r for r in rates)))
    slo = {"acme": (2.0, 20.0), "globex": (math.inf, 30.0), "lab": (math.inf, math.inf)}
    met = 0
    for id_, end in ends.items():
        if end["e"] == "finished":
            ttft_slo, e2e_slo = slo[arrivals[id_]["tenant"]]
            arrival = arrivals[id_]["arrival_s"]
            met += end["first_token_s"] - arrival <= ttft_slo and end["t"] - arrival <= e2e_slo
    assert 0 < met < len(ends)
    assert near(document["goodput"]["slo_share"], met / len(ends))
    assert near(document["goodput"]["requests_per_s"], met / document["duration_s"])


def test_switches(recorded: tuple[Json, list[Json], Path]) -> None:
    document, events, _ = recorded
    told = [e for e in events if e["e"] == "switched"]
    # How long one took by the wall is no part of what happens in virtual time.
    assert [e["took_ms"] for e in told] == [0.0] * len(told)
    as_told = [{k: v for k, v in e.items() if k not in ("t", "e", "took_ms")} for e in told]
    assert as_told == [{k: v for k, v in s.items() if k != "took_ms"} for s in document["switches"]]
    waiting = {e["id"] for e in events if e["e"] == "queued" and e["t"] <= told[0]["at_s"]}
    gone = ("dispatched", "cancelled", "expired")
    left = {e["id"] for e in events if e["e"] in gone and e["t"] < told[0]["at_s"]}
    assert told[0]["queued"] == len(waiting - left)


def test_rejections_are_of_the_rejected_and_objectives_those_of_whoever_came_late() -> None:
    scheduler, tally = make_scheduler(limits=Limits(max_queued=2)), Tally()
    scheduler.add_tenant(Tenant("late", slo=Slo(e2e_s=5.0)))
    late = Request("late", "late", "standard", 0.0, 10, 1000, intended_tokens=5)
    lost, third = make_request("lost"), make_request("third")
    submit_all(scheduler, [late, lost])
    assert scheduler.submit(third, 0.0) is not None
    dispatch_all(scheduler, 0.0)
    complete(scheduler, late, 9.0)
    complete(scheduler, lost, 9.0, "error")
    for request in (third, late, lost):
        tally.add(request)
    figures = tally.figures(scheduler.books, 9.0)
    assert (lost.reason, figures["rejections"]) == ("engine_error", {"queue_full": 1})
    assert figures["goodput"]["slo_share"] == 0.0


def test_each_row_of_metrics_is_what_the_log_tells(recorded: tuple[Json, list[Json], Path]) -> None:
    document, events, folder = recorded
    rows = read_table(folder / "metrics.csv")
    assert tuple(rows[0])[: len(METRICS_COLUMNS)] == METRICS_COLUMNS
    arrivals, ends = arrivals_and_ends(events)
    assert [row["request_id"] for row in rows] == list(ends)
    for row, (id_, end) in zip(rows, ends.items(), strict=True):
        arrival, ended, started = arrivals[id_], end["t"], end["dispatched_s"]
        came, first, category = arrival["arrival_s"], end["first_token_s"], arrival["category"]
        measured = min(3.0, max(0.25, end["output_tokens"] / BASE_TOKENS[category]))
        told = {
            "timestamp": ended,
            "scheduler_type": "fifo" if ended < document["switches"][0]["at_s"] else "sjf",
            "tenant_id": arrival["tenant"],
            "workload_category": category,
            "priority_tier": arrival["tier"],
            "batch_id": end["batch_id"],
            "batch_size": end["batch_size"],
            "total_token_budget": arrival["input_tokens"] + end["estimate"],
            "estimated_output_tokens": end["estimate"],
            "max_output_tokens": arrival["max_tokens"],
            "generated_tokens": end["output_tokens"],
            "queue_enter_time": came,
            "worker_start_time": started,
            "worker_finish_time": ended,
            "queue_wait_seconds": (ended if started is None else started) - came,
            "inference_seconds": None if started is None else ended - started,
            "end_to_end_seconds": ended - came,
            "latency_seconds": ended - came,
            "status": end["e"],
            "feedback_old_bias": end["bias_before"],
            "feedback_measured_bias": measured if end["e"] == "finished" else None,
            "feedback_new_bias": end["bias_after"],
            "ttft_seconds": None if first is None else first - came,
            "finish": end["finish"],
            "reason": end["reason"],
            "prompt_tokens": end["prompt_tokens"],
            "attempts": end["attempts"],
            "uncorrected_tokens": end["uncorrected"],
        }
        assert {name: row[name] for name in told} == {
            name: "" if value is None else str(value) for name, value in told.items()
        }


def test_each_row_of_queue_depth_is_what_waits_by_the_log(recorded: tuple[Json, list[Json], Path]) -> None:
    document, events, folder = recorded
    rows = read_table(folder / "queue_depth.csv")
    assert tuple(rows[0])[: len(DEPTH_COLUMNS)] == DEPTH_COLUMNS
    assert [float(row["elapsed_seconds"]) for row in rows] == list(range(len(rows)))
    assert len(rows) - 2 <= document["duration_s"] <= len(rows) - 1, "the last row is of what is left"
    arrivals, waiting, coming = arrivals_and_ends(events)[0], set[str](), deque(events)
    for at_s, row in enumerate(rows):
        while coming and coming[0]["t"] < at_s:
            event = coming.popleft()
            if event["e"] in ("queued", "retried"):
                waiting.add(event["id"])
            else:
                waiting.discard(event.get("id", ""))
        told = {"total_queue_size": len(waiting)}
        told |= {f"{tier}_queue": sum(arrivals[i]["tier"] == tier for i in waiting) for tier in TIERS}
        told |= {
            f"tenant:{name}": sum(arrivals[i]["tenant"] == name for i in waiting)
            for name in ("acme", "globex", "lab")
        }
        assert {name: int(row[name]) for name in told} == told
    assert (folder / "telemetry.csv").exists()


def read_table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("paper", [True, False])
def test_an_estimate_can_be_made_again_from_its_row(paper: bool, tmp_path: Path) -> None:
    """By the paper's formula: base x bias x safety x input factor, the bias as it was at the estimate."""
    scenario = load_scenario("demo").model_copy(update={"paper": paper})
    VirtualRun(make_plan(scenario, clock="virtual"), out=tmp_path).run()
    rows = read_table(tmp_path / "metrics.csv")
    assert len({row["estimation_bias"] for row in rows}) > 100
    for row in rows:
        factors = ("base_tokens", "estimation_bias", "safety_factor", "input_factor")
        estimate = int(math.prod(float(row[name]) for name in factors))
        limit = math.inf if paper else int(row["max_output_tokens"])
        assert min(estimate, limit) == float(row["estimated_output_tokens"])


def test_a_year_of_silence_is_cut_short(tmp_path: Path) -> None:
    text = "name: late\ntenants: [{name: a}]\nload: [{tenant: a, arrivals: at-once, count: 1, from: 8760h}]\n"
    (tmp_path / "late.yaml").write_text(text)
    VirtualRun(make_plan(load_scenario(str(tmp_path / "late.yaml"))), out=tmp_path / "run").run()
    assert len((tmp_path / "run" / "queue_depth.csv").read_text().splitlines()) < 4000


def test_prompts_are_only_recorded_when_asked_for(tmp_path: Path) -> None:
    scenario = load_scenario("demo")
    few = Scenario.model_validate(
        scenario.model_copy(
            update={"load": tuple(s.model_copy(update={"for_s": 3.0}) for s in scenario.load), "timeline": ()}
        )
    )
    plan = make_plan(few, clock="virtual")
    prompts = _prompts(plan)
    VirtualRun(plan, out=tmp_path / "plain").run()
    VirtualRun(plan, out=tmp_path / "text", text=True).run()
    plain, text = ((tmp_path / name / "events.jsonl").read_text() for name in ("plain", "text"))
    assert prompts
    assert not any(prompt in plain for prompt in prompts)
    assert all(json.dumps(prompt) in text for prompt in prompts)
    assert stat.S_IMODE((tmp_path / "text" / "events.jsonl").stat().st_mode) == 0o600


def test_a_run_that_breaks_off_leaves_the_run_before_it_or_nothing_of_it(tmp_path: Path) -> None:
    plan = make_plan(load_scenario("demo"), clock="virtual")
    VirtualRun(plan, out=tmp_path).run()
    (tmp_path / "mine.txt").write_text("kept")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run = VirtualRun(plan, out=tmp_path, text=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before, "it has not begun"
    assert run.recorder is not None
    for at_s in range(300):
        run.recorder.on_event(Event(float(at_s), Kind.PAUSED, None, {}))
    within = time.monotonic() + 20.0
    while not run.recorder.written_bytes and time.monotonic() < within:
        time.sleep(0.001)  # the writer is a thread
    assert not (tmp_path / "run.json").exists()
    assert (tmp_path / "mine.txt").exists()
    run.recorder.close({})
    assert json.loads((tmp_path / "run.json").read_text()) == {}
    assert stat.S_IMODE((tmp_path / "metrics.csv").stat().st_mode) == 0o600  # whatever it was before


def test_a_live_run_that_is_killed_leaves_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes to the disk, where it would replace the run before, while the engine may never start."""
    written: dict[str, str] = {}
    monkeypatch.setattr(FileWriter, "write", lambda writer, name, text: written.update({name: text}))
    scheduler = make_scheduler()
    recorder = Recorder(tmp_path, tenants=["acme"], scheduler=lambda: scheduler, wait=True)
    for sample in range(10):
        recorder.telemetry({"elapsed_s": sample / 5})
    recorder.on_event(Event(2.0, Kind.ENGINE, None, {"what": "started"}))
    assert not written
    recorder.telemetry({"elapsed_s": 2.2})
    assert '"started"' in written["events.jsonl"]
    assert written["telemetry.csv"].endswith("\n2.2\n")
    recorder.close({})


def _prompts(plan: Any) -> list[str]:
    workload = plan.workload()
    return [action.prompt for action in workload.take(3.0) if isinstance(action, Request)]


def test_same_seed_same_document(tmp_path: Path) -> None:
    plan = make_plan(load_scenario("demo"), clock="virtual")
    first, second = VirtualRun(plan).run(), VirtualRun(plan, out=tmp_path).run()
    for document in (first, second):
        document["wall_s"] = 0.0
        for switch in document["switches"]:
            switch["took_ms"] = 0.0
    assert first == second


def test_a_disk_that_answers_no_more_does_not_keep_the_run_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(FileWriter, "_write_all", lambda self: hangs.wait())
    said: list[str] = []
    writer = FileWriter(tmp_path, on_error=said.append)
    for _ in range(1000):  # more than it buffers
        writer.write("events.jsonl", "a line\n")
    writer.close(timeout_s=0.01)
    assert said == ["the disk is too slow for the run; recording has stopped"]
    hangs.set()


def test_a_full_disk_stops_the_recording_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "events.jsonl").mkdir()  # opening it for writing fails as a full disk does
    writer = FileWriter(tmp_path, on_error=said.append)
    writer.write("events.jsonl", "a line\n")
    writer.write("metrics.csv", "a line\n")
    writer.close()
    assert len(said) == 1
    assert "events.jsonl" in said[0]
    assert writer.error == said[0]


def test_the_summary_that_a_run_ends_with() -> None:
    six = dict.fromkeys(("p50", "p90", "p95", "p99"), 1.23456)
    nobody = dict.fromkeys(("p50", "p90", "p95", "p99"))
    switch = {"at_s": 20.0, "from": "fifo", "to": "sjf", "queued": 12, "took_ms": 0.5}
    document = {
        "scenario": "small",
        "policy": "fifo",
        "engine_detail": "simulated L4",
        "dispatch": "continuous",
        "capacity": 32,
        "clock": "virtual",
        "requests": {"submitted": 60, "finished": 0, "failed": 0, "cancelled": 60},
        "tokens": {"output": 4321, "output_per_s": 1234.5},
        "duration_s": 3.5,
        "estimate": {"mae": None, "uncorrected_mae": 80.04},
        "fairness": {"jain": 0.9876},
        "goodput": {"slo_share": None},
        "latency_s": {
            "all": {"e2e": six, "ttft": six},
            "tiers": {"premium": {"e2e": nobody, "ttft": nobody}},
        },
        "switches": [switch],
        "rejections": {"queue_full": 3, "too_long": 1},
        "expect": [{"text": "requests.failed == 0", "ok": True, "value": 0}],
    }
    assert summary(document).splitlines() == [
        "small: fifo on simulated L4, continuous, capacity 32, virtual time",
        "requests   60 submitted, 0 finished, 60 cancelled",
        "rejected   3 queue_full, 1 too_long",
        "tokens     4321 out, 1234/s over 3.5 s",
        "estimate   mean absolute error - tokens (uncorrected 80)",
        "fairness   Jain 0.988, SLOs met by -",
        "",
        "seconds      e2e p50       p95       p99  ttft p50       p95       p99",
        "all             1.23      1.23      1.23      1.23      1.23      1.23",
        "premium            -         -         -         -         -         -",
        "switch     at 20 s: fifo → sjf, 12 queued, 0.5 ms",
        "expect     1 of 1 met",
    ]
    assert "SLOs met by 95%" in summary({**document, "goodput": {"slo_share": 0.949}})
