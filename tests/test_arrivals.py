"""Arrival processes: the rates they promise, times that never decrease, the same from the same seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, pairwise, takewhile
from math import sqrt
from random import Random
from statistics import mean, stdev

import pytest

from scheduler.load import arrivals, sources
from scheduler.load.arrivals import Process
from scheduler.load.stream import Arrivals

PROCESSES: dict[str, Process] = {
    "poisson": lambda rng: arrivals.poisson(rng, 5),
    "uniform": lambda rng: arrivals.uniform(rng, 0.05, 0.15),
    "gamma": lambda rng: arrivals.gamma(rng, 5, 2.0),
    "bursts": lambda rng: arrivals.bursts(rng, 20, 1, 10, 30),
    "ramp": lambda rng: arrivals.ramp(rng, 0, 10, 100),
    "falling ramp": lambda rng: arrivals.ramp(rng, 10, 1, 100),
    "step": lambda rng: arrivals.step(rng, 2, 20, 50),
    "diurnal": lambda rng: arrivals.diurnal(rng, 1, 9, 100),
    "at-once": arrivals.at_once,
}
# The same as a scenario file writes them.
WRITTEN: dict[str, object] = {
    "poisson": 5,
    "uniform": {"min": "50ms", "max": "150ms"},
    "gamma": {"rate": 5, "cv": 2.0},
    "bursts": {"rate": 20, "base": 1, "busy": "10s", "idle": "30s"},
    "ramp": {"from": 0, "to": 10, "over": "100s"},
    "step": {"from": 2, "to": 20, "at": "50s"},
    "diurnal": {"low": 1, "high": 9, "period": "100s"},
    "at-once": True,
}


def test_every_process_that_a_file_may_ask_for_is_here() -> None:
    names = {field.alias or name for name, field in Arrivals.model_fields.items()}
    assert names - {"closed"} == set(WRITTEN)  # closed: its clients wait for their answers


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_gets_the_process_that_it_asks_for(name: str) -> None:
    asked = Arrivals.model_validate({name: WRITTEN[name]})
    expected = list(islice(PROCESSES[name](Random(1)), 200))
    assert list(islice(sources.times(asked, Random(1)), 200)) == pytest.approx(expected)


def until(times: Iterator[float], end_s: float) -> list[float]:
    return list(takewhile(lambda at: at < end_s, times))


@pytest.mark.parametrize("name", PROCESSES)
def test_times_never_decrease_and_come_from_the_seed(name: str) -> None:
    times = list(islice(PROCESSES[name](Random(1)), 500))
    assert times[0] >= 0
    assert all(a <= b for a, b in pairwise(times))
    assert times == list(islice(PROCESSES[name](Random(1)), 500))


@pytest.mark.parametrize(
    ("name", "begin_s", "end_s", "expected"),
    [
        ("poisson", 0, 2000, 10_000),
        ("bursts", 0, 400, 10 * (10 * 20 + 30 * 1)),
        ("bursts", 0, 10, 200),  # busy comes first
        ("bursts", 10, 40, 30),
        ("ramp", 0, 100, 500),
        ("ramp", 0, 50, 125),
        ("ramp", 100, 200, 1000),  # stays at its end
        ("falling ramp", 0, 50, 0.5 * (10 + 5.5) * 50),
        ("falling ramp", 100, 300, 200),
        ("step", 0, 50, 100),
        ("step", 50, 100, 1000),
        ("diurnal", 0, 1000, 5000),
        ("diurnal", 0, 10, 10 * (5 - 4 * 0.935)),  # low at the start: the mean of the cosine there is 0.935
    ],
)
def test_counts_within_four_sigma(name: str, begin_s: float, end_s: float, expected: float) -> None:
    for seed in range(5):
        seen = sum(at >= begin_s for at in until(PROCESSES[name](Random(seed)), end_s))
        assert abs(seen - expected) < 4 * sqrt(expected)


def test_bursts_far_shorter_than_the_gaps_cost_nothing_more() -> None:
    times = list(islice(arrivals.bursts(Random(6), 1e-9, 0, 0.001, 0.001), 100))
    assert mean(b - a for a, b in pairwise(times)) == pytest.approx(2e9, rel=0.4)


@pytest.mark.parametrize("make", [arrivals.ramp, arrivals.step])
def test_where_the_rate_does_not_change_it_is_poisson(make: Callable[..., Iterator[float]]) -> None:
    plain = list(islice(arrivals.poisson(Random(7), 4.0), 200))
    assert list(islice(make(Random(7), 4.0, 4.0, 25.0), 200)) == pytest.approx(plain)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_gaps_have_the_mean_and_the_variation_asked_for(cv: float) -> None:
    times = list(islice(arrivals.gamma(Random(2), 4.0, cv), 40_000))
    gaps = [b - a for a, b in pairwise(times)]
    assert mean(gaps) == pytest.approx(0.25, rel=0.06)
    assert stdev(gaps) / mean(gaps) == pytest.approx(cv, rel=0.06)


def test_uniform_gaps_stay_between_the_bounds() -> None:
    times = list(islice(arrivals.uniform(Random(3), 0.05, 0.15), 5000))
    gaps = [b - a for a, b in pairwise(times)]
    assert min(gaps) >= 0.05 - 1e-9
    assert max(gaps) <= 0.15 + 1e-9
    assert mean(gaps) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize(
    "make",
    [lambda rng: arrivals.ramp(rng, 5, 0, 20), lambda rng: arrivals.step(rng, 5, 0, 20)],
    ids=["ramp", "step"],
)
def test_a_rate_that_falls_to_zero_for_good_ends(make: Callable[[Random], Iterator[float]]) -> None:
    times = list(make(Random(4)))
    assert 0 < len(times) < 200
    assert times[-1] < 20
