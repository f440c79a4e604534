"""Shared by all tests: Hypothesis at its default effort, without deadlines, for machines that are busy."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("driftsched", deadline=None)
settings.load_profile("driftsched")
