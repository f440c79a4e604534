"""Prompts are embedded before they are estimated: in a thread of their own, and not for long."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from scheduler.core.prior import Meanings

MAX_WAIT_S = 0.5
"""A prompt whose embedding is not there by then is estimated without: in a rush, that is most of them."""


class Embedder:
    """One thread: more of them would take cores from the engine, and the event loop's turn."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "embedder")  # begins with the first prompt

    async def prepare(self, meanings: Meanings, prompt: str) -> None:
        """Return once an estimate of this prompt is quick."""
        if prompt in meanings:
            return
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                await asyncio.get_running_loop().run_in_executor(self._thread, meanings.prepare, prompt)
        except TimeoutError:
            meanings.forgo(prompt)

    def close(self) -> None:
        """When no request is left that could wait for it."""
        self._thread.shutdown(wait=False)
