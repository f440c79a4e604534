"""``driftsched bench estimate``: every estimator on real prompts in online order, and under drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from math import isnan, nan
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.bench.burst import play
from scheduler.bench.estimate_drift import DRIFTS, FEEDBACK_DELAY, bench_drift, feed
from scheduler.bench.result import BadInput, BenchError, Claim, Result
from scheduler.core.estimate import Estimator, Given
from scheduler.core.estimators import estimator_from
from scheduler.core.features import MAX_CHARS
from scheduler.core.metrics import percentiles
from scheduler.core.prior import NO_PRIOR, Embed, Prior, PromptReader
from scheduler.core.types import Estimate, Outcome, Request
from scheduler.load.embedding import EmbeddingError, embedding_model
from scheduler.load.prior import prompt_key, shipped_prior, trained_on
from scheduler.load.training import Corpus, read_corpus, train
from scheduler.record.tally import mae_rmse, spearman

MAX_TOKENS = 8192  # or the longest answer: none is cut
LEAST_PROMPTS = 4 * FEEDBACK_DELAY
RESAMPLES = 300
EMBEDDED = "learned+embeddings"

PROTOCOL = (
    f"Prompts in the file's order, one tenant, max_tokens {MAX_TOKENS} or the longest answer; each answer is "
    f"learned from {FEEDBACK_DELAY} requests after its prompt was estimated. Beside the estimators the "
    "running median and mean of what was learned so far. mae, rmse in tokens; spearman with the true "
    f"lengths, its interval from {RESAMPLES} bootstrap resamples (5-95 %); coverage: share of answers at or "
    "below the upper estimate; us_per_request: median wall time of estimate and observe together. "
    "sjf_share, two_class_share: P50 gain over FIFO when these estimates order a burst of the same "
    "prompts in the twin (L4, 32 slots, continuous), as a share of oracle SJF's; *_p99: P99 against "
    "FIFO's. prior shipped: only prompts that it was not trained on are fed. trained: on the prompts of "
    "--train. folds, where fewer than "
    f"{LEAST_PROMPTS} are unseen: each prompt (by its checksum) scored with a prior that was trained on "
    "the other folds, and beforehand, so us_per_request of learned leaves some 5 us out. Neither is "
    "trained on answers of the served model's family (the first word of its name). "
    "drift rows: 3 tenants x 4 categories of labelled prompts with log-normal answers; errors against "
    "the uncorrected formula's, floor: the true median is known."
)


class Target(NamedTuple):
    """What ``learned`` has to reach on one model; errors in percent of the better constant's."""

    spearman: float
    with_embeddings: float
    mae: float
    rmse: float
    two_class_share: float


TARGETS = {
    "qwen1.5-1.8b": Target(0.30, 0.45, 3.0, 3.0, 0.30),
    "qwen1.5-7b": Target(0.42, 0.58, -15.0, -10.0, 0.40),
    "llama-3-8b": Target(0.45, 0.58, -15.0, -10.0, 0.40),
}
"""By the beginning of the model's name, in lower case and without "meta-"."""

FLOOR = Target(0.30, 0.35, 3.0, 3.0, 0.30)  # of any other model


class Running(Given):
    """A constant, whatever is asked: the running median or mean of the lengths so far. It bounds nothing."""

    def __init__(self, statistic: Callable[[Sequence[int]], float]) -> None:
        self._statistic = statistic
        self._seen: list[int] = []

    def estimate(self, request: Request) -> Estimate:
        point = float(self._statistic(self._seen)) if self._seen else 256.0
        return Estimate(0, point, nan, "short_qa", point)

    def observe(self, request: Request, outcome: Outcome) -> None:
        self._seen.append(outcome.output_tokens)


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


Knowing = tuple[Prior, Embed | None]
"""What ``learned`` is made with."""


def bench_estimate(
    lengths: Path,
    tell: Callable[[str], None],
    embeddings: str | None = None,
    folds: int = 10,
    training: Path | None = None,
) -> Result:
    """A few minutes. Raises BenchError when a file or the embedding model cannot be used."""
    if folds < 2:
        raise BadInput(f"{folds} folds: at least 2 are needed")
    data, known = _read(lengths), _read(training) if training is not None else None
    embed: Embed | None = None
    if embeddings is not None:
        tell("embedding every prompt")
        try:
            embed = cache(embedding_model(embeddings))
        except EmbeddingError as error:
            raise BenchError(str(error)) from None
        for prompt in (*data.prompts, *(known.prompts if known is not None else ())):
            embed(prompt[:MAX_CHARS])
    result = Result("estimate", PROTOCOL)
    for model in data.tokens:
        tell(f"{model}: {len(data.prompts)} prompts")
        rows = _model_rows(model, data, embed, folds, known)
        if rows[0]["prior"] == "none":
            tell(f"{model}: without `learned`, whose prior could only be made from this model's own answers")
        result.rows.extend(rows)
        result.claims.extend(_claims(model, {row["estimator"]: row for row in rows}))
    for drift in DRIFTS:
        tell(f"drift: {drift}")
        rows, claims = bench_drift(drift)
        result.rows.extend(rows)
        result.claims.extend(claims)
    return result


def _read(file: Path) -> Corpus:
    try:
        data = read_corpus(file)
    except ValueError as error:
        raise BadInput(str(error)) from None
    if len(data.prompts) < LEAST_PROMPTS:
        raise BadInput(f"{file.name!r} has {len(data.prompts)} prompts; {LEAST_PROMPTS} are needed")
    return data


def _fair(
    model: str, data: Corpus, embed: Embed | None, folds: int, known: Corpus | None
) -> tuple[list[int], list[Knowing], str]:
    """Which prompts to feed, what ``learned`` may know without and with embeddings, and where it is from.

    Of a file that the shipped prior knows, and that has no other family to learn from, it may know nothing.
    """
    uses = [None] if embed is None else [None, embed]
    seen = trained_on() if known is None else frozenset(map(prompt_key, known.prompts))
    unseen = [at for at, prompt in enumerate(data.prompts) if prompt_key(prompt) not in seen]
    if len(unseen) < LEAST_PROMPTS:
        prompts, lengths = data.prompts, _of_others(model, data)
        if not lengths[0]:
            return list(range(len(prompts))), [], "none"
        crossed = [_crossed(prompts, lengths, use, folds) for use in uses]
        return list(range(len(prompts))), crossed, f"{folds} folds"
    if known is None:
        return unseen, [(shipped_prior(use is not None), use) for use in uses], "shipped"
    prompts, lengths = known.prompts, _of_others(model, known)
    if not lengths[0]:
        return unseen, [], "none"
    return unseen, [(_trained(prompts, lengths, use), use) for use in uses], "trained"


def _trained(prompts: Sequence[str], lengths: Sequence[dict[str, int]], embed: Embed | None) -> Prior:
    return Prior.from_document(train(prompts, lengths, embed))


def _crossed(
    prompts: Sequence[str], lengths: Sequence[dict[str, int]], embed: Embed | None, folds: int
) -> Knowing:
    """A prior whose only feature is the score of one that was trained on the other folds."""
    scores: dict[str, list[float]] = {}
    priors = []
    for fold in range(folds):
        rest = [at for at, prompt in enumerate(prompts) if prompt_key(prompt) % folds != fold]
        prior = _trained([prompts[at] for at in rest], [lengths[at] for at in rest], embed)
        read = PromptReader(prior, len, embed)
        for prompt in prompts:
            if prompt_key(prompt) % folds == fold:
                request = Request("", "all", "standard", 0.0, 0, MAX_TOKENS, prompt)
                scores[prompt[:MAX_CHARS]] = [read(request).score]
        priors.append(prior)
    level, spread = (sum(values) / folds for values in zip(*(prior[:2] for prior in priors), strict=True))
    return NO_PRIOR._replace(level=level, spread=spread, embedding=(1.0,)), scores.__getitem__


def _of_others(model: str, data: Corpus) -> list[dict[str, int]]:
    """The lengths of each prompt's answers by models of other families, if any."""
    return data.of(name for name in data.tokens if _family(name) != _family(model))


def _family(model: str) -> str:
    return model.removeprefix("Meta-").lower().split("-")[0].rstrip("0123456789.")


def _estimators(knowing: Sequence[Knowing]) -> dict[str, Callable[[], Estimator]]:
    makers: dict[str, Callable[[], Estimator]] = {
        "oracle": lambda: estimator_from("oracle"),
        "running median": lambda: Running(median),
        "running mean": lambda: Running(_mean),
        "paper": lambda: estimator_from("paper"),
        "tenant": lambda: estimator_from("tenant"),
        "tenant mean": lambda: estimator_from("tenant", statistic="mean"),
    }
    for name, (prior, embed) in zip(("learned", EMBEDDED), knowing, strict=False):
        makers[name] = partial(estimator_from, "learned", prior=prior, embed=embed)
    return makers


def _model_rows(
    model: str, data: Corpus, embed: Embed | None, folds: int, known: Corpus | None
) -> list[dict[str, Any]]:
    fed, knowing, source = _fair(model, data, embed, folds, known)
    answers = [data.tokens[model][at] for at in fed]
    truth, most = np.array(answers, float), max(MAX_TOKENS, *answers)
    requests = [
        Request(str(at), "all", "standard", 0.0, data.counts[at], most, data.prompts[at], "", tokens)
        for at, tokens in zip(fed, answers, strict=True)
    ]
    rows: list[dict[str, Any]] = []
    fifo = percentiles(play(requests, truth.tolist(), "fifo"))
    gain: float | None = None  # the oracle's, who comes first; none where all answers are as long
    for name, make in _estimators(knowing).items():
        points, uppers, us = feed(make(), requests, answers)
        sjf, two = (percentiles(play(requests, points, policy)) for policy in ("sjf", "two-class"))
        gain = fifo.p50 - sjf.p50 if gain is None else gain
        guessed = np.array(points)
        mae, rmse = mae_rmse(guessed - truth)
        low, high = _interval(guessed, truth)
        rows.append(
            {
                "estimator": name,
                "model": model,
                "prior": source,
                "prompts": len(fed),
                "mae": mae,
                "rmse": rmse,
                "spearman": _spearman(guessed, truth),
                "spearman_low": low,
                "spearman_high": high,
                "coverage": None if isnan(uppers[0]) else float((truth <= np.array(uppers)).mean()),
                "us_per_request": us,
                "sjf_share": (fifo.p50 - sjf.p50) / gain if gain > 0 else None,
                "two_class_share": (fifo.p50 - two.p50) / gain if gain > 0 else None,
                "sjf_p99": sjf.p99 / fifo.p99 - 1,
                "two_class_p99": two.p99 / fifo.p99 - 1,
            }
        )
    return rows


def _claims(model: str, rows: dict[str, dict[str, Any]]) -> list[Claim]:
    if "learned" not in rows:
        return []
    name = model.lower().removeprefix("meta-")
    target = next((target for start, target in TARGETS.items() if name.startswith(start)), FLOOR)
    learned, constants = rows["learned"], (rows["running median"], rows["running mean"])
    at_least, at_most = Claim.at_least, Claim.at_most
    claims = [at_least(f"{model}: spearman", target.spearman, learned["spearman"])]
    if EMBEDDED in rows:
        ours = rows[EMBEDDED]["spearman"]
        claims.append(at_least(f"{model}: spearman with embeddings", target.with_embeddings, ours))
    for error, most in (("mae", target.mae), ("rmse", target.rmse)):
        if best := min(row[error] for row in constants):
            ours = (learned[error] / best - 1) * 100
            claims.append(at_most(f"{model}: {error} against the better constant, %", most, ours))
    if (share := learned["two_class_share"]) is not None:
        name = f"{model}: two-class' share of the oracle's gain"
        claims.append(at_least(name, target.two_class_share, share))
    return claims


def _spearman(points: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """0 where one side is constant."""
    return float(np.nan_to_num(spearman(points, truth)))


def _interval(points: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    drawn = [
        _spearman(points[chosen], truth[chosen])
        for chosen in (rng.integers(0, len(truth), len(truth)) for _ in range(RESAMPLES))
    ]
    low, high = np.quantile(drawn, [0.05, 0.95])
    return float(low), float(high)
