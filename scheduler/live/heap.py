"""The cycle collector, kept out of a live run's way."""

from __future__ import annotations

import gc


def calm_collector() -> None:
    """To be called by an entry point once what lives as long as the process is there.

    What exists by now is never looked at again, and the rest of the heap seldom: requests, estimates and
    queue entries are part of no cycle, so their counts free them, while a full pass over a long queue holds
    the loop up (100,000 queued: 150 to 250 ms here). But each closed connection leaves 1 KB in a cycle of
    asyncio's, so full passes do come, before that is some 200 MB. Young cycles are collected as always.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000, 2, 500)  # the second walks 3,000 objects, a millisecond or two
