"""Mistakes, of ours or of a library: told by their type and place. Their own words may quote a prompt."""

from __future__ import annotations

import asyncio
import logging
from pathlib import PurePath
from traceback import extract_tb
from typing import Any

log = logging.getLogger(__name__)


def place_of(error: BaseException) -> str:
    """KeyError in session.py:212; the type alone of one that was never raised."""
    name = type(error).__name__
    for at in extract_tb(error.__traceback__)[-1:]:
        return f"{name} in {PurePath(at.filename).name}:{at.lineno}"
    return name


def on_uncaught(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The exception handler of an event loop: asyncio's own writes messages and arguments."""
    error = context.get("exception")
    if error is None:
        loop.default_exception_handler(context)
        return
    log.error("%s: %s", "in a callback" if "handle" in context else context["message"], place_of(error))
