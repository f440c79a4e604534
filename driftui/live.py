"""``driftsched live``: a run and its dashboard in one event loop."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from driftui.app import run_dashboard
from driftui.terminal import own_terminal
from scheduler.gateway.keys import Keys
from scheduler.gateway.listen import check_open, parse_listen
from scheduler.live.feed import LocalFeed
from scheduler.live.heap import calm_collector
from scheduler.live.output import engine_output_to, log_path, printable
from scheduler.live.run import LiveRun
from scheduler.live.tasks import cancel_all
from scheduler.plan import Plan
from scheduler.serve import make_gateway

DRAIN_S = 10.0


def run_live(
    plan: Plan, *, speed: float | None, record: Path | None, listen: str | None, files: Path | None
) -> int:
    """Returns the exit code; ``listen`` lets clients in beside the scenario's load, and ``files`` is a folder
    with scenarios that may be injected, too.

    Raises EngineError: before the screen opens where it can be known then, else once the run is over.
    """
    address = None if listen is None else parse_listen(listen)
    if address is not None:
        check_open(address[0])
    log = log_path()
    if not plan.simulated:
        from scheduler.engines.vllm_setup import preflight

        print("importing vLLM ...", file=sys.stderr, flush=True)
        with engine_output_to(log):
            preflight(plan.model)  # spawning its helpers fails once the screen owns the terminal
    with own_terminal(log):
        return asyncio.run(_run(plan, speed, record, address, files))


async def _run(
    plan: Plan,
    speed: float | None,
    record: Path | None,
    listen: tuple[str, int] | None,
    files: Path | None = None,
) -> int:
    run = LiveRun(plan, out=record, speed=speed, clients=listen is not None)
    gateway = None
    if listen is not None:
        gateway = make_gateway(run, Keys())
        await gateway.listen(*listen)
    starting = asyncio.create_task(_start(run))
    left = False

    async def leave() -> None:
        nonlocal left
        if gateway is not None:
            gateway.drain()
        await cancel_all(starting)
        await run.stop(drain_s=DRAIN_S, interrupted=not run.session.drained.is_set())
        if gateway is not None:
            await gateway.close()
        left = True

    feed = LocalFeed(run, files) if gateway is None else gateway.feed  # no files for those who are not here
    code = await run_dashboard(feed, on_quit=leave, on_hurry=run.session.skip_drain)
    if not left:
        print(f"driftsched: stopping the run, {DRAIN_S:g} s at most", file=sys.__stderr__)
        await leave()  # the dashboard crashed, be it on the way out: nothing may be left behind
    if run.recorder is not None and not run.recorder.error:
        print(f"recorded in {printable(str(run.recorder.folder))}", file=sys.__stderr__)
    if run.session.failure is not None:
        raise run.session.failure
    return code


async def _start(run: LiveRun) -> None:
    try:
        await run.start()
    except Exception as error:  # else the screen would wait for the engine for ever
        run.session.fail(error)
    calm_collector()
