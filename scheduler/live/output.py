"""What may go to the terminal: our own lines, made printable. What engines print goes to a log meanwhile."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO


class Output(NamedTuple):
    """Where the program itself still writes."""

    stdout: TextIO
    stderr: TextIO


def log_path() -> Path:
    """A fresh log in the user's state folder; the last 20 are kept."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    folder = Path(base) / "driftsched"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in sorted(folder.glob("run-*.log"), key=lambda path: path.stat().st_mtime)[:-20]:
        old.unlink(missing_ok=True)
    return folder / f"run-{os.getpid()}.log"


def printable(text: str) -> str:
    """A line as a terminal may have it: names out of files, logs and traces may hold anything."""
    return text if text.isprintable() else ascii(text)[1:-1]


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
        sys.stdout.flush()
        sys.stderr.flush()
        for number, fd in enumerate(kept, start=1):
            os.dup2(fd, number)
            os.close(fd)
        os.close(log_fd)
