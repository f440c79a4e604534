"""The live session on the simulated engine, its clock sped up: swaps, crashes, cancels, the way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from math import inf, nan
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from pydantic import ValidationError
from waiting import until

from scheduler.core.crashes import GIVEN_UP, MAX_CRASHES
from scheduler.core.metrics import gap_bucket
from scheduler.core.policies import policy_from
from scheduler.core.types import Limits, Request, State, Tenant
from scheduler.engines.engine import Chunk, EngineLost
from scheduler.gateway.control import SetTenant
from scheduler.live.feed import LocalFeed
from scheduler.live.run import LiveRun
from scheduler.live.view import CommandError, NotNow
from scheduler.load.scenario import load_scenario, shipped_scenarios
from scheduler.load.schema import TenantChange
from scheduler.plan import make_plan
from scheduler.twin.steering import GUARD

SCENARIO = """
name: session
seed: 3
engine: {kind: sim, capacity: 4}
tenants:
  - {name: acme, tier: premium, weight: 5}
  - {name: lab, tier: batch, weight: 2}
load:
  - {tenant: {acme: 1, lab: 1}, arrivals: at-once, count: COUNT, lengths: {profile: short}}
MORE
"""


class Bench:
    """A live run and all requests that ended in it."""

    def __init__(self, folder: Path, *, count: int = 40, more: str = "", speed: float = 100.0) -> None:
        file = folder / "session.yaml"
        file.write_text(SCENARIO.replace("COUNT", str(count)).replace("MORE", more))
        self.ended: list[Request] = []
        self.run = LiveRun(make_plan(load_scenario(str(file))), speed=speed)
        self.run.observers.append(self.ended.append)
        self.feed = LocalFeed(self.run)

    def submit(self, name: str, *, tokens: int = 4000, ttl_s: float | None = None) -> None:
        """A request from outside any load."""
        now = self.run.clock.now()
        self.run.session.submit(
            Request(name, "acme", "premium", now, 10, tokens, intended_tokens=tokens, ttl_s=ttl_s)
        )

    def finish(self) -> dict[str, Any]:
        self.run.scheduler.check()
        return self.run.document(interrupted=False)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Its run has started, and is stopped after the test."""
    bench = Bench(tmp_path)
    await bench.run.start()
    yield bench
    await bench.run.stop()


@pytest.fixture
async def idle(tmp_path: Path) -> AsyncIterator[Bench]:
    """The same, with a load that has ended."""
    bench = Bench(tmp_path, count=1)
    await bench.run.start()
    await until(bench.run.session.drained.is_set)
    yield bench
    await bench.run.stop()


async def test_everything_finishes_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.run.start()
    async with asyncio.timeout(20):
        await bench.run.session.drained.wait()
    document = await bench.run.stop()
    assert document["requests"]["finished"] == 40
    assert len({request.id for request in bench.ended}) == len(bench.ended) == 40
    assert bench.feed.view().scenario_done
    texts = [notice.text for notice in bench.feed.notices()]
    assert texts.count("all load has ended: 40 submitted, 40 finished") == 1


async def test_a_policy_may_be_switched_before_the_engine_is_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run.session.switch_policy(policy_from("sjf"), by="script")
    assert bench.run.scheduler.policy.name == "sjf"
    await bench.run.stop()


async def test_a_swap_keeps_every_queued_request_and_tells(bench: Bench) -> None:
    queued = bench.run.scheduler.books.totals.queued
    bench.feed.switch_policy("sjf")
    await until(lambda: bool(bench.run.session.switches))
    assert bench.run.session.switches[0]["queued"] == queued > 0
    (line,) = (notice.text for notice in bench.feed.notices() if notice.text.startswith("fifo → sjf"))
    assert line.startswith(f"fifo → sjf: {queued} queued re-ranked in ")
    assert line.endswith(" ms by operator")
    bench.feed.undo_policy()
    await until(lambda: len(bench.run.session.switches) == 2)
    assert bench.feed.view().snapshot.policy == "fifo"
    with pytest.raises(CommandError, match="no policy switch"):
        bench.feed.undo_policy()
    await until(bench.run.session.drained.is_set)
    assert bench.finish()["requests"]["finished"] == 40


async def test_a_change_of_the_estimator_is_no_switch_of_the_policy(bench: Bench) -> None:
    bench.feed.switch_estimator("tenant")
    await until(lambda: bench.run.scheduler.swap is None)
    assert "estimator tenant by operator" in [notice.text for notice in bench.feed.notices()]
    bench.feed.switch_policy("sjf")
    await until(lambda: bool(bench.run.session.switches))
    assert [switch["to"] for switch in bench.run.session.switches] == ["sjf"]


async def test_undo_goes_back_whoever_switched(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for name, by in (("sjf", "timeline"), ("fair", GUARD), ("fair", "operator")):  # the last changes nothing
        bench.run.session.switch_policy(policy_from(name), by=by)
    policies = []
    for _ in range(2):
        bench.feed.undo_policy()
        policies.append(bench.run.scheduler.policy.name)
    assert policies == ["sjf", "fifo"]
    with pytest.raises(CommandError, match="no policy switch"):
        bench.feed.undo_policy()
    await bench.run.stop()


async def test_a_crash_is_survived_and_told(bench: Bench) -> None:
    await until(lambda: len(bench.ended) > 2)
    bench.run.engine.crash()
    await until(lambda: bench.run.session.engine_state == "restarting")
    await until(bench.run.session.drained.is_set)
    counts = bench.finish()["requests"]
    assert counts["finished"] == 40
    assert counts["retried"] == 4
    texts = " / ".join(notice.text for notice in bench.feed.notices())
    assert "engine lost with 4 requests in flight" in texts
    assert "engine is back after" in texts


async def test_an_engine_that_dies_with_nothing_to_run_is_brought_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run.session.pause(by="test")
    await bench.run.start()
    bench.run.engine.crash()
    await until(lambda: bench.run.session.engine_state == "restarting")
    await until(lambda: bench.run.session.engine_state == "ready")
    bench.run.session.resume(by="test")
    await until(bench.run.session.drained.is_set)
    assert bench.finish()["requests"]["finished"] == 40
    assert bench.finish()["requests"]["retried"] == 0, "none was aboard"
    await bench.run.stop()


async def test_three_crashes_stop_the_engine_for_good(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    async def engine_is(state: str) -> None:
        await until(lambda: bench.run.session.engine_state == state)

    await bench.run.start()
    for crash in range(MAX_CRASHES):
        await engine_is("ready")
        await until(lambda: bench.run.scheduler.books.totals.in_flight > 0)
        bench.run.engine.crash()
        await engine_is("dead" if crash == MAX_CRASHES - 1 else "restarting")
    assert isinstance(bench.run.session.failure, EngineLost)
    assert str(bench.run.session.failure).startswith(f"{GIVEN_UP}: the simulated engine ")
    assert bench.run.session.drained.is_set()
    bench.run.scheduler.check()
    await bench.run.stop()
    assert bench.run.scheduler.idle


async def test_a_mistake_in_a_stream_costs_its_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    answers = bench.run.engine.generate

    async def generate(request: Request) -> AsyncIterator[Chunk]:
        async for chunk in answers(request):
            if request.id == "r7":
                raise KeyError("words of a prompt")
            yield chunk

    monkeypatch.setattr(bench.run.engine, "generate", generate)
    await bench.run.start()
    await until(bench.run.session.drained.is_set)
    assert bench.finish()["requests"]["finished"] == 39
    assert [(r.id, r.state, r.finish) for r in bench.ended if r.state is not State.FINISHED] == [
        ("r7", State.FAILED, "error")
    ]
    await bench.run.stop()


async def test_tokens_that_come_together_share_the_time_since_those_before(
    idle: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM's do when the event loop is late. The first one has no gap before it."""

    async def generate(request: Request) -> AsyncIterator[Chunk]:
        yield Chunk(3, at_s=100.0)
        yield Chunk(2, at_s=101.0)
        yield Chunk(1, "stop", at_s=101.5)

    monkeypatch.setattr(idle.run.engine, "generate", generate)
    idle.submit("r")
    await until(lambda: idle.ended[-1].id == "r")
    assert idle.ended[-1].gaps == {gap_bucket(0.0): 2, gap_bucket(0.5): 3}


async def test_a_mistake_while_an_end_is_settled_ends_the_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run would wait for ever for what was half settled."""
    observe = Mock(side_effect=ValueError("words of a prompt"))
    monkeypatch.setattr(bench.run.scheduler.estimator, "observe", observe)
    await until(bench.run.session.drained.is_set)
    assert str(bench.run.session.failure) == "ValueError"
    with pytest.raises(NotNow, match="the engine is dead; stop, and start anew"):
        bench.feed.burst("acme", 1.0, 1.0)
    assert "ValueError in mock.py:" in caplog.text
    assert "words" not in caplog.text


async def test_an_engine_that_cannot_be_restarted_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = AsyncMock(side_effect=ValueError("words of a prompt"))
    monkeypatch.setattr(bench.run.engine, "start", start)
    bench.run.engine.crash()
    await until(bench.run.session.drained.is_set)
    assert bench.run.session.engine_state == "dead"
    assert str(bench.run.session.failure) == "ValueError"


async def test_a_restart_that_is_lost_too_lost_no_request(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.run.engine, "start", AsyncMock(side_effect=EngineLost("again")))
    bench.run.engine.crash()
    await until(bench.run.session.drained.is_set)
    lost = [notice.text for notice in bench.feed.notices() if "engine lost" in notice.text]
    assert lost == [f"engine lost with {count} requests in flight" for count in (4, 0, 0)]


async def test_stop_aborts_what_runs_and_ends_every_request(tmp_path: Path) -> None:
    bench = Bench(tmp_path, speed=1.0)
    await bench.run.start()
    await until(lambda: bench.run.scheduler.books.totals.in_flight == 4)
    document = await bench.run.stop(interrupted=True)
    assert bench.run.scheduler.idle
    assert document["interrupted"]
    assert document["requests"]["cancelled"] == 40 - document["requests"]["finished"]
    assert {request.state for request in bench.ended} <= {State.CANCELLED, State.FINISHED}


async def test_stop_drains_when_asked_to(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.run.start()
    document = await bench.run.stop(drain_s=20.0)
    assert document["requests"]["finished"] == 40


async def test_stop_drains_only_what_runs_while_dispatch_is_paused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.run.start()
    bench.feed.pause()
    async with asyncio.timeout(20):
        document = await bench.run.stop(drain_s=60.0)
    assert document["requests"]["finished"] == 4
    assert document["requests"]["cancelled"] == 36


async def test_a_pause_while_it_drains_holds_nobody_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.run.start()
    async with asyncio.timeout(20):
        stopping = asyncio.create_task(bench.run.stop(drain_s=60.0))
        await asyncio.sleep(0)
        bench.feed.pause()
        assert bench.run.scheduler.books.totals.queued == 0
        bench.feed.resume()
        document = await stopping
    assert document["requests"]["finished"] == 4
    assert document["requests"]["cancelled"] == 36


async def test_what_an_engine_lost_in_a_paused_drain_is_not_waited_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.run.start()
    bench.feed.pause()
    async with asyncio.timeout(20):
        stopping = asyncio.create_task(bench.run.stop(drain_s=60.0))
        await asyncio.sleep(0)
        bench.run.engine.crash()
        document = await stopping
    assert document["requests"]["cancelled"] == 40


async def test_what_comes_while_it_stops_is_not_begun(tmp_path: Path) -> None:
    bench = Bench(tmp_path, count=1)
    await bench.run.start()
    stopping = asyncio.create_task(bench.run.stop())
    await until(lambda: bench.run.session.engine_state == "stopping")
    bench.submit("late")
    assert [(r.state, r.attempts) for r in bench.ended if r.id == "late"] == [(State.CANCELLED, 0)]
    await stopping
    bench.finish()


async def test_pause_holds_dispatch_and_resume_goes_on(bench: Bench) -> None:
    bench.feed.pause()
    await until(lambda: bench.run.scheduler.books.totals.in_flight == 0)
    assert bench.feed.view().snapshot.paused
    waiting = bench.run.scheduler.books.totals.queued
    assert waiting > 0
    bench.feed.resume()
    await until(bench.run.session.drained.is_set)
    assert len(bench.ended) == 40


async def test_inject_and_burst_add_load(tmp_path: Path) -> None:
    bench = Bench(tmp_path, count=5)
    await bench.run.start()
    await until(bench.run.session.drained.is_set)
    bench.feed.inject(str(tmp_path / "session.yaml"))
    await until(lambda: len(bench.ended) == 10)
    await until(bench.run.session.drained.is_set)
    bench.feed.burst("acme", rate=5.0, seconds=10.0)
    await until(lambda: len(bench.ended) > 15)
    with pytest.raises(CommandError):
        bench.feed.burst("nobody", rate=1.0, seconds=1.0)
    with pytest.raises(CommandError):
        bench.feed.inject("no-such-scenario")
    with pytest.raises(CommandError):
        bench.feed.switch_policy("no-such-policy")
    await bench.run.stop()
    bench.run.scheduler.check()


async def test_a_burst_of_any_tenant_whatever_was_injected_last(tmp_path: Path) -> None:
    bench = Bench(tmp_path, count=1)
    await bench.run.start()
    file = tmp_path / "other.yaml"
    file.write_text(SCENARIO.replace("COUNT", "1").replace("MORE", "").replace("acme", "newcomer"))
    bench.feed.inject(str(file))
    for tenant in ("acme", "lab", "newcomer"):
        bench.feed.burst(tenant, rate=5.0, seconds=10.0)
    await until(bench.run.session.drained.is_set)
    bursts = {request.tenant for request in bench.ended if request.submitted_by.startswith("burst-")}
    assert bursts == {"acme", "lab", "newcomer"}
    bench.run.scheduler.add_tenant(Tenant("client"))  # as a gateway does
    allowed = "allowed: acme, lab, newcomer"
    for tenant, what in (("nobody", "unknown tenant"), ("client", "no scenario says what this tenant asks")):
        with pytest.raises(CommandError, match=f"^{what}; {allowed}$"):
            bench.feed.burst(tenant, rate=1.0, seconds=1.0)
    await bench.run.stop()


async def test_files_beside_the_runs_own_can_be_injected(tmp_path: Path) -> None:
    bench = Bench(tmp_path, count=1)
    await bench.run.start()
    feed = LocalFeed(bench.run, tmp_path)
    later = tmp_path / "later.yaml"  # written while the run goes on
    later.write_text(SCENARIO.replace("COUNT", "20").replace("MORE", "").replace("acme", "newcomer"))
    names = list(feed.scenarios())
    assert names[:2] == [str(later), str(tmp_path / "session.yaml")]
    assert names[2:] == list(bench.feed.scenarios()) == list(shipped_scenarios())
    feed.inject(names[0])
    await until(lambda: "newcomer" in {request.tenant for request in bench.ended})
    later.write_text("tenants: [1")
    with pytest.raises(CommandError, match=r"later.yaml:1: "):
        feed.inject(names[0])
    await bench.run.stop()


async def test_tenant_limits_and_weights_change_live(bench: Bench) -> None:
    bench.feed.set_tenant("lab", weight=7.0, limits=Limits(max_in_flight=1))
    row = next(t for t in bench.feed.view().snapshot.tenants if t.name == "lab")
    assert (row.weight, row.limits.max_in_flight) == (7.0, 1)
    assert bench.feed.notices()[-1].text == "lab: weight 7, max_in_flight 1 by operator"
    bench.feed.set_tenant("lab", weight=3.0)
    assert bench.feed.notices()[-1].text == "lab: weight 3 by operator"
    bench.feed.set_tenant("lab", limits=Limits(ttl_s=90.0), by="dana")
    assert bench.feed.notices()[-1].text == "lab: no max_in_flight, ttl 90s by dana"
    bench.feed.set_tenant("lab", weight=3.0)
    assert bench.feed.notices()[-1].text == "lab: nothing changed by operator"
    bench.feed.set_tenant("lab", limits=Limits(max_queued_tokens=12_345_678))
    assert bench.feed.notices()[-1].text == "lab: max_queued_tokens 12345678, no ttl by operator"
    with pytest.raises(CommandError):
        bench.feed.set_tenant("nobody", weight=1.0)
    await until(bench.run.session.drained.is_set)
    assert bench.finish()["requests"]["finished"] == 40


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("weight", weight) for weight in (-1.0, 0.0, 1e-300, 1e300, inf, nan)),
        *(
            ("max_in_flight", 0),
            ("max_queued", -1),
            ("requests_per_minute", 0),
            ("ttl_s", 0.0),
            ("ttl_s", nan),
        ),
    ],
)
async def test_a_tenant_has_the_same_bounds_here_as_in_a_file_and_over_the_wire(
    tmp_path: Path, field: str, value: float
) -> None:
    limits: dict[str, Any] = {field: value}
    change = {"weight": value} if field == "weight" else {"limits": Limits(**limits)}
    bench = Bench(tmp_path, count=1)
    with pytest.raises(CommandError, match=f"^{field.removesuffix('_s')}: .*(must be|allowed)"):
        bench.feed.set_tenant("lab", **change)
    named = {field.removesuffix("_s"): value}
    with pytest.raises(ValidationError):
        TenantChange.model_validate({"name": "lab", **named})
    with pytest.raises(ValidationError):
        SetTenant.model_validate(named if field == "weight" else {"limits": named})
    await bench.run.stop()


async def test_timeline_faults_and_patience(tmp_path: Path) -> None:
    timeline = "timeline: [{at: 1s, fault: {engine: crash}}, {at: 2s, policy: priority}]"
    bench = Bench(tmp_path, more=timeline)
    await bench.run.start()
    await until(bench.run.session.drained.is_set)
    document = bench.finish()
    assert document["requests"]["finished"] == 40
    assert document["requests"]["retried"] > 0
    assert [switch["to"] for switch in document["switches"]] == ["priority"]
    await bench.run.stop()


async def test_what_comes_at_the_instant_of_a_switch_still_counts(tmp_path: Path) -> None:
    bench = Bench(tmp_path, more="timeline: [{at: 0s, policy: sjf}]")
    await bench.run.start()
    assert len(bench.run.session.switches) == 1  # at once: nothing was queued yet
    assert not bench.run.session.drained.is_set()
    await until(bench.run.session.drained.is_set)
    assert len(bench.ended) == 40
    await bench.run.stop()


async def test_a_burst_does_not_bring_back_a_stopped_load(tmp_path: Path) -> None:
    more = """
  - {name: web, tenant: lab, arrivals: {poisson: 50}, for: 1000s, patience: 1s}
  - {tenant: lab, arrivals: {closed: {clients: 2, think: 1s}}, for: 1000s}
  - {tenant: lab, arrivals: at-once, count: 1, after: web}
  - {tenant: lab, arrivals: at-once, count: 1, after: drained}
timeline: [{at: 1000s, policy: sjf}]
"""
    bench = Bench(tmp_path, count=1, more=more)
    session, books = bench.run.session, bench.run.scheduler.books
    await bench.run.start()
    await until(lambda: len(bench.ended) > 5)
    session.stop_loads()
    submitted, stopped_s = books.counts()["submitted"], bench.run.clock.now()
    await until(lambda: bench.run.clock.now() > stopped_s + 5.0)
    bench.feed.burst("acme", rate=5.0, seconds=2.0)
    assert books.counts()["submitted"] < submitted + 50  # it would have sent 250 by now
    await until(session.drained.is_set)
    late = {request.submitted_by for request in bench.ended if request.arrival_s > stopped_s}
    assert late == {"burst-0"}
    assert session.switches == []
    await bench.run.stop()


async def test_time_goes_on_for_what_waits_while_the_engine_is_away(
    idle: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle.run.engine, "start", asyncio.Event().wait)  # it stays away
    idle.submit("impatient", ttl_s=5.0)
    idle.run.engine.crash()
    await until(lambda: len(idle.ended) == 2)
    assert (idle.ended[-1].id, idle.ended[-1].state) == ("impatient", State.EXPIRED)
    assert idle.run.session.engine_state == "restarting"


async def test_the_last_that_is_cancelled_ends_the_drain(idle: Bench) -> None:
    idle.feed.pause()
    idle.submit("last")
    assert not idle.run.session.drained.is_set()
    idle.run.session.cancel("last")
    assert idle.run.session.drained.is_set()


async def test_the_last_from_outside_that_finishes_ends_the_drain(idle: Bench) -> None:
    idle.submit("last", tokens=5)
    assert not idle.run.session.drained.is_set()
    await until(lambda: len(idle.ended) == 2)
    assert idle.run.session.drained.is_set()


async def test_a_client_comes_back_though_no_slot_is_waited_for(tmp_path: Path) -> None:
    clients = "{tenant: lab, arrivals: {closed: {clients: 1, think: 10ms}}, count: 5, max_tokens: 5}"
    bench = Bench(tmp_path, count=1, more=f"  - {clients}")
    await bench.run.start()
    bench.submit("long")  # never idle meanwhile
    await until(bench.run.session.drained.is_set)
    assert len(bench.ended) == 7
    assert bench.ended[-1].id == "long"
    await bench.run.stop()


async def test_a_timer_that_rings_early_is_set_again(tmp_path: Path) -> None:
    later = "  - {tenant: lab, arrivals: at-once, count: 1, from: 30s}"
    bench = Bench(tmp_path, count=1, more=later)
    await bench.run.start()
    session = bench.run.session
    assert session._timer is not None
    session._timer.cancel()
    session._ring()
    assert session._timer is not None
    await until(session.drained.is_set)
    assert len(bench.ended) == 2
    await bench.run.stop()
