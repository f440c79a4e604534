"""Numbers as operators type them into a form."""

from __future__ import annotations

from math import isfinite


class FieldError(ValueError):
    """A field does not hold what it should; the message says what is allowed."""


def positive(field: str, text: str) -> float:
    """A finite number above 0. Raises FieldError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not isfinite(value) or value <= 0:
        raise FieldError(f"{field}: a number above 0, such as 2.5")
    return value


def bound(field: str, text: str) -> int | None:
    """A whole number from 0, or empty for no bound. Raises FieldError."""
    text = text.strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise FieldError(f"{field}: a whole number from 0, or empty for no bound")
    return int(text)


def seconds_bound(field: str, text: str) -> float | None:
    """Seconds above 0, or empty for no bound. Raises FieldError."""
    if not text.strip():
        return None
    try:
        return positive(field, text)
    except FieldError:
        raise FieldError(f"{field}: seconds above 0, or empty for no bound") from None
