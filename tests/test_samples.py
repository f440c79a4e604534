"""Files of prompts and lengths: what a stream takes from them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_workload import POISSON, requests, scenario

from scheduler.core.types import CATEGORIES
from scheduler.load.scenario import ScenarioError
from scheduler.load.workload import Workload


def test_a_file_of_prompts_may_begin_with_a_mark_and_hold_an_empty_answer(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('\ufeff{"prompt": "Why?", "output_tokens": 0}\n')
    for key in ("lengths", "prompts"):
        one, *_ = requests(
            Workload(scenario(tmp_path, {**POISSON, "count": 1, key: {"file": "p.jsonl"}}), seed=1)
        )
        assert (one.prompt, one.intended_tokens) == ("Why?", 1), "its end was a token, too"


def test_real_prompts_keep_their_lengths(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {n}?", "prompt_tokens": 3, "output_tokens": {"m": 100 + n}} for n in range(20)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = {**POISSON, "count": 20, "lengths": {"file": "p.jsonl", "model": "m"}}
    seen = requests(Workload(scenario(tmp_path, stream), seed=1))
    assert {r.prompt: r.intended_tokens for r in seen} == {f"Question {n}?": 100 + n for n in range(20)}
    assert {r.prompt_tokens for r in seen} == {3}
    # Where a mix is asked for, prompts are made of it, and the file gives lengths alone.
    mixed = {**stream, "mix": {"report": 1}, "max_tokens": {"report": 64}}
    seen = requests(Workload(scenario(tmp_path, mixed), seed=1))
    assert {r.category for r in seen} == {"report"}
    assert {r.intended_tokens for r in seen} == set(range(100, 120))


def test_lengths_that_are_asked_for_go_before_those_beside_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "Why?", "output_tokens": 50}\n')
    (tmp_path / "m.jsonl").write_text('{"prompt": "Why?", "output_tokens": {"m": 50, "n": 60}}\n')
    always_7 = {"lognormal": dict.fromkeys(CATEGORIES, (7, 1e-6))}

    def lengths(**keys: Any) -> set[int | None]:
        return {
            r.intended_tokens for r in requests(Workload(scenario(tmp_path, {**POISSON, **keys}), seed=1))
        }

    assert lengths(prompts={"file": "p.jsonl"}) == {50}
    assert lengths(prompts={"file": "p.jsonl"}, lengths=always_7) == {7}
    assert len(lengths(prompts={"file": "m.jsonl"})) > 20  # of no model in particular
    assert lengths(prompts={"file": "p.jsonl"}, lengths={"file": "m.jsonl", "model": "n"}) == {60}


@pytest.mark.parametrize(
    ("key", "row", "problem"),
    [
        ("lengths", [10], "'p.jsonl' line 2: not a JSON object"),
        (
            "prompts",
            {"prompt": "a", "category": "reprot"},
            "line 2: unknown category 'reprot'; allowed: .*'report'",
        ),
        ("prompts", {"prompt": "a", "category": [5]}, r"line 2: unknown category \[5\]; allowed: short_qa"),
        (
            "lengths",
            {"output_tokens": {"m": 5}},
            "line 2: output_tokens is given for each model: `model` is needed",
        ),
        ("lengths", {"prompt": "a"}, "'p.jsonl' line 2: output_tokens is needed"),
        ("lengths", {"output_tokens": None}, "'p.jsonl' line 2: output_tokens is needed"),
        ("lengths", {"output_tokens": -1}, "'p.jsonl' line 2: output_tokens -1 is not a number of tokens"),
        ("prompts", {"output_tokens": 5}, "'p.jsonl' line 2: prompt is needed"),
        ("prompts", {"prompt": ""}, "'p.jsonl' line 2: prompt is needed"),
    ],
)
def test_a_line_without_what_is_asked_of_it_is_refused(
    tmp_path: Path, key: str, row: object, problem: str
) -> None:
    good = {"prompt": "a", "output_tokens": 10.0}
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(ScenarioError, match=problem):
        scenario(tmp_path, {**POISSON, "count": 1, key: {"file": "p.jsonl"}})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("\n", "'p.jsonl' holds no lines"),
        ('{"output_tokens": {"m": 5}}\n' * 3, "'p.jsonl': more than 2 lines, the most allowed"),
        ('{"output_tokens": {"n": 5}}\n', "line 1: no output_tokens for the model 'm'; allowed: n"),
    ],
)
def test_a_file_that_is_of_no_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    monkeypatch.setattr("scheduler.load.samples.MAX_SAMPLES", 2)
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(ScenarioError, match=problem):
        scenario(tmp_path, {**POISSON, "count": 1, "lengths": {"file": "p.jsonl", "model": "m"}})


def test_prompts_and_lengths_of_one_file_for_several_models(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "W\\ud83d", "prompt_tokens": 2.0, "output_tokens": {"m": 7}}\n'
    )
    lengths = {"file": "p.jsonl", "model": "m"}
    stream = {**POISSON, "count": 1, "lengths": lengths, "prompts": {"file": "p.jsonl"}}
    [one] = requests(Workload(scenario(tmp_path, stream), seed=1))
    assert (one.prompt, one.prompt_tokens, one.intended_tokens) == ("W?", 2, 7)
