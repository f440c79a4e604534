"""Bodies of completions and chats: read strictly, every parameter either honoured or refused by its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from scheduler.core.types import Sampling
from scheduler.gateway.bodies import Body
from scheduler.gateway.errors import bad

Reader = Callable[[Any, str], Any]
"""Of a parameter's value and name; returns the value as we use it. Raises ApiError 400."""

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

ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",  # as OpenAI calls it since 2024; chat templates do not know the word
    "user": "user",
    "assistant": "assistant",
}
"""Roles of messages, and what the model's chat template calls them."""
MAX_STOPS, MAX_STOP_CHARS = 16, 256
COMPLETION_TOKENS = 16
"""max_tokens of a completion where none is given, as OpenAI has it."""
CHAT_TOKENS = 1024
"""max_tokens of a chat where none is given, or what is left of the context."""


class Ask(NamedTuple):
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


def read_ask(body: Body, *, chat: bool) -> Ask:
    """Raises ApiError 400 that names the parameter."""
    readers, text = (CHAT, "messages") if chat else (COMPLETION, "prompt")
    read = dict(_NOT_GIVEN)
    for name, value in body.items():
        if value is None:
            continue
        if (reader := readers.get(name)) is not None:
            read[name] = reader(value, name)
        else:
            _refuse_unsupported(name, value)
    if not read[text]:
        raise bad(f"{text} is needed", text)
    if read["ignore_eos"] and read["stop"]:
        raise bad("ignore_eos and stop exclude each other", "ignore_eos")
    if read["stream_options"] is not None and not read["stream"]:
        raise bad("stream_options needs stream: true", "stream_options")
    max_tokens, renamed = read["max_tokens"], read["max_completion_tokens"]  # by OpenAI
    if max_tokens is None:
        max_tokens = renamed
    elif renamed is not None and renamed != max_tokens:
        raise bad("max_tokens and max_completion_tokens differ; give one of them", "max_completion_tokens")
    include_usage, continuous_usage = read["stream_options"] or (False, False)
    return Ask(
        model=read["model"],
        prompt=read["prompt"],
        messages=read["messages"],
        max_tokens=max_tokens,
        sampling=Sampling(read["temperature"], read["top_p"], read["seed"], read["stop"]),
        ignore_eos=read["ignore_eos"],
        stream=read["stream"],
        include_usage=include_usage,
        continuous_usage=continuous_usage,
    )


_NOT_GIVEN: Mapping[str, Any] = {
    "model": None,
    "prompt": "",
    "messages": (),
    "max_tokens": None,
    "max_completion_tokens": None,
    "temperature": 1.0,  # as OpenAI has it
    "top_p": 1.0,
    "seed": None,
    "stop": (),
    "ignore_eos": False,
    "stream": False,
    "stream_options": None,
}


def _refuse_unsupported(name: str, value: object) -> None:
    """Unless the value asks for what happens anyway."""
    shown = _shown(name)
    if name not in NEUTRAL:
        raise bad(f"{shown} is not supported here", shown, "unsupported_parameter")
    if not any(type(value) is type(each) and value == each for each in _with_floats(NEUTRAL[name])):
        allowed = " or ".join(json.dumps(each) for each in NEUTRAL[name])
        raise bad(f"{shown} is not supported here beyond {allowed}", shown, "unsupported_parameter")


def _shown(name: str) -> str:
    return name if name.isascii() and name.isidentifier() and len(name) <= 64 else ascii(name[:64])


def _with_floats(values: tuple[Any, ...]) -> list[Any]:
    """0 may be written 0.0."""
    return [*values, *(float(each) for each in values if type(each) is int)]


# -- readers: of one value each ----------------------------------------------------------------------


def _integer(low: int, high: int | None = None) -> Reader:
    bounds = f"at least {low}" if high is None else f"from {low} to {high}"

    def read(value: Any, name: str) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)  # JSON has one kind of number: 5.0 is 5
        if type(value) is not int:
            raise bad(f"{name} must be a whole number", name)
        if value < low or (high is not None and value > high):
            raise bad(f"{name} must be {bounds}", name)
        return value

    return read


def _one(value: Any, name: str) -> int:
    if type(value) not in (int, float) or value != 1:
        raise bad(f"{name} must be 1: several choices for one request are not supported", name)
    return 1


def _temperature(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 2:
        raise bad(f"{name} must be a number from 0 to 2", name)
    return float(value)


def _top_p(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not 0 < value <= 1:
        raise bad(f"{name} must be a number above 0 and at most 1", name)
    return float(value)


def _boolean(value: Any, name: str) -> bool:
    if type(value) is not bool:
        raise bad(f"{name} must be true or false", name)
    return value


def _text(value: Any, name: str) -> str:
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


def _stop(value: Any, name: str) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if (
        not isinstance(items, list)
        or len(items) > MAX_STOPS
        or not all(isinstance(each, str) and 0 < len(each) <= MAX_STOP_CHARS for each in items)
    ):
        raise bad(f"{name} must be text, or up to {MAX_STOPS} of 1 to {MAX_STOP_CHARS} characters", name)
    return tuple(_unicode(each, name) for each in items)


def _stream_options(value: Any, name: str) -> tuple[bool, bool]:
    """(include_usage, continuous_usage_stats)."""
    known = ("include_usage", "continuous_usage_stats")
    if not isinstance(value, dict):
        raise bad(f"{name} must be an object", name)
    if not value.keys() <= set(known):
        raise bad(f"{name} has {known[0]} and {known[1]} only", name, "unsupported_parameter")
    include, continuous = (value.get(each) for each in known)
    return (
        _boolean(False if include is None else include, known[0]),
        _boolean(False if continuous is None else continuous, known[1]),
    )


def _prompt(value: Any, name: str) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise bad(
            f"{name} must be text, or a list of one text; token ids and several prompts are not supported",
            name,
        )
    if not value:
        raise bad(f"{name} must not be empty", name)
    return _unicode(value, name)


def _messages(value: Any, name: str) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise bad(f"{name} must be a list with at least one message", name)
    return tuple(_message(each, f"{name}[{index}]") for index, each in enumerate(value))


def _message(message: object, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise bad(f"{where} must be an object with role and content", where)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise bad(f"{where}.role must be one of {', '.join(ROLES)}", f"{where}.role")
    for name, value in message.items():
        if name not in ("role", "content") and value is not None:
            what = f"{where} may have role and content only, not {_shown(name)}"
            raise bad(what, where, "unsupported_parameter")
    return {"role": ROLES[role], "content": _content(message.get("content"), f"{where}.content")}


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


_COMMON: Mapping[str, Reader] = {
    "model": _text,
    "max_tokens": _integer(1),
    "temperature": _temperature,
    "top_p": _top_p,
    "seed": _integer(-(2**63), 2**63 - 1),
    "stop": _stop,
    "stream": _boolean,
    "stream_options": _stream_options,
    "n": _one,
    "ignore_eos": _boolean,
}
COMPLETION: Mapping[str, Reader] = {"prompt": _prompt, **_COMMON}
CHAT: Mapping[str, Reader] = {"messages": _messages, "max_completion_tokens": _integer(1), **_COMMON}
