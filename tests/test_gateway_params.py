"""Every parameter is honoured or refused by its name; senseless values and hostile bodies are 400 or 413."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateway_kit import Served, chat, completion, serving

from scheduler.gateway.bodies import MAX_PARTS, read_json
from scheduler.gateway.errors import ApiError
from scheduler.gateway.params import NEUTRAL, read_ask

UNSUPPORTED = {
    "audio": {"voice": "x"},
    "best_of": 2,
    "echo": True,
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{}],
    "guided_json": {},
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "metadata": {},
    "min_p": 0.1,
    "min_tokens": 3,
    "modalities": ["text", "audio"],
    "moderation": {},
    "parallel_tool_calls": True,
    "prediction": {},
    "presence_penalty": -1,
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_logprobs": 1,
    "reasoning_effort": "low",
    "repetition_penalty": 1.1,
    "response_format": {"type": "json_object"},
    "safety_identifier": "u",
    "service_tier": "flex",
    "skip_special_tokens": False,
    "stop_token_ids": [1],
    "store": True,
    "suffix": "end",
    "tool_choice": "auto",
    "tools": [{"type": "function"}],
    "top_k": 40,
    "top_logprobs": 3,
    "use_beam_search": True,
    "user": "someone",
    "verbosity": "low",
    "web_search_options": {},
    "max_token": 5,
}

SENSELESS: dict[str, list[Any]] = {
    "max_tokens": [0, -5, 10**9, 1.5, 1e9, "5", True, [], {}, 10**30],
    "temperature": [-0.1, 2.1, "hot", True, [], 10**400],
    "top_p": [0, 0.0, -1, 1.1, "all", False],
    "n": [0, 2, -1, 1.5, "1", True],
    "seed": [2**63, -(2**63) - 1, 1.5, "1", True],
    "stop": [5, "", [""], ["a"] * 17, ["a", 5], {}, "x" * 257, "\ud800"],
    "stream": [1, "true", []],
    "stream_options": [5, {"include_usage": True}, []],
    "ignore_eos": ["yes", 1],
    "model": [5, [], {}],
}

PROMPTS: list[Any] = [None, "", 5, [], ["a", "b"], [1, 2], [[1]], {}, "\ud800", [""], True]

MESSAGES: list[Any] = [
    None,
    [],
    "hello",
    {},
    [5],
    [{}],
    [{"role": "user"}],
    [{"role": "tool", "content": "x"}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": []}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    [{"role": "user", "content": [{"type": "text", "text": 5}]}],
    [{"role": "user", "content": "x", "tool_calls": [{}]}],
    [{"role": ["user"], "content": "x"}],
    [{"role": "user", "content": "\udfff"}],
]


def refusal(body: dict[str, Any], *, is_chat: bool) -> ApiError:
    with pytest.raises(ApiError) as refused:
        read_ask(read_json(json.dumps(body).encode()), chat=is_chat)
    assert refused.value.status == 400
    return refused.value


@pytest.mark.parametrize("name", UNSUPPORTED)
@pytest.mark.parametrize("is_chat", [False, True], ids=["completion", "chat"])
def test_an_unsupported_parameter_is_refused_by_name(name: str, is_chat: bool) -> None:
    body = chat() if is_chat else completion()
    error = refusal({**body, name: UNSUPPORTED[name]}, is_chat=is_chat)
    assert error.param == name
    assert name in error.message
    assert error.code == "unsupported_parameter"


@pytest.mark.parametrize("name", NEUTRAL)
def test_the_value_that_asks_for_nothing_is_accepted_and_another_is_not(name: str) -> None:
    for value in (*NEUTRAL[name], None):
        read_ask(completion(**{name: value}), chat=False)
    assert refusal(completion(**{name: UNSUPPORTED[name]}), is_chat=False).param == name


def test_every_table_is_whole() -> None:
    assert NEUTRAL.keys() <= UNSUPPORTED.keys()


@pytest.mark.parametrize("name", ["messages", "max_completion_tokens"])
def test_parameters_of_chats_are_refused_in_completions(name: str) -> None:
    assert refusal(completion(**{name: 5}), is_chat=False).param == name
    assert refusal(chat(prompt="x"), is_chat=True).param == "prompt"


@pytest.mark.parametrize("name", SENSELESS)
async def test_senseless_values(served: Served, name: str) -> None:
    for value in SENSELESS[name]:
        status, body, _ = await served.post("/v1/completions", completion(**{name: value}))
        assert (status, body["error"]["param"]) == (400, name), value


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@pytest.mark.parametrize("prompt", PROMPTS, ids=ascii)
def test_senseless_prompts(prompt: Any) -> None:
    error = refusal(completion(prompt=prompt), is_chat=False)
    assert error.param == "prompt"


@pytest.mark.parametrize("messages", MESSAGES, ids=lambda each: ascii(each)[:40])
def test_senseless_messages(messages: Any) -> None:
    error = refusal(chat(messages=messages), is_chat=True)
    assert (error.param or "").startswith("messages")


def test_a_developer_speaks_as_the_system_does() -> None:
    ask = read_ask(chat(messages=[{"role": "developer", "content": "short"}]), chat=True)
    assert ask.messages == ({"role": "system", "content": "short"},)


def test_what_is_wrong_with_a_message_is_named() -> None:
    error = refusal(chat(messages=[{"role": "tool", "content": "x", "tool_call_id": "a"}]), is_chat=True)
    assert error.param == "messages[0].role"
    error = refusal(chat(messages=[{"role": "user", "content": "x", "\x1b[2J": "x"}]), is_chat=True)
    assert error.message == "messages[0] may have role and content only, not '\\x1b[2J'"


def test_a_whole_number_may_be_written_with_a_point() -> None:
    ask = read_ask(completion(max_tokens=5.0, n=1.0, seed=-3.0), chat=False)
    assert (ask.max_tokens, ask.sampling.seed) == (5, -3)
    assert type(ask.max_tokens) is type(ask.sampling.seed) is int


def test_two_caps_that_differ() -> None:
    error = refusal(chat(max_tokens=5, max_completion_tokens=6), is_chat=True)
    assert error.param == "max_completion_tokens"


def test_stop_and_ignore_eos_exclude_each_other() -> None:
    assert refusal(completion(ignore_eos=True, stop="x"), is_chat=False).param == "ignore_eos"


NO_OBJECTS = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"null",
    b"NaN",
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "x", "temperature": Infinity}',
    b'{"prompt": "x", "temperature": -Infinity}',
    b'{"prompt": "x", "temperature": 1e999}',
    b'{"prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
    b'{"prompt": "x", "max_tokens": 5, "max_tokens": 0}',
    b'{"messages": [{"role": "user", "role": "system", "content": "x"}]}',
    b'{"prompt": "\xff\xfe"}',
    b'{"prompt": "\xed\xa0\x80"}',
    b'{"prompt": "x\n"}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"\x00" * 100,
    b'\xef\xbb\xbf{"prompt": "x"}',
    "{}".encode("utf-16"),
]


async def test_bodies_that_are_no_json_object(served: Served) -> None:
    for raw in NO_OBJECTS:
        status, body, _ = await served.post("/v1/completions", raw)
        assert status == 400, raw[:50]
        assert body["error"]["type"] == "invalid_request_error"


async def test_a_body_of_another_type_or_of_8_mb(served: Served) -> None:
    sent = {"Content-Type": "text/plain"}
    assert (await served.post("/v1/completions", completion(), headers=sent))[0] == 415
    status, body, _ = await served.post("/v1/completions", completion(prompt="x" * (8 << 20)))
    assert (status, body["error"]["code"]) == (413, "body_too_large")


def test_a_body_of_too_many_parts_is_refused_before_it_is_read() -> None:
    for crowd in (b"[]", b'{"a":1}', b'"a"', b'"\\""', b"[[[[1]]]]"):
        raw = b'{"stop": [' + b",".join([crowd] * MAX_PARTS) + b"]}"
        with pytest.raises(ApiError) as refused:
            read_json(raw)
        assert (refused.value.status, refused.value.code) == (413, "body_too_large"), crowd
    code = 'f(a, [b, {}], "c\\") ' * MAX_PARTS
    assert read_json(json.dumps({"prompt": code}).encode()) == {"prompt": code}
    started = time.process_time()
    with pytest.raises(ApiError, match="is not JSON"):  # of 2 million quotes, all in a string without an end
        read_json(b'{"prompt":"' + b'\\"' * 2_000_000 + b"," * MAX_PARTS + b"[")
    assert time.process_time() - started < 5, (
        "some 50 ms; for hours if each quote is looked at as a beginning"
    )


async def test_over_the_context(served: Served) -> None:
    context = served.run.engine.max_model_len
    assert context is not None
    for body in (
        completion(prompt="word " * context),
        completion(prompt="word " * 10, max_tokens=context),
    ):
        status, told, _ = await served.post("/v1/completions", body)
        assert (status, told["error"]["code"]) == (413, "context_length_exceeded")


async def test_the_context_is_that_of_the_engines_arguments() -> None:
    async with serving(engine_args={"max_model_len": 64}) as served:
        (model,) = (await served.get("/v1/models"))[1]["data"]
        assert model["max_model_len"] == 64
        status, told, _ = await served.post("/v1/completions", completion(prompt="word " * 60, max_tokens=5))
        assert (status, "context of 64 tokens" in told["error"]["message"]) == (413, True)
        ask = completion(prompt="word " * 60)
        del ask["max_tokens"]
        status, answer, _ = await served.post("/v1/completions", ask)
        assert (status, answer["usage"]["completion_tokens"]) == (200, 4)


async def test_unknown_model_address_and_method(served: Served) -> None:
    status, body, _ = await served.post("/v1/completions", completion(model="gpt-4"))
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    for address in ("/v1/embeddings", "/chat/completions"):
        status, body, _ = await served.post(address, {})
        assert (status, body["error"]["code"]) == (404, "not_found")
        assert "/v1/chat/completions" in body["error"]["message"], "what there is"
    async with served.http.get(served.url + "/v1/completions") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")


async def test_hostile_bodies(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Random damage: never a 500, and a 200 only for what makes sense."""
    chance = random.Random(5)
    caplog.set_level(logging.DEBUG)
    values: list[Any] = [
        None, True, 0, -1, 1, 10**18, 1.5, "", "x", "\x1b]0;title\x07", "\u202e", "\x00", "secret" * 500,
        [], {}, [[]], [None], {"": {}}, ["x"], [{"role": "user", "content": "secret"}],
    ]  # fmt: skip
    names = ["prompt", "messages", "max_tokens", "temperature", "stop", "stream", "n", "seed", "\x1b[2J", ""]
    statuses = []
    for number in range(300):
        body: dict[str, Any] = {
            chance.choice(names): chance.choice(values) for _ in range(chance.randint(0, 4))
        }
        path = "/v1/chat/completions" if number % 2 else "/v1/completions"
        sent = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        async with served.http.post(served.url + path, data=sent, headers=headers) as answer:
            statuses.append(answer.status)
            text = await answer.text()
            assert answer.status in (200, 400, 413), body
            if answer.status == 200:
                given = body.get("messages") if number % 2 else body.get("prompt")
                assert (
                    given in ("x", "\x1b]0;title\x07", "\u202e", "\x00", "secret" * 500, ["x"]) or number % 2
                )
                assert body.get("max_tokens") in (None, 1)
            else:
                assert "secret" not in text
                assert "\x1b" not in text
    assert 200 in statuses
    assert "secret" not in caplog.text
    served.run.scheduler.check()
    assert served.run.scheduler.idle
