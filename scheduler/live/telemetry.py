"""What the machine and the event loop are doing: GPU by NVML, host by psutil and PSI, loop lag by a probe."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import fields
from math import nan
from pathlib import Path
from typing import Any

import psutil

from scheduler.core.metrics import gap_bucket, gap_rank, nearest_rank
from scheduler.live.view import Health

Sample = Mapping[str, float | None]

_PSI = Path("/proc/pressure/cpu")


class Machine:
    """Reads the host, and the first GPU where there is one. Every call may block for some milliseconds."""

    def __init__(self) -> None:
        self._gpu = _open_gpu()
        self._cpu_times = psutil.cpu_times()  # of the last reading

    def read(self) -> dict[str, float | None]:
        """Shares 0..1, degrees, watts, MHz, bytes; None where it cannot be read."""
        before, self._cpu_times = self._cpu_times, psutil.cpu_times()
        memory = psutil.virtual_memory()
        return {
            **self._read_gpu(),  # first: the paper's telemetry.csv has these alone
            **_cpu_shares(before, self._cpu_times),
            "pressure_some": _pressure(),
            "memory_share": memory.percent / 100,
            "memory_used_bytes": float(memory.used),
        }

    def _read_gpu(self) -> dict[str, float | None]:
        row: dict[str, float | None] = dict.fromkeys(_GPU)
        if self._gpu is None:
            return row
        import pynvml

        for name, read in _GPU.items():
            try:
                row[name] = float(read(pynvml, self._gpu))
            except (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_Uninitialized):
                self._gpu = None  # it went away; the columns stay, empty
                break
            except pynvml.NVMLError:
                pass  # not every GPU tells everything
        return row


def _cpu_shares(before: Any, now: Any) -> dict[str, float | None]:
    """Of the time of all cores between two readings. psutil's own percentages are each thread's since its
    last look, and less than a second of all cores together counts for a whole one there.
    """
    spent_s = {
        name: max(0.0, getattr(now, name) - getattr(before, name))
        for name in now._fields
        if not name.startswith("guest")  # which is in the user's time, too
    }
    total_s = sum(spent_s.values())
    if not total_s:
        return {"cpu_share": None, "steal_share": None}
    idle_s = spent_s["idle"] + spent_s.get("iowait", 0.0)
    return {
        "cpu_share": round(1 - idle_s / total_s, 4),
        "steal_share": round(spent_s.get("steal", 0.0) / total_s, 4),  # only Linux tells it
    }


def _memory_share(nvml: Any, gpu: Any) -> float:
    memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
    return float(memory.used / memory.total)


_GPU: Mapping[str, Callable[[Any, Any], float]] = {
    "gpu_temperature_c": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    "gpu_power_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
    "gpu_sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "gpu_memory_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "gpu_share": lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    "gpu_memory_share": _memory_share,
    "gpu_memory_used_bytes": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
}


def _open_gpu() -> Any:
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError:
        return None


def _pressure() -> float | None:
    """Share of the last 10 s in which some task waited for a CPU (Linux PSI)."""
    try:
        line = _PSI.read_text().split("\n", 1)[0]
        return float(line.split("avg10=", 1)[1].split(" ", 1)[0]) / 100
    except (OSError, IndexError, ValueError):
        return None


def health(sample: Sample) -> Health:
    """The part of a sample that the status line shows."""
    return Health(**{field.name: sample.get(field.name) for field in fields(Health)})


class Summary:
    """Mean and maximum of every column that had a number."""

    def __init__(self) -> None:
        self._columns: dict[str, list[float]] = {}  # name -> [count, sum, max]

    def add(self, sample: Sample) -> None:
        for name, value in sample.items():
            if value is not None and name != "elapsed_s":
                column = self._columns.setdefault(name, [0.0, 0.0, value])
                column[0] += 1
                column[1] += value
                column[2] = max(column[2], value)

    def figures(self) -> dict[str, dict[str, float]]:
        return {
            name: {"mean": total / count, "max": most} for name, (count, total, most) in self._columns.items()
        }


class LoopLag:
    """How late the event loop runs: a callback asked for every ``period_s`` notes by how much it was late.

    Counts only between ``begin`` and ``end`` (first dispatch to last end of a request). Memory is bounded,
    however long it runs: a histogram of buckets 5 % wide, and the last ten seconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, period_s: float = 0.01) -> None:
        self._loop = loop
        self._period_s = period_s
        self._counts: Counter[int] = Counter()  # gap_bucket -> probes
        self._max_s = nan
        self._recent_s: deque[float] = deque(maxlen=int(10 / period_s))
        self._counting = False
        self._due_s = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._arm()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def begin(self) -> None:
        self._counting = True

    def end(self) -> None:
        self._counting = False

    def _arm(self) -> None:
        self._due_s = self._loop.time() + self._period_s
        self._handle = self._loop.call_at(self._due_s, self._probe)

    def _probe(self) -> None:
        if self._counting:
            self.note(max(0.0, self._loop.time() - self._due_s))
        self._arm()

    def note(self, lag_s: float) -> None:
        """One probe was so late."""
        self._counts[gap_bucket(lag_s)] += 1
        self._recent_s.append(lag_s)
        if not lag_s <= self._max_s:
            self._max_s = lag_s

    def recent_p99_ms(self) -> float:
        """Over about the last ten seconds; NaN before anything was measured."""
        return nearest_rank(sorted(self._recent_s), 0.99) * 1e3 if self._recent_s else nan

    def figures(self) -> dict[str, float]:
        """p50, p99 (within 2.5 %), max in milliseconds over all that was counted."""
        return {"p50": self._rank_s(0.5) * 1e3, "p99": self._rank_s(0.99) * 1e3, "max": self._max_s * 1e3}

    def _rank_s(self, share: float) -> float:
        """Nearest rank in the histogram; NaN before anything was measured."""
        return min(gap_rank(self._counts, share), self._max_s)
