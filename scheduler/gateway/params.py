"""Bodies of completions and chats: read strictly, every parameter either honoured or refused by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, NoReturn

from scheduler.core.types import DEFAULT_SAMPLING, Sampling
from scheduler.gateway.errors import bad

Body = Mapping[str, Any]

COMMON = frozenset(
    {
        "model",
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "n",
        "ignore_eos",
    }
)
COMPLETION = COMMON | {"prompt"}
CHAT = COMMON | {"messages", "max_completion_tokens"}

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_k": (-1, 0),
    "use_beam_search": (False,),
}
"""Parameters that are not supported, but whose values here ask for what happens anyway."""

ROLES = ("system", "user", "assistant")
MAX_STOPS, MAX_STOP_CHARS = 16, 256
COMPLETION_TOKENS = 16
"""max_tokens of a completion where none is given, as OpenAI has it."""
CHAT_TOKENS = 1024
"""max_tokens of a chat where none is given, or what is left of the context."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client asks for, checked. ``prompt`` or ``messages`` is tenant text."""

    model: str | None
    prompt: str
    messages: tuple[dict[str, str], ...]  # of a chat; else empty
    max_tokens: int | None
    sampling: Sampling
    ignore_eos: bool
    stream: bool
    include_usage: bool  # a last chunk with the usage
    continuous_usage: bool  # every chunk with the usage so far


def read_json(raw: bytes) -> Body:
    """A JSON object out of a body. Raises ApiError 400; no part of the body is in the message."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad(f"the body is not UTF-8 (byte {error.start})", code="invalid_utf8") from None
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise bad("the body is nested too deeply", code="invalid_json") from None
    except json.JSONDecodeError as error:
        raise bad(
            f"the body is not JSON (line {error.lineno}, column {error.colno})", code="invalid_json"
        ) from None
    except ValueError:  # a number of thousands of digits, NaN, Infinity
        raise bad("the body holds a number that JSON does not have", code="invalid_json") from None
    if not isinstance(data, dict):
        raise bad("the body must be a JSON object", code="invalid_json")
    return data


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def read_ask(body: Body, *, chat: bool) -> Ask:
    """Raises ApiError 400 that names the parameter."""
    given = {name: value for name, value in body.items() if value is not None}
    _refuse_unsupported(given, CHAT if chat else COMPLETION)
    n = _integer(given, "n", 1, None)
    if n not in (None, 1):
        raise bad("n must be 1: several choices for one request are not supported", "n")
    max_tokens = _integer(given, "max_tokens", 1, None)
    newer = _integer(given, "max_completion_tokens", 1, None)
    if max_tokens is not None and newer is not None and max_tokens != newer:
        raise bad("max_tokens and max_completion_tokens differ; give one of them", "max_completion_tokens")
    stop = _stop(given)
    ignore_eos = _boolean(given, "ignore_eos")
    if ignore_eos and stop:
        raise bad("ignore_eos and stop exclude each other", "ignore_eos")
    stream = _boolean(given, "stream")
    include, continuous = _stream_options(given, stream)
    temperature = _number(given, "temperature", 0.0, 2.0)
    top_p = _number(given, "top_p", 0.0, 1.0)
    if top_p == 0.0:
        raise bad("top_p must be above 0 and at most 1", "top_p")
    return Ask(
        model=_text(given, "model"),
        prompt="" if chat else _prompt(given),
        messages=_messages(given) if chat else (),
        max_tokens=max_tokens if newer is None else newer,
        sampling=Sampling(
            1.0 if temperature is None else temperature,  # as OpenAI has it
            DEFAULT_SAMPLING.top_p if top_p is None else top_p,
            _integer(given, "seed", -(2**63), 2**63 - 1),
            stop,
        ),
        ignore_eos=ignore_eos,
        stream=stream,
        include_usage=include,
        continuous_usage=continuous,
    )


def _refuse_unsupported(given: Body, supported: frozenset[str]) -> None:
    for name, value in given.items():
        if name in supported:
            continue
        shown = name if name.isascii() and name.isidentifier() and len(name) <= 64 else ascii(name[:64])
        if name not in NEUTRAL:
            raise bad(f"{shown} is not supported here", shown, "unsupported_parameter")
        if not any(type(value) is type(each) and value == each for each in _with_floats(NEUTRAL[name])):
            allowed = " or ".join(json.dumps(each) for each in NEUTRAL[name])
            raise bad(f"{shown} is not supported here beyond {allowed}", shown, "unsupported_parameter")


def _with_floats(values: tuple[Any, ...]) -> list[Any]:
    """0 may be written 0.0."""
    return [*values, *(float(each) for each in values if type(each) is int)]


def _integer(given: Body, name: str, low: int, high: int | None) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if type(value) is not int:
        raise bad(f"{name} must be a whole number", name)
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise bad(f"{name} must be {bounds}", name)
    return value


def _number(given: Body, name: str, low: float, high: float) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not low <= value <= high or not isfinite(value):
        raise bad(f"{name} must be a number from {low:g} to {high:g}", name)
    return float(value)


def _boolean(given: Body, name: str) -> bool:
    value = given.get(name, False)
    if type(value) is not bool:
        raise bad(f"{name} must be true or false", name)
    return value


def _text(given: Body, name: str) -> str | None:
    value = given.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise bad(f"{name} must be text", name)
    return _unicode(value, name)


def _unicode(value: str, name: str) -> str:
    """JSON can spell half a surrogate pair, which no tokenizer and no encoder takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise bad(f"{name} holds half of a surrogate pair", name, "invalid_utf8") from None
    return value


def _stop(given: Body) -> tuple[str, ...]:
    value = given.get("stop")
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    if (
        not isinstance(items, list)
        or len(items) > MAX_STOPS
        or not all(isinstance(each, str) and 0 < len(each) <= MAX_STOP_CHARS for each in items)
    ):
        raise bad(f"stop must be text, or up to {MAX_STOPS} of 1 to {MAX_STOP_CHARS} characters", "stop")
    return tuple(_unicode(each, "stop") for each in items)


def _stream_options(given: Body, stream: bool) -> tuple[bool, bool]:
    options = given.get("stream_options")
    if options is None:
        return False, False
    if not stream:
        raise bad("stream_options needs stream: true", "stream_options")
    if not isinstance(options, dict):
        raise bad("stream_options must be an object", "stream_options")
    for name in options:
        if name not in ("include_usage", "continuous_usage_stats"):
            raise bad(
                "stream_options has include_usage and continuous_usage_stats only",
                "stream_options",
                "unsupported_parameter",
            )
    given = {name: value for name, value in options.items() if value is not None}
    return _boolean(given, "include_usage"), _boolean(given, "continuous_usage_stats")


def _prompt(given: Body) -> str:
    value = given.get("prompt")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise bad(
            "prompt must be text, or a list of one text; token ids and several prompts are not supported",
            "prompt",
        )
    if not value:
        raise bad("prompt must not be empty", "prompt")
    return _unicode(value, "prompt")


def _messages(given: Body) -> tuple[dict[str, str], ...]:
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("messages must be a list with at least one message", "messages")
    return tuple(_message(each, f"messages[{index}]") for index, each in enumerate(messages))


def _message(message: object, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise bad(f"{where} must be an object with role and content", where)
    for name, value in message.items():
        if name not in ("role", "content") and value is not None:
            raise bad(f"{where} may have role and content only", where, "unsupported_parameter")
    role = message.get("role")
    if role not in ROLES:
        raise bad(f"{where}.role must be one of {', '.join(ROLES)}", f"{where}.role")
    return {"role": role, "content": _content(message.get("content"), f"{where}.content")}


def _content(content: object, where: str) -> str:
    """Text, or parts that are all text."""
    if isinstance(content, str):
        return _unicode(content, where)
    if not isinstance(content, list) or not content:
        raise bad(f"{where} must be text, or a list of parts of type text", where)
    texts = []
    for part in content:
        if (
            not isinstance(part, dict)
            or part.keys() != {"type", "text"}
            or part["type"] != "text"
            or not isinstance(part["text"], str)
        ):
            raise bad(
                f'{where}: a part must be {{"type": "text", "text": ...}}; others are not supported', where
            )
        texts.append(part["text"])
    return _unicode("".join(texts), where)
