"""``driftsched bench screen``: what the dashboard costs, on a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from scheduler.bench.engine import PAIRED, Work, share_claim
from scheduler.bench.result import BenchError, Claim, Result
from scheduler.engines.engine import EngineConfigError, EngineError
from scheduler.engines.models import resolve

COLUMNS, LINES = 160, 48
REFRESHES = 480
STALL_S = 10.0

MEDIAN_MS, P999_MS = 12.0, 30.0
LONGEST_STALL_MS = 500.0

_QUIET_S = 300.0
"""A child that neither reports nor draws anything for so long is taken to hang."""

PROTOCOL = (
    f"The dashboard runs in a process of its own on a pseudo-terminal of {COLUMNS}x{LINES} whose output is "
    "read at once and thrown away. refresh: the shipped scenario demo on the simulated engine at its own "
    "pace, again from its start when it is over; charts show 30 s, so that every refresh moves every chart "
    "(at the usual 60 s about six in ten do). The cost of a refresh is the CPU time, by the thread's "
    "own clock, of every callback of the event loop that belongs to the dashboard, from one pull of the "
    "view to the next: sample, history, widgets, layout, compositor, encoding for the terminal, its "
    "timers and Textual's messages. {refreshes} refreshes after the screen stands; nearest-rank "
    "percentiles, so p999 of fewer than 1000 is the maximum. Yardsticks, CPU time in the same process "
    "before and after, medians: a loop of 100,000 additions, and json.dumps of 3000 small objects, made "
    "in the same breath. stall: then the terminal is not read for {stall_s:g} s; the longest that a "
    "callback asked for every 10 ms came late until 2 s after it is read again."
)
PROTOCOL_THROUGHPUT = (
    " throughput: in another such process one engine, whose start is not counted, answers the same {work}, "
    "in turns headless and with the dashboard up; both are whole live runs. Time runs from the start of the "
    "run, with the screen standing already, to the last token. " + PAIRED
)


def bench_screen(
    tell: Callable[[str], None],
    *,
    refreshes: int = REFRESHES,
    stall_s: float = STALL_S,
    model: str | None = None,
    work: Work | None = None,
    pairs: int = 5,
) -> Result:
    """About three minutes; with a ``model``, more. Raises PlanError, ModelError, EngineError, BenchError."""
    work = work or Work()
    protocol = PROTOCOL.format(refreshes=refreshes, stall_s=stall_s)
    if model is not None:
        work.plan(model)  # what is wrong with it is said before anything is measured
        resolve(model)
        protocol += PROTOCOL_THROUGHPUT.format(work=work, pairs=pairs)
    result = Result("screen", protocol)
    # The engine goes first: should it not start, nothing has been measured in vain.
    pairs_done = [] if model is None else _measure_throughput(tell, model, work, pairs)
    _measure_screen(tell, result, refreshes, stall_s)
    if pairs_done:
        result.rows.extend(pairs_done)
        result.claims.append(share_claim("screen_throughput_share", pairs_done))
    return result


def _measure_throughput(
    tell: Callable[[str], None], model: str, work: Work, pairs: int
) -> list[dict[str, Any]]:
    sizes = (str(size) for size in (work.requests, work.tokens, work.concurrency))
    with Child("--model", model, "--pairs", str(pairs), "--work", *sizes) as child:
        return [message["row"] for message in child.messages(tell) if "row" in message]


def _measure_screen(tell: Callable[[str], None], result: Result, refreshes: int, stall_s: float) -> None:
    rows: dict[str, dict[str, Any]] = {}
    began = read = unread = 0
    with Child("--refreshes", str(refreshes), "--stall", str(stall_s)) as child:
        for message in child.messages(tell):
            match message:
                case {"begin": count}:
                    tell(f"measuring {count} refreshes, about {count / 4:.0f} s")
                    began = child.bytes_read
                case {"stall": seconds}:
                    tell(f"reading nothing for {seconds:g} s")
                    read = child.bytes_read - began
                    time.sleep(seconds)
                    unread = child.unread()
                case {"row": row}:
                    rows[row["what"]] = row
    refresh, stall = rows["refresh"], rows["stall"]
    refresh["bytes_per_refresh"] = read / refreshes
    stall["unread_bytes"] = unread  # what the terminal's buffer held when reading began again
    result.rows.extend((refresh, stall))
    for name, target, ours in (
        ("refresh_median_ms", MEDIAN_MS, refresh["median_ms"]),
        ("refresh_p999_ms", P999_MS, refresh["p999_ms"]),
        ("longest_stall_ms", LONGEST_STALL_MS, stall["longest_stall_ms"]),
    ):
        result.claims.append(Claim.at_most(name, target, ours))


class Child:
    """``driftui.bench_child`` on a pseudo-terminal, which is read while its messages are waited for."""

    def __init__(self, *args: str) -> None:
        self.bytes_read = 0
        self._master, tty = pty.openpty()
        fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._report, report = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "driftui.bench_child", "--report", str(report), *args],
            stdin=tty,
            stdout=tty,
            stderr=tty,
            pass_fds=(report,),
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            start_new_session=True,
        )
        os.close(tty)
        os.close(report)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)
        os.close(self._report)

    def messages(self, tell: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        """The rest of what it reports until it ends: progress goes to ``tell``, keys to the terminal.

        Raises EngineConfigError, EngineError, BenchError.
        """
        for line in self._lines():
            message: dict[str, Any] = json.loads(line)
            match message:
                case {"tell": text}:
                    tell(text)
                case {"press": key}:
                    os.write(self._master, key.encode())
                case {"config_error": why}:
                    raise EngineConfigError(why)
                case {"engine_error": why}:
                    raise EngineError(why)
                case {"error": why}:
                    raise BenchError(why)
                case _:
                    yield message
        if self._process.wait():
            raise BenchError(f"the measured process ended with exit code {self._process.returncode}")

    def unread(self) -> int:
        """Bytes that wait in the terminal."""
        waiting: int = struct.unpack("I", fcntl.ioctl(self._master, termios.FIONREAD, b"    "))[0]
        return waiting

    def _lines(self) -> Iterator[bytes]:
        pending = b""
        watched = [self._report, self._master]
        heard_s = time.monotonic()
        while True:
            ready, _, _ = select.select(watched, [], [], 1.0)
            if ready:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > _QUIET_S:
                raise BenchError(f"the measured process has said nothing for {_QUIET_S:g} s")
            if self._master in ready and not self._drain():
                watched.remove(self._master)
            if self._report in ready:
                data = os.read(self._report, 1 << 16)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                yield from lines

    def _drain(self) -> bool:
        """False once the other end is closed."""
        try:
            self.bytes_read += len(os.read(self._master, 1 << 16))
        except OSError:  # EIO
            return False
        return True
