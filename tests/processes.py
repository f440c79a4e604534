"""What runs below a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import psutil


def running_children(pid: int | None = None) -> Iterator[tuple[psutil.Process, str]]:
    """Those of ``pid`` (ours), and theirs, each with its command line; one may end while it is looked at."""
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            yield child, " ".join(child.cmdline())
