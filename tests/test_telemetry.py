"""How late the loop was, out of a histogram that does not grow; what the machine tells of itself."""

from __future__ import annotations

import asyncio
import random
from math import isnan
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pynvml
import pytest

from scheduler.core.metrics import nearest_rank
from scheduler.live.telemetry import LoopLag, Machine


async def test_percentiles_are_the_exact_ones_within_a_bucket() -> None:
    lag = LoopLag(asyncio.get_running_loop())
    assert isnan(lag.figures()["p99"])
    assert isnan(lag.recent_p99_ms())
    chance = random.Random(3)
    lags_s = [chance.lognormvariate(-8, 1.5) for _ in range(50_000)]
    for lag_s in lags_s:
        lag.note(lag_s)
    ordered, figures = sorted(lags_s), lag.figures()
    assert figures["p50"] == pytest.approx(nearest_rank(ordered, 0.5) * 1e3, rel=0.026)
    assert figures["p99"] == pytest.approx(nearest_rank(ordered, 0.99) * 1e3, rel=0.026)
    assert figures["max"] == ordered[-1] * 1e3
    assert lag.recent_p99_ms() == nearest_rank(sorted(lags_s[-1000:]), 0.99) * 1e3
    assert len(lag._counts) < 300
    assert len(lag._recent_s) == 1000


async def test_it_sees_a_loop_that_was_held_up_and_only_while_requests_run() -> None:
    loop = asyncio.get_running_loop()
    lag = LoopLag(loop, period_s=0.001)

    def hold_up() -> None:
        until_s = loop.time() + 0.05
        while loop.time() < until_s:
            pass

    lag.start()
    hold_up()
    await asyncio.sleep(0.005)
    assert isnan(lag.figures()["max"]), "nothing was dispatched"
    lag.begin()
    hold_up()
    await asyncio.sleep(0.005)
    lag.end()
    lag.stop()
    assert lag.figures()["max"] > 40


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One that tells everything."""
    for name, told in {
        "nvmlInit": None,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetPowerUsage": 70_500,
        "nvmlDeviceGetClockInfo": 2040,
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=93),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=6, total=24),
    }.items():
        monkeypatch.setattr(pynvml, name, lambda *args, told=told: told)
    return monkeypatch


def refuse(code: int) -> object:
    def ask(*args: object) -> None:
        raise pynvml.NVMLError(code)

    return ask


def gpu_row(machine: Machine) -> dict[str, float | None]:
    return {name: value for name, value in machine.read().items() if name.startswith("gpu_")}


def test_a_reading_that_a_gpu_does_not_support_leaves_the_others(gpu: pytest.MonkeyPatch) -> None:
    whole = gpu_row(Machine())
    assert whole == {
        "gpu_temperature_c": 61,
        "gpu_power_w": 70.5,
        "gpu_sm_clock_mhz": 2040,
        "gpu_memory_clock_mhz": 2040,
        "gpu_share": 0.93,
        "gpu_memory_share": 0.25,
        "gpu_memory_used_bytes": 6,
    }
    gpu.setattr(pynvml, "nvmlDeviceGetPowerUsage", refuse(pynvml.NVML_ERROR_NOT_SUPPORTED))
    machine = Machine()
    assert gpu_row(machine) == gpu_row(machine) == whole | {"gpu_power_w": None}


def test_a_gpu_that_is_lost_is_asked_no_more(gpu: pytest.MonkeyPatch) -> None:
    machine = Machine()
    gpu.setattr(pynvml, "nvmlDeviceGetTemperature", refuse(pynvml.NVML_ERROR_GPU_IS_LOST))
    assert set(gpu_row(machine).values()) == {None}
    gpu.setattr(pynvml, "nvmlDeviceGetTemperature", lambda *args: 61)
    assert set(gpu_row(machine).values()) == {None}


class Linux(NamedTuple):
    """Seconds of all cores since the machine started."""

    user: float = 0.0
    system: float = 0.0
    idle: float = 0.0
    iowait: float = 0.0
    steal: float = 0.0
    guest: float = 0.0


async def test_shares_of_the_cpu_are_of_all_cores_since_the_last_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However short that was, and whatever thread reads: two cores have 0.4 s in 200 ms."""
    told = Linux()
    monkeypatch.setattr(psutil, "cpu_times", lambda: told)
    machine = Machine()
    for _ in range(3):
        told = Linux(
            user=told.user + 0.04,
            guest=told.guest + 0.04,  # in the user's, too
            system=told.system + 0.02,
            idle=told.idle + 0.2,
            iowait=told.iowait + 0.1,  # a core that waits for a disk is free to compute
            steal=told.steal + 0.04,
        )
        sample = await asyncio.to_thread(machine.read)
        assert (sample["cpu_share"], sample["steal_share"]) == (0.25, 0.1)
    sample = machine.read()
    assert (sample["cpu_share"], sample["steal_share"]) == (None, None), "no time has passed"
