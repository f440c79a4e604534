"""Prompts are embedded before they are estimated: in a thread of their own, and as long as it is no rush."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from scheduler.core.prior import Meanings

MAX_WAITING = 25
"""Prompts that wait to be embedded: half a second of one core. Further ones are estimated without."""


class Embedder:
    """One thread: more of them would take cores from the engine, and the event loop's turn."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "embedder")  # begins with the first prompt
        self._waiting = 0

    async def prepare(self, meanings: Meanings, prompt: str) -> None:
        """Return once an estimate of this prompt is quick."""
        if prompt in meanings:
            return
        if self._waiting >= MAX_WAITING:
            meanings.forgo(prompt)
            return
        self._waiting += 1
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, meanings.prepare, prompt)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """When no request is left that could wait for it."""
        self._thread.shutdown(wait=False)
