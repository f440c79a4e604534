"""What may go to the terminal: our own lines, made printable. What engines print goes to a log meanwhile.

The process's own streams are looked after here, too.
"""

from __future__ import annotations

import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from queue import Empty, Full, Queue
from typing import NamedTuple, TextIO

_STOP_WAIT_S = 1.0  # how long a terminal may take to swallow the last writes
_PENDING_LINES = 1000


class Output(NamedTuple):
    """Where the program itself still writes."""

    stdout: TextIO
    stderr: TextIO


def log_path() -> Path:
    """A fresh log in the user's state folder; the last 20 are kept."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    folder = Path(base) / "driftsched"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in sorted(folder.glob("????????-??????-*.log"))[:-19]:  # named after the time, so oldest first
        old.unlink(missing_ok=True)
    return folder / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}.log"


def printable(text: str) -> str:
    """A line as a terminal may have it: names out of files, logs and traces may hold anything."""
    return text if text.isprintable() else ascii(text)[1:-1]


def printable_lines(text: str) -> str:
    """Lines as a terminal may have them: names out of files and logs may hold anything."""
    return "\n".join(map(printable, text.splitlines()))


def open_streams() -> None:
    """Fit to be written to, whatever a terminal can show. What was closed before we began leads nowhere; else
    the next file would get its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open to the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that has no arrows gets their numbers


def drop_output() -> None:
    """Write what is left; what is not taken would be tried once more as the interpreter ends, and be its exit
    code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
            stream.flush()


class DroppingWriter(threading.Thread):
    """Writes to a terminal or a pipe in the background; ``write`` never waits.

    What is not taken in time is dropped. Once everything kept has been written after a loss, ``on_drained``
    is called, in this thread.
    """

    def __init__(self, fd: int, pending: int, on_drained: Callable[[], None] = lambda: None) -> None:
        super().__init__(daemon=True, name="terminal-writer")
        self._fd = fd
        self._on_drained = on_drained
        self._queue: Queue[bytes | None] = Queue(pending)
        self._lost = False

    def write(self, data: bytes) -> None:
        try:
            self._queue.put_nowait(data)
        except Full:
            self._lost = True

    def run(self) -> None:
        # os.write, not a file: a daemon thread that dies holding a file's lock takes the interpreter along.
        while (data := self._queue.get()) is not None:
            try:
                while data:
                    try:
                        data = data[os.write(self._fd, data) :]
                    except BlockingIOError:  # whoever shares it may have made it so
                        select.select([], [self._fd], [])
            except OSError as error:
                if error.errno != ENOSPC:  # a disk may have room again; a terminal that is gone stays so
                    return
            if self._lost and self._queue.empty():
                self._lost = False
                self._on_drained()

    def discard(self) -> None:
        """Forget what is not written yet, to make room for what must be."""
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            pass

    def stop(self) -> None:
        """Write what is left, if it is taken, and end."""
        try:
            self._queue.put(None, timeout=_STOP_WAIT_S)
        except Full:
            return
        self.join(_STOP_WAIT_S)


@contextmanager
def telling(stream: TextIO) -> Iterator[Callable[[str], None]]:
    """A function for a server's lines: it neither waits for whoever reads them nor fails once nobody does."""
    writer = DroppingWriter(stream.fileno(), _PENDING_LINES)
    writer.start()

    def tell(line: str) -> None:
        writer.write(f"{printable(line)}\n".encode(stream.encoding, "backslashreplace"))

    try:
        yield tell
    finally:
        writer.stop()


@contextmanager
def engine_output_to(path: Path) -> Iterator[Output]:
    """vLLM, its children and their libraries print on 1 and 2 whatever they are told.

    To be entered before an engine spawns children, which inherit the log. The file is 0600: engines may log
    prompts.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    log_fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchmod(log_fd, 0o600)
    kept = (os.dup(1), os.dup(2))
    try:
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        with (
            open(kept[0], "w", encoding="utf-8", closefd=False) as stdout,
            open(kept[1], "w", encoding="utf-8", closefd=False) as stderr,
        ):
            yield Output(stdout, stderr)
    finally:
        drop_output()  # what a full disk does not take must not come out on the terminal
        for number, fd in enumerate(kept, start=1):
            os.dup2(fd, number)
            os.close(fd)
        os.close(log_fd)
