"""Prompts are embedded before their estimates: beside the loop and everything else, and never for nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from gateway_kit import Served, completion, serving
from waiting import until

from scheduler.core.estimators import estimator_from
from scheduler.core.prior import NO_PRIOR
from scheduler.core.types import Request
from scheduler.load.schema import TenantSection


class Embedding:
    """Embeds nothing until it is ``allowed`` to, as it would in a rush; what it did is in ``prompts``."""

    def __init__(self) -> None:
        self.asked, self.allowed = threading.Event(), threading.Event()
        self.prompts = list[str]()

    def __call__(self, prompt: str) -> list[float]:
        self.asked.set()
        assert self.allowed.wait(20), "the loop stands still"
        self.prompts.append(prompt)
        return [1.0]

    @asynccontextmanager
    async def serving(self, **given: Any) -> AsyncIterator[Served]:
        prior = NO_PRIOR._replace(embedding=(0.5,))
        async with serving(**given) as served:
            served.run.scheduler.estimator = estimator_from("learned", prior=prior, embed=self)
            try:
                yield served
            finally:
                self.allowed.set()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.gateway.embedder.MAX_WAIT_S", 20.0)


def ask(served: Served, prompt: str) -> asyncio.Task[tuple[int, Any, Any]]:
    return asyncio.create_task(served.post("/v1/completions", completion(prompt=prompt)))


async def until_they_wait(served: Served, prompts: int) -> None:
    """Behind the one that is being embedded."""
    queue = served.gateway.completions.embedder._thread._work_queue
    await until(lambda: queue.qsize() >= prompts)


@pytest.mark.usefixtures("patient")
async def test_the_gateway_embeds_beside_the_loop_and_a_prompt_once() -> None:
    embed, ended = Embedding(), list[Request]()
    async with embed.serving() as served:
        served.run.observers.append(ended.append)
        asked = [ask(served, "Is it new?"), ask(served, "Is it new?")]
        await until_they_wait(served, 1)
        came_s = served.run.clock.now()
        assert (await served.get("/health"))[0] == 200
        embed.allowed.set()
        assert [(await each)[0] for each in asked] == [200, 200]
    assert embed.prompts == ["Is it new?"]
    assert all(request.arrival_s < came_s for request in ended), "its wait for the embedding is in its TTFT"


@pytest.mark.usefixtures("patient")
async def test_shared_threads_are_free_while_prompts_are_embedded() -> None:
    embed = Embedding()
    async with embed.serving() as served:
        asked = [ask(served, f"new {n}") for n in range(20)]
        await until_they_wait(served, 19)
        async with asyncio.timeout(20), served.http.get(f"{served.url}/metrics") as answer:
            assert answer.status == 200
        embed.allowed.set()
        assert {(await each)[0] for each in asked} == {200}


async def test_what_waits_too_long_is_estimated_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.gateway.embedder.MAX_WAIT_S", 0.01)
    embed = Embedding()
    async with embed.serving() as served:
        async with asyncio.timeout(20):
            while not embed.asked.is_set():  # its thread may be too slow to begin with it
                assert (await ask(served, "one"))[0] == 200, "estimated, run and learned from without"
        for _ in range(2):
            assert (await ask(served, "another"))[0] == 200
        monkeypatch.setattr("scheduler.gateway.embedder.MAX_WAIT_S", 20.0)
        embed.allowed.set()
        assert (await ask(served, "another"))[0] == 200
        assert embed.prompts == ["one", "another"], "the one that was under way; and what comes again"


async def test_what_will_be_turned_away_is_not_embedded() -> None:
    embed = Embedding()
    async with embed.serving(tenants=[TenantSection(name="default", max_queued=0)]) as served:
        status, body, _ = await ask(served, "one too many")
        assert (status, body["error"]["code"]) == (429, "tenant_queue_full")
    async with embed.serving() as served:
        assert (await served.post("/v1/completions", completion(max_tokens=10**9)))[0] == 400
        assert (await served.post("/v1/completions", completion(model="another")))[0] == 404
    assert embed.prompts == []


@pytest.mark.usefixtures("patient")
async def test_a_client_that_leaves_is_not_embedded() -> None:
    embed = Embedding()
    async with embed.serving() as served:
        first = ask(served, "stays")
        assert await asyncio.to_thread(embed.asked.wait, 20)
        second = ask(served, "leaves")
        await until_they_wait(served, 1)
        second.cancel()
        server: Any = served.gateway._runner and served.gateway._runner.server
        async with asyncio.timeout(20):
            while len(server.connections) > 1:  # noqa: ASYNC110 (nothing rings for a test)
                await asyncio.sleep(0.005)
        embed.allowed.set()
        assert (await first)[0] == 200
        assert (await ask(served, "later"))[0] == 200
    assert embed.prompts == ["stays", "later"]
