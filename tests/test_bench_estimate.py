"""``bench estimate`` is fair: no prior has seen what it is scored on, nor the served model's family."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scheduler.bench import estimate as bench
from scheduler.bench.estimate import LEAST_PROMPTS, bench_estimate
from scheduler.bench.result import BadInput
from scheduler.core.prior import Embed
from scheduler.load import training
from scheduler.load.prior import prompt_key, shipped_prior
from scheduler.load.training import Corpus

np = pytest.importorskip("numpy")

MODELS = ("Qwen1.5-7B-Chat", "Qwen2-72B-Instruct", "Meta-Llama-3-8B-Instruct", "Mistral-7B")


def data(start: int, count: int) -> Corpus:
    prompts = [f"{('Who', 'Write an essay about')[n % 2]} number{n}?" for n in range(start, start + count)]
    tokens = {model: [(40, 700)[n % 2] + n % 7 for n in range(start, start + count)] for model in MODELS}
    return Corpus(prompts, [3] * count, tokens)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[set[str], set[str]]]:
    """The prompts and the models of each prior that is trained."""
    made: list[tuple[set[str], set[str]]] = []
    train = training.train

    def noted(prompts: Sequence[str], lengths: Sequence[dict[str, int]], embed: Embed | None) -> Any:
        made.append((set(prompts), set(lengths[0])))
        return train(prompts, lengths, embed)

    monkeypatch.setattr(bench, "train", noted)
    return made


def test_prompts_that_the_shipped_prior_has_not_seen_are_scored_with_it(
    trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = data(0, LEAST_PROMPTS + 2)
    monkeypatch.setattr(bench, "trained_on", lambda: {prompt_key(file.prompts[1])})
    fed, ((prior, embed),), source = bench._fair(MODELS[0], file, None, 2, None)
    assert (fed[:2], len(fed), source) == ([0, 2], LEAST_PROMPTS + 1, "shipped")
    assert prior == shipped_prior()
    assert embed is None
    assert trained == []


def test_folds_score_each_prompt_with_a_prior_that_has_not_seen_it(
    trained: list[tuple[set[str], set[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = data(0, LEAST_PROMPTS)
    monkeypatch.setattr(bench, "trained_on", lambda: frozenset(map(prompt_key, file.prompts)))
    fed, ((_, score),), source = bench._fair(MODELS[0], file, None, 4, None)
    assert (fed, source) == (list(range(LEAST_PROMPTS)), "4 folds")
    assert len(trained) == 4
    held_out = [set(file.prompts) - prompts for prompts, _ in trained]
    assert set.union(*held_out) == set(file.prompts)
    assert sum(map(len, held_out)) == LEAST_PROMPTS, "each prompt is left out once"
    assert all(models == {"Meta-Llama-3-8B-Instruct", "Mistral-7B"} for _, models in trained)
    assert score is not None
    scores = [score(prompt)[0] for prompt in file.prompts]
    assert min(scores[1::2]) > max(scores[::2]), "what it was trained for it has learned"


def test_a_training_file_leaves_its_own_prompts_unscored(trained: list[tuple[set[str], set[str]]]) -> None:
    known = data(0, LEAST_PROMPTS)
    fed, _, source = bench._fair(MODELS[2], data(LEAST_PROMPTS - 10, LEAST_PROMPTS + 20), None, 2, known)
    assert (fed[0], source) == (10, "trained")
    assert trained == [(set(known.prompts), {"Qwen1.5-7B-Chat", "Qwen2-72B-Instruct", "Mistral-7B"})]


def test_the_whole_bench_at_a_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "DRIFTS", ())
    prompts, _, tokens = data(0, LEAST_PROMPTS)
    file = tmp_path / "lengths.jsonl"
    file.write_text(
        "\n".join(
            json.dumps({"prompt": prompt, "output_tokens": tokens[MODELS[0]][n]})
            for n, prompt in enumerate(prompts)
        )
    )
    result = bench_estimate(file, lambda line: None)
    rows = {row["estimator"]: row for row in result.rows}
    assert set(rows) == {
        *("oracle", "running median", "running mean", "paper", "tenant", "tenant mean", "learned")
    }
    assert rows["oracle"]["mae"] == 0
    assert rows["oracle"]["sjf_share"] == 1
    assert rows["learned"]["spearman"] > 0.4
    assert rows["learned"]["mae"] < rows["running median"]["mae"]
    json.dumps(result.document(), allow_nan=False)


def test_one_fold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="1 folds: at least 2 are needed"):
        bench_estimate(tmp_path / "lengths.jsonl", lambda line: None, folds=1)


def write(path: Path, rows: Sequence[object]) -> Path:
    """As other programs do: a mark at the start, characters as they are, an empty line at the end."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(("\ufeff" + text + "\n").encode("utf-8", "surrogatepass").replace(b"@", b"\\ud83d"))
    return path


def test_a_model_whose_answers_the_prior_knows_is_scored_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "DRIFTS", ())
    prompts, _, tokens = data(0, LEAST_PROMPTS)
    monkeypatch.setattr(bench, "trained_on", lambda: frozenset(map(prompt_key, prompts)))
    rows = [{"prompt": prompt, "output_tokens": tokens[MODELS[0]][n]} for n, prompt in enumerate(prompts)]
    told: list[str] = []
    result = bench_estimate(write(tmp_path / "lengths.jsonl", rows), told.append)
    assert {row["estimator"] for row in result.rows} >= {"oracle", "running median", "paper", "tenant"}
    assert "learned" not in {row["estimator"] for row in result.rows}
    assert result.claims == []
    assert "without `learned`" in told[-1]


@pytest.mark.parametrize("tokens", [1, 256])
def test_answers_of_one_length_leave_nothing_to_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """256 is what a running constant begins with, so that it is never wrong."""
    monkeypatch.setattr(bench, "DRIFTS", ())
    monkeypatch.setattr(bench, "play", lambda requests, points, policy: [1.0] * len(points))
    rows = [{"prompt": prompt, "output_tokens": tokens} for prompt in data(0, LEAST_PROMPTS).prompts]
    result = bench_estimate(write(tmp_path / "lengths.jsonl", rows), lambda line: None)
    assert {row["two_class_share"] for row in result.rows} == {None}
    assert not [claim for claim in result.claims if "share" in claim.id]


def test_no_answer_is_cut_however_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "DRIFTS", ())
    prompts = data(0, LEAST_PROMPTS).prompts
    rows = [{"prompt": prompt, "output_tokens": (9_000, 30)[n % 2]} for n, prompt in enumerate(prompts)]
    result = bench_estimate(write(tmp_path / "lengths.jsonl", rows), lambda line: None)
    assert next(row["mae"] for row in result.rows if row["estimator"] == "oracle") == 0


def test_any_text_may_be_in_a_prompt(tmp_path: Path) -> None:
    odd = ["a\u2028b\u2029c\x85d\x0be", "", "half of a pair: @", "x" * 100_000]
    rows = [{"prompt": text, "output_tokens": {"m": n}} for n, text in enumerate(odd * LEAST_PROMPTS)]
    lengths = bench._read(write(tmp_path / "lengths.jsonl", rows))
    assert lengths.prompts[0] == odd[0]
    assert lengths.prompts[2] == "half of a pair: ?"
    assert lengths.tokens["m"][:3] == [1, 1, 2]
    assert len({prompt_key(prompt) for prompt in lengths.prompts}) == 4


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "Why?", "output_tokens": -5}, "line 2: model -5 is not a number of tokens from 1"),
        ({"prompt": "Why?", "output_tokens": float("inf")}, "line 2: model inf is not a number of tokens"),
        ({"prompt": "Why?", "output_tokens": {}}, "line 2: output_tokens must be a number, or one for each"),
        ({"prompt": "Why?"}, "line 2: output_tokens of 'model' must be a number"),
        ({"prompt": "Why?", "output_tokens": 1, "prompt_tokens": 60_000}, "allowed: 1 to 32768"),
        ({"prompt": "Why?", "output_tokens": 1, "prompt_tokens": -1}, "prompt_tokens -1 is not a number"),
        ({"prompt": 7, "output_tokens": 1}, "line 2: prompt .text. is needed"),
        ([], "line 2: not a JSON object"),
    ],
)
def test_a_line_that_is_no_use_is_named(tmp_path: Path, row: object, says: str) -> None:
    file = write(tmp_path / "lengths.jsonl", [{"prompt": "Who?", "output_tokens": 3}, row])
    with pytest.raises(BadInput, match=says):
        bench_estimate(file, lambda line: None)


def test_a_line_as_deep_as_it_is_long_is_named(tmp_path: Path) -> None:
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(BadInput, match="line 1: "):
        bench_estimate(tmp_path / "deep.jsonl", lambda line: None)
