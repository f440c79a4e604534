"""The measured process of ``driftsched bench screen``: the real dashboard on a pseudo-terminal of its own.

Reports JSON lines on a pipe, each with one key: ``tell`` (progress), ``press`` (a key), ``begin`` (so many
refreshes are measured from now on), ``stall`` (now read nothing for so many seconds), ``row`` (of the
result), and at most one of ``config_error``, ``engine_error``, ``error``: why nothing came of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar, copy_context
from statistics import median
from typing import TypeVarTuple

from driftui.app import run_dashboard
from driftui.terminal import own_terminal
from scheduler.bench.engine import Side, Turn, Work, compare, shared_engine, through
from scheduler.bench.result import BenchError
from scheduler.core.metrics import nearest_rank
from scheduler.engines.engine import EngineConfigError, EngineError
from scheduler.live.feed import LocalFeed
from scheduler.live.heap import calm_collector
from scheduler.live.output import log_path
from scheduler.live.run import LiveRun
from scheduler.live.telemetry import LoopLag
from scheduler.live.view import View
from scheduler.load.scenario import load_scenario
from scheduler.plan import Plan, make_plan

SETTLE = 8
"""Refreshes until the screen stands; opening it and painting it for the first time is no refresh."""

AFTER_STALL_S = 2.0
"""The loop is watched for so long once the terminal reads again: the whole screen is painted anew then."""

YARDSTICK_ROUNDS = 20

_Args = TypeVarTuple("_Args")

IN_SCREEN: ContextVar[bool] = ContextVar("in_screen", default=False)
"""Set in the context of the dashboard, and so of every task and callback that it makes."""


class MeteredLoop(asyncio.SelectorEventLoop):
    """Adds up the CPU time of the callbacks that are the screen's, whatever they do."""

    _spent_s = 0.0
    _began_s: float | None = None  # of the callback that is running, if it is the screen's

    def screen_cpu_s(self) -> float:
        """So far, the running callback included."""
        running_s = 0.0 if self._began_s is None else time.thread_time() - self._began_s
        return self._spent_s + running_s

    def call_soon(
        self, callback: Callable[[*_Args], object], *args: *_Args, context: Context | None = None
    ) -> asyncio.Handle:
        return super().call_soon(self._meter, callback, *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[[*_Args], object], *args: *_Args, context: Context | None = None
    ) -> asyncio.Handle:
        return super().call_soon_threadsafe(self._meter, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Args], object],
        *args: *_Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return super().call_at(when, self._meter, callback, *args, context=context)

    def _meter(self, callback: Callable[[*_Args], object], *args: *_Args) -> None:
        if not IN_SCREEN.get():
            callback(*args)
            return
        self._began_s = time.thread_time()
        try:
            callback(*args)
        finally:
            self._spent_s += time.thread_time() - self._began_s
            self._began_s = None


class Screen:
    """The dashboard on a run. A refresh lasts from one pull of the view to the next."""

    def __init__(self, run: LiveRun, cpu_s: Callable[[], float]) -> None:
        self._cpu_s = cpu_s
        self._at_s: float | None = None  # CPU time at the last pull
        self._costs_s: list[float] = []
        self._wanted = 0
        self._enough = asyncio.Event()
        context = copy_context()
        context.run(IN_SCREEN.set, True)
        dashboard = run_dashboard(WatchedFeed(run, self._note))
        self.task = asyncio.get_running_loop().create_task(dashboard, context=context)

    async def refreshes(self, count: int) -> list[float]:
        """CPU seconds of each of the next ``count`` refreshes. Raises BenchError if the dashboard ends."""
        self._costs_s, self._wanted = [], count
        self._enough.clear()
        enough = asyncio.create_task(self._enough.wait())
        await asyncio.wait([enough, self.task], return_when=asyncio.FIRST_COMPLETED)
        if not enough.done():
            enough.cancel()
            raise BenchError("the dashboard ended by itself")
        return self._costs_s[:count]

    def _note(self) -> None:
        now_s = self._cpu_s()
        if self._at_s is not None:
            self._costs_s.append(now_s - self._at_s)
        self._at_s = now_s
        if len(self._costs_s) >= self._wanted:
            self._enough.set()


class WatchedFeed(LocalFeed):
    """Tells of each refresh: the dashboard pulls one view for each."""

    def __init__(self, run: LiveRun, on_view: Callable[[], None]) -> None:
        super().__init__(run)
        self._on_view = on_view

    def view(self) -> View:
        self._on_view()
        return super().view()


@asynccontextmanager
async def dashboard(run: LiveRun, cpu_s: Callable[[], float] = time.thread_time) -> AsyncIterator[Screen]:
    """The dashboard, up and standing; it leaves as it does at SIGTERM. ``cpu_s``: what it has cost so far."""
    screen = Screen(run, cpu_s)
    try:
        await screen.refreshes(SETTLE)
        yield screen
    finally:
        if not screen.task.done():
            signal.raise_signal(signal.SIGTERM)
        code = await screen.task
    if code:
        raise BenchError("the dashboard crashed; the log says why")


class Report:
    """The pipe to the parent."""

    def __init__(self, fd: int) -> None:
        self._pipe = open(fd, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 (open as long as we live)

    def say(self, **message: object) -> None:
        self._pipe.write(json.dumps(message) + "\n")

    def tell(self, line: str) -> None:
        self.say(tell=line)


async def measure_screen(report: Report, refreshes: int, stall_s: float) -> None:
    """The demo at its own pace: what a refresh costs, and what a terminal does that stops reading."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, MeteredLoop)
    yardstick = [yardstick_ms() for _ in range(YARDSTICK_ROUNDS)]
    run = LiveRun(make_plan(load_scenario("demo"), engine="sim"))
    async with dashboard(run, loop.screen_cpu_s) as screen:
        await run.start()
        again = loop.create_task(_play_again(run))
        report.say(press="-")  # the shortest window: now every refresh moves every chart
        await screen.refreshes(SETTLE)
        report.say(begin=refreshes)
        costs_ms = sorted(1e3 * cost_s for cost_s in await screen.refreshes(refreshes))
        lag = LoopLag(loop)
        lag.start()
        lag.begin()
        report.say(stall=stall_s)
        await asyncio.sleep(stall_s + AFTER_STALL_S)
        lag.stop()
        again.cancel()
        await run.stop()
    yardstick += [yardstick_ms() for _ in range(YARDSTICK_ROUNDS)]
    row = {
        "what": "refresh",
        "refreshes": refreshes,
        "median_ms": median(costs_ms),
        "p99_ms": nearest_rank(costs_ms, 0.99),
        "p999_ms": nearest_rank(costs_ms, 0.999),
        "max_ms": costs_ms[-1],
        "python_loop_ms": median(loop_ms for loop_ms, _ in yardstick),
        "json_dumps_ms": median(dumps_ms for _, dumps_ms in yardstick),
    }
    report.say(row=row)
    report.say(row={"what": "stall", "seconds": stall_s, "longest_stall_ms": lag.figures()["max"]})


async def _play_again(run: LiveRun) -> None:
    """A demo that is over starts again: nothing moves on a screen without load."""
    while True:
        await run.session.drained.wait()
        LocalFeed(run).inject("demo")


def yardstick_ms() -> tuple[float, float]:
    """CPU milliseconds of a plain Python loop and of a json.dumps, the same on every machine."""
    began_s = time.thread_time()
    total = 0
    for number in range(100_000):
        total += number & 7
    between_s = time.thread_time()
    json.dumps([{"name": f"tenant {number}", "at_s": number / 7, "tokens": number} for number in range(3000)])
    ended_s = time.thread_time()
    return 1e3 * (between_s - began_s), 1e3 * (ended_s - between_s)


async def measure_throughput(report: Report, work: Work, model: str, pairs: int) -> None:
    """The real engine with the dashboard beside headless."""
    async with shared_engine(work.plan(model), report.tell) as engine:

        async def headless(plan: Plan) -> Turn:
            return await through(LiveRun(plan, engine=engine))

        async def with_screen(plan: Plan) -> Turn:
            run = LiveRun(plan, engine=engine)
            async with dashboard(run):
                return await through(run)

        sides = Side("headless", headless), Side("dashboard", with_screen)
        for row in await compare(report.tell, engine, work, model, pairs, sides):
            report.say(row=row)


def main(argv: Sequence[str] | None = None) -> int:
    """Started by ``driftui.bench``."""
    parser = argparse.ArgumentParser(prog="driftui.bench_child")
    parser.add_argument("--report", type=int, required=True, metavar="FD")
    parser.add_argument("--refreshes", type=int, default=0)
    parser.add_argument("--stall", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--model")
    parser.add_argument("--pairs", type=int, default=0)
    parser.add_argument("--work", type=int, nargs=3, metavar=("REQUESTS", "TOKENS", "CONCURRENCY"))
    args = parser.parse_args(argv)
    os.set_inheritable(args.report, False)
    report = Report(args.report)
    if args.model:
        from scheduler.engines.vllm_setup import preflight

        report.tell("importing vLLM")
        preflight(args.model)  # as `driftsched live` does, before the terminal is the screen's
    calm_collector()
    try:
        with own_terminal(log_path()):
            if args.model:
                asyncio.run(measure_throughput(report, Work(*args.work), args.model, args.pairs))
            else:
                with asyncio.Runner(loop_factory=MeteredLoop) as runner:
                    runner.run(measure_screen(report, args.refreshes, args.stall))
    except EngineConfigError as error:
        report.say(config_error=str(error))
    except EngineError as error:
        report.say(engine_error=str(error))
    except BenchError as error:
        report.say(error=str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
