"""Signals: those that end a run in good order, and handlers for a while."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


def endings() -> tuple[signal.Signals, ...]:
    """Ctrl-C, SIGTERM, and a terminal that goes away, unless we were told to outlive it (nohup)."""
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return signal.SIGINT, signal.SIGTERM, *hangup


@contextmanager
def kept(*signals: signal.Signals) -> Iterator[None]:
    """Afterwards these have the handlers again that they have now."""
    before = {name: signal.getsignal(name) for name in signals}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def heard(signals: Iterable[signal.Signals], call: Callable[[], object]) -> Iterator[None]:
    """While this holds, each of these makes the running event loop call this."""
    loop, names = asyncio.get_running_loop(), tuple(signals)
    for name in names:
        loop.add_signal_handler(name, call)
    try:
        yield
    finally:
        for name in names:
            loop.remove_signal_handler(name)
