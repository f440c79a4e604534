"""Mistakes of ours that nobody catches: told by type and place, never in words that may quote a prompt."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from test_session import Bench
from waiting import until

from scheduler.live.tasks import Tasks


async def test_a_callback_a_task_and_a_future_that_fail_are_told_without_their_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From when a run is made on."""
    Bench(tmp_path)

    async def fail() -> None:
        raise ValueError("words of a prompt")

    tasks = Tasks()
    tasks.spawn(fail())
    asyncio.get_running_loop().call_soon(Mock(side_effect=KeyError("words of another")), "words given")
    asyncio.get_running_loop().create_future().set_exception(OSError("words of a third"))
    await until(lambda: len(caplog.records) == 3)
    future, task, callback = sorted(caplog.messages)
    assert future == "Future exception was never retrieved: OSError"
    assert re.fullmatch(r"Task exception was never retrieved: ValueError in test_mistakes.py:\d+", task)
    assert re.fullmatch(r"in a callback: KeyError in mock.py:\d+", callback)
    assert "words" not in caplog.text


async def test_telemetry_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    monkeypatch.setattr("scheduler.live.telemetry.Machine.read", Mock(side_effect=ValueError("words")))
    await bench.run.start()
    await until(bench.run.session.drained.is_set)
    await bench.run.stop()
    told = [notice.text for notice in bench.feed.notices() if notice.kind == "error"]
    assert len(told) == 1
    assert told[0].startswith("no more telemetry: ValueError in mock.py:")
