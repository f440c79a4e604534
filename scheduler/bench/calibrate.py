"""Loads that drive an engine over a spread of batch sizes, prompt and answer lengths, to time its steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from scheduler.core.types import CATEGORIES, Request
from scheduler.load.prompts import TOPICS
from scheduler.load.scenario import Scenario
from scheduler.twin.profile import Profile

TENANTS = {"bench-premium": "premium", "bench-standard": "standard", "bench-batch": "batch"}
ALONE = "alone"  # the stream of a single client
FORCED = ({"at": 0, "drift": {"output_scale": 1, "force": True}},)

_REQUESTS = {1: 4, 2: 6, 4: 8}  # of so many clients; of more, two each
_WORDS = (3, 6, 12, 24, 48, 96)


def sweep(folder: Path, number: int, *, capacity: int, tokens: int) -> Scenario:
    """The ``number``-th calibration of an engine that batches ``capacity``: one client, then two, and so on,
    each asking again when it has its answer. Answers are forced; their median is ``tokens``. The prompts, of
    three to 96 words, are like no scenario's and no other sweep's; they go into ``folder``.
    """
    levels = sorted({1, 2, 4, max(1, capacity // 2), capacity + 2})
    counts = [_REQUESTS.get(clients, 2 * clients) for clients in levels]
    prompts = folder / f"calibration-{number}.jsonl"
    prompts.write_text("\n".join(_prompts(number, sum(counts))) + "\n", encoding="utf-8")
    load: list[dict[str, Any]] = []
    for clients, count in zip(levels, counts, strict=True):
        stream = {
            "name": f"clients-{clients}" if load else ALONE,
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


def _prompts(number: int, count: int) -> list[str]:
    """Lines of a prompts file."""
    rng = Random(f"calibration {number}")
    lines = []
    for serial in range(count):
        words = " ".join(rng.choices(TOPICS, k=rng.choice(_WORDS))).split()
        text = f"Calibration {number}.{serial}: tell more of " + " ".join(words[: rng.choice(_WORDS)])
        lines.append(json.dumps({"prompt": text}))
    return lines


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
