"""An answer on its way to one client: in pieces or whole, without what a lost attempt said, and bounded."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from gateway_kit import completion, serving

from scheduler.core.types import Request
from scheduler.engines.engine import Chunk
from scheduler.live import answer as answer_module
from scheduler.live.answer import MAX_UNREAD, Answer, SlowReader


def make(*, streamed: bool) -> Answer:
    request = Request("r", "acme", "standard", 0.0, 1, 10, streamed=streamed)
    request.attempts = 1
    return Answer(request)


async def test_a_reader_gets_what_came_meanwhile_in_one_piece() -> None:
    answer = make(streamed=True)
    answer.on_chunk(Chunk(1, text="a"))
    answer.on_chunk(Chunk(1, text="b"))
    pieces = aiter(answer)
    assert await anext(pieces) == "ab"
    waiting = asyncio.ensure_future(anext(pieces))
    await asyncio.sleep(0)
    answer.on_chunk(Chunk(1, "stop", "c"))
    answer.on_ended()
    assert await waiting == "c"
    assert [piece async for piece in pieces] == []


async def test_what_a_lost_attempt_said_is_forgotten() -> None:
    answer = make(streamed=False)
    answer.on_chunk(Chunk(1, text="lost"))
    answer.request.attempts = 2
    answer.on_chunk(Chunk(1, "stop", "kept"))
    answer.on_ended()
    assert await answer.whole() == "kept"


async def test_a_slow_reader_is_told_so() -> None:
    answer = make(streamed=True)
    answer.on_chunk(Chunk(1, text="x" * MAX_UNREAD))
    answer.on_chunk(Chunk(1, text="x"))
    with pytest.raises(SlowReader):
        await anext(aiter(answer))


async def test_an_answer_that_comes_at_its_end_alone_may_be_long() -> None:
    answer = make(streamed=False)
    text = "x" * (MAX_UNREAD + 1)
    answer.on_chunk(Chunk(1, "stop", text))
    answer.on_ended()
    assert [piece async for piece in answer] == [text]


async def test_a_slow_reader_is_dropped_and_its_request_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_module, "MAX_UNREAD", 20)
    async with serving(speed=20.0) as served:
        ended: list[Request] = []
        served.run.observers.append(ended.append)
        body = completion(stream=True, max_tokens=8000)  # 5 s
        async with served.http.post(served.url + "/v1/completions", json=body) as got:
            with pytest.raises(aiohttp.ClientPayloadError):
                await got.read()
        assert [request.finish for request in ended] == ["abort"]
