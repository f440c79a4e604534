"""``driftsched attach``: the dashboard on a run that is served elsewhere."""

from __future__ import annotations

import asyncio

from driftui.app import run_dashboard
from driftui.terminal import own_terminal
from scheduler.gateway.remote import RemoteFeed
from scheduler.live.output import log_path


def run_attached(url: str, key: str | None) -> int:
    """Returns the exit code; leaving the dashboard leaves the run as it is. Raises AttachError."""
    return asyncio.run(_run(url, key))


async def _run(url: str, key: str | None) -> int:
    async with RemoteFeed(url, key) as feed:
        with own_terminal(log_path()):
            return await run_dashboard(feed)
