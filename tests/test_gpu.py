"""The jumping GPU model against the stepping one, and against figures worked out by hand."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from stepping_gpu import SteppingGpu

from scheduler.twin.gpu import Gpu
from scheduler.twin.profile import Profile

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
    per_prefill_token_s=st.integers(0, 3).map(lambda n: n * UNIT_S / 8),
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


@settings(max_examples=600, deadline=None)
@given(profiles, st.integers(1, 4), actions)
def test_jumping_equals_stepping(profile: Profile, slots: int, script: list[Action]) -> None:
    jumping = Gpu(profile, slots, track_gaps=True)
    stepping = SteppingGpu(profile, slots)
    live: set[str] = set()
    ended: list[str] = []
    now = 0.0

    def advance() -> None:
        events = jumping.advance(now)
        assert events == stepping.advance(now)
        assert [e.at_s for e in events] == sorted(e.at_s for e in events)
        for event in events:
            if event.kind == "done":
                live.remove(event.request_id)
                ended.append(event.request_id)

    started = 0
    for action in script:
        upcoming = jumping.next_event() if action.wait_s == 0.0 else inf
        now = upcoming if upcoming < inf else now + action.wait_s
        advance()
        match action.verb:
            case "start":
                for gpu in (jumping, stepping):
                    gpu.start(f"r{started}", action.prompt, action.output, now)
                live.add(f"r{started}")
                started += 1
            case "cancel" if live:
                request_id = sorted(live)[action.which % len(live)]
                assert jumping.cancel(request_id, now) == stepping.cancel(request_id, now)
                live.remove(request_id)
                ended.append(request_id)
            case _:
                for request_id in live:
                    assert jumping.tokens(request_id, now) == stepping.tokens(request_id, now)
                ours, theirs = jumping.state(now), stepping.state(now)
                if stepping.end_s is None:  # on a step boundary, the jumping one may have begun the next step
                    ours = ours._replace(kv_tokens=theirs.kv_tokens, step_s=theirs.step_s)
                assert ours == theirs
    while live:
        upcoming = jumping.next_event()
        assert upcoming >= now
        now = upcoming
        advance()
    assert sorted(ended) == sorted(f"r{n}" for n in range(started))
    assert jumping.state(now)[:3] == (0, 0, 0) or jumping.next_event() < inf
