"""The jumping GPU model against the stepping one, and against figures worked out by hand."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from copy import copy
from dataclasses import replace
from math import inf, nextafter
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping_gpu import SteppingGpu, Told, told

from scheduler.core.metrics import gap_bucket
from scheduler.twin.gpu import Gpu, NeverFits
from scheduler.twin.phase import Phase
from scheduler.twin.profile import Profile
from scheduler.twin.profile_file import load_profile
from scheduler.twin.profile_file import profiles as profiles_that_ship

# Binary fractions: sums and products are exact, so that the two models must agree to the last bit and a
# change may fall exactly on a step boundary.
UNIT_S = 2.0**-10

profiles = st.builds(
    Profile,
    gpu=st.just("test"),
    model=st.just("test"),
    detail=st.just(""),
    provenance=st.just(""),
    kv_tokens=st.integers(24, 90),
    max_model_len=st.just(1000),
    max_num_batched_tokens=st.integers(4, 24),
    fixed_s=st.integers(1, 6).map(lambda n: n * UNIT_S),
    floor_s=st.integers(0, 20).map(lambda n: n * UNIT_S),
    per_context_token_s=st.integers(0, 8).map(lambda n: n * UNIT_S / 16),
    per_sequence_s=st.integers(0, 3).map(lambda n: n * UNIT_S / 8),
    batch_knee=st.one_of(st.just(inf), st.integers(1, 4)),
    per_sequence_above_s=st.integers(0, 3).map(lambda n: n * UNIT_S / 8),
    per_prefill_token_s=st.integers(0, 3).map(lambda n: n * UNIT_S / 8),
    prefill_knee=st.one_of(st.just(inf), st.integers(1, 8)),
    per_prefill_token_above_s=st.integers(0, 3).map(lambda n: n * UNIT_S / 8),
)


class Action(NamedTuple):
    """Done ``wait_s`` after the one before; with 0 at the twin's next event instead."""

    wait_s: float
    verb: str  # start, cancel, look
    prompt: int
    output: int
    which: int  # of the live ones to cancel


actions = st.lists(
    st.builds(
        Action,
        wait_s=st.one_of(st.just(0.0), st.integers(1, 200).map(lambda n: n * UNIT_S / 4)),
        verb=st.sampled_from(["start", "start", "start", "start", "cancel", "look"]),
        prompt=st.one_of(st.integers(0, 4), st.integers(0, 14)),
        output=st.one_of(st.integers(1, 2), st.integers(1, 11)),
        which=st.integers(0, 5),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=500, deadline=None)
@given(profiles, st.integers(1, 4), actions)
def test_jumping_equals_stepping(profile: Profile, slots: int, script: list[Action]) -> None:
    jumping: Gpu[str] = Gpu(profile, slots, track_gaps=True)
    stepping = SteppingGpu(profile, slots)
    live: set[str] = set()
    ended: list[str] = []
    now = 0.0

    def advance(due_s: float) -> None:
        events = told(jumping.advance(now))
        assert all(event.at_s >= due_s for event in events)
        assert events == told(stepping.advance(now))
        assert [e.at_s for e in events] == sorted(e.at_s for e in events)
        for event in events:
            if event.kind == "done":
                live.remove(event.key)
                ended.append(event.key)

    started = 0
    for action in script:
        upcoming = jumping.next_event() if action.wait_s == 0.0 else inf
        now = upcoming if upcoming < inf else now + action.wait_s
        advance(upcoming if upcoming < inf else -inf)
        match action.verb:
            case "start":
                for gpu in (jumping, stepping):
                    gpu.start(f"r{started}", action.prompt, action.output)
                live.add(f"r{started}")
                started += 1
            case "cancel" if live:
                request_id = sorted(live)[action.which % len(live)]
                assert jumping.cancel(request_id) == stepping.cancel(request_id)
                live.remove(request_id)
                ended.append(request_id)
            case _:
                for request_id in live:
                    assert jumping.tokens(request_id) == stepping.tokens(request_id)
                ours, theirs = jumping.state(), stepping.state()
                if stepping.end_s is None:  # on a step boundary, the jumping one may have begun the next step
                    ours = ours._replace(kv_tokens=theirs.kv_tokens, step_s=theirs.step_s)
                assert ours == theirs
    while live:
        upcoming = jumping.next_event()
        assert upcoming >= now
        now = upcoming
        advance(upcoming)
    assert sorted(ended) == sorted(f"r{n}" for n in range(started))
    gpu_is_idle = jumping.state()[:3] == (0, 0, 0)
    assert gpu_is_idle or jumping.next_event() < inf  # a cancelled sequence's last step may be under way


@settings(max_examples=60)
@given(
    st.sampled_from([("l4", "qwen1.5-1.8b-chat"), ("l4-eager", "qwen1.5-1.8b-chat"), ("cpu", "smollm2")]),
    st.integers(150, 3000),
    st.lists(
        st.tuples(st.floats(0.0, 0.4), st.integers(0, 140), st.integers(1, 120), st.floats(0.001, 3.0)),
        min_size=1,
        max_size=20,
    ),
)
def test_real_profiles_agree_to_a_microsecond(
    name: tuple[str, str], kv_tokens: int, load: list[tuple[float, int, int, float]]
) -> None:
    """Coefficients that no binary fraction holds; a third of the requests is cancelled after a patience."""
    profile = replace(load_profile(*name), kv_tokens=max(kv_tokens, 259), max_num_batched_tokens=64)
    script: list[tuple[float, str, int, int]] = []
    now = 0.0
    for number, (wait_s, prompt, output, patience_s) in enumerate(load):
        now += wait_s
        script.append((now, f"r{number}", prompt, output))
        if number % 3 == 0:
            script.append((now + patience_s, f"r{number}", -1, 0))
    jumping: Gpu[str] = Gpu(profile, 4, track_gaps=True)
    stepping = SteppingGpu(profile, 4)
    events: list[Told] = []
    expected: list[Told] = []
    for at_s, request_id, prompt, output in [*sorted(script), (1e4, "", -1, 0)]:
        events += told(jumping.advance(at_s))
        expected += told(stepping.advance(at_s))
        if prompt >= 0:
            jumping.start(request_id, prompt, output)
            stepping.start(request_id, prompt, output)
        elif request_id and not any(e.key == request_id and e.kind == "done" for e in expected):
            assert jumping.cancel(request_id) == stepping.cancel(request_id)
    assert len(events) == len(expected)
    for ours, theirs in zip(events, expected, strict=True):
        assert (ours.key, ours.kind, ours.tokens) == (theirs.key, theirs.kind, theirs.tokens)
        assert ours.at_s == pytest.approx(theirs.at_s, abs=1e-6)
        assert ours.first_s == pytest.approx(theirs.first_s, abs=1e-6)
        assert ours.gaps == theirs.gaps


def simple(**changes: float) -> Profile:
    """10 ms a step and 1 ms for each sequence and prefilled token; context is free."""
    figures = {"fixed_s": 0.010, "per_sequence_s": 0.001, "per_prefill_token_s": 0.001}
    lengths = {"kv_tokens": 1000, "max_model_len": 1000, "max_num_batched_tokens": 100}
    return Profile(gpu="test", model="test", detail="", provenance="", **(lengths | figures | changes))  # type: ignore[arg-type]


def drain(gpu: Gpu[str]) -> list[Told]:
    events: list[Told] = []
    while (due := gpu.next_event()) < inf:
        events += told(gpu.advance(due))
    return events


def summary(events: list[Told]) -> list[tuple[float, str, str]]:
    return [(round(e.at_s, 9), e.key, e.kind) for e in events]


def test_an_example_worked_out_by_hand() -> None:
    gpu: Gpu[str] = Gpu(simple(), 2, track_gaps=True)
    gpu.start("a", 5, 3)  # prefill: 10 + 1 + 5 = 16 ms
    events = told(gpu.advance(0.020))
    gpu.start("b", 4, 2)  # a's second step takes 11 ms, to 27; then 10 + 2 + 4 = 16 ms, to 43
    events += told(gpu.advance(0.021))
    gpu.start("c", 1, 1)  # waits for a slot: a ends at 43; 10 + 2 + 1 = 13 ms, to 56
    events += drain(gpu)
    assert summary(events) == [
        (0.016, "a", "first"),
        (0.043, "b", "first"),
        (0.043, "a", "done"),
        (0.056, "c", "first"),
        (0.056, "b", "done"),
        (0.056, "c", "done"),
    ]
    gaps = {e.key: e.gaps for e in events if e.kind == "done"}
    assert gaps == {"a": {gap_bucket(0.011): 1, gap_bucket(0.016): 1}, "b": {gap_bucket(0.013): 1}, "c": {}}


def test_a_long_prompt_is_prefilled_in_chunks_beside_decoding() -> None:
    gpu: Gpu[str] = Gpu(simple(max_num_batched_tokens=8), 3)
    gpu.start("a", 2, 20)  # 13 ms
    gpu.advance(0.013)
    gpu.start("long", 16, 1)  # chunks of 7, 7 and 2 beside a's tokens: 19, 19 and 14 ms
    gpu.start("next", 4, 1)  # its 4 tokens fit the third step: 10 + 3 + 2 + 4 = 19 ms
    assert summary(told(gpu.advance(0.0701))) == [
        (0.070, "long", "first"),
        (0.070, "next", "first"),
        (0.070, "long", "done"),
        (0.070, "next", "done"),
    ]


def test_a_full_kv_cache_preempts_the_latest_and_prefills_it_again() -> None:
    gpu: Gpu[str] = Gpu(simple(kv_tokens=10), 2, track_gaps=True)
    gpu.start("a", 3, 8)  # holds 3 .. 10
    gpu.start("b", 3, 4)  # fits until both hold 5
    events = drain(gpu)
    # 18 ms to the first tokens, two steps of 12; b has 3 tokens and is preempted at 42 ms. a's other five
    # steps take 11 ms each, to 97; then b's 6 tokens are prefilled again: 10 + 1 + 6 = 17 ms.
    assert summary(events)[2:] == [(0.097, "a", "done"), (0.114, "b", "done")]
    assert gpu.state().preemptions == 1
    assert events[-1].gaps == {gap_bucket(0.012): 2, gap_bucket(0.114 - 0.042): 1}
    assert events[-1].first_s == pytest.approx(0.018)


def test_a_prompt_preempted_between_its_chunks_costs_nobody_else_a_place() -> None:
    gpu: Gpu[str] = Gpu(simple(kv_tokens=12, max_num_batched_tokens=6), 5)
    for request_id in "abcd":
        gpu.start(request_id, 1, 9)
    gpu.advance(0.018)
    gpu.start("long", 4, 1)  # fits beside the 8 tokens of the others, which then grow to 12
    gpu.advance(0.020)
    assert gpu.state()._replace(step_s=0.0) == (5, 0, 10, 0, 1, 0.0)
    gpu.advance(0.036)
    assert gpu.state()._replace(step_s=0.0) == (4, 1, 12, 1, 2, 0.0)


def test_whatever_starts_at_an_instant_joins_the_step_that_begins_there() -> None:
    gpu: Gpu[str] = Gpu(simple(), 3)
    gpu.start("a", 1, 1)
    assert gpu.next_event() == pytest.approx(0.012)
    gpu.start("b", 1, 1)
    assert gpu.next_event() == pytest.approx(0.014)
    assert [kind for kind, _ in gpu.advance(1.0)] == ["first", "first", "done", "done"]
    assert gpu.next_event() == inf


def test_a_cancelled_sequence_is_gone_but_its_step_is_not_given_back() -> None:
    gpu: Gpu[str] = Gpu(simple(), 2)
    gpu.start("a", 1, 100)
    gpu.start("b", 1, 3)  # 14 ms, then 12 with both
    gpu.start("c", 1, 1)
    gpu.advance(0.020)
    assert gpu.cancel("a") == 1
    with pytest.raises(KeyError):
        gpu.tokens("a")
    assert gpu.state()[:2] == (1, 1)
    # c takes the slot at 26 ms, the end of the step that a was cancelled in: 10 + 2 + 1 = 13 ms
    assert summary(drain(gpu)) == [(0.039, "c", "first"), (0.039, "b", "done"), (0.039, "c", "done")]


def test_a_cancel_at_a_boundary_is_not_forgotten_when_more_join_the_step() -> None:
    gpu: Gpu[str] = Gpu(simple(), 3)
    gpu.start("a", 1, 100)
    gpu.start("b", 1, 1)
    gpu.advance(0.014)
    assert gpu.next_event() > 0.014  # the step that begins here is fixed, with a in it
    gpu.cancel("a")
    gpu.start("c", 1, 3)  # 10 + 2 + 1 = 13 ms beside a, then 11 and 11 alone
    assert summary(drain(gpu)) == [(0.027, "c", "first"), (0.049, "c", "done")]


def test_without_first_token_events_the_ends_tell_the_same() -> None:
    loud: Gpu[str] = Gpu(simple(), 2, track_gaps=True)
    quiet: Gpu[str] = Gpu(simple(), 2, first_token_events=False, track_gaps=True)
    for gpu in (loud, quiet):
        for number in range(6):
            gpu.start(f"r{number}", 3, 1 + 2 * number)
    assert drain(quiet) == [event for event in drain(loud) if event.kind == "done"]


def test_a_crash_loses_all_and_leaves_an_empty_gpu() -> None:
    gpu: Gpu[str] = Gpu(simple(), 2)
    for request_id in ("c", "a", "b"):
        gpu.start(request_id, 1, 9)
    gpu.advance(0.030)
    assert gpu.crash() == ["c", "a", "b"]
    assert gpu.next_event() == inf
    gpu.advance(5.0)
    gpu.start("a", 1, 1)
    assert summary(drain(gpu)) == [(5.012, "a", "first"), (5.012, "a", "done")]


def test_what_can_never_run_is_refused() -> None:
    gpu: Gpu[str] = Gpu(simple(kv_tokens=10), 2)
    gpu.start("fits", 4, 7)
    with pytest.raises(NeverFits, match="4 prompt and 8 output tokens; the KV cache holds 10"):
        gpu.start("r", 4, 8)
    for prompt, output in ((1, 0), (-1, 1)):
        with pytest.raises(ValueError, match="allowed: at least 0 and 1"):
            gpu.start("r", prompt, output)
    with pytest.raises(ValueError, match="here already"):
        gpu.start("fits", 1, 1)
    with pytest.raises(KeyError):
        gpu.cancel("r")
    gpu.advance(1.0)
    with pytest.raises(ValueError, match="time went back"):
        gpu.advance(0.5)
    with pytest.raises(ValueError, match="max_num_seqs is 101; allowed: 1 to 100"):
        Gpu(simple(), 101)


@given(
    profiles,
    st.integers(1, 5),
    st.integers(0, 500),
    st.integers(0, 20),
    st.integers(1, 300),
    st.integers(0, 4000),
)
def test_a_phase_is_the_sum_of_its_steps(
    profile: Profile, batch: int, context: int, prefill: int, steps: int, probe: int
) -> None:
    """The floor often ends on the way: 0 to 20 units over a slope of 0 to 2.5 units a step."""
    phase = Phase(profile, batch)
    phase.begin(1.0, batch, context, prefill, steps)
    ends_s = [1.0]
    for step in range(1, steps + 1):
        duration_s = profile.step_s(batch, context + step * batch, prefill if step == 1 else 0)
        assert phase.duration_s(step) == duration_s
        ends_s.append(ends_s[-1] + duration_s)
    assert [phase.at(step) for step in range(1, steps + 1)] == ends_s[1:]
    for now in (1.0 + probe * UNIT_S / 4, ends_s[probe % (steps + 1)]):
        if 1.0 <= now <= ends_s[-1]:
            done = bisect_right(ends_s, now) - 1
            assert phase.steps_done(now) == done
            cut = copy(phase)
            assert cut.cut(now) == cut.end_s == ends_s[cut.steps]
            assert cut.steps == max(1, done if ends_s[done] == now else done + 1)
    counts: dict[int, int] = {}
    phase.count_into(counts)
    assert counts == Counter(gap_bucket(phase.duration_s(step)) for step in range(1, steps + 1))


def test_the_floor_is_left_where_the_context_outgrows_it() -> None:
    profile = load_profile("l4", "qwen1.5-1.8b-chat")
    phase = Phase(profile, 1)
    phase.begin(0.0, 1, 800, 0, 100)
    # 15.3 ms + 0.819 us x context reaches the floor of 16 ms at 854.7 tokens: step 54 is the last flat one
    assert phase.duration_s(54) == 0.016 + 50e-6
    assert phase.duration_s(55) == pytest.approx(0.0153 + 855 * 0.819e-6 + 50e-6)
    grown_s = 46 * 0.0153 + 0.819e-6 * sum(range(855, 901))
    assert phase.end_s == pytest.approx(54 * 0.016 + grown_s + 100 * 50e-6, abs=1e-12)


@pytest.mark.parametrize("name", [*profiles_that_ship(), "floor alone"])
def test_the_step_at_a_time_is_right_to_the_last_bit(name: str) -> None:
    """Rounding puts the root of the quadratic a step off here and there, right beside a boundary."""
    if name == "floor alone":
        profile = simple(fixed_s=0.0, floor_s=0.1, per_sequence_s=0.0)
    else:
        profile = load_profile(*name.split("/"))
    for batch in (1, 7, 32):
        phase = Phase(profile, batch)
        phase.begin(0.3, batch, 700, 11, 400)
        for step in range(1, 400):
            assert phase.steps_done(phase.at(step)) == step
            assert phase.steps_done(nextafter(phase.at(step), inf)) == step
            assert phase.steps_done(nextafter(phase.at(step), 0.0)) == step - 1
        assert phase.steps_done(nextafter(phase.end_s, 0.0)) == 399


def test_steps_are_counted_on_over_a_crash() -> None:
    gpu: Gpu[str] = Gpu(simple(), 4)
    gpu.start("a", 3, 20)
    gpu.next_event()
    gpu.advance(0.1)
    before = gpu.state()
    assert before.steps > 0
    assert gpu.crash() == ["a"]
    after = gpu.state()
    assert (after.running, after.steps) == (0, before.steps)
