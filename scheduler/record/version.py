"""Which version this is: of run.json, of ``--version``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Of the installed distribution."""
    try:
        return version("driftsched")
    except PackageNotFoundError:
        return "unknown"
