"""Pictures of the screen, pinned; ``pytest --snapshot-update`` on this file accepts new ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from fake_feed import FakeFeed
from textual.pilot import Pilot

from driftui.app import DriftApp

Compare = Callable[..., bool]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def dashboard(seconds: float = 62.0) -> DriftApp:
    """A run that has been going on for a while; it stands still in the picture."""
    feed = FakeFeed()
    app = DriftApp(feed, auto_refresh=False)
    for step in range(int(4 * seconds)):
        if step == 160:
            feed.switch_policy("sjf")
        feed.advance(0.25)
        app.history.sample(feed.view())
    return app


def keys(*names: str) -> Callable[[Pilot[None]], object]:
    async def press(pilot: Pilot[None]) -> None:
        await pilot.press(*names)
        await pilot.pause()

    return press


@pytest.mark.parametrize("size", [(160, 48), (80, 24)], ids=["160x48", "80x24"])
@pytest.mark.parametrize(
    "names",
    [(), ("p",), ("down", "t")],
    ids=["main", "policy", "tenant"],
)
def test_snapshot(snap_compare: Compare, size: tuple[int, int], names: tuple[str, ...]) -> None:
    assert snap_compare(dashboard(), terminal_size=size, run_before=keys(*names))


def test_snapshot_maximised_and_frozen(snap_compare: Compare) -> None:
    assert snap_compare(dashboard(), terminal_size=(160, 48), run_before=keys("3", "equals_sign", "space"))
