"""Loads that drive an engine over a spread of batch sizes, prompt and answer lengths, to time its steps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from scheduler.bench.engine import FORCED, TENANTS
from scheduler.core.types import CATEGORIES, Request
from scheduler.load.prompts import TOPICS
from scheduler.load.scenario import Scenario
from scheduler.twin.profile import Profile

ALONE = "alone"  # the stream of a single client
SHORT, LONG = (3, 12), (120, 200)  # words of a prompt


def sweep(folder: Path, number: int, *, capacity: int, tokens: int) -> Scenario:
    """The ``number``-th calibration of an engine that batches ``capacity``: one client, then more, each
    asking again when it has its answer. Answers are forced; their median is ``tokens``. The prompts are like
    no scenario's and no other sweep's; they go into ``folder``.

    First with short prompts, then with long ones: else a larger batch would always mean more context, too,
    and nothing could tell their costs apart.
    """
    full, half = capacity + 2, max(1, capacity // 2)
    levels = [(1, 4, SHORT), (2, 6, SHORT), (4, 8, SHORT), (half, 2 * half, SHORT), (full, 3 * full, SHORT)]
    levels += [(full, full, LONG), (4, 4, LONG)]
    load: list[dict[str, Any]] = []
    for level, (clients, count, words) in enumerate(levels):
        prompts = folder / f"calibration-{number}.{level}.jsonl"
        prompts.write_text("\n".join(_prompts(f"{number}.{level}", count, words)) + "\n", encoding="utf-8")
        stream = {
            "name": f"level-{level}" if load else ALONE,
            "tenant": dict.fromkeys(TENANTS, 1),
            "arrivals": {"closed": {"clients": clients}},
            "count": count,
            "prompts": {"file": str(prompts)},
            **answers(tokens),
        }
        load.append(stream | ({"after": load[-1]["name"]} if load else {}))
    return scenario(f"calibration-{number}", "fifo", number, load, capacity)


def answers(tokens: int) -> dict[str, Any]:
    """Fields of a stream: log-normal lengths around ``tokens``, cut at three times that."""
    return {"max_tokens": 3 * tokens, "lengths": {"lognormal": dict.fromkeys(CATEGORIES, (tokens, 0.6))}}


def scenario(name: str, policy: str, seed: int, load: Sequence[dict[str, Any]], capacity: int) -> Scenario:
    """A scenario of this bench: three tenants, forced lengths."""
    return Scenario.model_validate(
        {
            "name": name,
            "seed": seed,
            "policy": policy,
            "engine": {"capacity": capacity},
            "tenants": tuple({"name": tenant, "tier": tier} for tenant, tier in TENANTS.items()),
            "load": tuple(load),
            "timeline": FORCED,
        }
    )


def _prompts(label: str, count: int, words: tuple[int, int]) -> Iterator[str]:
    """Lines of a prompts file."""
    rng = Random(f"calibration {label}")
    for serial in range(count):
        text = " ".join(" ".join(rng.choices(TOPICS, k=words[1])).split()[: rng.randint(*words)])
        yield json.dumps({"prompt": f"Calibration {label}.{serial}: tell more of {text}"})


def handover_s(requests: Sequence[Request], profile: Profile) -> float:
    """How long a request is on its way into an idle engine, and its first token out of it: what the first
    tokens of the single client took beyond their step.
    """
    extra = [
        (request.first_token_s or 0.0)
        - request.arrival_s
        - profile.step_s(1, request.prompt_tokens, request.prompt_tokens)
        for request in requests
        if request.submitted_by == ALONE
    ]
    return max(0.0, median(extra))
