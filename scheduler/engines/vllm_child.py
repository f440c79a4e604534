"""EngineCore on a leash: the engine's child process ends when ours does, however ours ended.

vLLM's EngineCore waits for requests for ever when its parent is killed. Here it is started with a watcher
thread on the pipe that multiprocessing keeps open between parent and child, which works for kill -9 too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

# The terminal sends these to every process of the foreground group; what they mean is ours to decide.
TERMINAL_SIGNALS = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})


def run_engine_core(*args: Any, **kwargs: Any) -> None:
    """Stands in for ``EngineCoreProc.run_engine_core`` in the child."""
    die_with_parent()
    from vllm.v1.engine.core import EngineCoreProc

    EngineCoreProc.run_engine_core(*args, **kwargs)


def die_with_parent() -> None:
    """End this process as soon as the process that spawned it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a child of multiprocessing"
    threading.Thread(target=_watch, args=(parent.sentinel,), name="parent-watch", daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    # Not sys.exit: the main thread may sit in a long step, and nobody is left to say goodbye to.
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def leashed_spawn() -> Iterator[None]:
    """While this holds, an EngineCore spawned by the calling thread is leashed and deaf to the terminal.

    Signal masks are inherited over exec, so Ctrl-C reaches us alone. The mask is the thread's own.
    """
    from vllm.v1.engine.core import EngineCoreProc

    original = EngineCoreProc.run_engine_core
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
    EngineCoreProc.run_engine_core = staticmethod(run_engine_core)
    try:
        yield
    finally:
        EngineCoreProc.run_engine_core = staticmethod(original)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
