"""``driftsched replay``: the dashboard on a recorded run."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from driftui.app import run_dashboard
from driftui.terminal import own_terminal
from scheduler.live.output import log_path, printable
from scheduler.live.replay import ReplayFeed
from scheduler.record.recording import read_recording


def run_replay(folder: Path, speed: float) -> int:
    """Returns the exit code; ``speed`` is recorded seconds in a second. Raises FolderError."""
    print(f"reading {printable(str(folder))} ...", file=sys.stderr, flush=True)  # an hour's log takes seconds
    feed = ReplayFeed(read_recording(folder), speed=speed)
    with own_terminal(log_path()):
        return asyncio.run(run_dashboard(feed))
