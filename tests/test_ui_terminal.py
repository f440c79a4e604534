"""The terminal: frames are dropped, never waited for; however the dashboard ends, the tty is as it was."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from driftui.terminal import own_terminal
from scheduler.live.output import DroppingWriter

FEED = str(Path(__file__).with_name("fake_feed.py"))
PATIENCE_S = 30.0


@pytest.mark.parametrize("blocking", [True, False])
def test_a_stalled_terminal_costs_frames_and_asks_for_a_repaint_when_it_reads_again(blocking: bool) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, blocking)  # whoever shares a terminal may change that
    drained = threading.Event()
    frames = DroppingWriter(writer, 4, drained.set)
    frames.start()
    frame = b"x" * 100_000  # more than a pipe holds
    began = time.monotonic()
    for _ in range(50):
        frames.write(frame)
    assert time.monotonic() - began < 10.0, "in no time, but the machine may stand still"
    assert not drained.is_set()
    taken = 0
    while not drained.wait(0.001):
        assert time.monotonic() - began < PATIENCE_S
        taken += len(os.read(reader, 1 << 16)) if select.select([reader], [], [], 0.01)[0] else 0
    while select.select([reader], [], [], 0)[0]:
        taken += len(os.read(reader, 1 << 16))
    assert len(frame) <= taken <= 6 * len(frame)
    frames.write(b"still here")
    assert os.read(reader, 100) == b"still here"
    frames.stop()
    assert not frames.is_alive()
    os.close(reader)
    os.close(writer)


def test_stopping_before_a_stalled_terminal_gives_up() -> None:
    reader, writer = os.pipe()
    frames = DroppingWriter(writer, 2)
    frames.start()
    for _ in range(10):
        frames.write(b"x" * 100_000)
    began = time.monotonic()
    frames.discard()
    frames.stop()
    assert time.monotonic() - began < 5.0
    os.close(reader)  # the write fails, the thread ends
    frames.join(PATIENCE_S)
    assert not frames.is_alive()
    os.close(writer)


def test_a_terminal_that_is_gone_ends_the_writer() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    frames = DroppingWriter(writer, 4)
    frames.start()
    frames.write(b"x")
    frames.join(PATIENCE_S)
    assert not frames.is_alive()
    os.close(writer)


def test_own_terminal_sends_everything_else_to_a_private_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "engine.log"
    log.write_text("before\n")
    log.chmod(0o644)
    before = sys.__stdout__, sys.__stderr__
    with own_terminal(log):
        assert (sys.__stdout__, sys.__stderr__) != before
        subprocess.run(
            [sys.executable, "-c", "import os; os.write(1, b'one\\n'); os.write(2, b'two\\n')"], check=True
        )
    assert (sys.__stdout__, sys.__stderr__) == before
    os.write(1, b"visible\n")
    assert log.read_text() == "before\none\ntwo\n"
    assert log.stat().st_mode & 0o777 == 0o600
    shown = capfd.readouterr()
    assert "one" not in shown.out
    assert "visible" in shown.out


def test_own_terminal_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), own_terminal(tmp_path / "log"):  # noqa: PT011 (ELOOP or EMLINK)
        pass
    os.write(1, b"")


def test_a_log_that_takes_no_more_leaves_our_own_streams_as_they_were(tmp_path: Path) -> None:
    """As on a full disk; what the engine said last must not come out elsewhere."""
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from scheduler.live.output import engine_output_to\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "with engine_output_to(Path(sys.argv[1])):\n"
        "    print('the engine speaks')\n"
        "print('ours')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log")],
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # so that it is written at the end
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ours\n", "", 0)


class Screen:
    """A dashboard in a pseudo-terminal."""

    def __init__(self, tty: int, process: subprocess.Popen[bytes], master: int) -> None:
        self.tty, self.process, self.master = tty, process, master
        self.seen = b""

    def read_until(self, wanted: bytes) -> None:
        deadline = time.monotonic() + PATIENCE_S
        start = len(self.seen)
        while wanted not in self.seen[max(0, start - len(wanted)) :]:
            assert time.monotonic() < deadline, f"no {wanted!r} in {self.seen[-2000:]!r}"
            self.read(0.1)

    def read(self, wait_s: float) -> None:
        if select.select([self.master], [], [], wait_s)[0]:
            self.seen += os.read(self.master, 1 << 16)

    def let_it_fill(self) -> None:
        """Read nothing until the terminal's buffer holds all it can, so that the next write waits."""
        waiting, steady = -1, 0
        deadline = time.monotonic() + PATIENCE_S
        while steady < 5:
            assert time.monotonic() < deadline, f"{waiting} bytes do not fill a terminal"
            time.sleep(0.1)
            now = struct.unpack("I", fcntl.ioctl(self.master, termios.FIONREAD, b"    "))[0]
            steady = steady + 1 if now == waiting and now > 2000 else 0
            waiting = now

    def exit_code(self) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "the dashboard does not end"
            self.read(0.05)
        while select.select([self.master], [], [], 0.05)[0]:
            self.seen += os.read(self.master, 1 << 16)
        return self.process.returncode


@contextmanager
def screen(*args: str, program: tuple[str, ...] = (FEED,)) -> Iterator[Screen]:
    master, tty = pty.openpty()
    fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    process = subprocess.Popen(
        [sys.executable, *program, *args],
        stdin=tty,
        stdout=tty,
        stderr=tty,
        env=environment,
        start_new_session=True,
    )
    try:
        yield Screen(tty, process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(tty)


@pytest.mark.parametrize("way", ["q", "ctrl-c", "SIGINT", "SIGTERM", "SIGHUP"])
def test_the_terminal_is_left_as_it_was(way: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with screen(str(log)) as shown:
        before = termios.tcgetattr(shown.tty)
        shown.read_until(b"driftsched")
        shown.read_until(b"globex-batch")
        assert termios.tcgetattr(shown.tty) != before

        def ask() -> None:
            if way.startswith("SIG"):
                shown.process.send_signal(getattr(signal, way))
            else:
                os.write(shown.master, b"q" if way == "q" else b"\x03")

        ask()
        if not way.startswith("SIG"):
            shown.read_until(b"Stop the run?")
            os.write(shown.master, b"y")
        shown.read_until(b"STOPPING")
        ask()  # again: it need not drain
        assert shown.exit_code() == 0
        assert termios.tcgetattr(shown.tty) == before
        for restored in (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?1000l", b"\x1b[?2004l"):
            assert restored in shown.seen[-4000:]
        assert b"\x1b[2J\x1b[H" in shown.seen[: shown.seen.rindex(b"\x1b[?1049l")][-200:]
        assert str(log).encode() in shown.seen[-400:]


def test_a_crash_leaves_the_terminal_too_and_tells_where_and_what(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with screen(str(log), "--break") as shown:
        before = termios.tcgetattr(shown.tty)
        assert shown.exit_code() == 1
        assert termios.tcgetattr(shown.tty) == before
        assert b"the dashboard crashed" in shown.seen[-600:]
        assert str(log).encode() in shown.seen[-400:]
    told = log.read_text()
    assert "RuntimeError: broken \ufffd[31mfeed" in told
    assert "\x1b[31m" not in told


def test_a_live_run_left_in_a_hurry_is_cut_and_tells_where_it_is_recorded(tmp_path: Path) -> None:
    scenario, folder = tmp_path / "live.yaml", tmp_path / "run"
    scenario.write_text(  # one answer of 8 s, which a drain of 10 s would wait for
        "name: live\n"
        "tenants: [{name: acme}]\n"
        "load: [{tenant: acme, arrivals: at-once, count: 1, mix: {short_qa: 1}, max_tokens: 1000, "
        "lengths: {lognormal: {short_qa: [500, 0.01]}}}]\n"
    )
    with screen("live", str(scenario), "--record", str(folder), program=("-m", "scheduler.cli")) as shown:
        before = termios.tcgetattr(shown.tty)
        shown.read_until(b"1/32")
        os.write(shown.master, b"q")
        shown.read_until(b"1 request in flight")
        os.write(shown.master, b"y")
        shown.read_until(b"STOPPING")
        os.write(shown.master, b"q")
        assert shown.exit_code() == 0
        assert termios.tcgetattr(shown.tty) == before
        assert f"recorded in {folder}\r\nlog: ".encode() in shown.seen[-400:]
    assert json.loads((folder / "run.json").read_text())["requests"]["cancelled"] == 1


def test_a_terminal_that_does_not_read_does_not_hold_up_the_end() -> None:
    with screen() as shown:
        shown.read_until(b"globex-batch")
        shown.let_it_fill()
        shown.process.send_signal(signal.SIGTERM)
        assert shown.process.wait(PATIENCE_S) == 0


async def test_the_task_factory_and_signal_handlers_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_feed import FakeFeed

    from driftui import app as module

    seen = []

    async def run_async(self: module.DriftApp) -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coro, **kwargs: asyncio.Task(coro, loop=loop, **kwargs))
        await asyncio.sleep(0)
        seen.append(loop.get_task_factory())
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)

    monkeypatch.setattr(module.DriftApp, "run_async", run_async)
    before = signal.getsignal(signal.SIGTSTP)
    assert await module.run_dashboard(FakeFeed()) == 0
    assert seen == [None]
    assert signal.getsignal(signal.SIGTSTP) == before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
