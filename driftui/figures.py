"""Numbers as people read them, in few cells. NaN, where nothing was seen, is an en dash."""

from __future__ import annotations

from math import isfinite, isinf

NOTHING = "–"


def seconds(value_s: float) -> str:
    """A latency in seconds, three digits or so: 0.003, 0.50, 12.3, 527."""
    if not isfinite(value_s):
        return "∞" if isinf(value_s) else NOTHING
    if value_s < 0.0995:
        return f"{value_s:.3f}"
    if value_s < 9.995:
        return f"{value_s:.2f}"
    return f"{value_s:.1f}" if value_s < 99.95 else f"{value_s:.0f}"


def count(value: float) -> str:
    """A count or a rate: 7, 504, 4.2k, 67k, 1.3M."""
    if not isfinite(value):
        return "∞" if isinf(value) else NOTHING
    if value < 999.5:
        return f"{value:.0f}"
    size, unit = (1e3, "k") if value < 999.5e3 else (1e6, "M") if value < 999.5e6 else (1e9, "G")
    scaled = value / size
    return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"


def number(value: int, noun: str) -> str:
    """So many of something: 1 request, 7 requests."""
    return f"{value} {noun}" if value == 1 else f"{value} {noun}s"


def ratio(value: float) -> str:
    """A multiplier: ×1.04, ×12.3."""
    if not isfinite(value):
        return NOTHING
    return f"×{value:.2f}" if value < 9.995 else f"×{value:.1f}" if value < 99.95 else f"×{value:.0f}"


def weight(value: float) -> str:
    """A weight in four cells: 5, 12.5, 0.33, 2e-3, 123k."""
    if value >= 999.5:
        return count(value)
    if value >= 1:
        return f"{value:.3g}"
    return f"{value:.2f}".rstrip("0").rstrip(".") if value >= 0.00995 else f"{value:.0e}".replace("e-0", "e-")


def percent(share: float) -> str:
    """A share of one: 31%."""
    return f"{100 * share:.0f}%" if isfinite(share) else NOTHING


def clock(value_s: float) -> str:
    """A duration as minutes and seconds: 0:20, 12:05, 1:02:03."""
    whole = max(0, int(value_s))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def size(count_bytes: int) -> str:
    """A size on disk: 812 B, 2.1 MB."""
    value = float(count_bytes)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def span(value_s: float) -> str:
    """A stretch of time on an axis: 45s, 90s, 2m, 7m30, 1h, 1h30."""
    minutes, rest = divmod(round(value_s), 60)
    if minutes < 2:
        return f"{round(value_s)}s" if value_s < 119 else "2m"
    hours, over = divmod(minutes, 60)
    if hours and not rest:
        return f"{hours}h{over:02}" if over else f"{hours}h"
    return f"{minutes}m{rest:02}" if rest else f"{minutes}m"


def plain(value: float) -> str:
    """A number on an axis, without needless digits: 0, 2.5, 40, 1.2k."""
    if abs(value) >= 1000:
        return count(value).replace(".0", "")
    return f"{value:.3f}".rstrip("0").rstrip(".") or "0"
