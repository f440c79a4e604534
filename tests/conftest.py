"""Shared by all tests: Hypothesis at its default effort, without deadlines, for machines that are busy; and
whether there is a real engine.
"""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("driftsched", deadline=None)
settings.load_profile("driftsched")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Where a test's parameter is a whole file, its name says how long it is: it would fill the terminal."""
    return f"{argname} of {len(val)}" if isinstance(val, str | bytes) and len(val) > 100 else None


@pytest.fixture
def hangups_heard() -> Iterator[None]:
    """A child hears SIGHUP as on a terminal, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def real_engine() -> None:
    """Skip, loudly, where vLLM or its small model is not there."""
    from scheduler.engines.models import ModelError, resolve

    if importlib.util.find_spec("vllm") is None:
        pytest.skip("THE REAL ENGINE IS NOT TESTED: vLLM is not installed (pip install '.[cpu]')")
    try:
        resolve("smollm2")
    except ModelError as error:
        pytest.skip(f"THE REAL ENGINE IS NOT TESTED: {error}")
