"""Who gets which lines of the screen: plain arithmetic, so that every size can be tested."""

from __future__ import annotations

from dataclasses import dataclass

_CHART_MIN_LINES = 7
_CHART_MIN_CELLS = 48


@dataclass(frozen=True, slots=True)
class Plan:
    """Heights in lines, and the charts as a grid of ``columns`` x ``rows`` (0 x 0: no room)."""

    tenants: int
    events: int
    columns: int
    rows: int

    @property
    def charts(self) -> int:
        return self.columns * self.rows


def plan(width: int, height: int, tenants: int, *, maximised: bool = False) -> Plan:
    """Divide a terminal of this size; ``tenants`` is how many rows the table would like.

    Status and keys take a line each. Charts get what table and events leave, and the table never
    takes more than about two fifths, or eight rows on a small screen.
    """
    room = max(0, height - 2)
    events = 3 if height < 30 else min(8, 3 + (height - 30) // 4)
    if room < 12:
        events = 0
    most = max(5, (room - events) * 2 // 5 + 2, min(11, room - events - _CHART_MIN_LINES - 1))
    table = min(max(tenants, 3) + 3, most)
    table = min(table, room)
    charts = room - table - events
    if charts < _CHART_MIN_LINES:  # a small screen: the table keeps what no chart can use
        return Plan(room - events, events, 0, 0)
    if maximised:
        return Plan(table, events, 1, 1)
    columns = 2 if width >= 2 * _CHART_MIN_CELLS else 1
    rows = min(4 // columns, max(1, charts // (_CHART_MIN_LINES + 2)))
    return Plan(table, events, columns, rows)


def choose(count: int, first: int, total: int = 4) -> list[int]:
    """Which charts are shown when ``count`` fit and ``first`` was asked for, in their usual order."""
    if count >= total:
        return list(range(total))
    return sorted((first + step) % total for step in range(count))
