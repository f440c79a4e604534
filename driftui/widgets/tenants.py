"""The tenants table: one line per tenant, redrawn only where a cell changed."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.message import Message

from driftui import palette
from driftui.clean import clean, fill, pad
from driftui.history import Grid, History
from driftui.palette import ink
from driftui.widgets.canvas import Panel
from driftui.widgets.columns import (
    DRIFT_SPARK,
    LONGEST_NAME,
    QUEUE_SPARK,
    SORTABLE,
    TENANT,
    Cell,
    Column,
    Row,
    choose,
)
from scheduler.core.types import Snapshot, TenantSnapshot

SPARK_WINDOW_S = 60.0
_MARGIN = 2  # cells left of the first column, for the cursor's bar; one stays free at the right


class TenantsTable(Panel):
    """Rows in the order of ``sort`` that match ``needle``; the cursor stays with its tenant."""

    class Chosen(Message):
        """A row was clicked that is under the cursor already."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.title = "Tenants"
        self.latency = "e2e"
        self.sort: Column | None = None
        self.needle = ""
        self.cursor: str | None = None  # the tenant's own name, not cleaned
        self._rows: list[TenantSnapshot] = []
        self._top = 0
        self._cells: list[tuple[bool, tuple[Cell, ...]]] = []
        self._columns: tuple[tuple[Column, int], ...] = ()
        self._shown: tuple[Snapshot, History] | None = None

    @property
    def selected(self) -> TenantSnapshot | None:
        """The tenant under the cursor."""
        return next((tenant for tenant in self._rows if tenant.name == self.cursor), None)

    def show(self, snapshot: Snapshot, history: History) -> None:
        self._shown = snapshot, history
        needle = self.needle.casefold()
        rows = [tenant for tenant in snapshot.tenants if needle in tenant.name.casefold()]
        order = self.sort.order if self.sort is not None else None
        if order is not None:
            rows.sort(key=lambda tenant: _last_if_nan(order(tenant, self.latency)))
        self._rows = rows
        if self.selected is None:
            self.cursor = rows[0].name if rows else None
        self._refill(snapshot, history)

    def show_again(self) -> None:
        """After a change of order, filter or size."""
        if self._shown is not None:
            self.show(*self._shown)
            self.flush()

    def on_resize(self, event: events.Resize) -> None:
        super().on_resize(event)
        self.show_again()

    def move(self, by: int) -> None:
        """Move the cursor by some rows, as far as there are rows."""
        if not self._rows:
            return
        at = next((i for i, tenant in enumerate(self._rows) if tenant.name == self.cursor), 0)
        self.cursor = self._rows[max(0, min(len(self._rows) - 1, at + by))].name
        self.show_again()

    def on_mouse_scroll_down(self) -> None:
        self.move(1)

    def on_mouse_scroll_up(self) -> None:
        self.move(-1)

    async def on_click(self, event: events.Click) -> None:
        at = self._top + event.y - 2
        if event.y == 1:
            self._sort_at(event.x)
        elif event.y >= 2 and at < len(self._rows):
            if self._rows[at].name == self.cursor:
                self.post_message(self.Chosen())
            self.cursor = self._rows[at].name
            self.show_again()

    def _sort_at(self, x: int) -> None:
        """By the column whose title was clicked; a second click takes it back."""
        end = 1 + _MARGIN
        for column, width in self._columns:
            end += width + 1
            if x < end:
                if column.order is not None:
                    self.sort = None if column is self.sort else column
                    self.show_again()
                return

    def _refill(self, snapshot: Snapshot, history: History) -> None:
        longest = max([cell_len(tenant.name[:LONGEST_NAME]) for tenant in snapshot.tenants], default=0)
        columns = choose(self.inner_width - _MARGIN - 1, longest)
        lines = max(0, self.inner_height - 1)
        at = next((i for i, tenant in enumerate(self._rows) if tenant.name == self.cursor), 0)
        if lines:
            self._top = max(0, min(self._top, len(self._rows) - lines, at), at - lines + 1)
        visible = self._rows[self._top : self._top + lines]
        widths = {column.title: width for column, width in columns}
        queue_grid = Grid.ending(snapshot.now, SPARK_WINDOW_S, widths.get(QUEUE_SPARK, 1))
        drift_grid = Grid.ending(snapshot.now, SPARK_WINDOW_S, widths.get(DRIFT_SPARK, 1))
        fresh: list[tuple[bool, tuple[Cell, ...]]] = []
        for tenant in visible:
            row = Row(
                tenant,
                palette.tenant(history.colour_index(tenant.name)),
                self.latency,
                history.buckets("queue", queue_grid, tenant.name),
                history.buckets("drift", drift_grid, tenant.name),
            )
            cells = tuple(column.cell(row, width) for column, width in columns)
            fresh.append((tenant.name == self.cursor, cells))
        frame = self._frame(len(snapshot.tenants), len(visible))
        if frame != (self.title, self.subtitle) or columns != self._columns or len(fresh) != len(self._cells):
            self.title, self.subtitle = frame
            self._columns, self._cells = columns, fresh
            self.redraw()
            return
        changed = [2 + i for i, (old, new) in enumerate(zip(self._cells, fresh, strict=True)) if old != new]
        self._cells = fresh
        self.redraw(changed)

    def _frame(self, total: int, visible: int) -> tuple[str, str]:
        title = f"Tenants ({total})"
        if self.needle:
            title += f" matching “{clean(self.needle, 20)}”: {len(self._rows)}"
        notes = []
        if visible < len(self._rows):
            notes.append(f"{self._top + 1}–{self._top + visible} of {len(self._rows)}")
        if self.sort is not None:
            notes.append(f"sort {self.sort.title} ▼")
        notes.append(f"p50–p99: {self.latency.upper()}, s")
        return title, " · ".join(notes)

    def body(self, y: int, width: int) -> Sequence[Segment]:
        if y == 0:
            return self._header(width)
        if y - 1 < len(self._cells):
            return self._line(*self._cells[y - 1], width=width)
        text = ""
        if y == 1:
            text = "no tenant matches: esc shows all" if self.needle else "no tenant has sent a request yet"
            text = " " * _MARGIN + text
        return [Segment(pad(text, width), ink(palette.FAINT))]

    def _header(self, width: int) -> list[Segment]:
        style = ink(palette.TITLE, bold=True)
        text = " " * _MARGIN + " ".join(pad(column.title, w, column.align) for column, w in self._columns)
        return [Segment(pad(text, width), style)]

    def _line(self, selected: bool, cells: tuple[Cell, ...], *, width: int) -> list[Segment]:
        on = palette.RAISED if selected else palette.BACKGROUND
        colour = cells[0][1] if cells else palette.TEXT
        segments: list[Segment] = []
        run, style = "▌ " if selected else "  ", ink(colour, on=on)
        used = _MARGIN
        for (column, column_width), (text, ink_colour) in zip(self._columns, cells, strict=True):
            wanted = ink(ink_colour, on=on, bold=selected and column.title == TENANT)
            if wanted is not style:
                segments.append(Segment(run, style))
                run, style = "", wanted
            run += fill(text, column_width, column.align) + " "
            used += column_width + 1
        segments.append(Segment(run + " " * max(0, width - used), style))
        return segments


def _last_if_nan(value: float) -> tuple[bool, float]:
    return isnan(value), -value


def next_sort(current: Column | None) -> Column | None:
    """As configured, then each sortable column, then as configured again."""
    if current is None:
        return SORTABLE[0]
    at = SORTABLE.index(current) + 1
    return SORTABLE[at] if at < len(SORTABLE) else None
