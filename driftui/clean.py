"""Text from outside, made safe to draw.

Tenant names, scenario names and notices may hold terminal escapes, bidirectional overrides or zero-width
characters, and Textual passes them on to the terminal. Every string that somebody else wrote goes through
``clean`` before it reaches a widget, and none is ever parsed as markup.
"""

from __future__ import annotations

from rich.cells import cell_len

from scheduler.core.text import is_unsafe

_REPLACEMENT = "�"
_MARKS_PER_CELL = 3  # combining marks take no cells: without a bound a name could stack thousands


def _is_safe(char: str) -> bool:
    if is_unsafe(char):
        return False
    # Variation selectors change how wide a terminal draws the character before them.
    return not ("\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef")


def clean(text: str, width: int | None = None) -> str:
    """``text`` without anything a terminal could obey, cut to ``width`` cells (with an ellipsis)."""
    if width is not None:
        if width <= 0:
            return ""
        text = text[: width * (1 + _MARKS_PER_CELL) + 1]
    if not (text.isascii() and text.isprintable()):
        text = "".join(char if _is_safe(char) else _REPLACEMENT for char in text)
    if width is None or cell_len(text) <= width:
        return text
    kept = ""
    used = 0
    for char in text:
        used += cell_len(char)
        if used > width - 1:
            break
        kept += char
    return kept + "…"


def pad(text: str, width: int, align: str = "<") -> str:
    """``text`` cleaned, cut and filled to exactly ``width`` cells; ``align`` is "<" or ">"."""
    return fill(clean(text, width), width, align)


def fill(text: str, width: int, align: str = "<") -> str:
    """As ``pad``, for text of our own or cleaned before."""
    missing = width - cell_len(text)
    if missing < 0:
        return pad(text, width, align)
    return text + " " * missing if align == "<" else " " * missing + text
