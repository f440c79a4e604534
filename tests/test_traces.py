"""Traces: four formats, time ranges, and rows that are not what they should be."""

# ruff: noqa: E501 (rows as they are in files)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scheduler.load.stream import Trace
from scheduler.load.traces import MAX_LINE, Row, TraceError, rows, scan

AZURE_2023 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:13.9799600,110,27
"""
AZURE_2024 = AZURE_2023.replace("00,", "+00:00,")
BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
MOONCAKE = """\
{"timestamp": 0, "input_length": 40160, "output_length": 6, "hash_ids": [0, 1]}
{"timestamp": 2500, "input_length": 100, "output_length": 60}
"""
OURS = """\
{"arrival_s": 0.5, "tenant": "acme", "tier": "batch", "prompt": "hi\\ud83d", "max_tokens": 64, "output_tokens": 9, "category": "report"}

{"arrival_s": 0.5, "tenant": "lab", "prompt_tokens": 12.0, "prompt": null, "tier": null, "phase": "ignored"}
"""


def trace(folder: Path, text: str | bytes, format_: str, **keys: Any) -> Trace:
    file = folder / "trace"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return Trace.model_validate({"file": "trace", "format": format_, **keys}, context={"folder": folder})


@pytest.mark.parametrize(
    ("text", "format_", "expected"),
    [
        (AZURE_2023, "azure", [(0, 4808, 10), (0.052, 3180, 8), (10, 110, 27)]),
        (AZURE_2024, "azure", [(0, 4808, 10), (0.052, 3180, 8), (10, 110, 27)]),
        (BURSTGPT, "burstgpt", [(5, 472, 18), (118, 417, 276)]),  # no response tokens: failed at the source
        (MOONCAKE, "mooncake", [(0, 40160, 6), (2.5, 100, 60)]),
    ],
    ids=["azure 2023", "azure 2024", "burstgpt", "mooncake"],
)
def test_public_formats(
    tmp_path: Path, text: str, format_: str, expected: list[tuple[float, int, int]]
) -> None:
    found = list(rows(trace(tmp_path, text, format_)))
    assert [row.at_s for row in found] == pytest.approx([at_s for at_s, *_ in expected], abs=1e-5)
    assert [(row.prompt_tokens, row.output_tokens) for row in found] == [tuple(more) for _, *more in expected]
    assert {row.category for row in found} == {""}  # none is made up from the answer's length


def test_our_own_format(tmp_path: Path) -> None:
    tenants = frozenset({"acme", "lab"})
    assert list(rows(trace(tmp_path, OURS, "jsonl"), tenants)) == [
        Row(0.5, None, 9, 64, "acme", "batch", "hi?", "report"),
        Row(0.5, 12, None, None, "lab"),
    ]
    assert [row.tenant for row in rows(trace(tmp_path, OURS, "jsonl"))] == ["", ""]  # the stream says whose


def test_speed_range_and_limit(tmp_path: Path) -> None:
    text = "".join(json.dumps({"arrival_s": second, "prompt_tokens": 1}) + "\n" for second in range(100))
    keys: dict[str, Any] = {"from": "20s", "until": "1m", "speed": 10}
    times = [row.at_s for row in rows(trace(tmp_path, text, "jsonl", **keys))]
    assert times == [second / 10 for second in range(40)]
    assert [row.at_s for row in rows(trace(tmp_path, text, "jsonl", limit=2, **keys))] == [0, 0.1]


GOOD_ROW = b'{"arrival_s": 1, "prompt_tokens": 1}\n'
BAD_ROWS = [
    (b"{", "Expecting"),
    (b"[1]", "not a JSON object"),
    (b'{"arrival_s": NaN, "prompt_tokens": 1}', "arrival_s nan is not a number of at least 0"),
    (b'{"arrival_s": -1, "prompt_tokens": 1}', "arrival_s -1"),
    (b'{"arrival_s": "1", "prompt_tokens": 1}', "arrival_s '1'"),
    (
        b'{"arrival_s": 1718000000.0, "prompt_tokens": 1}',
        "arrives 1.718e+09 s after the start, allowed are 10 years",
    ),
    (b'{"arrival_s": ' + b"9" * 400 + b', "prompt_tokens": 1}', "arrival_s 999"),
    (b'{"arrival_s": 0.5, "prompt_tokens": 1}', "arrives before the row above it"),
    (b'{"arrival_s": 1}', "prompt or prompt_tokens is needed"),
    (b'{"arrival_s": 1, "prompt": 5}', "prompt is not text"),
    (b'{"arrival_s": 1, "prompt_tokens": true}', "prompt_tokens True is not a number of tokens"),
    (b'{"arrival_s": 1, "prompt_tokens": 1, "max_tokens": 0}', "0 is not a number of tokens"),
    (b'{"arrival_s": 1, "prompt_tokens": 1, "category": "poem"}', "category 'poem' is not one of"),
    (b'{"arrival_s": 1, "prompt_tokens": 1, "tier": "gold"}', "tier 'gold' is not one of"),
    (b"\xff\xfe", "not UTF-8"),
    (b"[" * 100_000, "nested too deep"),
    (b"x" * (MAX_LINE + 10), "longer than"),
]


@pytest.mark.parametrize(("row", "what"), BAD_ROWS, ids=[str(row[:50]) for row, _ in BAD_ROWS])
def test_a_malformed_row_is_left_out_and_named(tmp_path: Path, row: bytes, what: str) -> None:
    text = GOOD_ROW * 3 + row + b"\n" + GOOD_ROW
    found = scan(trace(tmp_path, text, "jsonl", max_bad_share=0.5))
    assert (found.rows, found.bad) == (4, 1)
    with pytest.raises(
        TraceError, match=r"1 of 5 rows are malformed, allowed is a share of 0\.01: line 4: "
    ) as caught:
        scan(trace(tmp_path, text, "jsonl"))
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("2023-11-16 18:17:20,12", "2 columns, the header has 3"),
        ("yesterday,12,3", "Invalid isoformat"),
        ("2023-11-16 18:17:20,many,3", "'many' is not a number"),
        ("2023-11-16 18:17:20,1.5,3", "'1.5' is not a whole number"),
        ("2023-11-16 18:17:20,0,3", "ContextTokens 0 is not a number of tokens"),
        ("2023-11-15 18:17:20,12,3", "arrives before the row above it"),
    ],
)
def test_a_malformed_csv_row(tmp_path: Path, row: str, what: str) -> None:
    with pytest.raises(TraceError) as caught:
        scan(trace(tmp_path, AZURE_2023 + row + "\n", "azure"))
    assert "line 5: " in str(caught.value)
    assert what in str(caught.value)


def test_unknown_tenants_are_malformed_only_where_rows_must_name_them(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="line 3: tenant 'lab' is not one of acme"):
        scan(trace(tmp_path, OURS, "jsonl"), frozenset({"acme"}))
    assert scan(trace(tmp_path, OURS, "jsonl")).rows == 2


@pytest.mark.parametrize(("text", "format_"), [("", "azure"), ("a,b\n1,2\n", "burstgpt")])
def test_a_file_of_another_format_is_refused(tmp_path: Path, text: str, format_: str) -> None:
    with pytest.raises(TraceError, match="line 1: no column"):
        scan(trace(tmp_path, text, format_))


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no request is left"):
        scan(trace(tmp_path, MOONCAKE, "mooncake", **{"from": "1h"}))
    with pytest.raises(TraceError, match="there is no request in it"):
        scan(trace(tmp_path, "Timestamp,Request tokens,Response tokens\n5,472,0\n", "burstgpt"))


def test_nothing_left_names_the_rows_that_were_malformed(tmp_path: Path) -> None:
    with pytest.raises(
        TraceError, match=r"no request in it, 2 of 2 rows are malformed: line 1: .*; line 2: "
    ):
        scan(trace(tmp_path, "5\n6\n", "jsonl", max_bad_share=1))


def test_the_share_of_malformed_rows_is_of_all_that_were_read(tmp_path: Path) -> None:
    text = "".join(f'{{"arrival_s": {second}, "prompt_tokens": 1}}\n' for second in range(100)) + "{\n"
    found = scan(trace(tmp_path, text, "jsonl", **{"from": "98s"}))
    assert (found.rows, found.bad) == (100, 1)


def test_a_trace_that_changed_is_read_again(tmp_path: Path) -> None:
    for rows_in_it in (1, 2):
        assert scan(trace(tmp_path, GOOD_ROW * rows_in_it, "jsonl")).rows == rows_in_it


@pytest.mark.parametrize(
    ("row", "uncounted"),
    [('"prompt": "hi"', True), ('"prompt": "hi", "prompt_tokens": 5', False), ('"prompt_tokens": 5', False)],
)
def test_a_trace_says_whether_its_prompts_are_counted(tmp_path: Path, row: str, uncounted: bool) -> None:
    assert scan(trace(tmp_path, f'{{"arrival_s": 1, {row}}}\n', "jsonl")).uncounted is uncounted
