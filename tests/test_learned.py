"""The learned estimator: features by hand, censoring, drift, states; and the prior, on prompts made here."""

from __future__ import annotations

import math
import random
import runpy
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from scheduler.bench.estimate_drift import feed
from scheduler.core.conformal import MOST, Margin
from scheduler.core.features import BUCKETS, DENSE, MAX_CHARS, read
from scheduler.core.learned import CLIP, LearnedEstimator
from scheduler.core.prior import MOST_BEYOND, NO_PRIOR, TERMS, Prior, PromptReader
from scheduler.core.types import Outcome, Request
from scheduler.load.prior import shipped_prior
from scheduler.load.training import read_corpus, train
from scheduler.record.tally import spearman

np = pytest.importorskip("numpy")


def ask(prompt: str, name: str = "r", tenant: str = "acme", max_tokens: int = 4096, **given: Any) -> Request:
    return Request(name, tenant, "standard", 0.0, 10, max_tokens, prompt, **given)


def teach(estimator: LearnedEstimator, prompt: str, tokens: int, finish: str = "stop", **given: Any) -> None:
    request = ask(prompt, **given)
    request.estimate = estimator.estimate(request)
    estimator.observe(request, Outcome(finish, tokens))


# -- features ------------------------------------------------------------------------------------------


def test_features_by_hand() -> None:
    features = read('How to write a "short" poem?\nIn 2 lines')
    by_name = dict(zip(DENSE, features.dense, strict=True))
    assert by_name["words"] == pytest.approx(math.log1p(9))
    assert by_name["lines"] == pytest.approx(math.log1p(1))
    set_ones = {name for name, value in by_name.items() if value == 1.0}
    assert set_ones == {"many_lines", "quotes", "how_to", "first_how", "write", "brief", "fiction"}
    assert by_name["asks"] == 0.0, "it does not end with the question"
    assert by_name["digits"] == pytest.approx(5 / 39)
    assert len(features.buckets) == 9 + 8
    assert features.share == pytest.approx(1 / math.sqrt(17))
    assert all(0 <= bucket < BUCKETS for bucket in features.buckets)


@pytest.mark.parametrize("prompt", ["", " ", "\x00\x1b[2J", "?" * 10_000, "word " * 100_000, "\ud800"])
def test_hostile_prompts_are_read_too(prompt: str) -> None:
    features = read(prompt)
    assert all(map(math.isfinite, features.dense))
    assert features == read(prompt[:MAX_CHARS])


# -- learning ------------------------------------------------------------------------------------------

LONG = "Write a detailed essay on topic {}"
SHORT = "Who is number {}?"


def test_it_learns_which_prompts_have_long_answers() -> None:
    estimator, rng = LearnedEstimator(), random.Random(0)
    for n in range(300):
        kind = rng.choice((LONG, SHORT))
        teach(estimator, kind.format(n), round((800 if kind is LONG else 60) * math.exp(rng.gauss(0, 0.3))))
    long, short = (estimator.estimate(ask(kind.format("new"))) for kind in (LONG, SHORT))
    assert 600 < long.point < 1100
    assert 45 < short.point < 100
    assert long.point < long.upper < 3 * long.point


def test_a_tenant_of_its_own_kind_is_told_apart() -> None:
    estimator = LearnedEstimator()
    for n in range(400):
        teach(estimator, SHORT.format(n), 50, tenant="brief")
        teach(estimator, SHORT.format(n), 200, tenant="chatty")
    brief, chatty = (estimator.estimate(ask(SHORT.format("x"), tenant=t)).point for t in ("brief", "chatty"))
    assert chatty > 2.5 * brief
    assert estimator.bias("chatty", "short_qa") > estimator.bias("brief", "short_qa")


def test_where_one_category_changes_that_one_follows() -> None:
    """Reports become three times as long, from 400 tokens: after 20 of them, over several draws."""
    report, question = "Write a detailed report on trade", "What is DNS"
    points = []
    for seed in range(4):
        estimator, rng = LearnedEstimator(), random.Random(seed)
        for n in range(320):
            teach(estimator, report, round((400 if n < 300 else 1200) * math.exp(rng.gauss(0, 0.3))))
            teach(estimator, question, round(100 * math.exp(rng.gauss(0, 0.3))))
        points.append([estimator.estimate(ask(prompt)).point for prompt in (report, question)])
    reports, questions = (sum(each) / len(each) for each in zip(*points, strict=True))
    assert reports > 850
    assert questions < 119


def test_answers_that_were_cut_are_lower_bounds() -> None:
    """Log-normal answers of median 400, cut at 300: taken as they are, 300 would be the most believed."""
    estimator, rng = LearnedEstimator(), random.Random(1)
    for n in range(1500):
        tokens = round(400 * math.exp(rng.gauss(0, 0.5)))
        cut = tokens >= 300
        teach(estimator, SHORT.format(n), min(tokens, 300), "length" if cut else "stop", max_tokens=300)
    uncut = estimator.estimate(ask(SHORT.format("x"), max_tokens=301))
    assert uncut.point == 301
    level, slope, _ = estimator._plane.values
    estimator._plane.values = (level, slope, 0.0)  # only the level, for a cap that was never seen
    assert 330 < estimator.estimate(ask(SHORT.format("x"))).point < 520


@pytest.mark.parametrize("tokens", [100, 300, 500])
def test_a_cut_answer_teaches_what_the_mean_of_all_longer_ones_would(tokens: int) -> None:
    """Of a log-normal around the prior's 300 tokens, with its spread of 0.8."""
    z, normal = math.log(tokens / 300) / 0.8, NormalDist()
    mean = 300 * math.exp(0.8 * normal.pdf(z) / (1 - normal.cdf(z)))
    cut, whole = LearnedEstimator(), LearnedEstimator()
    teach(cut, "?", tokens, "length", max_tokens=1024)
    teach(whole, "?", round(mean), max_tokens=1024)
    category = "short_qa"
    assert cut.bias("acme", category) == pytest.approx(whole.bias("acme", category), rel=1e-3)


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_a_stream_that_broke_off_early_says_next_to_nothing(finish: str) -> None:
    estimator = LearnedEstimator()
    before = estimator.estimate(ask(SHORT)).point
    for n in range(50):
        teach(estimator, SHORT.format(n), 5, finish)
    assert estimator.estimate(ask(SHORT)).point == pytest.approx(before, rel=0.02)
    for n in range(200):
        teach(estimator, SHORT.format(n), 3000, finish)
    assert estimator.estimate(ask(SHORT)).point > 2 * before


def test_late_feedback_does_not_make_it_overshoot() -> None:
    """The same few prompts, each answer known 32 requests later: steps that add up must still settle."""
    prompts = [LONG.format("x"), SHORT.format("x")] * 1000
    requests = [ask(prompt, str(n)) for n, prompt in enumerate(prompts)]
    points, _, _ = feed(LearnedEstimator(), requests, [600, 60] * 1000)
    late = points[1000:]
    assert max(late[::2]) < 1.15 * 600
    assert min(late[::2]) > 0.9 * 600
    assert max(late[1::2]) < 1.15 * 60
    assert min(late[1::2]) > 0.9 * 60


def test_no_prompt_goes_by_the_label() -> None:
    estimator = LearnedEstimator()
    for _ in range(300):
        teach(estimator, "", 900, category="report")
        teach(estimator, "", 30, category="short_qa")
    report, short = (estimator.estimate(ask("", category=c)) for c in ("report", "short_qa"))
    assert report.category == "report"
    assert report.point > 3 * short.point


def test_nothing_learned_is_the_prior_a_tenth_of_the_way_to_the_mean() -> None:
    prior = NO_PRIOR._replace(level=math.log(200), spread=0.5)
    estimate = LearnedEstimator(prior=prior).estimate(ask(SHORT))
    assert estimate.uncorrected == pytest.approx(200)
    assert estimate.point == pytest.approx(200 * math.exp(0.1 * 0.5**2))
    assert estimate.upper == pytest.approx(estimate.point * math.exp(1.28 * 0.5)), "nine in ten of a normal"


def test_never_above_max_tokens() -> None:
    estimate = LearnedEstimator().estimate(ask(LONG, max_tokens=7))
    assert (estimate.point, estimate.upper, estimate.uncorrected) == (7, 7, 7)


# -- the upper bound -----------------------------------------------------------------------------------


def test_the_margin_covers_nine_in_ten_through_drift() -> None:
    margin, rng = Margin(), random.Random(2)
    hits = 0
    for n in range(6000):
        actual = 100 * math.exp(rng.gauss(0.0 if n < 3000 else 0.7, 0.4 if n < 3000 else 0.8))
        upper = 100.0 * margin.factor
        hits += actual <= upper
        margin.observe(upper, actual, censored=False)
    assert hits / 6000 == pytest.approx(0.9, abs=0.01)


def test_the_margin_stays_between_nothing_and_its_most() -> None:
    margin = Margin(start=99.0)
    assert margin.factor == pytest.approx(math.exp(MOST))
    margin.observe(1.0, 2.0, censored=False)
    assert margin.factor == pytest.approx(math.exp(MOST))
    for _ in range(1000):
        margin.observe(2.0, 1.0, censored=False)
    assert margin.factor == 1.0


def test_a_bound_that_was_not_reached_by_a_broken_stream_is_no_hit() -> None:
    margin = Margin()
    before = margin.factor
    margin.observe(100.0, 50.0, censored=True)
    assert margin.factor == before
    margin.observe(100.0, 150.0, censored=True)
    assert margin.factor > before


# -- states --------------------------------------------------------------------------------------------


def test_state_round_trips() -> None:
    estimator, again = LearnedEstimator(), LearnedEstimator()
    for n in range(40):
        teach(estimator, (LONG, SHORT)[n % 2].format(n), 20 + 30 * n)
    again.restore(estimator.state())
    for prompt in (LONG, SHORT, "something else"):
        assert again.estimate(ask(prompt)) == estimator.estimate(ask(prompt))
    assert again.state() == estimator.state()


@pytest.mark.parametrize(
    "change",
    [
        *({"kind": "paper"}, {"features": []}, {"weights": [1, 2]}, {"terms": [[0, math.nan]]}),
        *({"terms": [[TERMS, 1.0]]}, {"variance": 0}, {"offsets": [["t", "poem", 1.0]]}, {"margin": None}),
        {"offsets": [["t", None, 0.0, 1.0]], "sums": {"t": [1.0]}},
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: dict[str, Any]) -> None:
    estimator = LearnedEstimator()
    teach(estimator, SHORT, 77)
    before = estimator.state()
    with pytest.raises(ValueError, match="not a state of the learned estimator"):
        estimator.restore({**LearnedEstimator().state(), **change})
    assert estimator.state() == before


# -- the prior -----------------------------------------------------------------------------------------

OPENINGS = {"Write a long story about {}": 900, "List ten ideas for {}": 400, "Is {} a city?": 50}
WORDS = [f"{a}{b}" for a in ("river", "mountain", "engine", "garden", "window") for b in range(40)]


def corpus(rng: random.Random, subjects: list[str]) -> tuple[list[str], list[dict[str, int]]]:
    prompts, lengths = [], []
    for subject in subjects:
        opening, middle = rng.choice(list(OPENINGS.items()))
        prompts.append(opening.format(subject))
        lengths.append({m: round(middle * s * math.exp(rng.gauss(0, 0.4))) for m, s in (("a", 1), ("b", 2))})
    return prompts, lengths


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_prior_knows_unseen_prompts_unless_its_labels_were_shuffled(shuffled: bool) -> None:
    rng = random.Random(3)
    known, unseen = corpus(rng, WORDS[:120]), corpus(rng, WORDS[120:])
    scores = []
    for _ in range(10 if shuffled else 1):
        lengths = list(known[1])
        if shuffled:
            rng.shuffle(lengths)
        estimator = LearnedEstimator(prior=Prior.from_document(train(known[0], lengths)))
        points = np.array([estimator.estimate(ask(prompt)).point for prompt in unseen[0]])
        scores.append(spearman(points, np.array([row["a"] for row in unseen[1]], float)))
    mean = sum(scores) / len(scores)
    assert (abs(mean) < 0.3) if shuffled else (mean > 0.7)


def test_prompts_score_as_they_were_trained_odd_ones_too() -> None:
    """With the level that the estimator itself would come to: there, errors that are bounded even out."""
    prompts, lengths = corpus(random.Random(4), WORDS[:60])
    prompts.append("WHO? " * 30 + "\n" * 200)
    lengths.append({"a": 5, "b": 10})
    prior = Prior.from_document(train(prompts, lengths))
    read, most = PromptReader(prior, len), CLIP * prior.spread
    errors = [
        math.log(tokens) - prior.level - prior.beyond(read(ask(prompt)).score)
        for prompt, row in zip(prompts, lengths, strict=True)
        for tokens in row.values()
    ]
    assert min(errors) < -most < most < max(errors)
    assert sum(max(-most, min(most, error)) for error in errors) / len(errors) == pytest.approx(0, abs=2e-3)


def test_scores_are_steps_of_the_length_and_a_hundred_that_flatten_out_upwards() -> None:
    prior = NO_PRIOR._replace(level=math.log(300))
    tokens = [300 * math.exp(prior.beyond(score)) for score in (0, math.log(0.4), -9, math.log(1.1), 9)]
    assert tokens[:3] == pytest.approx([300, 60, 30])
    assert tokens[3] == pytest.approx(340, rel=0.01)
    assert tokens[4] == pytest.approx(300 * math.exp(MOST_BEYOND))


def test_the_shipped_prior_fits_the_features_and_tells_kinds_apart() -> None:
    estimator = LearnedEstimator(prior=shipped_prior())
    essay = estimator.estimate(ask("Write a detailed essay about the history of the Roman Empire."))
    word = estimator.estimate(ask("Classify the sentiment of this sentence as positive or negative: I'm ok"))
    assert essay.point > 1.5 * word.point
    assert NO_PRIOR.level < 10


def test_a_prior_of_other_features_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run tools/train_prior\.py again"):
        Prior.from_document({"features": ["words"], "words": []})


def test_lengths_that_cannot_be_read_name_the_line(tmp_path: Path) -> None:
    file = tmp_path / "lengths.jsonl"
    file.write_text('{"prompt": "\u2028", "output_tokens": {"m": 3}}\n{"prompt": "b", "output_tokens": 3}\n')
    with pytest.raises(ValueError, match=r"'lengths.jsonl' line 2: output_tokens must be a number, or one"):
        read_corpus(file)


def test_training_says_what_it_cannot_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = Path(__file__).parent.parent / "tools" / "train_prior.py"
    main = runpy.run_path(str(tool))["main"]
    file = tmp_path / "lengths.jsonl"
    file.write_text('{"prompt": "a", "output_tokens": {"Qwen1.5-7B": 3}}\n')
    for names, says in ((["Qwen1.5-7b"], "did you mean 'Qwen1.5-7B'"), (["Qwen1.5-7B"], "nothing is left")):
        with pytest.raises(SystemExit):
            main([str(file), *(f"--leave-out={name}" for name in names)])
        assert says in capsys.readouterr().err
