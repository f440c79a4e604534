"""Profiles: what ships loads, and bad files say what is wrong where."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.twin.profile_file import load_profile, profiles

GOOD = """
gpu: h100
model: big
detail: simulated H100
provenance: made up for a test
step: {fixed_ms: 5, floor_ms: 6.0, per_sequence_us: 10}
kv_tokens: 1000
max_model_len: 500
max_num_batched_tokens: 64
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_profile_that_ships_loads_under_its_name_and_says_where_it_comes_from() -> None:
    assert "l4/qwen1.5-1.8b-chat" in profiles()
    for name in profiles():
        profile = load_profile(*name.split("/"))
        assert profile.name == name
        assert profile.detail.startswith("simulated ")
        assert len(profile.provenance) > 100
        assert profile.max_model_len <= profile.kv_tokens


def test_the_l4_step_model() -> None:
    profile = load_profile("l4", "qwen1.5-1.8b-chat")
    assert profile.step_s(1, 0) == pytest.approx(0.01605)  # the floor
    assert profile.step_s(32, 10_000) == pytest.approx(0.0153 + 10_000 * 0.819e-6 + 32 * 50e-6)
    assert profile.step_s(1, 100, prefill=100) == pytest.approx(0.01605 + 100 * 61e-6)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, GOOD))
    assert profile.name == "h100/big"
    assert profile.step_s(2, 77) == pytest.approx(0.006 + 2 * 10e-6)


def test_an_unknown_profile_names_those_that_ship() -> None:
    with pytest.raises(ValueError, match=r"gpu 'h100' with model 'x'; allowed: cpu/smollm2, .*l4/qwen1.5"):
        load_profile("h100", "x")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("kv_tokens: 1000", "kv_tokens: 0", r"mine\.yaml:7: kv_tokens: .*greater than or equal to 1"),
        ("fixed_ms: 5", "fixed_ms: -1", r"mine\.yaml:6: step\.fixed_ms: .*greater than or equal to 0"),
        ("fixed_ms: 5", "fixed_ms: .nan", r"mine\.yaml:6: step\.fixed_ms: .*finite"),
        ("fixed_ms: 5, floor_ms: 6.0", "fixed_ms: 0", r"mine\.yaml:6: step: .*above 0"),
        (
            "kv_tokens: 1000",
            "kv_tokes: 1000",
            r"mine\.yaml:2: kv_tokens: Field required; .*mine\.yaml:7: kv_tokes:",
        ),
        ("gpu: h100", "gpu: h100\ngpu: h200", r"mine\.yaml:3: gpu: the key is here twice, first in line 2"),
        ("gpu: h100", "gpu: [", r"mine\.yaml:4: while parsing a flow sequence"),
        ("gpu: h100", "gpu: " + 9999 * "[", r"mine\.yaml:1: nested too deeply"),
        (GOOD, "just text", r"mine\.yaml:1: Input should be a valid dictionary"),
    ],
)
def test_a_bad_file_says_where_and_what(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        load_profile(write(tmp_path, GOOD.replace(old, new)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.yaml:1: cannot be read"):
        load_profile(str(tmp_path / "gone.yaml"))
