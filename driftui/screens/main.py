"""The main screen: status, tenants, charts, events, keys."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, cast

from textual.app import ComposeResult
from textual.containers import Container
from textual.screen import Screen
from textual.widgets import Input

from driftui import figures, layout, palette
from driftui.commands import bindings
from driftui.screens.dialog import field
from driftui.screens.estimator import EstimatorScreen
from driftui.screens.help import HelpScreen
from driftui.screens.inject import InjectScreen
from driftui.screens.policy import PolicyScreen
from driftui.screens.reader import EventsScreen
from driftui.screens.tenant import TenantScreen
from driftui.widgets.canvas import paint
from driftui.widgets.chart import Chart, Marker, Moment, Series
from driftui.widgets.events import EventList
from driftui.widgets.footer import KeyLine
from driftui.widgets.status import StatusLine
from driftui.widgets.tenants import TenantsTable, next_sort
from scheduler.live.view import View

if TYPE_CHECKING:
    from driftui.app import DriftApp

MOST_LINES = 8  # tenants drawn in one chart


@dataclass(slots=True)
class Display:
    """What the operator chose to see; none of it touches the run."""

    window: int = 1  # index into the screen's WINDOWS_S
    latency: str = "e2e"
    chart: int = 0  # the chart asked for last
    maximised: bool = False
    frozen: View | None = None


class MainScreen(Screen[None]):
    """Everything at a glance. ``show`` is called by the app's one timer."""

    BINDINGS = bindings("main")
    AUTO_FOCUS = ""
    WHERE = "main"  # in the command registry
    RUN_CLOCK = False  # whether events are shown by the run's clock
    WINDOWS_S: tuple[float, ...] = (30.0, 60.0, 120.0, 300.0, 600.0)  # that charts may show

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.shown = Display()
        self._view: View | None = None
        self._arranged: object = None
        self.charts = (
            Chart("Queue depth by tenant", "1", 0.0, 4.0, figures.count, decades=True, id="chart-queue"),
            Chart("Latency", "2", 0.0, 0.05, _latency, id="chart-latency"),
            Chart("Drift: actual / estimated", "3", 0.5, 1.5, figures.ratio, id="chart-drift"),
            Chart("Bias: learned multiplier", "4", 0.5, 1.5, figures.ratio, id="chart-bias"),
        )

    @property
    def drift(self) -> DriftApp:
        return cast("DriftApp", self.app)

    @property
    def window_s(self) -> float:
        """How much time the charts show."""
        return self.WINDOWS_S[self.shown.window]

    def compose(self) -> ComposeResult:
        self.status = StatusLine(id="status")
        self.tenants = TenantsTable(id="tenants")
        self.panes = Container(*self.charts, id="charts")
        self.events = EventList(run_clock=self.RUN_CLOCK, id="events")
        self.keys = KeyLine(self.WHERE, id="keys")
        self.filter_input = field("", placeholder="part of a tenant's name", id="filter", kind=Input)
        yield self.status
        yield self.tenants
        yield self.panes
        yield self.events
        yield self.filter_input
        yield self.keys

    def on_mount(self) -> None:
        self.filter_input.display = False
        self.drift.tick()

    def on_resize(self) -> None:
        self._show_again()
        self.call_after_refresh(self._show_again)

    def _on_timer_update(self) -> None:
        # Textual paints here; the time is measured so that the screen can pace itself.
        began_s = time.thread_time()
        super()._on_timer_update()
        self.drift.spent(time.thread_time() - began_s)

    def show(self, view: View) -> None:
        """Show this frame; while frozen only the status line follows the run."""
        self._view = view
        if self.shown.frozen is None:
            self._show_again()
        else:
            self._show_status(view)
            self._paint()

    def _show_again(self) -> None:
        if self._view is None or not self.is_mounted:
            return
        app = self.drift
        shown = self.shown.frozen or self._view
        self._show_status(self._view)
        self._arrange(len(shown.snapshot.tenants))
        self.tenants.show(shown.snapshot, app.history)
        self._show_charts(shown)
        if self.shown.frozen is None:
            self.events.show(list(app.history.notices), _hint(self._view))
        self._paint()

    def _paint(self) -> None:
        canvases = (self.status, self.tenants, *self.charts, self.events, self.keys)
        paint(self, canvases, (self.panes, self.filter_input))

    def _show_status(self, view: View) -> None:
        app, frozen = self.drift, self.shown.frozen is not None
        self.status.show(view, frozen=frozen, leaving=app.leaving, cost=app.cost)

    def _arrange(self, tenants: int) -> None:
        width, height = self.size
        plan = layout.plan(width, height, tenants, maximised=self.shown.maximised)
        chosen = layout.choose(plan.charts, self.shown.chart)
        arranged = (plan, tuple(chosen))
        if arranged == self._arranged:
            return
        self._arranged = arranged
        self.tenants.styles.height = plan.tenants
        self.events.styles.height = plan.events
        self.events.display = plan.events > 0
        self.panes.display = plan.charts > 0
        self.panes.styles.grid_size_columns = max(1, plan.columns)
        self.panes.styles.grid_size_rows = max(1, plan.rows)
        others = "esc: all charts" if self.shown.maximised else "1–4: other charts"
        for index, chart in enumerate(self.charts):
            chart.display = index in chosen
            chart.subtitle = others if len(chosen) < len(self.charts) else ""

    def _show_charts(self, view: View) -> None:
        history = self.drift.history
        tenants = sorted(view.snapshot.tenants, key=lambda tenant: -tenant.submitted)[:MOST_LINES]
        selected = self.tenants.selected
        if selected is not None and all(tenant.name != selected.name for tenant in tenants):
            tenants = [*tenants[: MOST_LINES - 1], selected]
        # The line drawn last lies on top: the tenant under the cursor.
        places = sorted(
            [(tenant is selected, history.colour_index(tenant.name), tenant.name) for tenant in tenants]
        )
        lines = [(name, name, palette.tenant(at), palette.stroke(at), strong) for strong, at, name in places]
        markers = tuple(
            Marker(notice.at_s, palette.kind(notice.kind)[1]) for notice in history.notices if notice.marker
        )
        moment = Moment(view.snapshot.now, self.window_s, markers)
        for chart, key in zip(self.charts, ("queue", "", "drift", "bias"), strict=True):
            if key:
                chart.show(history, [Series(key, *line) for line in lines], moment)
        latency = self.shown.latency
        self.charts[1].title = f"Latency, all tenants ({latency.upper()}, s)"
        colours = (("p50", palette.GREEN), ("p95", palette.YELLOW), ("p99", palette.RED))
        series = [Series(f"{latency}_{name}", None, name, colour) for name, colour in colours]
        self.charts[1].show(history, series, moment)

    async def action_policy(self) -> None:
        await self.app.push_screen(PolicyScreen())  # the next keys wait until it stands

    def action_undo(self) -> None:
        self.drift.ask(self.drift.feed.undo_policy)

    async def action_estimator(self) -> None:
        await self.app.push_screen(EstimatorScreen())

    async def action_inject(self) -> None:
        await self.app.push_screen(InjectScreen(self.tenants.cursor))

    def action_freeze(self) -> None:
        self.shown.frozen = None if self.shown.frozen is not None else self._view
        self._show_again()

    def action_pause(self) -> None:
        feed = self.drift.feed
        self.drift.ask(feed.resume if feed.view().snapshot.paused else feed.pause)

    def action_tenant(self) -> None:
        selected = self.tenants.selected
        if selected is not None:
            self.app.push_screen(TenantScreen(selected.name))

    def on_tenants_table_chosen(self) -> None:
        self.action_tenant()

    def action_row(self, by: int) -> None:
        self.tenants.move(by)
        self._show_again()

    def action_sort(self) -> None:
        self.tenants.sort = next_sort(self.tenants.sort)
        self.tenants.show_again()

    def action_latency(self) -> None:
        self.shown.latency = self.tenants.latency = "ttft" if self.shown.latency == "e2e" else "e2e"
        self._show_again()

    def action_chart(self, index: int) -> None:
        """Where all charts fit: maximise this one, or go back. Where they do not: show this one."""
        if self._view is None:
            return
        width, height = self.size
        tenants = len((self.shown.frozen or self._view).snapshot.tenants)
        everything = layout.plan(width, height, tenants).charts == len(self.charts)
        self.shown.maximised = everything and not (self.shown.maximised and self.shown.chart == index)
        self.shown.chart = index
        self._rearrange()

    def action_restore(self) -> None:
        self.shown.maximised = False
        self.filter_input.value = ""
        self._close_filter()

    def action_window(self, by: int) -> None:
        self.shown.window = max(0, min(len(self.WINDOWS_S) - 1, self.shown.window + by))
        self._show_again()

    def action_help(self) -> None:
        self.app.push_screen(HelpScreen(self.WHERE))

    def action_events(self) -> None:
        self.app.push_screen(EventsScreen(run_clock=self.RUN_CLOCK))

    def action_filter(self) -> None:
        self.filter_input.display = True
        self.filter_input.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.tenants.needle = event.value.strip()
        self.tenants.show_again()

    def on_input_submitted(self) -> None:
        self._close_filter()

    def _close_filter(self) -> None:
        self.filter_input.display = False
        self.set_focus(None)
        self._rearrange()

    def _rearrange(self) -> None:
        self._show_again()
        # Sizes are known only after the layout; what was hidden has nothing drawn yet.
        self.call_after_refresh(self._show_again)


def _latency(value_s: float) -> str:
    return figures.seconds(value_s) + ("s" if isfinite(value_s) else "")


def _hint(view: View) -> str:
    """What stands among the events before the first."""
    if view.engine_state != "starting":
        return "nothing yet"
    return "the engine starts" if view.simulated else "the engine starts; this takes half a minute or more"
