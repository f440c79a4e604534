"""A thread that writes text to files, so that a slow or full disk never holds up the run."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_BUFFERED_BLOCKS = 256


class FileWriter:
    """Appends blocks of text to the files of one folder, in order, in a thread of its own. Files that the
    folder has are replaced; those of ``replaces`` go before the first block is written, if ever one is.

    ``wait=True`` (virtual time) lets ``write`` wait for a full buffer; otherwise a full buffer, like any
    error of the disk, ends the writing: ``error`` then says why, and ``on_error`` is called once from the
    writer's thread or the caller's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        replaces: Sequence[str] = (),
        mode: int = 0o644,
        wait: bool = False,
        on_error: Callable[[str], None],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.error = ""
        self.written_bytes = 0
        self._replaces = replaces
        self._mode = mode
        self._wait = wait
        self._on_error = on_error
        self._failed = threading.Lock()
        self._blocks: queue.Queue[tuple[str, str] | None] = queue.Queue(_BUFFERED_BLOCKS)
        self._thread = threading.Thread(target=self._write_all, name="run-writer", daemon=True)
        self._thread.start()

    def write(self, name: str, text: str) -> None:
        """Append ``text`` to the file ``name``; ignored once writing has failed."""
        if self.error:
            return
        try:
            self._blocks.put((name, text), block=self._wait)
        except queue.Full:
            self._fail("the disk is too slow for the run; recording has stopped")

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is buffered and end the thread; one that a disk holds up is left behind."""
        with suppress(queue.Full):
            self._blocks.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)

    def _write_all(self) -> None:
        handles: dict[str, int] = {}
        try:
            while (block := self._blocks.get()) is not None:
                name, text = block
                if self.error:
                    continue
                data = text.encode("utf-8", "backslashreplace")
                try:
                    if not handles:
                        self._replace()
                    if name not in handles:
                        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                        handles[name] = os.open(self.folder / name, flags, self._mode)
                    while data:
                        count = os.write(handles[name], data)
                        self.written_bytes += count
                        data = data[count:]
                except OSError as error:
                    self._fail(f"{name}: {error.strerror}; recording has stopped")
        finally:
            for handle in handles.values():
                os.close(handle)

    def _replace(self) -> None:
        for name in self._replaces:
            (self.folder / name).unlink(missing_ok=True)

    def _fail(self, why: str) -> None:
        with self._failed:
            if self.error:
                return
            self.error = why
        self._on_error(why)
