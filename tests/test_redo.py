"""A live run's log, its inputs and times given to a fresh Scheduler: the same decisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scheduler.core.estimate import Given
from scheduler.core.events import Event
from scheduler.core.types import Limits, Request
from scheduler.live.feed import LocalFeed
from scheduler.live.run import LiveRun
from scheduler.load.scenario import Scenario
from scheduler.plan import Plan, make_plan
from scheduler.record.errors import FolderError
from scheduler.record.playback import Playback
from scheduler.record.recording import read_recording
from scheduler.record.redo import NotRedoable, Redone, check, redo

EVERYONE = {"acme": 2, "blue": 2, "cyan": 1}


def plan(policy: str, **fields: Any) -> Plan:
    scenario = {
        "name": "recorded",
        "seed": 5,
        "speed": 300.0,
        "policy": policy,
        "tenants": (
            {"name": "acme", "tier": "premium", "weight": 5},
            {"name": "blue", "tier": "standard", "weight": 3, "max_in_flight": 9},
            {"name": "cyan", "tier": "batch", "weight": 2, "max_queued": 4},
        ),
        "load": ({"tenant": EVERYONE, "arrivals": {"poisson": 15.0}, "count": 250, "patience": "9s"},),
    }
    return make_plan(Scenario.model_validate(scenario | fields))


async def record(plan: Plan, folder: Path) -> Path:
    run = LiveRun(plan, out=folder)
    await run.start()
    await run.session.drained.wait()
    await run.stop()
    return folder


def again(plan: Plan, folder: Path) -> Redone:
    scheduler = plan.scheduler()
    scheduler.estimator = Given()
    return redo(folder, scheduler, json.loads((folder / "run.json").read_text())["requests"]["submitted"])


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("policy", ["fifo", "sjf", "weighted", "fair", "two-class"])
async def test_the_same_dispatch_order(policy: str, tmp_path: Path) -> None:
    made = plan(policy)
    folder = await record(made, tmp_path / "run")
    kinds = [event["e"] for event in events(folder)]
    assert {"rejected", "aborting", "cancelled"} <= set(kinds)
    assert check(folder) == Redone(kinds.count("dispatched"))


@pytest.mark.parametrize("policy", ["fifo", "weighted", "packed"])
@pytest.mark.parametrize("size", [4, 24])
async def test_the_same_micro_batches(policy: str, size: int, tmp_path: Path) -> None:
    made = plan(policy, dispatch={"microbatch": {"size": size, "wait": "300ms"}})
    folder = await record(made, tmp_path / "run")
    kinds = [event["e"] for event in events(folder)]
    assert {"aborting", "cancelled"} <= set(kinds)
    assert check(folder) == Redone(kinds.count("dispatched"))
    other = again(plan("sjf", dispatch={"microbatch": {"size": size, "wait": "300ms"}}), folder)
    assert "the run dispatched" in other.difference


async def test_through_changes_of_tenants_and_limits(tmp_path: Path) -> None:
    made = plan("fair", timeline=({"at": "2s", "tenant": {"name": "blue", "weight": 9, "max_queued": 2}},))
    run = LiveRun(made, out=tmp_path / "run")
    await run.start()
    run.clock.call_at(4.0, lambda: run.scheduler.set_limits(Limits(max_in_flight=5), run.clock.now()))
    await run.session.drained.wait()
    await run.stop()
    kinds = [event["e"] for event in events(tmp_path / "run")]
    assert check(tmp_path / "run") == Redone(kinds.count("dispatched"))
    for kind, other in (("tenant", {"weight": 1}), ("limits", {"limits": {}})):
        lines = [line | other if line["e"] == kind else line for line in events(tmp_path / "run")]
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "run.json").write_text((tmp_path / "run" / "run.json").read_text())
        (tmp_path / kind / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert check(tmp_path / kind).difference, kind


async def test_a_tenant_that_comes_later_is_in_the_log(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text(
        "name: more\n"
        "tenants: [{name: late, tier: batch, weight: 7, max_queued: 9, slo: {e2e: 20s}}]\n"
        "load: [{tenant: late, arrivals: at-once, count: 20}]\n"
    )
    run = LiveRun(plan("fair"), out=tmp_path / "run")
    feed = LocalFeed(run)
    await run.start()
    feed.inject(str(file))
    feed.set_tenant("late", weight=3.0, limits=Limits(max_queued=5))
    await run.session.drained.wait()
    await run.stop()
    kinds = [event["e"] for event in events(tmp_path / "run")]
    assert check(tmp_path / "run") == Redone(kinds.count("dispatched"))
    heard: list[Event] = []
    playback = Playback(read_recording(tmp_path / "run"), heard.append)
    playback.play_to(1e9)
    late = playback.books.tenant("late").config
    assert (late.tier, late.weight, late.slo.e2e_s, late.limits.max_queued) == ("batch", 3.0, 20.0, 5)
    assert "more injected" in [event.detail.get("what") for event in heard]


async def test_with_tokens_reserved_by_the_upper_estimate(tmp_path: Path) -> None:
    made = plan("sjf", max_inflight_tokens=3000, estimator={"kind": "tenant"})
    folder = await record(made, tmp_path / "run")
    assert check(folder).difference == ""


async def test_through_swaps_and_a_crash(tmp_path: Path) -> None:
    timeline = (
        {"at": "4s", "policy": "fair"},
        {"at": "8s", "fault": {"engine": "crash"}},
        {"at": "25s", "policy": "sjf"},
    )
    made = plan("fifo", timeline=timeline)
    folder = await record(made, tmp_path / "run")
    kinds = [event["e"] for event in events(folder)]
    assert kinds.count("swap_applied") == 2
    assert "retried" in kinds
    assert check(folder) == Redone(kinds.count("dispatched"))


async def clients(folder: Path) -> Path:
    """A run in which requests of clients are streamed, promised or in a hurry, and the engine is lost."""
    run = LiveRun(plan("fair", timeline=({"at": "8s", "fault": {"engine": "crash"}},)), out=folder)
    await run.start()
    for number in range(40):
        changes: dict[str, Any] = {"streamed": True} if number < 20 else {"acknowledged": True, "ttl_s": 3.0}
        tenant = "acme" if number < 20 else "cyan"
        request = Request(f"c{number}", tenant, "batch", run.clock.now(), 30, 900, "", "", 900, **changes)
        run.session.submit(request)
    await run.session.drained.wait()
    await run.stop()
    return folder


async def test_what_clients_may_ask_for_decides_again(tmp_path: Path) -> None:
    folder = await clients(tmp_path / "run")
    lines = events(folder)
    ends = {line["id"]: line for line in lines if "finish" in line}
    assert ends["c0"]["reason"] == "engine_lost"
    assert ends["c0"]["output_tokens"] > 0
    assert ends["c39"]["e"] == "expired"
    assert check(folder) == Redone(sum(line["e"] == "dispatched" for line in lines))
    for name in ("streamed", "acknowledged", "ttl_s"):
        without = [{key: value for key, value in line.items() if key != name} for line in lines]
        assert without != lines
        (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in without))
        assert check(folder).difference, name


@pytest.fixture
async def recorded(tmp_path: Path) -> tuple[Plan, Path]:
    made = plan("sjf")
    return made, await record(made, tmp_path / "run")


async def test_another_policy_would_have_decided_otherwise(recorded: tuple[Plan, Path]) -> None:
    _, folder = recorded
    redone = again(plan("fifo"), folder)
    assert "the run dispatched" in redone.difference
    assert redone.dispatched < 250


async def test_a_missing_dispatch_is_a_difference(recorded: tuple[Plan, Path]) -> None:
    made, folder = recorded
    lines = events(folder)
    lines.remove(next(line for line in lines if line["e"] == "dispatched"))
    (folder / "events.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    assert "no running request r0" in again(made, folder).difference


async def test_what_the_log_does_not_hold_is_said(recorded: tuple[Plan, Path]) -> None:
    _, folder = recorded
    with (folder / "events.jsonl").open("a") as log:
        log.write('{"t": 99.0, "e": "estimator", "to": "tenant", "by": "operator"}\n')
    with pytest.raises(NotRedoable, match="the estimator was changed"):
        check(folder)


@pytest.mark.parametrize("lines", [0, 500])
async def test_a_log_that_is_not_whole(recorded: tuple[Plan, Path], lines: int) -> None:
    _, folder = recorded
    log = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(log[:lines]))
    with pytest.raises(
        NotRedoable, match=r"of its 250 requests, its log has the ends of [0-9]+: it is not whole"
    ):
        check(folder)


async def test_a_crash_of_an_engine_that_the_run_did_not_have(recorded: tuple[Plan, Path]) -> None:
    log = recorded[1] / "events.jsonl"
    log.write_text('{"t":0.0,"e":"engine","what":"crashed","replica":7,"lost":0}\n' + log.read_text())
    with pytest.raises(FolderError, match=r"events.jsonl:1: not a line of an event log"):
        check(recorded[1])


async def test_a_run_whose_document_says_too_little(recorded: tuple[Plan, Path]) -> None:
    document = json.loads((recorded[1] / "run.json").read_text())
    del document["limits"]
    (recorded[1] / "run.json").write_text(json.dumps(document))
    with pytest.raises(NotRedoable, match="does not hold all"):
        check(recorded[1])
