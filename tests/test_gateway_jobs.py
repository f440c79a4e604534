"""Durable jobs: promised, run, found again after a crash, ended once, and nobody else's."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from gateway_kit import ACME, GLOBEX, JOBS, Served, chat, completion, ended, serving, two_keys
from kill_jobs import kills
from waiting import until

from scheduler.core.estimate import PaperEstimator
from scheduler.core.tenant_estimate import TenantEstimator
from scheduler.core.types import Rejected, Request
from scheduler.engines.engine import EngineLost
from scheduler.gateway.completions import DEADLINE, PRIORITY
from scheduler.gateway.jobs import Jobs
from scheduler.gateway.keys import Keys
from scheduler.live.answer import Answer
from scheduler.live.journal import Journal
from scheduler.load.schema import TenantSection
from scheduler.serve import serve_until

LONG = 8000  # tokens: still running when the test has done what it does to it


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


async def test_a_job_from_promise_to_result(path: Path) -> None:
    async with serving(journal=path) as served:
        status, job, _ = await served.post(JOBS, chat())
        assert status == 202
        assert job["status"] in ("queued", "running")
        done = await ended(served, job["id"])
        assert done["status"] == "finished"
        assert done["result"]["choices"][0]["message"]["content"] == "this text is a placeholder "
        assert done["result"]["usage"]["completion_tokens"] == 5
        assert 0 <= done["timing"]["queue_wait_s"] <= done["timing"]["ttft_s"] <= done["timing"]["e2e_s"]
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


async def test_the_same_key_is_the_same_job_and_another_body_is_409(path: Path) -> None:
    async with serving(journal=path) as served:
        headers = {"Idempotency-Key": "order-1"}
        posts = [served.post(JOBS, completion(), headers=headers) for _ in range(5)]
        answers = await asyncio.gather(*posts)
        assert {status for status, _, _ in answers} == {202}
        assert len({job["id"] for _, job, _ in answers}) == 1
        assert served.run.scheduler.books.counts()["submitted"] == 1
        status, body, _ = await served.post(JOBS, completion(max_tokens=6), headers=headers)
        assert (status, body["error"]["code"]) == (409, "idempotency_conflict")
        await ended(served, answers[0][1]["id"])
        status, job, _ = await served.post(JOBS, completion(), headers=headers)
        assert (status, job["status"]) == (202, "finished")
        assert (await served.post(JOBS, completion(), headers={"Idempotency-Key": "x" * 129}))[0] == 400


async def test_a_repeat_is_read_like_any_request_and_known_in_every_state(path: Path) -> None:
    async with serving(journal=path) as served:
        headers = {"Idempotency-Key": "order-1"}
        _, job, _ = await served.post(JOBS, completion(), headers=headers)
        for header in (DEADLINE, PRIORITY):
            status, body, _ = await served.post(JOBS, completion(), headers={**headers, header: "soon"})
            assert (status, body["error"]["param"]) == (400, header)
        deep = b'{"prompt": "x", "tools": ' + b"[" * 900 + b"]" * 900 + b"}"
        assert (await served.post(JOBS, deep, headers=headers))[0] == 400
        served.gateway.drain()
        status, again, _ = await served.post(JOBS, completion(), headers=headers)
        assert (status, again["id"]) == (202, job["id"])
        status, body, _ = await served.post(JOBS, completion())
        assert (status, body["error"]["code"]) == (503, "shutting_down")


async def test_delete_cancels_what_waits_and_what_runs(path: Path) -> None:
    async with serving(journal=path, capacity=1, speed=1.0) as served:
        jobs = [(await served.post(JOBS, completion(max_tokens=LONG)))[1] for _ in range(3)]
        assert (await served.get(f"{JOBS}/{jobs[2]['id']}"))[1]["place"] == 2
        for job in jobs:
            _, told = await served.delete(f"{JOBS}/{job['id']}")
            assert (told["status"], told["error"]["code"]) == ("cancelled", "cancelled")
        assert served.run.scheduler.idle


async def test_a_place_is_the_policys_and_asking_for_it_changes_nothing(path: Path) -> None:
    async with serving(journal=path, policy="two-class") as served:
        served.run.session.pause(by="test")
        lengths = (40, 50, 500, 45)
        jobs = [(await served.post(JOBS, completion(prompt="word " * n)))[1]["id"] for n in lengths]
        for _ in range(2):
            told = [(await served.get(f"{JOBS}/{job}"))[1] for job in jobs]
            assert [(job["status"], job["place"]) for job in told] == [
                ("queued", place) for place in (1, 2, 4, 3)
            ]
        sizes = served.run.scheduler.policy.sizes  # type: ignore[attr-defined]
        assert len(sizes._sorted) == len(jobs), "each was ranked once"


async def test_an_old_job_is_cancelled_before_it_is_taken_up(path: Path) -> None:
    async with serving(journal=path) as served:
        served.run.session.pause(by="test")
        job = (await served.post(JOBS, completion()))[1]["id"]
    async with serving(journal=path, start=False) as served:
        for _ in range(2):
            assert (await served.delete(f"{JOBS}/{job}"))[1]["status"] == "cancelled"
        await served.run.start()
        assert await served.jobs.recover() == 0


async def test_an_old_job_is_cancelled_while_old_jobs_are_taken_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(journal=path) as served:
        served.run.session.pause(by="test")
        job = (await served.post(JOBS, completion()))[1]["id"]
    async with serving(journal=path, start=False) as served:
        await served.run.start()
        jobs, waiting, going_on = served.jobs, asyncio.Event(), asyncio.Event()
        finish = jobs.journal.finish

        async def slow(*written: Any) -> None:
            waiting.set()
            await going_on.wait()
            await finish(*written)

        monkeypatch.setattr(jobs.journal, "finish", slow)
        deleting = asyncio.create_task(served.delete(f"{JOBS}/{job}"))
        await waiting.wait()
        await jobs.recover()
        going_on.set()
        assert (await deleting)[1]["status"] == "cancelled"
        assert served.run.scheduler.books.counts()["submitted"] == 0


async def test_two_cancel_at_once_what_was_left_for_the_next_server(path: Path) -> None:
    async with serving(journal=path) as served:
        served.run.session.pause(by="test")
        _, job, _ = await served.post(JOBS, completion())
        served.run.session.fail(EngineLost("gone"))
        address = f"{JOBS}/{job['id']}"
        told = await asyncio.gather(served.delete(address), served.delete(address))
        assert [(status, job["status"]) for status, job in told] == [(200, "cancelled")] * 2


async def test_what_a_job_is_refused_for(path: Path) -> None:
    async with serving(journal=path, tenants=[TenantSection(name="default", max_queued=0)]) as served:
        assert (await served.post(JOBS, completion(stream=True)))[1]["error"]["param"] == "stream"
        assert (await served.post(JOBS, completion(tools=[{}])))[1]["error"]["param"] == "tools"
        assert (await served.post(JOBS, completion(max_tokens=10**9)))[0] == 400
        assert (await served.post(JOBS, completion()))[0] == 429
        assert await served.jobs.journal.unfinished() == []


async def test_without_a_journal_there_are_no_jobs() -> None:
    async with serving() as served:
        status, body, _ = await served.post(JOBS, completion())
        assert (status, body["error"]["code"]) == (404, "no_journal")


async def test_another_tenants_job_is_nobodys(path: Path) -> None:
    async with serving(journal=path, keys=two_keys()) as served:
        headers = {"Idempotency-Key": "mine"}
        _, job, _ = await served.post(JOBS, completion(), ACME, headers)
        address = f"{JOBS}/{job['id']}"
        assert (await served.get(address, GLOBEX))[0] == 404
        assert (await served.delete(address, GLOBEX))[0] == 404
        _, other, _ = await served.post(JOBS, completion(max_tokens=7), GLOBEX, headers)
        assert other["id"] != job["id"], "keys are each tenant's own"
        assert (await ended(served, job["id"], ACME))["status"] == "finished"
        assert (await served.get(address))[0] == 401


async def test_the_next_server_takes_up_what_was_left_in_its_order(path: Path) -> None:
    tenants = [TenantSection(name="default", max_queued=3)]
    async with serving(journal=path, capacity=1, speed=1.0, tenants=tenants) as served:
        jobs = [(await served.post(JOBS, completion(max_tokens=LONG + n)))[1]["id"] for n in range(3)]
        arrived = {r.id: r.arrival_s for r in served.run.scheduler.active()}
        now_s = served.run.clock.now()
    tenants = [TenantSection(name="default", max_queued=1)]
    async with serving(journal=path, capacity=1, speed=1.0, tenants=tenants) as served:
        active = list(served.run.scheduler.active())
        assert [request.id for request in active] == jobs, "past the limit, in order"
        waited_s = [served.run.clock.now() - request.arrival_s for request in active]
        assert all(waited > now_s - arrived[id_] for waited, id_ in zip(waited_s, jobs, strict=True))
        assert (await served.post(JOBS, completion()))[0] == 429, "the limit holds for what is new"


async def test_a_server_that_drains_takes_old_jobs_up_and_a_dead_one_leaves_them(path: Path) -> None:
    async with serving(journal=path) as served:
        served.run.session.pause(by="test")
        jobs = [(await served.post(JOBS, completion()))[1]["id"] for _ in range(2)]
    async with serving(journal=path, start=False) as served:
        await served.run.start()
        served.run.session.fail(EngineLost("gone"))
        await served.jobs.recover()
        assert (await served.get(f"{JOBS}/{jobs[0]}"))[1]["status"] == "queued"
    async with serving(journal=path, start=False) as served:
        served.gateway.drain()
        await served.run.start()
        await served.jobs.recover()
        for job in jobs:
            assert (await ended(served, job))["status"] == "finished"


async def test_at_a_stop_jobs_that_wait_do_not_delay_who_waits_for_an_answer(path: Path) -> None:
    async with serving(journal=path, capacity=1, start=False) as served:
        said, stopping = list[str](), asyncio.Event()
        server = asyncio.create_task(serve_until(stopping, served.run, served.gateway, said.append))
        await until(lambda: len(said) == 1)
        assert said.pop().startswith("ready: ")
        asked = [asyncio.create_task(served.post("/v1/completions", completion(max_tokens=500)))]
        await until(lambda: served.run.scheduler.books.totals.in_flight == 1)
        left = [(await served.post(JOBS, completion()))[1]["id"] for _ in range(3)]
        asked.append(asyncio.create_task(served.post("/v1/completions", completion())))
        await until(lambda: served.run.scheduler.books.totals.queued == 4)
        stopping.set()
        async with asyncio.timeout(20):
            await server
            assert [(await answer)[0] for answer in asked] == [200, 200]
        assert said[:2] == [
            "3 jobs that wait are left to the next start",
            "stopping: 2 requests get up to 30 s",
        ]
    async with serving(journal=path) as served:
        assert {(await ended(served, job))["status"] for job in left} == {"finished"}


async def test_a_server_that_stops_while_it_takes_jobs_up_leaves_the_rest(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(journal=path) as served:
        served.run.session.pause(by="test")
        left = [(await served.post(JOBS, completion()))[1]["id"] for _ in range(20)]
    async with serving(journal=path, capacity=1, speed=1.0, start=False) as served:
        stopping, said, taken = asyncio.Event(), list[str](), list[Request]()
        submit = served.run.session.submit

        def told_to_stop(request: Request, answer: Answer) -> Rejected | None:
            taken.append(request)
            if len(taken) == 3:
                stopping.set()  # as a signal does, when the loop turns next
            return submit(request, answer)

        monkeypatch.setattr(served.run.session, "submit", told_to_stop)
        monkeypatch.setattr("scheduler.serve.DRAIN_S", 0.0)
        async with asyncio.timeout(5):
            await serve_until(stopping, served.run, served.gateway, said.append)
        assert said[0].endswith(" jobs that wait are left to the next start")
        assert 3 <= len(taken) < len(left)
        assert [notice.kind for notice in served.run.notices.after(0)].count("error") == 0
    async with serving(journal=path) as served:
        assert {(await ended(served, job))["status"] for job in left} == {"finished"}


async def test_time_to_live_counts_the_downtime(path: Path) -> None:
    async with serving(journal=path, capacity=1, speed=1.0) as served:
        served.run.session.pause(by="test")
        _, job, _ = await served.post(JOBS, completion(), headers={DEADLINE: "300ms"})
    with closing(sqlite3.connect(path)) as journal, journal:
        journal.execute("UPDATE jobs SET accepted = accepted - 0.3")  # it is later by so much
    async with serving(journal=path, speed=1.0) as served:
        assert (await ended(served, job["id"]))["status"] == "expired"


async def test_results_and_what_was_learned_are_there_after_a_restart(path: Path) -> None:
    async with serving(journal=path) as served:
        _, job, _ = await served.post(JOBS, completion(max_tokens=400))
        before = await ended(served, job["id"])
        learned = served.run.scheduler.estimator.state()
    async with serving(journal=path) as served:
        assert (await served.get(f"{JOBS}/{job['id']}"))[1] == before
        assert served.run.scheduler.estimator.state() == learned
        assert learned["bias"]["short_qa"] > 1.0
    async with serving() as other:  # one that could not come up, and so took nothing over
        await Jobs(other.run, Keys(), other.gateway.completions, Journal(path)).close()
    async with serving(journal=path) as served:
        assert served.run.scheduler.estimator.state() == learned


async def test_each_estimator_keeps_what_it_has_learned_over_swaps_and_restarts(path: Path) -> None:
    async def learn(served: Served) -> dict[str, Any]:
        await ended(served, (await served.post(JOBS, completion(max_tokens=400)))[1]["id"])
        return served.run.scheduler.estimator.state()

    async with serving(journal=path) as served:
        session = served.run.session
        paper = await learn(served)
        session.switch_estimator(TenantEstimator(statistic="mean"), by="test")
        mean = await learn(served)
        session.switch_estimator(TenantEstimator(), by="test")
        assert served.run.scheduler.estimator.state() == TenantEstimator().state(), "a median is no mean"
    async with serving(journal=path) as served:
        scheduler = served.run.scheduler
        assert scheduler.estimator.state() == paper
        served.run.session.switch_estimator(TenantEstimator(statistic="mean"), by="test")
        assert scheduler.estimator.state() == mean
        served.run.session.switch_estimator(PaperEstimator(), by="test")
        assert scheduler.estimator.state() == paper
        assert scheduler.learned["tenant (mean)"] == mean


async def test_a_state_that_cannot_be_read_is_told_and_learned_anew(path: Path) -> None:
    journal = Journal(path)
    await journal.learn("paper", "{}")
    await journal.close()
    async with serving(journal=path) as served:
        assert served.run.scheduler.estimator.state() == PaperEstimator().state()
        texts = [notice.text for notice in served.run.notices.after(0)]
        assert "what paper had learned cannot be read; it begins anew" in texts


async def test_a_job_whose_tenant_is_gone_fails(path: Path) -> None:
    async with serving(journal=path, keys=two_keys()) as served:
        served.run.session.pause(by="test")
        _, job, _ = await served.post(JOBS, completion(), ACME)
    async with serving(journal=path, tenants=[TenantSection(name="globex")]) as served:
        entry = await served.jobs.journal.find("acme", job["id"])
        assert entry is not None
        assert entry.status == "failed"


@pytest.mark.slow
async def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    killed = await kills(tmp_path, count=2, seed=1, extra=[])
    assert killed.acknowledged
    assert killed.endings.keys() == killed.acknowledged.keys()
