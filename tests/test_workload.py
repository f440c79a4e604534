"""The load over time: what comes when, from which seed, and what the timeline does to it."""

from __future__ import annotations

import json
from bisect import bisect
from collections import Counter
from itertools import accumulate
from math import inf, log
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import pytest
import yaml

from scheduler.core.estimate import BASE_TOKENS, PaperEstimator, classify
from scheduler.core.types import CATEGORIES, Limits, Request, State, Tenant
from scheduler.load.content import DEFAULT_MIX
from scheduler.load.lengths import PROFILES, length_table
from scheduler.load.prompts import prompt_tables
from scheduler.load.scenario import Scenario, load_scenario
from scheduler.load.workload import (
    Action,
    Cancel,
    ChangeTenant,
    Fault,
    Mark,
    SwitchEstimator,
    SwitchPolicy,
    Workload,
)

TENANTS = [{"name": "acme", "tier": "premium"}, {"name": "lab", "tier": "batch", "max_queued": 5}]


def scenario(tmp_path: Path, *load: dict[str, Any], **keys: Any) -> Scenario:
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({"name": "t", "tenants": TENANTS, "load": list(load), **keys}))
    return load_scenario(str(file))


def run(workload: Workload, until_s: float = inf) -> list[tuple[float, Action]]:
    """Everything that comes by itself: no request ever ends."""
    seen: list[tuple[float, Action]] = []
    while (at_s := workload.next_time()) < min(until_s, inf):
        seen += [(at_s, action) for action in workload.take(at_s)]
    return seen


def requests(workload: Workload, until_s: float = inf) -> list[Request]:
    return [action for _, action in run(workload, until_s) if isinstance(action, Request)]


def content(request: Request) -> tuple[Any, ...]:
    return (request.arrival_s, request.tenant, request.prompt, request.max_tokens, request.intended_tokens)


POISSON = {"tenant": "acme", "arrivals": {"poisson": 20}, "for": "10s"}


def test_a_request_is_whole(tmp_path: Path) -> None:
    stream = {**POISSON, "name": "web", "max_tokens": 99, "sampling": {"temperature": 0.1}}
    first = requests(Workload(scenario(tmp_path, stream), seed=1, prefix="x", start_s=100.0))[0]
    assert (first.id, first.tenant, first.tier, first.submitted_by) == ("x0", "acme", "premium", "web")
    assert first.arrival_s > 100
    assert first.prompt_tokens == len(first.prompt.split())
    assert (first.max_tokens, first.sampling.temperature) == (99, 0.1)
    assert first.intended_tokens is not None
    assert first.forced_tokens is None
    assert first.category in CATEGORIES


def test_the_same_seed_gives_the_same_requests_and_another_does_not(tmp_path: Path) -> None:
    one = scenario(tmp_path, POISSON, {**POISSON, "tenant": {"acme": 1, "lab": 3}})
    first, again, other = ([content(r) for r in requests(Workload(one, seed=seed))] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert [line[0] for line in first] == sorted(line[0] for line in first)


def test_a_stream_is_not_shifted_by_its_neighbours_or_by_a_burst(tmp_path: Path) -> None:
    alone = requests(Workload(scenario(tmp_path, POISSON), seed=1))
    burst = [{"at": 2, "burst": {"tenant": "lab", "rate": 50, "for": 3}}]
    both = scenario(tmp_path, POISSON, {**POISSON, "tenant": "lab"}, timeline=burst)
    among = [r for r in requests(Workload(both, seed=1)) if r.tenant == "acme"]
    assert [content(r) for r in among] == [content(r) for r in alone]


def test_time_taken_in_one_stride_or_in_many_is_the_same(tmp_path: Path) -> None:
    one = scenario(tmp_path, POISSON, {**POISSON, "tenant": "lab"})
    at_once = [a for a in Workload(one, seed=1).take(inf) if isinstance(a, Request)]
    assert [content(r) for r in at_once] == [content(r) for r in requests(Workload(one, seed=1))]


def test_streams_start_and_end_as_they_say(tmp_path: Path) -> None:
    late = requests(Workload(scenario(tmp_path, {**POISSON, "from": "5s"}), seed=1))
    assert late[0].arrival_s > 5
    assert 14 < late[-1].arrival_s < 15
    counted = requests(Workload(scenario(tmp_path, {**POISSON, "for": "1000s", "count": 7}), seed=1))
    assert len(counted) == 7
    together = requests(
        Workload(scenario(tmp_path, {"tenant": "lab", "arrivals": "at-once", "count": 9}), seed=1)
    )
    assert [r.arrival_s for r in together] == [0] * 9


def test_shares_of_tenants_and_categories(tmp_path: Path) -> None:
    mix = {"short_qa": 3, "report": 1}
    stream = {**POISSON, "tenant": {"acme": 4, "lab": 1}, "mix": mix, "for": "500s"}
    seen = requests(Workload(scenario(tmp_path, stream), seed=1))
    tenants, categories = Counter(r.tenant for r in seen), Counter(r.category for r in seen)
    assert tenants["lab"] / len(seen) == pytest.approx(0.2, abs=0.02)
    assert categories["report"] / len(seen) == pytest.approx(0.25, abs=0.02)
    assert set(categories) == {"short_qa", "report"}


def test_what_is_drawn_in_blocks_is_what_one_draw_after_another_gives(tmp_path: Path) -> None:
    stream = {"tenant": {"acme": 1, "lab": 3}, "arrivals": {"poisson": 20}, "count": 1200}
    times, chance, lengths = (Random(f"5/0/{use}") for use in ("arrivals", "content", "lengths"))
    bounds = list(accumulate(DEFAULT_MIX.values()))[:-1]
    at_s = 0.0
    for request in requests(Workload(scenario(tmp_path, stream), seed=5)):
        at_s -= log(1.0 - times.random()) / 20
        tenant = "acme" if chance.random() < 0.25 else "lab"
        category = list(DEFAULT_MIX)[bisect(bounds, chance.random())]
        prompts, table = prompt_tables()[category], length_table(*PROFILES["near"][category])
        prompt = prompts[int(chance.random() * len(prompts))]
        length = round(table[int(lengths.random() * len(table))])
        assert content(request) == (at_s, tenant, prompt, BASE_TOKENS[category], length)


@pytest.mark.parametrize("profile", PROFILES)
def test_lengths_follow_their_profile(tmp_path: Path, profile: str) -> None:
    stream = {**POISSON, "mix": {"technical": 1}, "lengths": {"profile": profile}, "for": "400s"}
    drawn = [r.intended_tokens or 0 for r in requests(Workload(scenario(tmp_path, stream), seed=1))]
    wanted, sigma = PROFILES[profile]["technical"]
    assert median(drawn) == pytest.approx(wanted, rel=4 * 1.25 * sigma / len(drawn) ** 0.5)


def test_the_length_table_is_the_log_normal() -> None:
    table = length_table(200, 0.5)
    logs = [log(value) for value in table]
    mean = sum(logs) / len(logs)
    assert mean == pytest.approx(log(200), abs=1e-9)
    assert (sum((value - mean) ** 2 for value in logs) / len(logs)) ** 0.5 == pytest.approx(0.5, rel=0.002)


def test_only_heavy_raises_the_cap_and_only_where_none_is_given(tmp_path: Path) -> None:
    def caps(**keys: Any) -> set[int]:
        stream = {**POISSON, "mix": {"report": 1}, **keys}
        return {r.max_tokens for r in requests(Workload(scenario(tmp_path, stream), seed=1))}

    assert caps(lengths={"profile": "near"}) == {512}
    assert caps(lengths={"profile": "heavy"}) == {1536}
    assert caps(lengths={"profile": "heavy"}, max_tokens="base") == {512}


def test_labelled_prompts_are_always_recognised_and_unlabelled_ones_mostly(tmp_path: Path) -> None:
    seen = requests(Workload(scenario(tmp_path, {**POISSON, "for": "100s"}, paper=True), seed=1))
    assert seen[3].prompt.startswith(f"Request ID 3. Tenant acme. Job type {seen[3].category}. ")
    assert all(classify(r.prompt) == r.category for r in seen)
    assert all(r.prompt_tokens == len(r.prompt.split()) for r in seen)
    shares = {
        category: sum(classify(prompt) == category for prompt in prompts) / len(prompts)
        for category, prompts in prompt_tables().items()
    }
    assert shares == {"short_qa": 1.0, "summary": 1.0, "technical": 0.8, "report": 1.0}


def test_a_tokenizer_counts_each_prompt_as_it_is_sent(tmp_path: Path) -> None:
    for paper in (False, True):
        one = scenario(tmp_path, POISSON, paper=paper)
        assert all(
            r.prompt_tokens == len(r.prompt) for r in requests(Workload(one, seed=1, count_tokens=len))
        )


def test_the_timeline_goes_before_the_arrivals_of_its_instant(tmp_path: Path) -> None:
    timeline = [
        {"at": 0, "policy": {"name": "aging", "rate": 0.5}},
        {"at": 0, "tenant": {"name": "lab", "weight": 9, "ttl": "5s", "max_queued": None}},
        {"at": 0, "fault": {"engine": "crash"}},
        {"at": 0, "estimator": "tenant"},
    ]
    one = scenario(tmp_path, {"tenant": "lab", "arrivals": "at-once", "count": 1}, timeline=timeline)
    made = PaperEstimator()
    *first, last = Workload(one, seed=1, estimator=lambda wanted: made).take(0.0)
    assert first == [
        SwitchPolicy("aging rate=0.5"),
        ChangeTenant("lab", 9, {"max_queued": None, "ttl_s": 5}),
        Fault("crash"),
        SwitchEstimator(made),
    ]
    # Only what is named is changed, of the tenant as somebody else has left it.
    limits = Limits(max_queued=7, max_in_flight=2)
    changed = first[1].to(Tenant("lab", "batch", 3.0, limits=limits))  # type: ignore[union-attr]
    assert changed == Tenant("lab", "batch", 9, limits=Limits(max_in_flight=2, ttl_s=5))
    assert isinstance(last, Request)


def test_a_burst_adds_its_rate_for_its_time(tmp_path: Path) -> None:
    burst = [{"at": 10, "burst": {"tenant": "lab", "rate": 200, "for": 5}}]
    both = {**POISSON, "tenant": {"acme": 1, "lab": 1}, "from": "3s", "max_tokens": 77}
    one = scenario(tmp_path, both, timeline=burst)
    seen = run(Workload(one, seed=1))
    extra = [a for _, a in seen if isinstance(a, Request) and a.submitted_by == "burst-0"]
    assert len(extra) == pytest.approx(1000, abs=130)
    assert {r.tenant for r in extra} == {"lab"}
    assert {r.max_tokens for r in extra} == {77}, "made like those of its first stream"
    assert 10 < extra[0].arrival_s < extra[-1].arrival_s < 15
    assert [a.text for _, a in seen if isinstance(a, Mark)] == ["burst: lab +200/s for 5 s"]


def test_an_operator_may_inject_a_burst(tmp_path: Path) -> None:
    workload = Workload(scenario(tmp_path, {"tenant": "acme", "arrivals": "at-once", "count": 1}), seed=1)
    run(workload)
    assert workload.exhausted
    workload.burst("lab", rate=100, seconds=1, now=50)
    assert {r.tenant for r in requests(workload)} == {"lab"}
    with pytest.raises(ValueError, match="unknown tenant; allowed: acme, lab"):
        workload.burst("nobody", rate=1, seconds=1, now=0)


def test_of_a_load_that_is_stopped_nothing_comes_but_a_new_burst(tmp_path: Path) -> None:
    closed = {"tenant": "lab", "arrivals": {"closed": {"clients": 2}}, "for": "10s"}
    later = {**POISSON, "after": "drained"}
    workload = Workload(scenario(tmp_path, {**POISSON, "patience": "1s"}, closed, later), seed=1)
    begun = requests(workload, until_s=2.0)
    workload.stop()
    assert workload.exhausted
    for request in begun:
        workload.on_ended(request, 3.0)
    workload.on_drained(3.0)
    assert workload.next_time() == inf
    workload.burst("lab", rate=100, seconds=1, now=4.0)
    assert {request.tenant for request in requests(workload)} == {"lab"}


def test_who_comes_after_a_stream_that_is_empty_comes_as_it_would_have_begun(tmp_path: Path) -> None:
    one = {"tenant": "acme", "arrivals": "at-once", "count": 1}
    empty = {
        "name": "empty",
        "tenant": "lab",
        "arrivals": {"poisson": 0.001},
        "for": "1ms",
        "after": "drained",
    }
    workload = Workload(scenario(tmp_path, one, empty, {**one, "after": "empty"}), seed=1)
    assert len(requests(workload)) == 1
    workload.on_drained(5.0)
    assert [request.arrival_s for request in requests(workload)] == [5.0]
    assert workload.exhausted


def test_drift_scales_the_answers_from_its_instant_on(tmp_path: Path) -> None:
    drift = [{"at": 5, "drift": {"tenant": "acme", "output_scale": 3}}]
    streams = (POISSON, {**POISSON, "tenant": "lab"})
    plain = requests(Workload(scenario(tmp_path, *streams), seed=1))
    seen = run(Workload(scenario(tmp_path, *streams, timeline=drift), seed=1))
    assert [a.text for _, a in seen if isinstance(a, Mark)] == ["drift: acme, answers ×3"]
    drifted = [a for _, a in seen if isinstance(a, Request)]
    for before, after in zip(plain, drifted, strict=True):
        if after.tenant == "acme" and after.arrival_s >= 5:
            assert after.intended_tokens == pytest.approx(3 * (before.intended_tokens or 0), abs=2)
            assert after.prompt.startswith(before.prompt)
            assert after.prompt != before.prompt  # a real model is asked for more
            assert after.prompt_tokens == len(after.prompt.split())
        else:
            assert content(before) == content(after)
        assert after.forced_tokens is None


def test_a_forced_drift_forces_the_drawn_length_within_the_cap(tmp_path: Path) -> None:
    drift = [{"at": 0, "drift": {"output_scale": 2, "force": True}}]
    seen = requests(Workload(scenario(tmp_path, POISSON, timeline=drift), seed=1))
    assert all(r.forced_tokens == min(r.intended_tokens or 0, r.max_tokens) for r in seen)
    assert any(r.forced_tokens == r.max_tokens for r in seen)


def test_patience_cancels_what_has_not_ended(tmp_path: Path) -> None:
    stream = {"tenant": "acme", "arrivals": "at-once", "count": 2, "patience": "30s"}
    workload = Workload(scenario(tmp_path, stream), seed=1)
    first, _ = [a for a in workload.take(0.0) if isinstance(a, Request)]
    workload.on_ended(first, 10.0)
    assert workload.next_time() == 30
    assert not workload.exhausted
    assert workload.take(30.0) == [Cancel("1")]
    assert workload.exhausted


def test_nothing_is_left_when_all_patient_requests_ended(tmp_path: Path) -> None:
    stream = {"tenant": "acme", "arrivals": "at-once", "count": 2, "patience": "30s"}
    workload = Workload(scenario(tmp_path, stream), seed=1)
    for action in workload.take(0.0):
        assert isinstance(action, Request)
        workload.on_ended(action, 1.0)
    assert workload.next_time() == inf
    assert workload.exhausted


def closed(tmp_path: Path, think: str, **end: Any) -> Workload:
    stream = {"tenant": "acme", "arrivals": {"closed": {"clients": 3, "think": think}}, **end}
    return Workload(scenario(tmp_path, stream), seed=1)


def test_closed_clients_wait_for_their_answers(tmp_path: Path) -> None:
    workload = closed(tmp_path, "2s", count=50)
    running = [a for a in workload.take(0.0) if isinstance(a, Request)]
    assert len(running) == 3
    assert workload.next_time() == inf
    assert not workload.exhausted
    now, thinking, total = 0.0, [], 3
    while running:
        request = running.pop(0)
        now += 1.0
        request.state = State.FINISHED
        workload.on_ended(request, now)
        if (due := workload.next_time()) < inf:
            assert due >= now
            thinking.append(due - now)
            now = due
            running += [a for a in workload.take(now) if isinstance(a, Request)]
            total += 1
            assert len(running) <= 3
    assert total == 50
    assert workload.exhausted
    assert sum(thinking) / len(thinking) == pytest.approx(2.0, rel=0.5)


def test_each_of_two_closed_loops_has_its_own_clients_back(tmp_path: Path) -> None:
    one = {"tenant": "acme", "arrivals": {"closed": {"clients": 1}}, "count": 9}
    workload = Workload(scenario(tmp_path, one, {**one, "tenant": "lab"}), seed=1)
    seen: list[str] = []
    while (due_s := workload.next_time()) < inf:
        for request in workload.take(due_s):
            assert isinstance(request, Request)
            seen.append(request.tenant)
            request.state = State.FINISHED
            workload.on_ended(request, request.arrival_s)
    assert Counter(seen) == {"acme": 9, "lab": 9}


def test_closed_clients_overtake_each_other_while_they_think(tmp_path: Path) -> None:
    workload = closed(tmp_path, "5s", count=200)
    running = [a for a in workload.take(0.0) if isinstance(a, Request)]
    now, total = 0.0, 3
    while not workload.exhausted:
        now = min(workload.next_time(), now + 1.0) if running else workload.next_time()
        if now < workload.next_time():
            request = running.pop(0)
            request.state = State.FINISHED
            workload.on_ended(request, now)
            continue
        due = workload.take(now)
        assert all(isinstance(action, Request) and action.arrival_s == now for action in due)
        running += [a for a in due if isinstance(a, Request)]
        total += len(due)
        assert len(running) <= 3
    assert total == 200


def test_a_client_that_is_turned_away_does_not_come_back_at_once(tmp_path: Path) -> None:
    workload = closed(tmp_path, "0s", **{"for": "10s"})
    first = workload.take(0.0)[0]
    assert isinstance(first, Request)
    first.state = State.REJECTED
    workload.on_ended(first, 0.0)
    assert workload.next_time() == 1.0


def test_closed_clients_stop_at_the_end_of_their_time(tmp_path: Path) -> None:
    workload = closed(tmp_path, "0s", **{"from": "7s", "for": "10s"})
    for ended_s in (16.0, 17.0):
        for action in workload.take(workload.next_time()):
            assert isinstance(action, Request)
            action.state = State.FINISHED
            workload.on_ended(action, ended_s)
    assert workload.exhausted


def test_drained_waits_for_the_streams_above_and_for_the_drain(tmp_path: Path) -> None:
    first = {"tenant": "acme", "arrivals": {"uniform": {"min": 1, "max": 1}}, "count": 3}
    then = {"tenant": "lab", "arrivals": "at-once", "count": 2, "after": "drained", "from": "5s"}
    workload = Workload(scenario(tmp_path, first, then, {**then, "count": 4}), seed=1)
    workload.take(1.5)
    workload.on_drained(1.7)  # idle in between: the stream above is not over
    assert [r.tenant for r in requests(workload)] == ["acme", "acme"]
    assert not workload.exhausted
    workload.on_drained(20.0)
    assert [r.arrival_s for r in requests(workload)] == [25, 25]
    workload.on_drained(30.0)
    assert [r.arrival_s for r in requests(workload)] == [35] * 4
    assert workload.exhausted


def test_a_drained_stream_with_nothing_above_it_starts_at_once(tmp_path: Path) -> None:
    stream = {"tenant": "lab", "arrivals": "at-once", "count": 2, "after": "drained"}
    assert len(requests(Workload(scenario(tmp_path, stream), seed=1))) == 2


def test_a_stream_after_another_starts_when_that_has_sent_its_last(tmp_path: Path) -> None:
    follower = {"tenant": "lab", "arrivals": "at-once", "count": 1, "after": "first"}
    first = {"name": "first", "tenant": "acme", "arrivals": {"uniform": {"min": 2, "max": 2}}, "count": 3}
    seen = requests(Workload(scenario(tmp_path, follower, first), seed=1))
    assert [(r.tenant, r.arrival_s) for r in seen] == [("acme", 2), ("acme", 4), ("acme", 6), ("lab", 6)]


@pytest.mark.parametrize(
    ("keys", "total_s"),
    [({"for": "10s", "from": "5s"}, 15), ({"count": 10}, None), ({"for": "10s", "count": 5}, 10)],
)
def test_the_length_of_the_load_where_it_is_known(
    tmp_path: Path, keys: dict[str, Any], total_s: float
) -> None:
    stream = {"tenant": "acme", "arrivals": {"poisson": 1}, **keys}
    assert Workload(scenario(tmp_path, stream), seed=1).total_s == total_s


def test_a_trace_of_ours_comes_as_recorded(tmp_path: Path) -> None:
    rows = [
        {"arrival_s": 1, "tenant": "lab", "prompt": "Summarize it", "max_tokens": 64, "output_tokens": 9},
        {"arrival_s": 2, "tenant": "acme", "tier": "batch", "prompt_tokens": 12, "category": "report"},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = {"trace": {"file": "t.jsonl", "format": "jsonl", "speed": 2}}
    one, two = requests(Workload(scenario(tmp_path, stream), seed=1))
    assert (one.arrival_s, one.tenant, one.tier, one.prompt_tokens) == (0.5, "lab", "batch", 2)
    assert (one.max_tokens, one.intended_tokens, one.category) == (64, 9, "summary")
    assert (two.arrival_s, two.tenant, two.tier, two.prompt_tokens) == (1.0, "acme", "batch", 12)
    assert (two.max_tokens, two.category, two.prompt) == (1024, "report", "")
    shared = requests(
        Workload(scenario(tmp_path, {**stream, "tenant": "acme", "max_tokens": "base"}), seed=1)
    )
    assert [(r.tenant, r.max_tokens) for r in shared] == [("acme", 256), ("acme", 512)]


def test_no_answer_of_a_trace_is_cut_that_was_not(tmp_path: Path) -> None:
    """1500 tokens tell that there was no cap of 1024; a drawn or scaled length knows the same cap."""
    rows = [{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": tokens} for tokens in (9, 1500)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = {"tenant": "acme", "trace": {"file": "t.jsonl", "format": "jsonl"}}
    seen = requests(Workload(scenario(tmp_path, stream), seed=1))
    assert [(r.intended_tokens, r.max_tokens) for r in seen] == [(9, 1500), (1500, 1500)]


def test_the_lengths_of_a_stream_go_before_those_of_its_trace(tmp_path: Path) -> None:
    write: dict[str, list[dict[str, object]]] = {
        "t.jsonl": [{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 9}] * 4
    }
    write["l.jsonl"] = [{"prompt": "Why?", "output_tokens": tokens} for tokens in (101, 102, 103, 104)]
    for name, rows in write.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = {"file": "t.jsonl", "format": "jsonl"}
    stream = {"tenant": "acme", "trace": trace, "lengths": {"file": "l.jsonl"}}
    seen = requests(Workload(scenario(tmp_path, stream), seed=1))
    assert {r.intended_tokens for r in seen} == {101, 102, 103, 104}
    assert {(r.prompt, r.prompt_tokens) for r in seen} == {("", 5)}, "the requests are the trace's"
