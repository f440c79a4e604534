"""``/v1/completions``, ``/v1/chat/completions`` and ``/v1/models``: a client's request and its way through.

A client that goes away, queued or streaming, takes its request with it: aiohttp cancels the handler, and the
handler the request.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from itertools import count as count_up
from secrets import token_hex
from typing import Any, NamedTuple

from aiohttp import web

from scheduler.core.admission import is_full
from scheduler.core.durations import parse_duration
from scheduler.core.estimate import Counter
from scheduler.core.prior import Meanings
from scheduler.core.types import TIER_RANK, TIERS, Request
from scheduler.gateway.bodies import Bodies, read_json
from scheduler.gateway.embedder import Embedder
from scheduler.gateway.errors import ApiError, bad, ending, over_context, turned_away, unavailable
from scheduler.gateway.keys import Keys
from scheduler.gateway.params import CHAT_TOKENS, COMPLETION_TOKENS, Ask, read_ask
from scheduler.gateway.response import ITS_ID, REQUEST_ID, json_response, send_events
from scheduler.gateway.shapes import DONE, Events, whole_answer
from scheduler.live.answer import Answer
from scheduler.live.run import LiveRun

PRIORITY = "X-DriftSched-Priority"
"""Header: a tier at or below the tenant's own, for this request."""
DEADLINE = "X-DriftSched-Deadline"
"""Header: how long it may wait in the queue ("30s"); past that it ends with 429."""

_LONG_PROMPT = 16_384  # characters; longer ones are counted in a thread


class Terms(NamedTuple):
    """What a client asks for beside the answer, in headers."""

    tier: str
    ttl_s: float | None  # the longest time in the queue; None: as its tenant's


class Completions:
    """Handlers, and ``request_of`` which turns what was asked into a request of the scheduler."""

    def __init__(self, run: LiveRun, keys: Keys, *, model: str, count: Counter) -> None:
        """``model`` is the name that clients use; ``count`` counts a prompt's tokens."""
        self.draining = False  # by the operator, who may take it back
        self.stopping = False  # for good
        self.model = model
        self.bodies = Bodies()
        self.embedder = Embedder()
        self._run = run
        self._keys = keys
        self._count = count
        self._started = int(time.time())
        self._id, self._serial = token_hex(12), count_up()

    # -- handlers ------------------------------------------------------------------------------------

    async def models(self, http: web.Request) -> web.Response:
        self._keys.tenant(http.headers)
        return web.json_response({"object": "list", "data": [self._model()]})

    async def model_by_name(self, http: web.Request) -> web.Response:
        self._keys.tenant(http.headers)
        self._check_model(http.match_info["model"])
        return web.json_response(self._model())

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.model,
            "object": "model",
            "created": self._started,
            "owned_by": "driftsched",
            "max_model_len": self._run.engine.max_model_len,
        }

    async def serve(self, http: web.Request, *, chat: bool) -> web.StreamResponse:
        tenant = self._keys.tenant(http.headers)
        raw = await self.bodies.read(http, tenant)
        arrival_s = self._run.clock.now()  # with its last byte: until then the client may take its time
        ask = read_ask(read_json(raw), chat=chat)
        terms = self.terms(http.headers, tenant)
        self.check_up()
        request = await self.request_of(ask, tenant, terms, arrival_s=arrival_s)
        http[ITS_ID] = request.id
        answer = self.submit(request)
        try:
            if ask.stream:
                return await self._stream(http, ask, answer)
            text = await answer.whole()
        finally:
            if not answer.ended:
                self._run.session.cancel(request.id)  # the client has gone
        if (error := ending(request)) is not None:
            raise error
        return json_response(http, whole_answer(request, self.model, text), request.id)

    # -- from what was asked to a request ------------------------------------------------------------

    def check_up(self) -> None:
        """Raises ApiError 503 unless requests make sense now."""
        state = self._run.session.engine_state
        if state == "ready" and not (self.draining or self.stopping):
            return
        self.check_staying()
        if self.draining:
            raise unavailable("the server accepts no new requests: it is draining", "draining")
        if state == "starting":
            raise unavailable("the engine is starting", "engine_starting")
        if state == "dead":
            raise unavailable("there is no engine: it has stopped for good", "no_engine")

    def check_staying(self) -> None:
        """Raises ApiError 503 once this server is about to stop."""
        if self.stopping or self._run.session.engine_state == "stopping":
            raise unavailable("the server is shutting down", "shutting_down", close=True)

    def terms(self, headers: Mapping[str, str], tenant: str) -> Terms:
        """Raises ApiError: 400, 403 (a tier above the tenant's own)."""
        own = self._run.scheduler.books.tenant(tenant).config.tier
        return Terms(_priority(headers.get(PRIORITY), own), _deadline(headers.get(DEADLINE)))

    async def request_of(self, ask: Ask, tenant: str, terms: Terms, *, arrival_s: float) -> Request:
        """Raises ApiError: 400, 404 (model), 413 (over the context)."""
        engine = self._run.engine
        self._check_model(ask.model)
        if ask.sampling.seed is not None and not engine.honours_seed:
            raise bad("seed is not supported by this engine", "seed", "unsupported_parameter")
        prompt = ask.prompt
        if ask.messages:
            try:
                prompt = engine.render_chat(ask.messages)
            except ValueError:
                raise bad("the model's chat template refuses these messages", "messages") from None
        count = self._count
        tokens = count(prompt) if len(prompt) < _LONG_PROMPT else await asyncio.to_thread(count, prompt)
        max_tokens = self._max_tokens(ask, tokens)
        if (meanings := self._run.scheduler.estimator.meanings) is not None:
            await self._embed(meanings, prompt, tenant)
        return Request(
            id=f"{'chatcmpl' if ask.messages else 'cmpl'}-{self._id}{next(self._serial):08x}",
            tenant=tenant,
            tier=terms.tier,
            arrival_s=arrival_s,
            prompt_tokens=tokens,
            max_tokens=max_tokens,
            prompt=prompt,
            form="chat" if ask.messages else "raw",
            forced_tokens=max_tokens if ask.ignore_eos else None,
            sampling=ask.sampling,
            # The results of a micro-batch are released together, whatever the client would like.
            streamed=ask.stream and self._run.scheduler.slots.batch is None,
            submitted_by="gateway",
            ttl_s=terms.ttl_s,
        )

    async def _embed(self, meanings: Meanings, prompt: str, tenant: str) -> None:
        """Raises UnknownTenant."""
        scheduler = self._run.scheduler
        books = scheduler.books
        if is_full(books.tenant(tenant), books.totals, scheduler.limits, self._run.clock.now()):
            meanings.forgo(prompt)  # it is about to be turned away
        else:
            await self.embedder.prepare(meanings, prompt)

    def submit(self, request: Request) -> Answer:
        """Let it wait and run. Raises ApiError: 413, 429."""
        answer = Answer(request)
        rejected = self._run.session.submit(request, answer)
        if rejected is not None:
            raise turned_away(rejected, self._run.engine.max_model_len)
        return answer

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.model:
            raise ApiError(
                404,
                f"there is no such model here; there is {self.model}",
                param="model",
                code="model_not_found",
            )

    def _max_tokens(self, ask: Ask, prompt_tokens: int) -> int:
        context = self._run.engine.max_model_len
        room = CHAT_TOKENS if context is None else context - prompt_tokens
        if room < 1:
            raise over_context(context)
        if ask.max_tokens is None:
            return min(room, CHAT_TOKENS if ask.messages else COMPLETION_TOKENS)
        if context is not None and ask.max_tokens > context:
            raise bad(f"max_tokens must be at most {context}, the model's context", "max_tokens")
        if context is not None and ask.max_tokens > room:
            raise over_context(context)
        return ask.max_tokens

    # -- streams -------------------------------------------------------------------------------------

    async def _stream(self, http: web.Request, ask: Ask, answer: Answer) -> web.StreamResponse:
        """Server-sent events. The status waits for the first token: what fails before has its own."""
        await answer.begun()
        if answer.ended and (error := ending(answer.request)) is not None:
            raise error
        return await send_events(http, self._events(ask, answer), {REQUEST_ID: answer.request.id})

    async def _events(self, ask: Ask, answer: Answer) -> AsyncGenerator[bytes]:
        """Raises SlowReader."""
        request = answer.request
        events = Events(request, self.model, usage=ask.include_usage, continuous=ask.continuous_usage)
        opening = events.first()
        async for text in answer:
            yield opening + events.text(text)
            opening = b""
        if (error := ending(request)) is not None:
            yield opening + b"data: " + json.dumps(error.body()).encode() + b"\n\n" + DONE
        else:
            yield opening + events.last() + DONE


def _priority(asked: str | None, own: str) -> str:
    if asked is None:
        return own
    if asked not in TIERS:
        raise bad(f"{PRIORITY} must be one of {', '.join(TIERS)}", PRIORITY)
    if TIER_RANK[asked] < TIER_RANK[own]:
        raise ApiError(403, f"{PRIORITY}: your tier is {own}", param=PRIORITY, code="tier_not_allowed")
    return asked


def _deadline(asked: str | None) -> float | None:
    if asked is None:
        return None
    try:
        seconds = parse_duration(asked)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise bad(f"{DEADLINE} must be a time above 0 and up to 24h, such as 30s", DEADLINE)
    return seconds
