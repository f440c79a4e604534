"""Durations as people write them: "10ms", "2s", "1.5m", "2h"; a bare number is seconds."""

from __future__ import annotations

import re
from math import inf

LONGEST_S = 10 * 365 * 86_400.0
"""Ten years: no time of a run is later, and no float at this size loses a millisecond."""
ALLOWED = 'a number of seconds, or text like "10ms", "2s", "1.5m" or "2h"'

_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_TEXT = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*(ms|s|m|h|)", re.ASCII)


def parse_duration(value: object) -> float:
    """Seconds. Raises ValueError with what is allowed."""
    if isinstance(value, str) and (match := _TEXT.fullmatch(value.strip())):
        seconds = float(match[1]) * _UNITS[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value) if abs(value) < 1e300 else inf
    else:
        raise ValueError(f"not a duration: {value!r:.60}, allowed is {ALLOWED}")
    if not abs(seconds) <= LONGEST_S:
        raise ValueError(
            f"too long a time: {value!r:.60}, allowed are up to 10 years ({LONGEST_S / 3600:g}h)"
        )
    return seconds
