"""What the screen remembers of a run: ring buffers filled from ``Feed.view()`` by the one refresh timer.

Times are seconds on the run's clock. Memory is bounded by ``SAMPLES`` and ``MAX_TENANTS``, whatever the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import nan
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scheduler.live.view import Feed, Notice, View

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]

SAMPLES = 4096  # 17 minutes at 4 Hz: the widest window (10 minutes) and room to freeze
MAX_TENANTS = 256
MAX_NOTICES = 500
TENANT_SERIES = ("queue", "drift", "bias")
RUN_SERIES = ("ttft_p50", "ttft_p95", "ttft_p99", "e2e_p50", "e2e_p95", "e2e_p99")


@dataclass(frozen=True, slots=True)
class Grid:
    """Equal buckets of time. Edges lie on multiples of the width: what is past never changes its bucket."""

    first: int  # index of the first bucket
    buckets: int
    width_s: float

    @classmethod
    def ending(cls, now: float, window_s: float, buckets: int) -> Grid:
        """The last ``window_s`` seconds before ``now`` in ``buckets`` parts."""
        width_s = window_s / buckets
        return cls(int(now // width_s) - buckets + 1, buckets, width_s)

    @property
    def edges(self) -> Floats:
        return np.arange(self.first, self.first + self.buckets + 1, dtype=np.float64) * self.width_s

    def place(self, at_s: float) -> int | None:
        """The bucket that holds this instant, or None when it lies outside."""
        bucket = int(at_s // self.width_s) - self.first
        return bucket if 0 <= bucket < self.buckets else None


class Places(NamedTuple):
    """Where the samples of a grid's buckets lie: worked out once for all series of one frame."""

    starts: Ints  # first sample of each bucket that has one
    stop: int  # end of the last bucket's samples
    source: Ints  # for each bucket, which of ``starts`` gives its value; -1 for none


class History:
    """Samples of one run, oldest first, with series for each tenant and for all."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self._capacity = samples
        self._end = 0
        self._times = np.zeros(2 * samples)
        self._run = {name: self._series() for name in RUN_SERIES}
        self._tenants: dict[str, dict[str, Floats]] = {}
        self._order: dict[str, int] = {}
        self._places: dict[Grid, Places] = {}
        self._seen_seq = 0
        self._gap_s = 1.0  # how long a sample stands for the instants after it
        self.notices: deque[Notice] = deque(maxlen=MAX_NOTICES)  # oldest first

    def _series(self) -> Floats:
        return np.full(2 * self._capacity, nan)

    def __len__(self) -> int:
        return min(self._end, self._capacity)

    def colour_index(self, tenant: str) -> int:
        """The tenant's place in the order of first appearance."""
        return self._order.get(tenant, len(self._order))

    def sample(self, view: View) -> None:
        """Remember one frame. One of the same instant is dropped; time running backwards starts afresh."""
        snapshot = view.snapshot
        if self._end:
            step_s = snapshot.now - self._times[self._end - 1]
            if step_s == 0:
                return
            if step_s < 0:
                self._clear()
            else:
                self._gap_s = max(3 * step_s, 0.9 * self._gap_s)
        if self._end == 2 * self._capacity:
            self._wrap()
        at = self._end
        self._end += 1
        self._places.clear()
        self._times[at] = snapshot.now
        for name, latency in (("ttft", snapshot.ttft), ("e2e", snapshot.e2e)):
            self._run[f"{name}_p50"][at] = latency.p50
            self._run[f"{name}_p95"][at] = latency.p95
            self._run[f"{name}_p99"][at] = latency.p99
        for series in self._tenants.values():
            for values in series.values():
                values[at] = nan
        for tenant in snapshot.tenants:
            found = self._tenants.get(tenant.name)
            if found is None:
                if len(self._tenants) >= MAX_TENANTS:
                    continue
                found = self._tenants[tenant.name] = {name: self._series() for name in TENANT_SERIES}
                self._order[tenant.name] = len(self._order)
            found["queue"][at] = tenant.queued
            found["drift"][at] = tenant.drift_ratio
            found["bias"][at] = tenant.bias

    def listen(self, feed: Feed) -> bool:
        """Fetch the notices since the last time; True when there were any."""
        fresh = feed.notices(self._seen_seq)
        if fresh:
            self._seen_seq = fresh[-1].seq
            self.notices.extend(fresh)
        return bool(fresh)

    def buckets(self, series: str, grid: Grid, tenant: str | None = None) -> Floats:
        """One value per bucket of ``grid``; NaN where nothing is known.

        A bucket takes the largest of its samples, so that no burst falls between two dots; an empty one
        holds the value before it for as long as samples come at their usual pace.
        """
        source = self._run.get(series) if tenant is None else self._tenants.get(tenant, {}).get(series)
        if source is None:
            return np.full(grid.buckets, nan)
        places = self._places.get(grid)
        if places is None:
            places = self._places[grid] = self._place(grid)
        if not len(places.starts):
            return np.full(grid.buckets, nan)
        largest = np.empty(len(places.starts) + 1)
        np.fmax.reduceat(source[: places.stop], places.starts, out=largest[:-1])
        largest[-1] = nan  # for the buckets that have none
        return largest.take(places.source)

    def latest(self, series: Iterable[tuple[str, str | None]], grid: Grid) -> list[float]:
        """The last sample of ``grid`` of each (series, tenant), which ``buckets`` may hide behind a larger
        one; NaN where nothing is known.
        """
        places = self._places.get(grid) or self._place(grid)
        if not len(places.starts):
            return [nan for _ in series]
        last, run, tenants = places.stop - 1, self._run, self._tenants
        found = (run.get(key) if name is None else tenants.get(name, {}).get(key) for key, name in series)
        return [nan if values is None else float(values[last]) for values in found]

    def _place(self, grid: Grid) -> Places:
        low = max(0, self._end - self._capacity)
        edges = low + np.searchsorted(self._times[low : self._end], grid.edges)
        filled = np.flatnonzero(np.diff(edges))
        # For each bucket the filled one at or before it, as a position in ``filled``; -1: none near enough.
        source = np.searchsorted(filled, np.arange(grid.buckets), side="right") - 1
        if len(filled):
            age_s = (np.arange(grid.buckets) - filled[source]) * grid.width_s
            source[age_s > self._gap_s] = -1
        return Places(edges[filled], int(edges[-1]), source)

    def _wrap(self) -> None:
        """Move the newest half to the front, so that a window is always one contiguous slice."""
        for values in self._all():
            values[: self._capacity] = values[self._capacity :]
        self._end = self._capacity

    def _clear(self) -> None:
        for values in self._all():
            values[:] = nan
        self._end = 0
        self._gap_s = 1.0
        for _ in range(len(self.notices)):  # their instants are another clock's
            self.notices.append(self.notices.popleft()._replace(marker=False))

    def _all(self) -> list[Floats]:
        return [self._times, *self._run.values(), *(v for s in self._tenants.values() for v in s.values())]
