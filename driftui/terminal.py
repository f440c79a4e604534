"""The terminal: a driver that never blocks the event loop, and sole ownership of the tty.

The engine shares this process and this loop. So a terminal that stops reading must cost frames, never
time, and whatever an engine's child prints must land in a log file, never on the screen.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from textual.drivers.linux_driver import LinuxDriver

from scheduler.live.output import DroppingWriter, engine_output_to

_PENDING_WRITES = 64  # a frame is up to three writes; start-up makes about twenty at once

REPLACED = (signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH, signal.SIGTTOU, signal.SIGTTIN)
"""Signals whose handlers the driver replaces for good."""


class DriftDriver(LinuxDriver):
    """Textual's driver, but its writer drops frames, and it never suspends: the engine would stop too."""

    _writer: DroppingWriter | None = None

    @property
    def _tty_fd(self) -> int:
        assert self._file is not None, "the dashboard needs a terminal"
        return self._file.fileno()

    @property
    def can_suspend(self) -> bool:
        return False

    def _sigtstp_application(self, *_: object) -> None:
        """Ctrl-Z from outside: the run goes on."""

    def _sigcont_application(self, *_: object) -> None:
        """Somebody stopped the process for good (SIGSTOP) and woke it: what the screen holds is unknown."""
        self._ask_for_repaint()

    def _get_terminal_size(self) -> tuple[int, int]:
        # Asked of the terminal itself: COLUMNS and LINES in the environment do not follow a resize.
        try:
            return os.get_terminal_size(self._tty_fd)
        except OSError:
            return 80, 24

    def start_application_mode(self) -> None:
        # The stock driver makes its own writer at this point; ours stands in from the first byte.
        self._writer = DroppingWriter(self._tty_fd, _PENDING_WRITES, self._ask_for_repaint)
        self._writer.start()
        super().start_application_mode()  # type: ignore[no-untyped-call]
        if self._writer_thread is not None:  # started and never used
            self._writer_thread.stop()
            self._writer_thread = None

    def write(self, data: str) -> None:
        if self._writer is not None:
            self._writer.write(data.encode("utf-8", "replace"))

    def stop_application_mode(self) -> None:
        if self._writer is not None:
            self._writer.discard()
        # tmux leaves lines of a resized screen behind, unless it is empty and the cursor at home.
        self.write("\x1b[2J\x1b[H")
        super().stop_application_mode()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.stop()
            self._writer = None

    def _ask_for_repaint(self) -> None:
        self._loop.call_soon_threadsafe(self._app.refresh)


@contextmanager
def own_terminal(log_path: Path) -> Iterator[None]:
    """Keep the terminal for the dashboard: everything else that writes to fds 1 and 2 goes to ``log_path``.

    To be entered before the app starts and before an engine spawns children, which inherit the log. Textual
    draws on ``sys.__stderr__`` and asks ``sys.__stdout__`` for the size: both become a copy of the tty
    meanwhile. At the end everything is as it was, and one line on stderr says where the log is.
    """
    before = sys.__stdout__, sys.__stderr__
    try:
        with engine_output_to(log_path) as kept:
            tty = kept.stderr if kept.stderr.isatty() else kept.stdout
            sys.__stdout__ = sys.__stderr__ = tty  # type: ignore[misc,assignment]
            try:
                yield
            finally:
                sys.__stdout__, sys.__stderr__ = before  # type: ignore[misc]
    finally:
        print(f"log: {log_path}", file=sys.stderr)
