"""``driftsched bench estimate``: every estimator on real prompts in online order, and under drift."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.bench.drift import DRIFTS, FEEDBACK_DELAY, bench_drift, feed
from scheduler.bench.replay import play
from scheduler.bench.result import BadInput, BenchError, Claim, Result
from scheduler.core.estimate import Estimator
from scheduler.core.estimators import estimator_from
from scheduler.core.metrics import percentiles
from scheduler.core.prior import Embed, Prior
from scheduler.core.types import Request
from scheduler.load.embedding import EmbeddingError, embedding_model
from scheduler.load.prior import prompt_key, shipped_prior, train, trained_on

MAX_TOKENS = 8192  # no answer of these files is cut
RESAMPLES = 300
FOLDS = 2
EMBEDDED = "learned+embeddings"

PROTOCOL = (
    f"Prompts in the file's order, one tenant, max_tokens {MAX_TOKENS}; each answer is learned from "
    f"{FEEDBACK_DELAY} requests after its prompt was estimated. Beside the estimators the running "
    "median and mean of what was learned so far. mae, rmse in tokens; spearman with the true lengths, "
    f"its interval from {RESAMPLES} bootstrap resamples (5-95 %); coverage: share of answers at or "
    "below the upper estimate; us_per_request: median wall time of estimate and observe together. "
    "sjf_share, two_class_share: P50 gain over FIFO when these estimates order a burst of the same "
    "prompts in the twin (L4, 32 slots, continuous), as a share of oracle SJF's; *_p99: P99 against "
    "FIFO's. Where the shipped prior was trained on a prompt of the file, priors are trained anew: "
    f"{FOLDS} folds of the prompts, each scored with a prior that has seen neither its prompts nor any "
    "model of the served one's family (the first word of its name); rows are means over the folds. "
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


class Running:
    """A constant: the running median or mean of the lengths learned so far."""

    def __init__(self, statistic: str) -> None:
        self.name = f"running {statistic}"
        self._statistic = statistic
        self._seen: list[int] = []

    def value(self) -> float:
        if not self._seen:
            return 256.0
        return float(median(self._seen) if self._statistic == "median" else sum(self._seen) / len(self._seen))

    def add(self, tokens: int) -> None:
        self._seen.append(tokens)


def bench_estimate(lengths: Path, tell: Callable[[str], None], embeddings: str | None = None) -> Result:
    """A few minutes. Raises BenchError when the file or the embedding model cannot be used."""
    prompts, counts, tokens = _read(lengths)
    embed: Embed | None = None
    if embeddings is not None:
        tell("embedding every prompt")
        try:
            read = embedding_model(embeddings)
        except EmbeddingError as error:
            raise BenchError(str(error)) from None
        embed = {prompt: read(prompt) for prompt in prompts}.__getitem__
    result = Result("estimate", PROTOCOL)
    for model, answers in tokens.items():
        tell(f"{model}: {len(prompts)} prompts")
        rows = _model_rows(model, prompts, counts, answers, tokens, embed)
        result.rows.extend(rows)
        result.claims.extend(_claims(model, {row["estimator"]: row for row in rows}))
    for drift in DRIFTS:
        tell(f"drift: {drift}")
        rows, claims = bench_drift(drift)
        result.rows.extend(rows)
        result.claims.extend(claims)
    return result


def _read(file: Path) -> tuple[list[str], list[int], dict[str, list[int]]]:
    """Prompts, their token counts, and the answers' tokens by model."""
    prompts: list[str] = []
    counts: list[int] = []
    tokens: dict[str, list[int]] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file.name!r} cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            prompt, answers = row["prompt"], row["output_tokens"]
            by_model = answers if isinstance(answers, dict) else {"model": answers}
            assert isinstance(prompt, str)
            if prompts and by_model.keys() != tokens.keys():
                raise ValueError
            for model, count in by_model.items():
                tokens.setdefault(str(model), []).append(max(1, int(count)))
            counts.append(int(row.get("prompt_tokens") or len(prompt.split())))
            prompts.append(prompt)
        except (ValueError, KeyError, TypeError, AssertionError):
            wanted = (
                "prompt (text) and output_tokens (a number, or one for each model, the same in every line)"
            )
            raise BadInput(f"{file.name!r} line {number}: an object with {wanted} is needed") from None
    if len(prompts) < 4 * FEEDBACK_DELAY:
        raise BadInput(f"{file.name!r} has {len(prompts)} prompts; {4 * FEEDBACK_DELAY} are needed")
    return prompts, counts, tokens


def _folds(
    model: str, prompts: Sequence[str], tokens: dict[str, list[int]], embed: Embed | None
) -> list[tuple[list[int], list[Prior], str]]:
    """Which prompts to feed, with priors (without and with embeddings) that have not seen them."""
    uses = [None] if embed is None else [None, embed]
    if not trained_on() & {prompt_key(prompt) for prompt in prompts}:
        return [(list(range(len(prompts))), [shipped_prior(use is not None) for use in uses], "shipped")]
    others = [name for name in tokens if _family(name) != _family(model)]
    if not others:
        raise BenchError("the shipped prior knows these prompts, and no other model is there to train one")
    folds = []
    for fold in range(FOLDS):
        fed = [at for at in range(len(prompts)) if at % FOLDS == fold]
        rest = [at for at in range(len(prompts)) if at % FOLDS != fold]
        lengths = [{name: tokens[name][at] for name in others} for at in rest]
        known = [prompts[at] for at in rest]
        priors = [Prior.from_document(train(known, lengths, use)) for use in uses]
        folds.append((fed, priors, "held out"))
    return folds


def _family(model: str) -> str:
    return model.removeprefix("Meta-").lower().split("-")[0].rstrip("0123456789.")


def _estimators(priors: Sequence[Prior], embed: Embed | None) -> dict[str, Callable[[], Estimator | Running]]:
    makers: dict[str, Callable[[], Estimator | Running]] = {
        "running median": lambda: Running("median"),
        "running mean": lambda: Running("mean"),
        "paper": lambda: estimator_from("paper"),
        "tenant": lambda: estimator_from("tenant"),
        "tenant mean": lambda: estimator_from("tenant", statistic="mean"),
        "learned": lambda: estimator_from("learned", prior=priors[0]),
        "oracle": lambda: estimator_from("oracle"),
    }
    if embed is not None:
        makers[EMBEDDED] = lambda: estimator_from("learned", prior=priors[1], embed=embed)
    return makers


def _model_rows(
    model: str,
    prompts: Sequence[str],
    counts: Sequence[int],
    answers: Sequence[int],
    tokens: dict[str, list[int]],
    embed: Embed | None,
) -> list[dict[str, Any]]:
    by_estimator: dict[str, list[dict[str, Any]]] = {}
    folds = _folds(model, prompts, tokens, embed)
    for fed, priors, _ in folds:
        requests = [
            Request(str(at), "all", "standard", 0.0, counts[at], MAX_TOKENS, prompts[at], "", answers[at])
            for at in fed
        ]
        baseline: tuple[float, float, float] | None = None
        makers = _estimators(priors, embed)
        for name, make in {"oracle": makers["oracle"], **makers}.items():
            points, uppers, us = feed(make(), requests, [answers[at] for at in fed])
            fifo, sjf, two = (
                percentiles(play(requests, points, policy)) for policy in ("fifo", "sjf", "two-class")
            )
            if baseline is None:
                baseline = (fifo.p50, fifo.p99, fifo.p50 - sjf.p50)
            p50, p99, gain = baseline
            truth = np.array([answers[at] for at in fed], float)
            error = np.array(points) - truth
            low, high = _interval(np.array(points), truth)
            by_estimator.setdefault(name, []).append(
                {
                    "mae": float(np.abs(error).mean()),
                    "rmse": float(np.sqrt((error**2).mean())),
                    "spearman": spearman(np.array(points), truth),
                    "spearman_low": low,
                    "spearman_high": high,
                    "coverage": float((truth <= np.array(uppers)).mean()) if uppers else None,
                    "us_per_request": us,
                    "sjf_share": (p50 - sjf.p50) / gain,
                    "two_class_share": (p50 - two.p50) / gain,
                    "sjf_p99": sjf.p99 / p99 - 1,
                    "two_class_p99": two.p99 / p99 - 1,
                }
            )
    head = {"model": model, "prior": folds[0][2], "prompts": len(prompts)}
    return [
        {"estimator": name, **head, **{key: _mean([row[key] for row in rows]) for key in rows[0]}}
        for name, rows in by_estimator.items()
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _claims(model: str, rows: dict[str, dict[str, Any]]) -> list[Claim]:
    name = model.lower().removeprefix("meta-")
    target = next((target for start, target in TARGETS.items() if name.startswith(start)), FLOOR)
    learned, constants = rows["learned"], (rows["running median"], rows["running mean"])
    claims = [_at_least(f"{model}: spearman", target.spearman, learned["spearman"])]
    if EMBEDDED in rows:
        with_embeddings = rows[EMBEDDED]["spearman"]
        claims.append(
            _at_least(f"{model}: spearman with embeddings", target.with_embeddings, with_embeddings)
        )
    for error, most in (("mae", target.mae), ("rmse", target.rmse)):
        ours = (learned[error] / min(row[error] for row in constants) - 1) * 100
        claims.append(Claim(f"{model}: {error} against the better constant, %", most, ours, ours <= most))
    share = learned["two_class_share"]
    return [
        *claims,
        _at_least(f"{model}: two-class' share of the oracle's gain", target.two_class_share, share),
    ]


def _at_least(name: str, target: float, ours: float) -> Claim:
    return Claim(name, target, ours, ours >= target)


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Rank correlation, ties at their mean rank; 0 where one side is constant."""
    x, y = _ranks(a), _ranks(b)
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[inverse]
    return ranks


def _interval(points: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    drawn = [
        spearman(points[chosen], truth[chosen])
        for chosen in (rng.integers(0, len(truth), len(truth)) for _ in range(RESAMPLES))
    ]
    low, high = np.quantile(drawn, [0.05, 0.95])
    return float(low), float(high)
