"""The main screen on a recorded run: nothing can be changed, but time can."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import numpy as np

from driftui.commands import bindings
from driftui.history import History
from driftui.screens.main import MainScreen
from scheduler.live.replay import ReplayFeed

PART_S = 600.0  # of the recording, at most, for one seek


class ReplayScreen(MainScreen, inherit_bindings=False):
    """Plays, holds, and goes to any instant; the charts then show what led up to it."""

    BINDINGS = bindings("replay")
    WHERE = "replay"
    RUN_CLOCK = True
    WINDOWS_S = (*MainScreen.WINDOWS_S, 1800.0, 3600.0, 7200.0)  # it is sampled anew, however long it is

    @property
    def _feed(self) -> ReplayFeed:
        return cast("ReplayFeed", self.drift.feed)

    def action_play(self) -> None:
        if self._feed.state == "over":
            self._go(0.0)
            self._feed.play(True)
        else:
            self._feed.play(self._feed.state == "held")
        self.drift.tick()

    def action_seek(self, by_s: float) -> None:
        self._go(self._feed.position_s + by_s)

    def action_go(self, share: float) -> None:
        self._go(share * self._feed.recording.duration_s)

    def action_speed(self, factor: float) -> None:
        self._feed.set_speed(self._feed.speed * factor)
        self.drift.tick()

    def action_window(self, by: int) -> None:
        super().action_window(by)
        self._go(self._feed.position_s)

    def _go(self, at_s: float) -> None:
        since_s = max(0.0, at_s - self.window_s)
        drawn_s = self.drift.tick().snapshot.now  # all that led up to it is there
        if since_s < drawn_s < at_s:
            since_s = drawn_s
        else:
            self.drift.history = History()
        # A seek gives as many views however long it is: several of them, or peaks would fall in between.
        parts = 1 + int((at_s - since_s) / PART_S)
        for from_s, to_s in pairwise(np.linspace(since_s, at_s, parts + 1).tolist()):
            for view in self._feed.seek(to_s, from_s):
                self.drift.history.sample(view)
        self.drift.tick()
