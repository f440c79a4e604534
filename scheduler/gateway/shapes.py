"""Answers as OpenAI's clients read them, as bytes: a whole one, or a stream's events.

Written out by hand, because there is one for each token of each stream: an encoder takes ten times as long.
"""

from __future__ import annotations

import time
from json.encoder import encode_basestring_ascii as _quoted

from scheduler.core.types import Request

DONE = b"data: [DONE]\n\n"
"""Ends every stream."""


def whole_answer(request: Request, model: str, text: str) -> bytes:
    """JSON of a finished request."""
    if request.form == "chat":
        kind, content = "chat.completion", f'"message":{{"role":"assistant","content":{_quoted(text)}}}'
    else:
        kind, content = "text_completion", f'"text":{_quoted(text)}'
    return (
        f"{_head(request, model, kind)}"
        f'"choices":[{_choice(content, _quoted(request.finish))}],"usage":{_usage(request)}}}'
    ).encode()


class Events:
    """Server-sent events of one stream; the usage so far in each (``continuous``), or once at its end."""

    def __init__(self, request: Request, model: str, *, usage: bool, continuous: bool) -> None:
        self._request = request
        self._chat = request.form == "chat"
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        self._head = "data: " + _head(request, model, kind)
        self._usage = usage
        self._continuous = continuous

    def first(self) -> bytes:
        """Who speaks, in a chat; else nothing."""
        return self._event('"delta":{"role":"assistant","content":""}') if self._chat else b""

    def text(self, text: str) -> bytes:
        """What has come."""
        said = _quoted(text)
        return self._event(f'"delta":{{"content":{said}}}' if self._chat else f'"text":{said}')

    def last(self) -> bytes:
        """The finish reason, and the usage if it was asked for."""
        end = self._event('"delta":{}' if self._chat else '"text":""', _quoted(self._request.finish))
        if self._usage:
            end += f'{self._head}"choices":[],"usage":{_usage(self._request)}}}\n\n'.encode()
        return end

    def _event(self, content: str, finish: str = "null") -> bytes:
        usage = ""
        if self._continuous:
            usage = f',"usage":{_usage(self._request)}'
        elif self._usage:
            usage = ',"usage":null'
        return f'{self._head}"choices":[{_choice(content, finish)}]{usage}}}\n\n'.encode()


def _head(request: Request, model: str, kind: str) -> str:
    now = int(time.time())
    return f'{{"id":{_quoted(request.id)},"object":"{kind}","created":{now},"model":{_quoted(model)},'


def _choice(content: str, finish: str) -> str:
    return f'{{"index":0,{content},"logprobs":null,"finish_reason":{finish}}}'


def _usage(request: Request) -> str:
    """Tokens so far."""
    prompt, output = request.prompt_tokens, request.output_tokens
    return f'{{"prompt_tokens":{prompt},"completion_tokens":{output},"total_tokens":{prompt + output}}}'
