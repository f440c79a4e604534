"""Durable jobs: promised once they are on disk, run like any request, and ended once whatever happens.

A job that was promised and has not ended when the server stops or dies is taken up by the next one: in its
old order of arrival, past the limits that it has passed before, its time to live counting the downtime.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any, TypeVar
from uuid import uuid4

from aiohttp import web

from scheduler.core.lifecycle import UnknownTenant
from scheduler.core.types import Request, State
from scheduler.gateway.bodies import Body, read_json
from scheduler.gateway.completions import Completions, Terms
from scheduler.gateway.errors import ApiError, bad, ending, unavailable
from scheduler.gateway.keys import Keys
from scheduler.gateway.params import Ask, read_ask
from scheduler.gateway.shapes import whole_answer
from scheduler.live.answer import Answer
from scheduler.live.journal import Entry, Journal, JournalError
from scheduler.live.run import LiveRun
from scheduler.live.tasks import cancel_all

KEEP_S = 24 * 3600.0
"""A job and its idempotency key are known so long after its end."""

KEEP_BYTES = 256 << 20
"""Prompts and results of ended jobs are kept up to so many bytes; older ones go before their jobs do."""

TIDY_S = 5.0
"""How often what was learned is saved and old results are forgotten (real seconds)."""

RETRY_S = 1.0
"""A full disk is asked again after so long."""

COMPLAIN_S = 60.0
"""And a notice says so once in so long."""

CANCEL_S = 10.0
"""A client that cancels waits so long for the engine to let go and for the disk."""

IDEMPOTENCY_KEY = "Idempotency-Key"
KEY = re.compile("[!-~]{1,128}")

T = TypeVar("T")


class _Job:
    """One that has not ended."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.cancelled = False  # by its client
        self.task: asyncio.Task[None] | None = None


class _Arriving:
    """Requests with one idempotency key that are here at the same time."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.requests = 0


class Jobs:
    """Handlers of ``/v1/jobs`` over one journal."""

    def __init__(
        self,
        run: LiveRun,
        keys: Keys,
        completions: Completions,
        journal: Journal,
    ) -> None:
        self.journal = journal
        self._run = run
        self._keys = keys
        self._completions = completions
        self._live: dict[str, _Job] = {}
        self._given_up: set[str] = set()  # cancelled before they were taken up
        self._arriving: dict[tuple[str, str], _Arriving] = {}
        self._tidying: asyncio.Task[None] | None = None
        self._learned: dict[str, Mapping[str, Any]] = {}  # by estimator, as the journal has it
        self._complained = 0.0

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/jobs", self.post),
            web.get("/v1/jobs/{id}", self.get),
            web.delete("/v1/jobs/{id}", self.delete),
        ]

    # -- life ----------------------------------------------------------------------------------------

    async def recover(self) -> int:
        """Take up what an earlier server has promised; returns how many jobs. Raises JournalError.

        Cancelled in the middle, it leaves the rest as it is, for the next server.
        """
        await self._relearn()
        self._tidying = asyncio.create_task(self._tidy())
        entries = await self.journal.unfinished()
        now_s, wall = self._run.clock.now(), time.time()
        taken = 0
        for entry in entries:
            waited_s = max(0.0, wall - entry.accepted) * self._run.clock.speed
            try:
                taken += await self._take_up(entry, now_s - waited_s)
            except ApiError as error:
                await self.journal.finish(entry.id, State.FAILED, _bytes(error.body()), time.time())
            await asyncio.sleep(0)  # there may be many thousands
        return taken

    async def _take_up(self, entry: Entry, arrival_s: float) -> bool:
        """False where it has just come again or was cancelled. Raises ApiError where it cannot run here."""
        ask, terms = _ask_of(read_json(entry.body)), Terms(entry.tier, entry.ttl_s)
        try:
            request = await self._request(entry.id, ask, entry.tenant, terms, arrival_s=arrival_s)
            if entry.id in self._live or entry.id in self._given_up:
                return False
            request.acknowledged = True
            answer = self._completions.submit(request)
        except UnknownTenant:
            raise ApiError(403, "its tenant is gone", code="unknown_tenant") from None
        self._follow(_Job(request), answer)
        return True

    async def _relearn(self) -> None:
        scheduler = self._run.scheduler
        self._learned = {name: json.loads(state) for name, state in (await self.journal.learned()).items()}
        scheduler.learned = {**self._learned, **scheduler.learned}
        if not scheduler.recall():
            what = f"what {scheduler.estimator.name} had learned cannot be read; it begins anew"
            self._run.notices.add(self._run.clock.now(), "error", what)

    async def leave_waiting(self) -> int:
        """Before the run stops: the jobs that wait are the next server's, and the time that is left belongs
        to what runs and to who waits for an answer. Returns how many jobs.
        """
        left = 0
        for job in list(self._live.values()):
            if job.request.state is State.QUEUED and not job.cancelled:
                self._run.session.cancel(job.request.id)
                left += 1
                await asyncio.sleep(0)  # there may be many thousands
        return left

    async def close(self) -> None:
        """After the run has stopped: what has ended is written, the rest waits for the next server."""
        relearned = self._tidying is not None
        if self._tidying is not None:
            await cancel_all(self._tidying)
        tasks = [job.task for job in self._live.values() if job.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=RETRY_S)
        if relearned:  # else the estimator knows nothing yet, and the journal may
            await self._save_learned()
        await self.journal.close()

    async def _tidy(self) -> None:
        while True:
            try:
                await self.journal.purge(time.time() - KEEP_S, KEEP_BYTES)
            except JournalError as error:
                self._complain(error)
            await self._save_learned()
            await asyncio.sleep(TIDY_S)

    def _complain(self, error: JournalError) -> None:
        """Once in a while: every job that cannot be written comes here every second."""
        now = time.time()
        if not 0 <= now - self._complained < COMPLAIN_S:
            self._complained = now
            self._run.notices.add(self._run.clock.now(), "error", str(error))

    async def _save_learned(self) -> None:
        scheduler = self._run.scheduler
        states = {**scheduler.learned, scheduler.estimator.name: scheduler.estimator.state()}
        for name, state in states.items():
            if state == self._learned.get(name):
                continue
            try:
                await self.journal.learn(name, json.dumps(state))
            except JournalError as error:
                self._complain(error)
            else:
                self._learned[name] = state

    # -- handlers ------------------------------------------------------------------------------------

    async def post(self, http: web.Request) -> web.Response:
        """202 and the job once it is on disk; the same key again gives the same job."""
        tenant = self._keys.tenant(http.headers)
        raw = await self._completions.bodies.read(http, tenant)
        arrival_s = self._run.clock.now()
        body = read_json(raw)
        ask, terms = _ask_of(body), self._completions.terms(http.headers, tenant)
        key = http.headers.get(IDEMPOTENCY_KEY)
        if key is not None and not KEY.fullmatch(key):
            raise bad(f"{IDEMPOTENCY_KEY} must be 1 to 128 visible ASCII characters", IDEMPOTENCY_KEY)
        digest = sha256(json.dumps(body, sort_keys=True).encode()).digest()
        async with self._one_at_a_time(tenant, key):
            entry = await self._known(tenant, key, digest)
            if entry is None:
                self._completions.check_up()
                request = await self._request(f"job-{uuid4().hex}", ask, tenant, terms, arrival_s=arrival_s)
                entry = Entry(request.id, tenant, key, digest, raw, request.tier, request.ttl_s, time.time())
                await self._accept(request, entry)
        return web.json_response(self._document(entry), status=202)

    async def _known(self, tenant: str, key: str | None, digest: bytes) -> Entry | None:
        """The job that came with this key before. Raises ApiError 409 where its body was another."""
        if key is None:
            return None
        known = await self._kept(self.journal.find_by_key(tenant, key))
        if known is not None and known.body_digest != digest:
            raise ApiError(
                409, f"this {IDEMPOTENCY_KEY} came with another body before", code="idempotency_conflict"
            )
        return known

    async def _accept(self, request: Request, entry: Entry) -> None:
        """Let it run; returns once it is on disk. Raises ApiError 429, 503."""
        answer = self._completions.submit(request)
        # In this order: a job that ends at once is written after it was promised.
        promised = self.journal.add(entry)
        try:
            # A client that goes away now has a job all the same; its key finds it.
            await asyncio.shield(self._promise(promised, _Job(request), answer))
        except JournalError:
            raise unavailable("jobs cannot be kept now: the journal cannot be written", "journal") from None

    async def _promise(self, promised: asyncio.Future[None], job: _Job, answer: Answer) -> None:
        self._live[job.request.id] = job
        try:
            await promised
        except JournalError:
            del self._live[job.request.id]
            self._run.session.cancel(job.request.id)
            raise
        self._follow(job, answer)

    async def get(self, http: web.Request) -> web.Response:
        return web.json_response(self._document(await self._own(http)))

    async def delete(self, http: web.Request) -> web.Response:
        """Cancel it; what has ended stays as it ended."""
        entry = await self._own(http)
        job = self._live.get(entry.id)
        untaken = job is None and entry.ended is None
        if untaken:
            self._given_up.add(entry.id)
        if job is not None and job.task is not None:
            job.cancelled = True
            self._run.session.cancel(entry.id)
            await asyncio.wait([job.task], timeout=CANCEL_S)
            if not job.task.done():
                raise unavailable("its end is not written yet; ask again", "journal")
        if untaken or entry.id in self._live:  # the latter was left for the next server
            timing = None if job is None else _timing(job.request)
            result = _bytes({**_cancelled().body(), "timing": timing})
            await self._kept(self.journal.finish(entry.id, State.CANCELLED, result, time.time()))
            self._live.pop(entry.id, None)  # or another DELETE was here meanwhile
        return web.json_response(self._document(await self._own(http)))

    # -- one job -------------------------------------------------------------------------------------

    async def _request(
        self, job_id: str, ask: Ask, tenant: str, terms: Terms, *, arrival_s: float
    ) -> Request:
        request = await self._completions.request_of(ask, tenant, terms, arrival_s=arrival_s)
        request.id, request.submitted_by = job_id, "job"
        return request

    def _follow(self, job: _Job, answer: Answer) -> None:
        self._live[job.request.id] = job
        job.task = asyncio.create_task(self._until_its_end(job, answer))

    async def _until_its_end(self, job: _Job, answer: Answer) -> None:
        text = await answer.whole()
        request, job_id = job.request, job.request.id
        if request.state is State.CANCELLED and not job.cancelled:
            return  # the server stops or the engine is dead: the next server takes it up
        error = ending(request)
        if job.cancelled and request.state is State.CANCELLED:
            error = _cancelled()
        if error is None:
            result = json.loads(whole_answer(request, self._completions.model, text))
        else:
            result = error.body()
        result["timing"] = _timing(request)
        ended = time.time()
        while True:
            try:
                await self.journal.finish(job_id, request.state.value, _bytes(result), ended)
            except JournalError as failed:
                self._complain(failed)
                await asyncio.sleep(RETRY_S)
            else:
                del self._live[job_id]
                return

    async def _own(self, http: web.Request) -> Entry:
        """The job of this address, if it is the asking tenant's. Raises ApiError 404."""
        tenant = self._keys.tenant(http.headers)
        entry = await self._kept(self.journal.find(tenant, http.match_info["id"]))
        if entry is None:
            raise ApiError(
                404, "you have no such job (they are known for a day after their end)", code="unknown_job"
            )
        return entry

    async def _kept(self, asked: asyncio.Future[T]) -> T:
        """What the journal says. Raises ApiError 503."""
        try:
            return await asked
        except JournalError:
            raise unavailable("the journal cannot be read or written now", "journal") from None

    def _document(self, entry: Entry) -> dict[str, Any]:
        """A job as its client sees it; an ending is seen once it is on disk."""
        document: dict[str, Any] = {"id": entry.id, "object": "job", "created_at": entry.accepted}
        if entry.ended is not None:
            result = {"timing": None} if entry.result is None else json.loads(entry.result)
            timing = result.pop("timing", None)
            told = {"error": result["error"]} if "error" in result else {"result": result or None}
            return {**document, "status": entry.status, "ended_at": entry.ended, "timing": timing, **told}
        job = self._live.get(entry.id)
        # Cancelled by a server that stops, it waits for the next one.
        waits = job is None or job.request.state in (State.NEW, State.QUEUED, State.CANCELLED)
        document["status"] = "queued" if waits else "running"
        if job is not None and job.request.state is State.QUEUED:
            document["place"] = 1 + self._run.scheduler.waiting.ahead(job.request)
        return document

    @asynccontextmanager
    async def _one_at_a_time(self, tenant: str, key: str | None) -> AsyncIterator[None]:
        """Two requests with the same key, at the same time, are one after the other."""
        if key is None:
            yield
            return
        arriving = self._arriving.setdefault((tenant, key), _Arriving())
        arriving.requests += 1
        try:
            async with arriving.lock:
                yield
        finally:
            arriving.requests -= 1
            if not arriving.requests:
                del self._arriving[tenant, key]


def _ask_of(body: Body) -> Ask:
    """Raises ApiError 400."""
    ask = read_ask(body, chat="messages" in body)
    if ask.stream:
        raise bad("a job has no stream; its result is fetched", "stream")
    return ask


def _timing(request: Request) -> dict[str, float | None]:
    """Run seconds from the arrival; None for what never came."""

    def since(at_s: float | None) -> float | None:
        return None if at_s is None else round(at_s - request.arrival_s, 6)

    return {
        "queue_wait_s": since(request.dispatched_s),
        "ttft_s": since(request.first_token_s),
        "e2e_s": since(request.ended_s),
    }


def _cancelled() -> ApiError:
    return ApiError(409, "cancelled by its client", code="cancelled")


def _bytes(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode()
