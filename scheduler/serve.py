"""``driftsched serve``: the gateway and the scheduler, without a screen."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path, PurePath

from scheduler.core.estimate import Counter
from scheduler.engines.models import load_counter, resolve
from scheduler.gateway.keys import Keys
from scheduler.gateway.listen import check_open, parse_listen
from scheduler.gateway.server import Gateway
from scheduler.live.heap import calm_collector
from scheduler.live.journal import Journal
from scheduler.live.output import Output, engine_output_to, log_path, telling
from scheduler.live.run import LiveRun
from scheduler.live.signals import endings, heard
from scheduler.live.tasks import cancel_all
from scheduler.plan import Plan

FILES = 65_536
"""Open files, and so connections, that a server asks for."""

DRAIN_S = 30.0
"""Real seconds that a stopping server gives to what is under way."""


def serve(
    plan: Plan, keys: Keys, listen: str, *, journal: Path | None = None, record: Path | None = None
) -> None:
    """Serve until one of ``endings``, then drain and stop; a second signal skips the drain. ``journal`` is
    the file of the durable jobs; without one there are none. ``record`` is the run folder, if there is one.

    Raises ListenError, JournalError, EngineError (the engine could not be started at all).
    """
    host, port = parse_listen(listen)
    if not keys.has_tenants:
        check_open(host)  # said before an engine is imported
    if plan.simulated:
        output: AbstractContextManager[Output] = nullcontext(Output(sys.stdout, sys.stderr))
    else:
        log = log_path()
        print(f"importing vLLM; the engine's own output goes to {log}", file=sys.stderr, flush=True)
        output = engine_output_to(log)
    with output as streams:
        if not plan.simulated:
            from scheduler.engines.vllm_setup import preflight

            preflight(plan.model)
        calm_collector()  # vLLM's modules among the rest
        _allow_files()
        with telling(streams.stderr) as say:
            asyncio.run(_serve(plan, keys, (host, port), journal, record, say))


def _allow_files() -> None:
    """Who waits is a connection, and the usual 1024 are soon taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < wanted:
        with suppress(ValueError, OSError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(
    plan: Plan,
    keys: Keys,
    address: tuple[str, int],
    journal: Path | None,
    record: Path | None,
    say: Callable[[str], None],
) -> None:
    host, port = address
    jobs = Journal(journal) if journal is not None else None
    run = LiveRun(plan, out=record, clients=True, endless=record is None)
    run.notices.listeners.append(lambda notice: say(f"{notice.kind}: {notice.text}"))
    gateway = make_gateway(run, keys, jobs)
    port = await gateway.listen(host, port)
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            run.session.skip_drain()
        stopping.set()

    shown = f"[{host}]" if ":" in host else host
    with heard(endings(), stop):
        say(f"{gateway.completions.model} on http://{shown}:{port}, the engine is starting")
        if plan.scenario.expect and record is None:
            say("`expect` of the config is not judged: that takes --record DIR")
        await serve_until(stopping, run, gateway, say)


async def serve_until(
    stopping: asyncio.Event, run: LiveRun, gateway: Gateway, say: Callable[[str], None]
) -> None:
    """Start the engine and serve; in the end, whatever happened: drain, stop the engine, close."""
    starting = asyncio.create_task(_start(run, gateway, say))
    given_up = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([starting, given_up], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await given_up
    finally:
        gateway.drain()
        await cancel_all(starting, given_up)
        if gateway.jobs is not None and (left := await gateway.jobs.leave_waiting()):
            say(f"{left} jobs that wait are left to the next start")
        waiting = run.scheduler.books.totals.queued + run.scheduler.books.totals.in_flight
        say(f"stopping: {waiting} requests get up to {DRAIN_S:g} s" if waiting else "stopping")
        document = await run.stop(drain_s=DRAIN_S)
        await gateway.close()
        if run.recorder is not None and not run.recorder.error:
            say(f"recorded in {run.recorder.folder}")
            for expectation in document["expect"]:
                if not expectation["ok"]:
                    say(f"not met: {expectation['text']} (it is {json.dumps(expectation['value'])})")
        say("stopped")


async def _start(run: LiveRun, gateway: Gateway, say: Callable[[str], None]) -> None:
    """The engine, then the jobs from before."""
    await run.start()
    if gateway.jobs is not None and (kept := await gateway.jobs.recover()):
        say(f"{kept} jobs from before are taken up")
    say(f"ready: {run.engine.detail}, {run.engine.capacity} requests at a time")


def make_gateway(run: LiveRun, keys: Keys, journal: Journal | None = None) -> Gateway:
    """With the name of the model that clients use, never a path, and the best counter of prompts."""
    plan = run.plan
    name = PurePath(plan.model).name if plan.model.startswith((".", "/", "~")) else plan.model
    return Gateway(run, keys, model=name, count=_counter(plan), journal=journal)


def _counter(plan: Plan) -> Counter:
    if plan.served_counter is not None:
        return plan.served_counter
    return plan.counter if plan.simulated else load_counter(resolve(plan.model))
