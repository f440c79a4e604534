"""Estimators on requests whose true lengths are known and drift; feedback comes late."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import exp
from random import Random
from statistics import median
from typing import Any

import numpy as np

from scheduler.bench.result import Claim
from scheduler.core.estimate import Estimator
from scheduler.core.estimators import estimator_from
from scheduler.core.types import CATEGORIES, TIERS, Outcome, Request
from scheduler.load.lengths import PROFILES
from scheduler.load.prior import shipped_prior
from scheduler.load.prompts import label, prompt_tables
from scheduler.record.tally import mae_rmse, spearman

FEEDBACK_DELAY = 32  # requests
DRIFTS = ("none", "sudden", "gradual")
REQUESTS, SEEDS = 3000, 6
MAX_TOKENS = 4096
# What a tenant makes of the profile's medians, before and after.
SCALE = {"premium": (0.8, 0.8), "standard": (1.0, 1.0), "batch": (1.2, 2.4)}


def feed(
    estimator: Estimator, requests: Sequence[Request], answers: Sequence[int]
) -> tuple[list[float], list[float], float]:
    """Points, upper estimates, and microseconds per request (median)."""
    points, uppers, took_us = [], [], []
    for at, request in enumerate(requests):
        known = at - FEEDBACK_DELAY
        outcome = Outcome("stop", answers[max(0, known)])
        started = time.perf_counter()
        request.estimate = estimator.estimate(request)
        if known >= 0:
            estimator.observe(requests[known], outcome)
        took_us.append((time.perf_counter() - started) * 1e6)
        points.append(request.estimate.point)
        uppers.append(request.estimate.upper)
    return points, uppers, median(took_us)


def drifting(drift: str, seed: int) -> tuple[list[Request], list[int], list[float]]:
    """Requests, their lengths, and the medians of the distributions they were drawn from."""
    rng, tables = Random(f"drift/{drift}/{seed}"), prompt_tables()
    requests, lengths, truths = [], [], []
    for number in range(REQUESTS):
        tier, category = rng.choice(TIERS), rng.choice(CATEGORIES)
        prompt = label(number, tier, category) + rng.choice(tables[category])
        middle, sigma = PROFILES["mod"][category]
        progress = number / REQUESTS
        share = {
            "none": 0.0,
            "sudden": float(progress >= 0.5),
            "gradual": min(1.0, max(0.0, 2 * progress - 0.5)),
        }
        before, after = SCALE[tier]
        truth = middle * before * (after / before) ** share[drift]
        length = round(truth * exp(rng.gauss(0.0, sigma)))
        tokens = len(prompt.split())
        requests.append(Request(str(number), tier, tier, 0.0, tokens, MAX_TOKENS, prompt))
        lengths.append(min(MAX_TOKENS, max(1, length)))
        truths.append(truth)
    return requests, lengths, truths


def bench_drift(drift: str, seeds: int = SEEDS) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Errors against those of the uncorrected formula, in percent; medians over the seeds."""
    makers: dict[str, Callable[[], Estimator]] = {
        "paper": lambda: estimator_from("paper"),
        "tenant": lambda: estimator_from("tenant"),
        "tenant mean": lambda: estimator_from("tenant", statistic="mean"),
        "learned": lambda: estimator_from("learned", prior=shipped_prior()),
    }
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        requests, lengths, truths = drifting(drift, seed)
        uncorrected, _, _ = feed(estimator_from("paper", calibrate=False), requests, lengths)
        base = mae_rmse(np.array(uncorrected) - np.array(lengths))
        for name, make in makers.items():
            points, uppers, us = feed(make(), requests, lengths)
            covered = sum(n <= upper for n, upper in zip(lengths, uppers, strict=True)) / len(lengths)
            figures = _figures(points, lengths, base) | {"coverage": covered, "us_per_request": us}
            found.setdefault(name, []).append(figures)
        found.setdefault("floor", []).append(_figures(truths, lengths, base))
    rows = [
        {
            "estimator": name,
            "model": None,
            "drift": drift,
            **{figure: median(seed[figure] for seed in runs) for figure in runs[0]},
            **({"coverage": None, "us_per_request": None} if name == "floor" else {}),
        }
        for name, runs in found.items()
    ]
    above = {
        name: median(
            ours["mae_percent"] - floor["mae_percent"]
            for ours, floor in zip(found[name], found["floor"], strict=True)
        )
        for name in ("tenant", "learned")
    }
    claims = [
        Claim.at_most(f"drift {drift}: {name} points above the floor", 3.0, points)
        for name, points in above.items()
    ]
    return rows, claims


def _figures(points: Sequence[float], lengths: Sequence[int], base: tuple[float, float]) -> dict[str, float]:
    """``base``: MAE and RMSE to compare with."""
    guessed, truth = np.array(points, float), np.array(lengths, float)
    mae, rmse = mae_rmse(guessed - truth)
    return {
        "mae": mae,
        "rmse": rmse,
        "spearman": spearman(guessed, truth),
        "mae_percent": (mae / base[0] - 1) * 100,
        "rmse_percent": (rmse / base[1] - 1) * 100,
    }
