"""Words from outside: which characters of them may be shown, and what somebody may have meant."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def is_unsafe(char: str) -> bool:
    """Control (ESC, OSC, C1), format (bidi, zero width), surrogate, private, unassigned, line separator."""
    return unicodedata.category(char) in _UNSAFE


def hint(word: object, allowed: Iterable[str]) -> str:
    """The end of a message, "; did you mean 'sjf'?"; nothing where no allowed word is near."""
    names = {name.lower(): name for name in allowed}
    near = difflib.get_close_matches(str(word).lower(), names, n=1)
    return f"; did you mean {names[near[0]]!r}?" if near else ""
