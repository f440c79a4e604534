"""The dashboard: a Textual app over a ``Feed``, in the event loop of whoever calls it."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from functools import partial

from textual import events
from textual.app import App
from textual.binding import Binding
from textual.driver import Driver

from driftui.clean import clean
from driftui.commands import Command, DriftCommands
from driftui.history import History
from driftui.palette import THEME
from driftui.screens.dialog import Choices, Field
from driftui.screens.main import MainScreen
from driftui.screens.quit import QuitScreen
from driftui.screens.replay import ReplayScreen
from driftui.terminal import REPLACED, DriftDriver
from driftui.widgets.status import Cost
from scheduler.live.replay import ReplayFeed
from scheduler.live.signals import heard, kept
from scheduler.live.view import CommandError, Feed, View

REFRESH_S = 0.25  # nominal, 4 Hz
SLOWEST_REFRESH_S = 2.0
CPU_SHARE = 0.05  # of one core, for the whole screen


class DriftApp(App[None]):
    """One run on one terminal."""

    CSS_PATH = "drift.tcss"
    TITLE = "driftsched"
    COMMANDS = {DriftCommands}  # noqa: RUF012 (Textual's own declaration)
    BINDINGS = [  # noqa: RUF012
        Binding("ctrl+c,ctrl+q", "interrupt", "quit", show=False, priority=True),
    ]

    def __init__(
        self,
        feed: Feed,
        *,
        on_quit: Callable[[], Awaitable[None]] | None = None,
        on_hurry: Callable[[], None] | None = None,
        auto_refresh: bool = True,
        driver_class: type[Driver] | None = None,
    ) -> None:
        """``on_quit`` drains and stops the run while the screen says so; ``on_hurry`` skips the drain. A run
        without ``on_quit`` goes on elsewhere, and leaving it asks nothing.

        Without ``auto_refresh`` nothing moves until ``tick`` is called (for tests).
        """
        super().__init__(driver_class=driver_class)
        self.feed = feed
        self.history = History()
        self.leaving = ""  # what the status line says while the run is being stopped
        self.cost = Cost(0.0, 0.0)
        self._on_quit = on_quit
        self._on_hurry = on_hurry
        self._auto_refresh = auto_refresh
        self._spent_s = 0.0  # CPU spent on the screen since the last tick
        self._refresh_s = REFRESH_S
        self.register_theme(THEME)
        self.theme = THEME.name

    def get_default_screen(self) -> MainScreen:
        screen = ReplayScreen if isinstance(self.feed, ReplayFeed) else MainScreen
        return screen(id="_default")

    @property
    def main(self) -> MainScreen:
        screen = self.screen_stack[0]
        assert isinstance(screen, MainScreen)
        return screen

    def on_mount(self) -> None:
        if self._auto_refresh:
            self.run_worker(self._keep_fresh(), name="refresh")

    async def _keep_fresh(self) -> None:
        """Sample and draw, at a pace that follows the cost. A Textual timer each would cost 0.8 ms more."""
        try:
            while True:
                self.tick()
                await asyncio.sleep(self._refresh_s)
        except Exception as error:
            self._handle_exception(error)  # as from any message handler: it ends the app

    def tick(self) -> View:
        """Sample the feed once and show it; what was seen."""
        began_s = time.thread_time()
        if isinstance(self.feed, ReplayFeed):
            for view in self.feed.passed():
                self.history.sample(view)
        view = self.feed.view()
        self.history.sample(view)
        self.history.listen(self.feed)
        self.main.show(view)
        if self.screen is not self.main:
            # A dialog lies over the run, which goes on moving behind it.
            self.screen.refresh()
        self._pace(self._spent_s + time.thread_time() - began_s)
        return view

    def spent(self, cpu_s: float) -> None:
        """CPU that a screen took to paint; it belongs to the tick before."""
        self._spent_s += cpu_s

    def _pace(self, cpu_s: float) -> None:
        """Follow the cost of a refresh, and leave so much time between two that the screen stays cheap."""
        self._spent_s = 0.0
        smooth_ms = 0.9 * self.cost.refresh_ms + 0.1 * 1000 * cpu_s if self.cost.refresh_ms else 1000 * cpu_s
        self._refresh_s = min(SLOWEST_REFRESH_S, max(REFRESH_S, smooth_ms / 1000 / CPU_SHARE))
        if self._auto_refresh:
            self.cost = Cost(smooth_ms, smooth_ms / 1000 / self._refresh_s)

    def ask(self, verb: Callable[[], None]) -> None:
        """Send a command to the run; a refusal is shown."""
        try:
            verb()
        except CommandError as error:
            self.notify(clean(str(error), 400), severity="error", markup=False)

    def on_key(self, event: events.Key) -> None:
        """A letter typed before a dialog stood went past it: it belongs there."""
        if event.is_printable and isinstance(self.focused, Field | Choices):
            self.focused.take(event.character or "")
            event.prevent_default()

    def run_command(self, command: Command) -> None:
        """Run a command of the main screen, from the palette."""
        self.call_later(partial(self.run_action, command.action, self.main))

    async def action_quit(self) -> None:
        """Leave; with a question while requests would be lost, and hurried when asked again while leaving."""
        snapshot = self.feed.view().snapshot
        stops_the_run = self._on_quit is not None
        if self.leaving:
            self.hurry()
        elif isinstance(self.screen, QuitScreen):
            return
        elif stops_the_run and (snapshot.in_flight or snapshot.queued):
            self.push_screen(QuitScreen())
        else:
            self.leave()

    async def action_interrupt(self) -> None:
        """As ``q``; and asked again it is a yes to the question."""
        if isinstance(self.screen, QuitScreen):
            self.leave()
        else:
            await self.action_quit()

    def leave(self) -> None:
        """Stop the run, and then the app. Called again, it skips the drain."""
        if self.leaving:
            self.hurry()
            return
        self.leaving = "STOPPING"
        self.main.shown.frozen = None  # the way out is to be seen
        while len(self.screen_stack) > 1:
            self.pop_screen()
        self.tick()
        self.run_worker(self._stop_run(), name="leave")

    async def _stop_run(self) -> None:
        if self._on_quit is not None:
            await self._on_quit()
        self.exit()

    def hurry(self) -> None:
        """Asked a second time to leave: no more waiting for what is in flight."""
        if self._on_hurry is not None:
            self._on_hurry()

    def _fatal_error(self) -> None:
        # Textual's own report prints every local variable, and ours hold other people's text.
        self.bell()
        self._close_messages_no_wait()

    @property
    def crash(self) -> BaseException | None:
        """The exception that ended the app, if one did."""
        return self._exception


async def run_dashboard(
    feed: Feed,
    *,
    on_quit: Callable[[], Awaitable[None]] | None = None,
    on_hurry: Callable[[], None] | None = None,
) -> int:
    """Show ``feed`` until the operator leaves; the exit code: 0, or 1 when the dashboard crashed.

    Runs in the current event loop. ``on_quit`` is awaited while the screen still stands. SIGINT from outside,
    SIGTERM and SIGHUP leave as ``q`` does, without a question; a second one, or Ctrl-C while leaving, calls
    ``on_hurry``.
    """
    loop = asyncio.get_running_loop()
    factory = loop.get_task_factory()
    app = DriftApp(feed, on_quit=on_quit, on_hurry=on_hurry, driver_class=DriftDriver)
    # On Python 3.12 and later run_async makes every task of the loop eager, the engine's too, and leaves it
    # so. It does this before it first waits, so this callback comes right after.
    loop.call_soon(loop.set_task_factory, factory)
    try:
        leave = partial(app.call_later, app.leave)
        with heard((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), leave), kept(*REPLACED):
            await app.run_async()
    finally:
        loop.set_task_factory(factory)
    if app.crash is not None:
        lines = traceback.format_exception(app.crash)
        print(clean_lines(lines), file=sys.stderr)
        print("driftsched: the dashboard crashed", file=sys.__stderr__)
    return app.return_code or 0


def clean_lines(lines: list[str]) -> str:
    """A traceback, every line of it cleaned: messages of exceptions may quote other people's text."""
    return "\n".join(clean(line) for chunk in lines for line in chunk.splitlines())
