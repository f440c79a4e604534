"""Guard and autopilot decide by hand-made figures; whatever comes, they do not flap."""

from __future__ import annotations

from itertools import pairwise
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.autopilot import BAR_S, Autopilot, Forecast, Goal, best
from scheduler.core.bounds import Bound
from scheduler.core.guard import Beside, Guard, GuardRule
from scheduler.load.scenario import ScenarioError, load_scenario
from scheduler.plan import make_plan
from scheduler.virtual import VirtualRun

SLOW = Bound("tiers.premium.e2e.p99", ">", 12.0)
RULE = GuardRule(SLOW, hold_s=30.0, cooldown_s=120.0)


def premium(p99_s: float, p50_s: float = 1.0) -> dict[str, float]:
    return {"ended": 50.0, "e2e.p50": p50_s, "tiers.premium.e2e.p99": p99_s}


def test_a_violation_that_lasts_is_rolled_back_once() -> None:
    guard = Guard(RULE)
    guard.on_switch("fifo", 100.0)
    assert guard.check("sjf", premium(20.0), 110.0) is None
    assert guard.check("sjf", premium(20.0), 139.9) is None
    assert guard.check("sjf", premium(20.0), 140.0) == "fifo"
    for now in range(145, 1000, 5):
        assert guard.check("fifo", premium(20.0), now) is None, "what the guard did is not undone by it"


def test_a_violation_that_stops_for_a_moment_begins_anew() -> None:
    guard = Guard(RULE)
    guard.on_switch("fifo", 100.0)
    assert guard.check("sjf", premium(20.0), 110.0) is None
    assert guard.check("sjf", premium(11.0), 125.0) is None
    assert guard.check("sjf", premium(20.0), 141.0) is None
    assert guard.check("sjf", premium(20.0), 171.0) == "fifo"


def test_without_a_switch_there_is_nothing_to_roll_back() -> None:
    guard = Guard(RULE)
    assert [guard.check("fifo", premium(20.0), now) for now in (0.0, 50.0, 100.0)] == [None] * 3


def test_a_named_policy_is_gone_back_to_but_after_a_switch_alone() -> None:
    guard = Guard(GuardRule(SLOW, hold_s=0.0, roll_back="priority"))
    assert guard.check("fifo", premium(20.0), 1.0) is None
    guard.on_switch("fifo", 2.0)
    assert guard.check("sjf", premium(20.0), 3.0) == "priority"
    assert guard.check("priority", premium(20.0), 500.0) is None


def test_few_requests_say_nothing() -> None:
    guard = Guard(GuardRule(SLOW, hold_s=0.0))
    guard.on_switch("fifo", 0.0)
    assert guard.check("sjf", premium(20.0) | {"ended": 9.0}, 1.0) is None
    assert guard.check("sjf", premium(20.0) | {"ended": 10.0}, 2.0) == "fifo"


def test_worse_than_predicted() -> None:
    guard = Guard(GuardRule(worse_than_predicted=0.25, hold_s=0.0))
    guard.on_switch("fifo", 0.0)
    assert guard.check("sjf", premium(1.0), 1.0) is None, "nothing was predicted"
    assert guard.check("sjf", premium(1.0), 2.0, Beside(9.9, 8.0)) is None
    assert guard.check("sjf", premium(1.0), 3.0, Beside(nan, 8.0)) is None
    assert guard.check("sjf", premium(1.0), 4.0, Beside(10.1, 8.0)) == "fifo"


steps = st.tuples(st.floats(0.1, 60.0), st.floats(0.0, 30.0), st.sampled_from(["", "sjf", "fair", "fifo"]))


@settings(max_examples=50)
@given(st.lists(steps, max_size=60), st.sampled_from(["", "priority"]))
def test_it_never_flaps(sequence: list[tuple[float, float, str]], roll_back: str) -> None:
    """However noisy the figures are: one roll back in a cooldown, and one for each switch."""
    guard = Guard(GuardRule(SLOW, hold_s=5.0, cooldown_s=100.0, roll_back=roll_back))
    policy, now, acted_s, since_operator = "fifo", 0.0, [], 0
    for step_s, p99_s, operator in sequence:
        now += step_s
        if operator and operator != policy:
            guard.on_switch(policy, now)
            policy, since_operator = operator, 0
        target = guard.check(policy, premium(p99_s), now)
        if target is not None:
            assert target != policy
            acted_s.append(now)
            policy, since_operator = target, since_operator + 1
            assert since_operator == 1, "twice for one switch"
    assert all(later - earlier >= 100.0 for earlier, later in pairwise(acted_s))


# -- the autopilot ----------------------------------------------------------------------------------------

GOAL = Goal("e2e.p50", (Bound("tiers.premium.e2e.p99", "<", 12.0),), gain=0.1)


def forecast(p50_s: float, p99_s: float = 5.0, cautious_p99_s: float | None = None) -> Forecast:
    usual = premium(p99_s, p50_s)
    return Forecast(usual, premium(p99_s if cautious_p99_s is None else cautious_p99_s, p50_s))


@pytest.mark.parametrize(("limit", "excess"), [(10.0, 0.5), (0.0, 15.0), (15.0, 0.0), (20.0, 0.0)])
def test_the_excess_is_a_share_of_the_limit(limit: float, excess: float) -> None:
    assert Bound("e2e.p50", "<=", limit).excess({"e2e.p50": 15.0}) == excess
    assert Bound("e2e.p50", "<=", limit).excess({}) == 0.0, "a figure that is not there"


def test_best_is_the_least_within_the_bounds_or_the_least_beyond_them() -> None:
    assert best({"fifo": forecast(9.0), "sjf": forecast(4.0, 20.0), "fair": forecast(6.0)}, GOAL) == "fair"
    assert best({"fifo": forecast(9.0, 14.0), "sjf": forecast(4.0, 20.0)}, GOAL) == "fifo"
    cautious = {"fifo": forecast(9.0), "sjf": forecast(4.0, 10.0, cautious_p99_s=13.0)}
    assert best(cautious, GOAL) == "fifo", "a bound is held against the worse quarter"


def test_it_swaps_when_two_previews_in_a_row_name_the_same() -> None:
    pilot = Autopilot(GOAL)
    better, other = (
        {"fifo": forecast(9.0), "sjf": forecast(4.0)},
        {"fifo": forecast(9.0), "fair": forecast(4.0)},
    )
    assert [pilot.choose("fifo", better, 0.0) for _ in range(2)] == [None, "sjf"]
    pilot = Autopilot(GOAL)
    found = [pilot.choose("fifo", forecasts, 0.0) for forecasts in (better, other, better, better)]
    assert found == [None, None, None, "sjf"]


def test_a_small_gain_is_none() -> None:
    pilot = Autopilot(GOAL)
    near = {"fifo": forecast(9.0), "sjf": forecast(8.2)}
    assert [pilot.choose("fifo", near, 0.0) for _ in range(5)] == [None] * 5


def test_back_within_the_bounds_needs_no_gain() -> None:
    pilot = Autopilot(GOAL)
    beyond = {"sjf": forecast(4.0, 20.0), "fair": forecast(6.0)}
    assert [pilot.choose("sjf", beyond, 0.0) for _ in range(2)] == [None, "fair"]


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(0.1, 50.0), min_size=3, max_size=3), max_size=40))
def test_it_swaps_at_most_every_other_preview_and_not_soon_back(previews: list[list[float]]) -> None:
    pilot, policy, swapped, left_s = Autopilot(GOAL), "a", [], dict.fromkeys("abc", -inf)
    for number, values in enumerate(previews):
        now = 10.0 * number
        target = pilot.choose(policy, {name: forecast(v) for name, v in zip("abc", values, strict=True)}, now)
        if target is not None:
            assert now - left_s[target] >= BAR_S
            pilot.on_switch(policy, now)
            swapped.append(number)
            left_s[policy] = now
            policy = target
    assert all(later - earlier >= 2 for earlier, later in pairwise(swapped))


def test_of_two_that_each_look_better_while_the_other_orders_it_tires() -> None:
    pilot, policy, swapped_s = Autopilot(GOAL), "fifo", []
    for now in range(0, 7200, 20):
        other = "sjf" if policy == "fifo" else "fifo"
        if pilot.choose(policy, {policy: forecast(9.0), other: forecast(4.0)}, now):
            pilot.on_switch(policy, now)
            swapped_s.append(now)
            policy = other
    assert len(swapped_s) <= 12, "each is left for 2, 4, 8, 16, 32 and 60 minutes"


@pytest.mark.parametrize("cooldown_s", [30.0, 120.0])
def test_guard_and_autopilot_do_not_flap_together(cooldown_s: float) -> None:
    """What the autopilot finds best the guard finds bad, for as long as they run."""
    rule = GuardRule(SLOW, hold_s=10.0, cooldown_s=cooldown_s)
    guard, pilot, policy, switched_s = Guard(rule), Autopilot(GOAL), "fifo", []
    for now in range(0, 1500, 5):
        bad = policy == "sjf"
        target = guard.check(policy, premium(20.0 if bad else 1.0), now)
        if target is None and now % 20 == 0:
            target = pilot.choose(policy, {"fifo": forecast(9.0), "sjf": forecast(4.0)}, now)
            if target is not None:
                guard.on_switch(policy, now)
        if target is not None:
            pilot.on_switch(policy, now)
            switched_s.append(now)
            policy = target
    gaps = [later - earlier for earlier, later in pairwise(switched_s[1::2])]
    assert len(gaps) >= 2
    assert all(later >= 1.5 * earlier for earlier, later in pairwise(gaps)), "each time for longer"
    assert len(switched_s) <= 8


# -- in a scenario ----------------------------------------------------------------------------------------

HEAD = """
name: steered
tenants: [{name: acme, tier: premium, slo: {e2e: 20s}}, {name: lab, tier: batch}]
load:
  - {tenant: {acme: 1, lab: 2}, arrivals: {poisson: 9}, for: 80s}
"""


def check(folder: Path, text: str) -> str:
    (folder / "s.yaml").write_text(HEAD + text, encoding="utf-8")
    with pytest.raises(ScenarioError) as error:
        load_scenario(str(folder / "s.yaml"))
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("guard: {over: 60s}", 6, "needs `when`, `worse_than_predicted` or both"),
        ("guard:\n  when: 5", 7, "must be `FIGURE OP VALUE`, such as e2e.p99 < 12s, got 5"),
        ("guard:\n  when: e2e.p51 > 3s", 7, "did you mean 'e2e.p"),
        ("guard:\n  when: e2e.p50 == 3s", 7, "compares with one of < <= > >="),
        ("guard:\n  when: e2e.p50 > 3s\n  roll_back: sjx", 8, "unknown policy 'sjx'"),
        ("guard:\n  worse_than_predicted: lots", 7, "a share such as 25% or 0.25, got 'lots'"),
        ("policy:\n  auto:\n    minimise: e2e", 8, "no figure 'e2e'"),
        ("policy:\n  auto:\n    minimise: goodput.requests_per_s", 8, "more is better; bound it"),
        ("policy:\n  auto:\n    candidates: [fifo, sjx]", 8, "unknown policy 'sjx'"),
        ("policy:\n  auto:\n    candidates: []", 8, "must not be empty"),
        ("policy:\n  auto:\n    evry: 3s", 8, "did you mean 'every'"),
        (
            "guard:\n  when: tiers.standard.e2e.p99 > 3s",
            7,
            "guard.when: no tenant is of the tier 'standard'; allowed: premium, batch",
        ),
        (
            'policy:\n  auto:\n    subject_to: ["latency_s.tiers.standard.e2e.p99 < 3s"]',
            8,
            "policy.auto.subject_to.0: no tenant is of the tier 'standard'",
        ),
        ("policy:\n  auto:\n    minimise: tiers.standard.e2e.p50", 8, "policy.auto.minimise: no tenant"),
    ],
)
def test_errors_name_the_line_and_what_is_allowed(tmp_path: Path, text: str, line: int, words: str) -> None:
    told = check(tmp_path, text)
    assert f"s.yaml:{line}: " in told
    assert words in told


def steered(folder: Path, text: str, seed: int = 0) -> dict[str, Any]:
    (folder / "s.yaml").write_text(text, encoding="utf-8")
    return VirtualRun(make_plan(load_scenario(str(folder / "s.yaml")), seed=seed, clock="virtual")).run()


def test_the_autopilot_takes_over_and_a_policy_by_name_turns_it_off(tmp_path: Path) -> None:
    auto = "policy: {auto: {candidates: [sjf], every: 30s, start: fifo}}\n"
    switches = steered(tmp_path, HEAD + auto)["switches"]
    assert [(s["from"], s["to"], s["by"]) for s in switches] == [("fifo", "sjf", "autopilot")]
    scenario = load_scenario(str(tmp_path / "s.yaml"))
    assert make_plan(scenario, policy="fair", clock="virtual").goal is None


def test_the_guard_rolls_a_bad_switch_back(tmp_path: Path) -> None:
    text = """
policy: priority
guard: {when: "latency_s.tiers.premium.e2e.p99 > 14s", over: 30s, hold: 10s}
timeline: [{at: 40s, policy: sjf}]
"""
    switches = steered(tmp_path, HEAD + text)["switches"]
    assert [(s["to"], s["by"]) for s in switches] == [("sjf", "timeline"), ("priority", "guard")]
    assert 50.0 <= switches[1]["at_s"] < 110.0


def test_what_the_guard_did_is_not_undone_by_it(tmp_path: Path) -> None:
    """However bad things stay: here the bound is beyond any policy."""
    text = """
policy: priority
guard: {when: "e2e.p50 > 1ms", over: 10s, hold: 5s, cooldown: 20s}
timeline: [{at: 20s, policy: sjf}]
"""
    switches = steered(tmp_path, HEAD + text)["switches"]
    assert [(s["to"], s["by"]) for s in switches] == [("sjf", "timeline"), ("priority", "guard")]
    assert switches[1]["at_s"] < 45.0


PROMISED = """
name: promised
engine: {capacity: 32}
guard: {worse_than_predicted: 25%}
tenants: [{name: acme, tier: premium}, {name: lab, tier: batch}]
load: [{tenant: {acme: 1, lab: 1}, arrivals: {poisson: 9}, for: 220s}]
timeline:
  - {at: 100s, policy: sjf}
"""


@pytest.mark.parametrize("seed", [0, 2])
def test_a_switch_that_does_as_predicted_stays(tmp_path: Path, seed: int) -> None:
    """Although those who end first have waited longer than anybody is to wait later."""
    document = steered(tmp_path, PROMISED, seed)
    (prediction,) = document["predictions"]
    assert prediction["observed"]["e2e.p50"] < 1.25 * prediction["predicted"]["e2e.p50"]
    assert [switch["by"] for switch in document["switches"]] == ["timeline"]


@pytest.mark.parametrize(
    "worse",
    [
        "- {at: 101s, drift: {output_scale: 2.0}}",
        "- {at: 105s, burst: {tenant: lab, rate: 10.0, for: 60s}}",
    ],
)
def test_a_switch_that_does_worse_than_predicted_is_soon_undone(tmp_path: Path, worse: str) -> None:
    calm = PROMISED.replace("poisson: 9", "poisson: 6")
    switches = steered(tmp_path, f"{calm}  {worse}\n", seed=1)["switches"]
    assert [switch["by"] for switch in switches] == ["timeline", "guard"]
    assert switches[1]["at_s"] < 100.0 + 90.0


def test_of_two_switches_at_one_instant_the_second_starts_from_the_first(tmp_path: Path) -> None:
    twice = PROMISED + "  - {at: 100s, policy: fair}\n"
    document = steered(tmp_path, twice)
    pairs = [[(each["from"], each["to"]) for each in document[part]] for part in ("switches", "predictions")]
    assert pairs[0] == pairs[1]
    first, second = document["predictions"]
    assert first["observed_s"] == 0.0
    assert second["stay"] == first["predicted"]
