"""A run's view and notices as JSON, both ways: what the control API sends and ``attach`` reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from math import isfinite
from typing import Any

from pydantic import TypeAdapter, ValidationError

from scheduler.live.view import Notice, Preview, View

_VIEW = TypeAdapter(View)
_PREVIEW = TypeAdapter(Preview)
_NOTICES = TypeAdapter(list[Notice])


class WireError(ValueError):
    """What came is not a view or notices of this version."""


def view_to_json(view: View) -> dict[str, Any]:
    """Numbers that JSON does not have (NaN, infinity) become the strings "nan", "inf", "-inf"."""
    plain: dict[str, Any] = _finite(asdict(view))
    return plain


def notices_to_json(notices: Iterable[Notice]) -> list[dict[str, Any]]:
    return [_finite(notice._asdict()) for notice in notices]


def preview_to_json(preview: Preview) -> dict[str, Any]:
    plain: dict[str, Any] = _finite(asdict(preview))
    return plain


def preview_from_json(data: object) -> Preview:
    """Raises WireError."""
    try:
        return _PREVIEW.validate_python(data)
    except ValidationError as error:
        raise WireError(f"not a preview of this version: {error.error_count()} fields do not fit") from None


def view_from_json(data: object) -> View:
    """Raises WireError."""
    try:
        return _VIEW.validate_python(data)
    except ValidationError as error:
        raise WireError(f"not a view of this version: {error.error_count()} fields do not fit") from None


def notices_from_json(data: object) -> list[Notice]:
    """Raises WireError."""
    try:
        return _NOTICES.validate_python(data)
    except ValidationError as error:
        raise WireError(f"not notices of this version: {error.error_count()} fields do not fit") from None


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if isfinite(value) else str(value)
        case dict():
            return {key: _finite(each) for key, each in value.items()}
        case tuple() | list():
            return [_finite(each) for each in value]
        case _:
            return value
