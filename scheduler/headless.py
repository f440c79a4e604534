"""``driftsched run``: a scenario without a screen, in real or virtual time (imported when it is wanted)."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from scheduler.live.heap import calm_collector
from scheduler.live.notices import Notices
from scheduler.live.output import engine_output_to, log_path, printable
from scheduler.live.signals import endings, heard, kept
from scheduler.live.tasks import cancel_all
from scheduler.live.view import Notice
from scheduler.load.traces import scan
from scheduler.load.workload import total_s
from scheduler.plan import Plan

if TYPE_CHECKING:
    from scheduler.live.run import LiveRun


def run_headless(plan: Plan, *, clock: str, out: Path | None, text: bool) -> dict[str, Any]:
    """Run to the end or to one of ``endings``; returns run.json. Raises EngineError where the engine cannot
    be started, OSError where there can be no run folder.
    """
    _tell_malformed(plan, sys.stderr)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "engine.log").unlink(missing_ok=True)  # of an earlier run
    if clock == "virtual":
        return _run_virtual(plan, out, text)
    if plan.simulated:
        return asyncio.run(_run_live(plan, out, text, sys.stderr))
    from scheduler.engines.vllm_setup import preflight

    log = log_path() if out is None else out / "engine.log"
    print(f"the engine's own output goes to {log}", file=sys.stderr)
    with engine_output_to(log) as output:
        # Imported while the engine is being built, vLLM would outlive its modules and say so at exit.
        preflight(plan.model)
        return asyncio.run(_run_live(plan, out, text, output.stderr))


def _tell_malformed(plan: Plan, stderr: TextIO) -> None:
    """Rows of traces that are left out; too many of them were refused before."""
    tenants = frozenset(tenant.name for tenant in plan.tenants)
    for stream in plan.scenario.load:
        if stream.trace is not None:
            found = scan(stream.trace, None if stream.tenant else tenants)
            if found.bad:
                total = found.rows + found.bad
                what = f"{found.bad} of {total} rows are malformed and left out: {found.named}"
                print(f"{Path(stream.trace.file).name!r}: {what}", file=stderr, flush=True)


def _run_virtual(plan: Plan, out: Path | None, text: bool) -> dict[str, Any]:
    from scheduler.virtual import VirtualRun

    title = f"{plan.scenario.name} in virtual time"
    with _bar(title, sys.stderr, total_s(plan.scenario)) as bar:
        notices = Notices()
        notices.listeners.append(bar.tell)
        run = VirtualRun(plan, out=out, text=text, on_progress=bar.advance_to, on_change=notices.on_event)
        names = endings()
        with kept(*names):
            for name in names:
                signal.signal(name, lambda *_: run.simulation.stop())
            document = run.run()
        if run.recorder is not None and run.recorder.error:
            bar.say(f"record: {run.recorder.error}")
        return document


async def _run_live(plan: Plan, out: Path | None, text: bool, stderr: TextIO) -> dict[str, Any]:
    """What ends it from outside aborts what runs; what was done is written all the same."""
    from scheduler.live.run import LiveRun

    loop = asyncio.get_running_loop()
    run = LiveRun(plan, out=out, text=text)
    calm_collector()
    interrupted = asyncio.Event()
    title = f"{plan.scenario.name} on {run.engine.detail}"
    with heard(endings(), interrupted.set), _bar(title, stderr, run.load.total_s) as bar:
        run.notices.listeners.append(bar.tell)
        starting = loop.create_task(run.start())
        giving_up = loop.create_task(interrupted.wait())
        await asyncio.wait([starting, giving_up], return_when=asyncio.FIRST_COMPLETED)
        try:
            if starting.done():
                starting.result()
                await _watch(run, giving_up, bar)
        finally:
            await cancel_all(starting, giving_up)
            if run.session.failure is not None:
                run.session.end_waiting()
            document = await run.stop(interrupted=interrupted.is_set())
    return document


async def _watch(run: LiveRun, giving_up: asyncio.Task[Any], bar: _Bar) -> None:
    """Until the load is over or somebody gives up; tells the time meanwhile."""
    drained = asyncio.create_task(run.session.drained.wait())
    while not (drained.done() or giving_up.done()):
        await asyncio.wait([drained, giving_up], timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
        bar.advance_to(run.clock.now())
    await cancel_all(drained)


class _Bar:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, progress: Progress | None, task: TaskID | None, file: TextIO) -> None:
        self._progress = progress
        self._task = task
        self._file = file

    def advance_to(self, run_s: float) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=run_s, at=f"{run_s:.0f} s")

    def tell(self, notice: Notice) -> None:
        self.say(f"{notice.at_s:8.1f} s  {notice.kind}: {notice.text}")

    def say(self, line: str) -> None:
        with suppress(OSError):  # nobody reads it; the run goes on
            if self._progress is not None:
                self._progress.console.print(printable(line), markup=False, highlight=False)
            else:
                print(printable(line), file=self._file, flush=True)


@contextmanager
def _bar(title: str, file: TextIO, length_s: float | None) -> Iterator[_Bar]:
    if not file.isatty():
        bar = _Bar(None, None, file)
        bar.say(title)
        yield bar
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[at]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(file=file), transient=True) as progress:
        total = length_s if length_s is not None and length_s < inf else None
        yield _Bar(progress, progress.add_task(printable(title), total=total, at="0 s"), file)


@contextmanager
def counting(title: str, what: str, file: TextIO) -> Iterator[Callable[[int, int], None]]:
    """A function to be told (done, total): a progress bar on a terminal, a line each tenth elsewhere."""
    if not file.isatty():

        def say(done: int, total: int) -> None:
            if done * 10 // total > (done - 1) * 10 // total:
                print(f"{title}: {done} of {total} {what}", file=file, flush=True)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=file), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
