"""Estimates against figures worked out by hand from the published formula, and without its quirks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from core_kit import make_request
from hypothesis import given
from hypothesis import strategies as st

from scheduler.core.estimate import (
    Oracle,
    PaperEstimator,
    classify,
    count_words,
    input_factor,
    reading_once,
)
from scheduler.core.estimators import ESTIMATORS, estimator_from
from scheduler.core.types import CATEGORIES, Outcome, Request, runtime_class

# A prompt of each category, by its label; ten words each.
PROMPTS = {
    "short_qa": "what is DNS and why do we all need it",
    "summary": "Summarize what DNS is and why we all need it",
    "technical": "Explain the architecture of DNS and why we need it",
    "report": "Write a detailed text on DNS and why we need",
}


def request_for(category: str, *, tenant: str = "globex", **given: Any) -> Request:
    return make_request("r", tenant, prompt=PROMPTS[category], **given)


def learned(estimator: PaperEstimator, category: str, *outputs: int, finish: str = "stop") -> float:
    """The category's bias after answers of these lengths."""
    for tokens in outputs:
        request = request_for(category)
        request.estimate = estimator.estimate(request)
        estimator.observe(request, Outcome(finish, tokens))
    return estimator.bias("globex", category)


# -- classification and counting -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("", "short_qa"),
        ("how does a load balancer work", "short_qa"),
        ("Summarize this", "summary"),
        ("a summary of it", "summary"),
        ("SUMMARIZE THIS", "summary"),
        ("write a Report", "report"),
        ("be detailed", "report"),
        ("a COMPREHENSIVE text", "report"),
        ("the Architecture of Kafka", "technical"),
        ("some code", "technical"),
        ("technical details", "technical"),
        ("encoder", "technical"),  # occurrences, not words
        ("summary or report", "summary"),  # one each: the first of the table
        ("report with code", "report"),
        ("code in a summary", "summary"),
        ("code, code and a summary", "technical"),  # two to one
        ("a report, a detailed one, with a summary and code", "report"),
        ("summarize the summary in a detailed report", "summary"),  # two each
        ("summarize, then summarize; report, report, report", "report"),
    ],
)
def test_classification(prompt: str, category: str) -> None:
    assert classify(prompt) == category


def test_counting_whitespace_words() -> None:
    assert count_words("  two \n words\t") == 2
    assert count_words("") == 0


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (0, "short"),
        (128, "short"),
        (129, "medium"),
        (512, "medium"),
        (513, "long"),
        (128.5, "medium"),
        (512.5, "long"),
    ],
)
def test_borders_of_the_runtime_classes(budget: float, expected: str) -> None:
    assert runtime_class(budget) == expected


@pytest.mark.parametrize(("tokens", "factor"), [(0, 1.0), (10, 1.01), (500, 1.5), (501, 1.5), (10**6, 1.5)])
def test_input_factor(tokens: int, factor: float) -> None:
    assert input_factor(tokens) == factor


# -- the published estimator ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("category", "tenant", "point", "kind"),
    [
        # int(base x 1.0 x safety x 1.01), ten words in
        ("short_qa", "acme", 77, "short"),  # 64 x 1.2 x 1.01 = 77.568
        ("short_qa", "globex", 64, "short"),  # 64.64
        ("short_qa", "initech", 51, "short"),  # 51.712
        ("summary", "acme", 310, "medium"),  # 310.272
        ("summary", "initech", 206, "medium"),  # 206.848
        ("technical", "globex", 387, "medium"),  # 387.84
        ("technical", "acme", 465, "medium"),  # 465.408
        ("report", "acme", 620, "long"),  # 620.544
        ("report", "globex", 517, "long"),  # 517.12
        ("report", "initech", 413, "medium"),  # 413.696: the safety factor moves it to another class
    ],
)
def test_faithful_figures(category: str, tenant: str, point: int, kind: str) -> None:
    estimate = PaperEstimator(faithful=True).estimate(request_for(category, tenant=tenant))
    assert (estimate.category, estimate.input_tokens) == (category, 10)
    assert (estimate.point, estimate.uncorrected) == (point, point)
    assert estimate.budget == point + 10
    assert estimate.runtime_class == kind


def test_faithful_goes_past_max_tokens() -> None:
    request = request_for("report", tenant="acme", max_tokens=512)
    assert PaperEstimator(faithful=True).estimate(request).point == 620


def test_calibration_by_hand() -> None:
    estimator = PaperEstimator(faithful=True)
    assert learned(estimator, "summary", 512) == pytest.approx(1.1)  # 0.9 x 1 + 0.1 x 512/256
    assert learned(estimator, "summary", 128) == pytest.approx(1.04)  # 0.9 x 1.1 + 0.1 x 128/256
    estimate = estimator.estimate(request_for("summary", tenant="acme"))
    assert estimate.point == 322  # 256 x 1.04 x 1.2 x 1.01 = 322.68
    assert estimate.uncorrected == 310
    others = {category: estimator.bias("globex", category) for category in CATEGORIES}
    assert others == {**dict.fromkeys(CATEGORIES, 1.0), "summary": pytest.approx(1.04)}


@pytest.mark.parametrize(
    ("output", "bias"),
    [
        (0, 0.925),  # measured 0 counts as 0.25
        (16, 0.925),  # 0.25 exactly
        (15, 0.925),
        (17, 0.9265625),
        (192, 1.2),  # 3 exactly
        (193, 1.2),
        (100_000, 1.2),
    ],
)
@pytest.mark.parametrize("faithful", [True, False])
def test_measured_is_kept_between_a_quarter_and_three(output: int, bias: float, faithful: bool) -> None:
    assert learned(PaperEstimator(faithful=faithful), "short_qa", output) == pytest.approx(bias)


def test_faithful_takes_cut_answers_as_they_are_and_leaves_out_what_did_not_end() -> None:
    assert learned(PaperEstimator(faithful=True), "short_qa", 32, finish="length") == pytest.approx(0.95)
    for finish in ("abort", "error"):
        assert learned(PaperEstimator(faithful=True), "short_qa", 640, finish=finish) == 1.0


@pytest.mark.parametrize("faithful", [True, False])
def test_without_calibration_nothing_is_learned(faithful: bool) -> None:
    estimator = PaperEstimator(calibrate=False, faithful=faithful)
    assert learned(estimator, "report", 2000, 2000) == 1.0
    assert estimator.name == "paper (no calibration)"


def test_the_counter_is_the_one_that_was_given() -> None:
    estimate = PaperEstimator(counter=len, faithful=True).estimate(request_for("short_qa"))
    assert estimate.input_tokens == len(PROMPTS["short_qa"]) == 37
    assert estimate.point == 66  # 64 x 1.037


# -- without the quirks --------------------------------------------------------------------------------


def test_the_safety_factor_does_not_tilt_the_ranking() -> None:
    points = {
        PaperEstimator().estimate(request_for("report", tenant=tenant)).point
        for tenant in ("acme", "globex", "initech")
    }
    assert points == {517}


@given(
    st.sampled_from(CATEGORIES),
    st.integers(1, 2000),
    st.lists(st.integers(0, 4000), max_size=20),
)
def test_an_estimate_is_at_least_one_and_at_most_max_tokens(
    category: str, max_tokens: int, outputs: list[int]
) -> None:
    estimator = PaperEstimator()
    learned(estimator, category, *outputs)
    estimate = estimator.estimate(request_for(category, max_tokens=max_tokens))
    assert 1 <= estimate.point <= estimate.upper <= max_tokens


@given(
    st.lists(
        st.tuples(st.sampled_from(["stop", "length", "abort", "error"]), st.integers(0, 600)), max_size=30
    )
)
def test_a_cut_answer_never_lowers_the_bias(endings: list[tuple[str, int]]) -> None:
    estimator = PaperEstimator()
    for finish, tokens in endings:
        before = estimator.bias("globex", "summary")
        after = learned(estimator, "summary", tokens, finish=finish)
        if finish != "stop":
            assert after >= before


def test_a_cut_answer_longer_than_believed_raises_the_bias() -> None:
    assert learned(PaperEstimator(), "short_qa", 128, finish="length") == pytest.approx(1.1)
    assert learned(PaperEstimator(), "short_qa", 63, finish="length") == 1.0


def test_a_short_prompt_is_read_once_and_no_more_are_kept_than_that() -> None:
    read: list[str] = []

    def length(prompt: str) -> int:
        read.append(prompt)
        return len(prompt)

    look = reading_once(length)
    assert [look("what is DNS"), look("what is DNS"), look("x" * 5000), look("x" * 5000)] == [
        11,
        11,
        5000,
        5000,
    ]
    assert [len(prompt) for prompt in read] == [11, 5000, 5000]
    for number in range(5000):
        look(str(number))
    assert look("what is DNS") == 11
    assert read.count("what is DNS") == 2, "so many others came that it was forgotten"


def test_a_request_without_a_prompt_goes_by_its_own_label_and_count() -> None:
    request = make_request("r", prompt_tokens=500, category="technical")
    estimate = PaperEstimator().estimate(request)
    assert (estimate.category, estimate.input_tokens, estimate.point) == ("technical", 500, 576)
    assert PaperEstimator().estimate(make_request("r")).category == "short_qa"


def test_the_label_of_the_load_is_not_looked_at_where_there_is_a_prompt() -> None:
    request = request_for("summary")
    request.category = "report"
    assert PaperEstimator().estimate(request).category == "summary"


# -- keeping what was learned ---------------------------------------------------------------------------


def test_state_makes_the_round_trip_through_json() -> None:
    taught = PaperEstimator()
    learned(taught, "summary", 512, 700)
    learned(taught, "report", 100)
    heir = PaperEstimator()
    heir.restore(json.loads(json.dumps(taught.state())))
    for category in CATEGORIES:
        assert heir.bias("globex", category) == taught.bias("globex", category)
        assert heir.estimate(request_for(category)) == taught.estimate(request_for(category))


def test_a_state_is_a_copy() -> None:
    estimator = PaperEstimator()
    state = estimator.state()
    learned(estimator, "summary", 512)
    assert state["bias"]["summary"] == 1.0


BIAS = dict.fromkeys(CATEGORIES, 2.0)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"kind": "oracle"},
        {"kind": "ridge", "bias": BIAS},
        {"kind": "paper"},
        {"kind": "paper", "bias": {"summary": 1.0}},
        {"kind": "paper", "bias": {**BIAS, "poem": 1.0}},
        {"kind": "paper", "bias": {**BIAS, "summary": None}},
        {"kind": "paper", "bias": {**BIAS, "summary": "2"}},
        {"kind": "paper", "bias": {**BIAS, "summary": float("nan")}},
        {"kind": "paper", "bias": {**BIAS, "summary": -1.0}},
        {"kind": "paper", "bias": [1.0, 1.0, 1.0, 1.0]},
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(state: dict[str, Any]) -> None:
    estimator = PaperEstimator()
    with pytest.raises(ValueError, match="not a state of the paper estimator"):
        estimator.restore(state)
    assert estimator.state() == PaperEstimator().state()


# -- the oracle, and estimators by name -----------------------------------------------------------------


def test_the_oracle_knows_what_will_be_generated() -> None:
    assert Oracle().estimate(make_request("r", tokens=300)).point == 300
    cut = Oracle().estimate(make_request("r", tokens=300, max_tokens=100))
    assert (cut.point, cut.upper, cut.budget, cut.runtime_class) == (100, 100, 110, "short")


def test_the_oracle_needs_simulated_lengths() -> None:
    with pytest.raises(ValueError, match="request r: the oracle needs simulated lengths"):
        Oracle().estimate(Request("r", "acme", "premium", 0.0, 1, 1))


def test_the_oracle_has_nothing_to_keep() -> None:
    Oracle().restore(Oracle().state())
    with pytest.raises(ValueError, match="not a state of the oracle"):
        Oracle().restore(PaperEstimator().state())


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_estimators_by_name(kind: str) -> None:
    assert estimator_from(kind).name == kind


def test_an_unknown_estimator() -> None:
    with pytest.raises(
        ValueError, match="unknown estimator 'crystal ball'; allowed: paper, tenant, learned, oracle"
    ):
        estimator_from("crystal ball")
