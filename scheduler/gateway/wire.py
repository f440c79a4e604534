"""A run's view and notices as JSON, both ways: what the control API sends and ``attach`` reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from scheduler.live.view import Notice, Preview, View
from scheduler.record.document import finite

T = TypeVar("T")
_VIEW = TypeAdapter(View)
_PREVIEW = TypeAdapter(Preview)
_NOTICES = TypeAdapter(list[Notice])


class WireError(ValueError):
    """What came is not a view, a preview or notices of this version."""


def to_json(told: View | Preview) -> dict[str, Any]:
    """Numbers that JSON does not have (NaN, infinity) become the strings "nan", "inf", "-inf"."""
    plain: dict[str, Any] = finite(asdict(told), str)
    return plain


def notices_to_json(notices: Iterable[Notice]) -> list[dict[str, Any]]:
    return [finite(notice._asdict(), str) for notice in notices]


def view_from_json(data: object) -> View:
    """Raises WireError."""
    return _read(_VIEW, data)


def preview_from_json(data: object) -> Preview:
    """Raises WireError."""
    return _read(_PREVIEW, data)


def notices_from_json(data: object) -> list[Notice]:
    """Raises WireError."""
    return _read(_NOTICES, data)


def _read(kind: TypeAdapter[T], data: object) -> T:
    try:
        return kind.validate_python(data)
    except ValidationError as error:
        raise WireError(f"of another version: {error.error_count()} fields do not fit") from None
