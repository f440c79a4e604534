"""A recorded run as the ``Feed`` of a dashboard: it plays at any pace, holds, and goes to any instant."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import nan
from typing import Any, NoReturn

from scheduler.engines.engine import EngineTelemetry
from scheduler.live.notices import Notices
from scheduler.live.telemetry import health
from scheduler.live.view import CommandError, Notice, Preview, View
from scheduler.record.playback import Playback
from scheduler.record.recording import Recording

SLOWEST, FASTEST = 1 / 8, 256.0
LEAD_VIEWS = 240
PASSED_VIEWS, PASSED_S = 4, 0.5  # between two frames at high speed: so many, and no closer than that


class ReplayFeed:
    """See ``view.Feed``; whatever would change the run is refused. ``clock`` gives seconds of real time."""

    def __init__(
        self, recording: Recording, *, speed: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.recording = recording
        self.speed = speed
        self._clock = clock
        self._notices = Notices()
        self._playback = Playback(recording, lambda event: self._notices.on_event(event))
        self._playing = True
        self._from_s, self._since_s = 0.0, clock()  # where on the recording, and when that was

    @property
    def position_s(self) -> float:
        """Where the replay is, on the recorded run's clock."""
        moved_s = (self._clock() - self._since_s) * self.speed if self._playing else 0.0
        return min(self._from_s + moved_s, self.recording.duration_s)

    @property
    def state(self) -> str:
        if self.position_s >= self.recording.duration_s:
            return "over"
        return "playing" if self._playing else "held"

    def play(self, on: bool) -> None:
        """Go on, or hold."""
        self._rebase(self.position_s)
        self._playing = on

    def set_speed(self, speed: float) -> None:
        """Recorded seconds in a second, within reason."""
        self._rebase(self.position_s)
        self.speed = min(FASTEST, max(SLOWEST, speed))

    def seek(self, at_s: float, since_s: float) -> Iterator[View]:
        """Go to an instant; gives views of the time from ``since_s`` to it, for who draws the past."""
        at_s = min(max(0.0, at_s), self.recording.duration_s)
        since_s = min(max(0.0, since_s), at_s)
        self._rebase(at_s)
        if since_s < self._playback.now:
            self._notices = Notices()
            self._playback.restart()
        for number in range(LEAD_VIEWS):
            self._playback.play_to(since_s + (at_s - since_s) * number / LEAD_VIEWS)
            yield self._view()
        self._rebase(at_s)  # the time that it took is no time of the recording

    def passed(self) -> Iterator[View]:
        """Views of instants between the last view and now, which at high speed lie far apart."""
        from_s, to_s = self._playback.now, self.position_s
        parts = min(PASSED_VIEWS, int((to_s - from_s) / PASSED_S))
        for part in range(1, parts):
            self._playback.play_to(from_s + (to_s - from_s) * part / parts)
            yield self._view()

    def _rebase(self, at_s: float) -> None:
        self._from_s, self._since_s = at_s, self._clock()

    def view(self) -> View:
        self._playback.play_to(self.position_s)
        return self._view()

    def _view(self) -> View:
        told, snapshot = self.recording.document, self._playback.snapshot()
        machine = self.recording.machine(snapshot.now)
        lag_ms = machine.get("loop_lag_p99_ms")
        return View(
            snapshot=snapshot,
            engine=EngineTelemetry(running=snapshot.in_flight, kv_use=machine.get("engine_kv_use")),
            engine_kind=str(told["engine"]),
            engine_detail=str(told["engine_detail"]),
            engine_state="ready",
            simulated=told["engine"] == "sim",
            speed=self.speed,
            scenario=str(told["scenario"]),
            scenario_elapsed_s=snapshot.now,
            scenario_total_s=self.recording.duration_s,
            scenario_done=self.state == "over",
            recording="",
            recorded_bytes=0,
            loop_lag_p99_ms=nan if lag_ms is None else lag_ms,
            health=health(machine),
            replay=self.state,
            guarded=bool(told.get("guarded")),  # a run of an earlier version does not say
            autopilot=bool(told.get("autopilot")),
        )

    def notices(self, after: int = 0) -> Sequence[Notice]:
        return self._notices.after(after)

    def policies(self) -> Mapping[str, str]:
        return {}

    def scenarios(self) -> Mapping[str, str]:
        return {}

    def previewed(self) -> Preview | None:
        return None

    def _refuse(self, *args: Any, **given: Any) -> NoReturn:
        raise CommandError("this run is recorded: it can be watched, not changed")

    preview = switch_policy = undo_policy = switch_estimator = inject = burst = _refuse
    stop_loads = pause = resume = set_tenant = _refuse
