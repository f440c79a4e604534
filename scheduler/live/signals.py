"""What ends a run from outside, in good order."""

from __future__ import annotations

import signal


def endings() -> tuple[signal.Signals, ...]:
    """Ctrl-C, SIGTERM, and a terminal that goes away, unless we were told to outlive it (nohup)."""
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    return signal.SIGINT, signal.SIGTERM, *hangup
