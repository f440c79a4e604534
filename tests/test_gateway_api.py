"""The OpenAI API as clients see it: shapes, streams, refusals by name, and a request's whole way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from gateway_kit import (
    ACME,
    GLOBEX,
    MODEL,
    OPERATOR,
    Served,
    chat,
    completion,
    read_events,
    serving,
    two_keys,
)
from waiting import until

from scheduler.core.types import Request, State
from scheduler.engines.engine import EngineLost
from scheduler.gateway.completions import DEADLINE, PRIORITY
from scheduler.load.schema import TenantSection

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
FIVE_WORDS = "this text is a placeholder "
LONG = 8000  # tokens: still running when the test has done what it does to it


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


# Shapes


async def test_completion(served: Served) -> None:
    status, body, _ = await served.post(COMPLETIONS, completion())
    assert status == 200
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["model"] == MODEL
    choice = {"index": 0, "text": FIVE_WORDS, "logprobs": None, "finish_reason": "length"}
    assert body["choices"] == [choice]
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}


async def test_chat(served: Served) -> None:
    status, body, _ = await served.post(CHATS, chat())
    assert status == 200
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": FIVE_WORDS}
    assert body["choices"][0]["finish_reason"] == "length"


async def test_completion_stream(served: Served) -> None:
    *chunks, done = await served.events(COMPLETIONS, completion(stream=True))
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == FIVE_WORDS
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert not any("usage" in chunk for chunk in chunks)


async def test_chat_stream_with_usage(served: Served) -> None:
    options = {"include_usage": True}
    first, *chunks, last, counted, done = await served.events(
        CHATS, chat(stream=True, stream_options=options)
    )
    assert done == "[DONE]"
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == FIVE_WORDS
    assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert last["usage"] is None
    assert counted["choices"] == []
    assert counted["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}


async def test_continuous_usage(served: Served) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, _ = await served.events(COMPLETIONS, completion(stream=True, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 5


async def test_models(served: Served) -> None:
    status, body = await served.get("/v1/models")
    assert status == 200
    (model,) = body["data"]
    assert (model["id"], model["object"]) == (MODEL, "model")
    assert await served.get(f"/v1/models/{MODEL}") == (200, model)
    status, body = await served.get("/v1/models/another")
    assert (status, body["error"]["code"]) == (404, "model_not_found")


async def test_the_official_client(served: Served) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="anything", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "Hello."}]
        whole = await client.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=3)
        assert whole.choices[0].message.content == "this text is "
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 3
        stream = await client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=3, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "this text is "
        assert chunks[-1].usage == whole.usage
        assert [model.id async for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=messages, n=2)
        assert refused.value.param == "n"


async def test_the_official_client_raises_what_it_should() -> None:
    tenants = [TenantSection(name="acme"), TenantSection(name="globex", max_queued=0)]
    async with serving(keys=two_keys(), tenants=tenants) as served:

        async def refused(key: str, prompt: str = "x", model: str = MODEL) -> tuple[type, object]:
            async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0) as client:
                with pytest.raises(openai.APIStatusError) as error:
                    await client.completions.create(model=model, prompt=prompt)
                return type(error.value), error.value.code

        assert await refused("unknown") == (openai.AuthenticationError, "invalid_api_key")
        assert await refused(OPERATOR) == (openai.PermissionDeniedError, "not_a_tenant")
        assert await refused(ACME, model="gpt-4") == (openai.NotFoundError, "model_not_found")
        assert await refused(ACME, "word " * 40_000) == (openai.APIStatusError, "context_length_exceeded")
        assert await refused(GLOBEX) == (openai.RateLimitError, "tenant_queue_full")
        served.gateway.drain()
        assert await refused(ACME) == (openai.InternalServerError, "shutting_down")


async def test_the_official_client_comes_back_when_it_was_told_to(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.gateway.completions.draining = True
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        served.gateway.completions.draining = False

    monkeypatch.setattr("openai._base_client.anyio.sleep", sleep)
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="anything", max_retries=1) as client:
        await client.completions.create(model=MODEL, prompt="x")
    assert slept == [5.0], "Retry-After"


# Parameters that are honoured


async def test_stop_cuts_before_the_string(served: Served) -> None:
    _, body, _ = await served.post(COMPLETIONS, completion(max_tokens=50, stop=["holder", "nothing"]))
    assert body["choices"][0]["text"] == "this text is a place"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 5


async def test_the_request_carries_what_was_asked(served: Served) -> None:
    asked = chat(temperature=0, top_p=0.5, seed=7, stop="x", max_completion_tokens=9, max_tokens=9)
    seen: list[Request] = []
    served.run.observers.append(seen.append)
    status, _, _ = await served.post(CHATS, asked)
    assert status == 200
    (request,) = seen
    assert request.sampling == (0.0, 0.5, 7, ("x",))
    assert (request.max_tokens, request.form, request.tenant) == (9, "chat", "default")


async def test_defaults(served: Served) -> None:
    seen: list[Request] = []
    served.run.observers.append(seen.append)
    await served.post(COMPLETIONS, {"prompt": "Hello.", "temperature": None, "stop": None})
    await served.post(CHATS, {"messages": [{"role": "system", "content": [{"type": "text", "text": "Hi."}]}]})
    assert [request.max_tokens for request in seen] == [16, 1024]


async def test_ignore_eos_forces_the_length(served: Served) -> None:
    seen: list[Request] = []
    served.run.observers.append(seen.append)
    await served.post(COMPLETIONS, completion(ignore_eos=True))
    assert seen[0].forced_tokens == 5


async def test_a_seed_is_refused_where_it_would_not_be_honoured(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.run.engine, "honours_seed", False)
    status, body, _ = await served.post(COMPLETIONS, completion(seed=1))
    assert (status, body["error"]["param"]) == (400, "seed")


async def test_priority_may_lower_the_tier_and_never_raise_it() -> None:
    async with serving(tenants=[TenantSection(name="default", tier="standard")]) as served:
        seen: list[Request] = []
        served.run.observers.append(seen.append)
        status, _, _ = await served.post(COMPLETIONS, completion(), headers={PRIORITY: "batch"})
        assert (status, seen[0].tier) == (200, "batch")
        status, body, _ = await served.post(COMPLETIONS, completion(), headers={PRIORITY: "premium"})
        assert (status, body["error"]["param"]) == (403, PRIORITY)
        assert (await served.post(COMPLETIONS, completion(), headers={PRIORITY: "vip"}))[0] == 400


async def test_a_deadline_ends_what_waits_too_long(served: Served) -> None:
    served.run.session.pause(by="test")
    status, body, headers = await served.post(COMPLETIONS, completion(), headers={DEADLINE: "2s"})
    assert (status, body["error"]["code"]) == (429, "expired")
    assert int(headers["Retry-After"]) >= 1


@pytest.mark.parametrize("deadline", ["0", "-1s", "soon", "inf", "1e9", "25h"])
async def test_senseless_deadlines(served: Served, deadline: str) -> None:
    status, body, _ = await served.post(COMPLETIONS, completion(), headers={DEADLINE: deadline})
    assert (status, body["error"]["param"]) == (400, DEADLINE)


# Full, gone, dead


async def test_a_full_queue_is_429_with_retry_after() -> None:
    tenants = [TenantSection(name="default", max_queued=1, max_in_flight=1)]
    async with serving(tenants=tenants, speed=20.0) as served:
        busy = [asyncio.create_task(served.post(COMPLETIONS, completion(max_tokens=LONG))) for _ in range(2)]
        await until(lambda: served.run.scheduler.books.totals.queued == 1)
        status, body, headers = await served.post(COMPLETIONS, completion())
        assert status == 429
        assert body["error"]["type"] == "rate_limit_error"
        assert body["error"]["code"] == "tenant_queue_full"
        assert int(headers["Retry-After"]) >= 1
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)


async def test_a_client_that_leaves_the_queue_or_its_answer_frees_its_place() -> None:
    async with serving(capacity=1, speed=1.0) as served:
        ended: list[Request] = []
        served.run.observers.append(ended.append)
        totals = served.run.scheduler.books.totals
        tasks = [
            asyncio.create_task(served.post(COMPLETIONS, completion(max_tokens=LONG))),
            asyncio.create_task(served.post(COMPLETIONS, completion(max_tokens=LONG))),
        ]
        await until(lambda: (totals.in_flight, totals.queued) == (1, 1))
        tasks[1].cancel()
        await until(lambda: (totals.in_flight, totals.queued) == (1, 0))
        tasks[0].cancel()
        await until(lambda: (totals.in_flight, totals.queued) == (0, 0))
        assert [request.state for request in ended] == [State.CANCELLED] * 2
        assert served.run.engine.telemetry().running == 0
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_time_that_a_body_takes_to_come_is_not_ours(served: Served) -> None:
    seen: list[Request] = []
    served.run.observers.append(seen.append)
    last = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        raw = json.dumps(completion()).encode()
        yield raw[:-1]
        await last.wait()
        yield raw[-1:]

    headers = {"Content-Type": "application/json"}
    asked = asyncio.create_task(served.http.post(served.url + COMPLETIONS, data=slowly(), headers=headers))
    await until(lambda: served.gateway.completions.bodies.coming["default"])
    released_s = served.run.clock.now()
    last.set()
    async with await asked as answer:
        assert answer.status == 200
    assert seen[0].arrival_s >= released_s


async def test_a_client_that_leaves_its_stream_frees_its_place() -> None:
    async with serving(capacity=1, speed=1.0) as served:
        totals = served.run.scheduler.books.totals
        body = completion(max_tokens=LONG, stream=True)
        async with served.http.post(served.url + COMPLETIONS, json=body) as answer:
            assert (await answer.content.readline()).startswith(b"data: ")
            assert totals.in_flight == 1
            answer.close()
        await until(lambda: totals.in_flight == 0)
        assert served.run.engine.telemetry().running == 0


async def test_without_an_engine_503() -> None:
    async with serving(start=False) as served:
        for path, body in ((COMPLETIONS, completion()), (CHATS, chat(stream=True))):
            status, told, headers = await served.post(path, body)
            assert (status, told["error"]["code"]) == (503, "engine_starting")
            assert "Retry-After" in headers
        assert (await served.get("/ready"))[0] == 503
        assert (await served.get("/health"))[0] == 200
        await served.run.start()
        assert (await served.get("/ready"))[0] == 200


async def test_an_engine_that_died_for_good_answers_who_waits() -> None:
    async with serving(capacity=1, speed=1.0) as served:
        asked = [asyncio.create_task(served.post(COMPLETIONS, completion(max_tokens=LONG))) for _ in range(2)]
        await until(lambda: served.run.scheduler.books.totals.queued == 1)
        served.run.session.fail(EngineLost("gone"))
        assert [status for status, _, _ in await asyncio.gather(*asked)] == [503, 503]
        status, body, _ = await served.post(COMPLETIONS, completion())
        assert (status, body["error"]["code"]) == (503, "no_engine")
        assert (await served.get("/health"))[0] == 503


async def test_who_is_counted_while_the_engine_dies_is_answered(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies_meanwhile(prompt: str) -> int:
        served.run._loop.call_soon_threadsafe(served.run.session.fail, EngineLost("gone"))
        return 5

    monkeypatch.setattr(served.gateway.completions, "_count", dies_meanwhile)
    status, body, _ = await served.post(COMPLETIONS, completion(prompt="x" * 20_000))
    assert (status, body["error"]["code"]) == (503, "cancelled")


async def test_a_crash_is_invisible_to_a_client_that_has_seen_nothing_yet() -> None:
    async with serving(speed=20.0) as served:
        whole = asyncio.create_task(served.post(COMPLETIONS, completion(max_tokens=200)))
        stream = asyncio.create_task(served.events(COMPLETIONS, completion(max_tokens=LONG, stream=True)))
        await until(lambda: any(r.streamed and r.output_tokens for r in served.run.scheduler.active()))
        served.run.engine.crash()
        status, body, _ = await whole
        assert status == 200
        assert len(body["choices"][0]["text"].split()) == 200, "nothing of the lost attempt is left in it"
        *_, error, done = await stream
        assert error["error"]["code"] == "engine_lost"
        assert done == "[DONE]"


async def test_micro_batches_stream_at_their_end() -> None:
    async with serving(dispatch={"microbatch": {"size": 2, "wait": "10ms"}}) as served:
        chunks = await served.events(COMPLETIONS, completion(stream=True))
        assert [c["choices"][0]["text"] for c in chunks[:-1]] == [FIVE_WORDS, ""]


async def test_draining_refuses_and_finishes() -> None:
    async with serving(speed=50.0) as served:
        running = asyncio.create_task(served.post(COMPLETIONS, completion(max_tokens=200)))
        await until(lambda: served.run.scheduler.books.totals.in_flight == 1)
        served.gateway.drain()
        assert (await served.post(COMPLETIONS, completion()))[0] == 503
        assert (await served.get("/ready"))[0] == 503
        assert (await running)[0] == 200


# The id of a request


async def test_an_answer_is_sent_with_the_id_of_its_request(served: Served) -> None:
    for more in ({}, {"Connection": "close"}):
        _, told, headers = await served.post(COMPLETIONS, completion(), headers=more)
        assert headers["X-Request-Id"] == told["id"]
    async with served.http.post(served.url + CHATS, json=chat(stream=True)) as answer:
        first, *_ = read_events(await answer.text())
        assert answer.headers["X-Request-Id"] == first["id"]


async def test_an_error_is_sent_with_an_id_that_of_its_request_if_it_was_one() -> None:
    async with serving(tenants=[TenantSection(name="default", max_queued=0)]) as served:
        ended: list[str] = []
        served.run.observers.append(lambda request: ended.append(request.id))
        status, _, headers = await served.post(COMPLETIONS, completion())
        assert (status, [headers["X-Request-Id"]]) == (429, ended)
        told = set()
        for method, path, status in (
            ("GET", "/v1/models", 200),
            ("POST", COMPLETIONS, 400),
            ("GET", "/v1/nothing", 404),
            ("PUT", COMPLETIONS, 405),
        ):
            async with served.http.request(method, served.url + path, json={"prompt": 5}) as answer:
                assert answer.status == status
                told.add(answer.headers["X-Request-Id"])
        assert len(told) == 4
        async with served.http.get(f"{served.url}/health") as answer:
            assert "X-Request-Id" not in answer.headers
