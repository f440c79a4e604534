"""The file of the durable jobs: what stays in it, and what happens where it cannot be written or read."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from gateway_kit import JOBS, completion, ended, serving

from scheduler.cli import main
from scheduler.engines.engine import EngineLost
from scheduler.live.journal import Entry, Journal, JournalError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


def entry(name: str, **changes: Any) -> Entry:
    return Entry(name, "acme", None, b"digest", b"{}", "standard", None, 1.0)._replace(**changes)


async def test_the_first_ending_stays(path: Path) -> None:
    journal = Journal(path)
    await journal.add(entry("a"))
    await journal.finish("a", "finished", b"1", 2.0)
    await journal.finish("a", "failed", b"2", 3.0)
    found = await journal.find("acme", "a")
    assert found is not None
    assert (found.status, found.result, found.ended) == ("finished", b"1", 2.0)
    assert await journal.unfinished() == []
    await journal.close()


async def test_jobs_expire_by_age_and_texts_by_size_and_promises_never(path: Path) -> None:
    journal = Journal(path)
    for number in range(6):
        await journal.add(entry(f"j{number}", idempotency_key=f"k{number}"))
        if number < 5:
            await journal.finish(f"j{number}", "finished", b"x" * 100, float(number))
        if number == 2:
            await journal.purge(0.0, 1000)
    await journal.purge(2.0, 210)
    jobs = {name: await journal.find("acme", name) for name in (f"j{n}" for n in range(6))}
    assert [name for name, job in jobs.items() if job] == ["j2", "j3", "j4", "j5"]
    assert [name for name, job in jobs.items() if job and job.result] == ["j3", "j4"]
    assert (known := await journal.find_by_key("acme", "k2")) is not None
    assert (known.status, known.body, known.result) == ("finished", b"", None)
    assert await journal.find_by_key("acme", "k1") is None
    assert [each.id for each in await journal.unfinished()] == ["j5"]
    await journal.close()
    reopened = Journal(path)
    await reopened.purge(2.0, 210)
    assert (kept := await reopened.find("acme", "j3")) is not None
    assert kept.result is not None
    await reopened.purge(2.0, 103)
    assert (dropped := await reopened.find("acme", "j3")) is not None
    assert dropped.result is None
    await reopened.close()


async def test_a_job_whose_result_was_dropped_does_not_run_again(path: Path) -> None:
    async with serving(journal=path) as served:
        headers = {"Idempotency-Key": "order-1"}
        _, job, _ = await served.post(JOBS, completion(), headers=headers)
        assert (await ended(served, job["id"]))["result"] is not None
        await served.jobs.journal.purge(0.0, 0)
        status, again, _ = await served.post(JOBS, completion(), headers=headers)
        assert (status, again["id"], again["status"], again["result"]) == (202, job["id"], "finished", None)
        assert (await served.post(JOBS, completion(max_tokens=6), headers=headers))[0] == 409
        assert served.run.scheduler.books.counts()["submitted"] == 1


async def test_a_write_that_fails_is_told_and_the_next_one_works(path: Path) -> None:
    journal = Journal(path)
    await journal.add(entry("a"))
    with pytest.raises(JournalError, match="cannot be written"):
        await journal.add(entry("a"))
    await journal.add(entry("b"))
    assert [each.id for each in await journal.unfinished()] == ["a", "b"]
    await journal.close()


async def test_a_full_disk_is_503_and_no_promise(path: Path) -> None:
    async with serving(journal=path) as served:
        await served.jobs.journal.unfinished()
        served.jobs.journal._db.execute("PRAGMA max_page_count = 1")
        pages = served.jobs.journal._db.execute("PRAGMA page_count").fetchone()[0]
        served.jobs.journal._db.execute(f"PRAGMA max_page_count = {pages}")
        statuses = {(await served.post(JOBS, completion(prompt="x" * 5000)))[0] for _ in range(20)}
        assert 503 in statuses
        assert statuses <= {202, 503}
        served.jobs.journal._db.execute("PRAGMA max_page_count = 100000")
        assert (await served.post(JOBS, completion()))[0] == 202


async def test_a_cancel_that_cannot_be_written_is_503_and_the_trouble_is_told_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.gateway.jobs.CANCEL_S", 0.05)
    monkeypatch.setattr("scheduler.gateway.jobs.RETRY_S", 0.01)
    async with serving(journal=path) as served:
        served.run.session.pause(by="test")
        jobs = [(await served.post(JOBS, completion()))[1]["id"] for _ in range(2)]
        with monkeypatch.context() as full:
            full.setattr(served.jobs.journal, "finish", fail)
            for job in jobs:
                status, told = await served.delete(f"{JOBS}/{job}")
                assert (status, told["error"]["code"]) == (503, "journal")
        for job in jobs:
            assert (await ended(served, job))["status"] == "cancelled"
        left = (await served.post(JOBS, completion()))[1]["id"]
        served.run.session.fail(EngineLost("gone"))
        monkeypatch.setattr(served.jobs.journal, "finish", fail)
        assert (await served.delete(f"{JOBS}/{left}"))[0] == 503
        assert [notice.kind for notice in served.run.notices.after(0)].count("error") == 1


async def test_what_was_learned_is_saved_once_the_disk_has_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(journal=path) as served:
        await ended(served, (await served.post(JOBS, completion(max_tokens=400)))[1]["id"])
        jobs = served.jobs
        with monkeypatch.context() as full:
            full.setattr(jobs.journal, "learn", fail)
            await jobs._save_learned()
        await jobs._save_learned()
        state = json.dumps(served.run.scheduler.estimator.state())
        assert await jobs.journal.learned() == {"paper": state}
        assert [notice.kind for notice in served.run.notices.after(0)].count("error") == 1


async def fail(*written: object) -> None:
    raise JournalError("the disk is full")


async def test_what_cannot_be_written_stops_no_other_write(path: Path) -> None:
    journal, held = Journal(path), threading.Event()
    group: list[asyncio.Future[Any]] = [
        journal._ask(lambda db: held.wait(20))
    ]  # meanwhile the rest comes, for one commit
    group += [journal.find("acme", "job-\udcff"), journal.add(entry("job-1"))]
    held.set()
    _, wrong, right = await asyncio.gather(*group, return_exceptions=True)
    assert isinstance(wrong, JournalError)
    assert right is None
    assert (await journal.find("acme", "job-1")) is not None
    await journal.close()


async def test_a_closed_journal_keeps_nobody_waiting(path: Path) -> None:
    async with serving(journal=path) as served:
        job = (await served.post(JOBS, completion()))[1]["id"]
        await served.run.stop()
        await served.jobs.close()
        status, body = await served.get(f"{JOBS}/{job}")
        assert (status, body["error"]["code"]) == (503, "journal")


async def test_one_server_at_a_time(path: Path) -> None:
    journal = Journal(path)
    with pytest.raises(JournalError, match="one server at a time"):
        Journal(path)
    await journal.close()
    await Journal(path).close()


def test_what_is_no_journal_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    noise = tmp_path / "noise"
    noise.write_bytes(random.Random(1).randbytes(10_000))
    other = tmp_path / "other"
    with sqlite3.connect(other) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    for path in (noise, other, tmp_path, tmp_path / "no" / "folder"):
        assert main(["serve", "--listen", "127.0.0.1:0", "--journal", str(path)]) == 2
        assert "journal" in capfd.readouterr().err
    assert noise.read_bytes() == random.Random(1).randbytes(10_000), "left as it was"


async def test_a_torn_tail_is_cut_off(path: Path, tmp_path: Path) -> None:
    journal = Journal(path)
    for number in range(20):
        await journal.add(entry(f"j{number}"))
    wal = path.with_name(path.name + "-wal")
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(path.read_bytes())  # noqa: ASYNC240 (small, and nothing else runs)
    copy.with_name("copy.sqlite-wal").write_bytes(wal.read_bytes()[:-100])
    await journal.close()
    recovered = Journal(copy)
    assert [each.id for each in await recovered.unfinished()] == [f"j{n}" for n in range(19)]
    await recovered.close()
