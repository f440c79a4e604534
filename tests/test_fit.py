"""Fitting a profile to engine steps: a known one is found again, and a live fit follows a change of pace."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from scheduler.engines.vllm_gauges import Gauges
from scheduler.twin.fit import MIN_STEPS, REFIT_STEPS, LiveFit, StepSample, fit_profile
from scheduler.twin.profile import Profile
from scheduler.twin.profile_file import load_profile, profile_text

CPU = load_profile("cpu", "smollm2")
L4 = load_profile("l4", "qwen1.5-1.8b-chat")
EAGER = load_profile("l4-eager", "qwen1.5-1.8b-chat")


def steps(
    profile: Profile, count: int, *, noise: float = 0.0, hit: float = 0.0, batch: int = 16, tokens: int = 200
) -> list[StepSample]:
    """Steps of up to ``batch`` sequences of up to ``tokens`` each, a quarter with some prefill; a share of
    them ``hit`` by something else on the machine.
    """
    rng = Random(5)
    made = []
    for _ in range(count):
        size = rng.randint(1, batch)
        kind = (size, size * rng.randint(20, tokens), rng.choice((0, 0, 0, rng.randint(10, 400))))
        seconds = profile.step_s(*kind) * rng.lognormvariate(0.0, noise)
        made.append(StepSample(seconds * (rng.uniform(4, 9) if rng.random() < hit else 1.0), *kind))
    return made


def costs(profile: Profile) -> tuple[float, ...]:
    return (
        max(profile.floor_s, profile.fixed_s),
        profile.per_context_token_s,
        profile.per_sequence_s,
        profile.per_prefill_token_s,
    )


@pytest.mark.parametrize("profile", [CPU, L4], ids=lambda profile: profile.name)
def test_a_known_profile_is_found_through_noise_and_hiccups(profile: Profile) -> None:
    base = replace(profile, fixed_s=1.0, floor_s=0.0, per_sequence_s=0.0)  # says nothing of the truth
    fit = fit_profile(steps(profile, 1500, noise=0.05, hit=0.02, batch=48, tokens=1500), base)
    assert costs(fit.profile) == pytest.approx(costs(profile), rel=0.1)
    for kind in ((1, 100, 0), (16, 3000, 0), (16, 3000, 200), (48, 20000, 0)):
        assert fit.profile.step_s(*kind) == pytest.approx(profile.step_s(*kind), rel=0.03)
    assert 15 <= fit.dropped <= 45
    assert fit.steps + fit.dropped == 1500
    assert 0.02 < fit.median_error < 0.05
    assert fit.profile.kv_tokens == profile.kv_tokens


def test_a_floor_is_found() -> None:
    fit = fit_profile(steps(EAGER, 800, noise=0.01, batch=64, tokens=1500), EAGER)
    assert fit.profile.floor_s == pytest.approx(EAGER.floor_s, rel=0.02)
    assert fit.profile.fixed_s == pytest.approx(EAGER.fixed_s, rel=0.05)
    assert fit.profile.per_context_token_s == pytest.approx(EAGER.per_context_token_s, rel=0.05)


def test_knees_in_batch_and_prefill_are_found() -> None:
    bent = replace(
        CPU,
        batch_knee=8,
        per_sequence_above_s=CPU.per_sequence_s,
        prefill_knee=128,
        per_prefill_token_above_s=CPU.per_prefill_token_s,
    )
    fitted = fit_profile(steps(bent, 1500, noise=0.05), CPU).profile
    assert fitted.batch_knee == pytest.approx(8, rel=0.25)
    assert fitted.prefill_knee == pytest.approx(128, rel=0.25)
    for kind in ((1, 100, 0), (8, 900, 0), (16, 1600, 0), (8, 900, 60), (8, 900, 128), (16, 1600, 400)):
        assert fitted.step_s(*kind) == pytest.approx(bent.step_s(*kind), rel=0.03), kind


def test_where_there_is_no_knee_none_is_claimed() -> None:
    fitted = fit_profile(steps(CPU, 800, noise=0.05), EAGER).profile
    assert (fitted.floor_s, fitted.batch_knee, fitted.prefill_knee) == (0.0, inf, inf)


def test_the_fitted_steps_take_as_long_in_all() -> None:
    """A skewed noise moves the mean off the median, and latencies are sums."""
    seen = [
        step._replace(duration_s=step.duration_s * (1.6 if n % 5 == 0 else 1.0))
        for n, step in enumerate(steps(CPU, 500))
    ]
    profile = fit_profile(seen, CPU).profile
    expected_s = sum(step.expected_s(profile) for step in seen)
    assert expected_s == pytest.approx(sum(step.duration_s for step in seen), rel=0.001)


def test_costs_are_never_negative() -> None:
    """Steps that get shorter with each sequence: the closest that makes sense is that they cost nothing."""
    odd = [StepSample(0.05 - 0.001 * batch, batch, 100, 0) for batch in range(1, 17) for _ in range(4)]
    assert min(costs(fit_profile(odd, CPU).profile)) >= 0.0


def test_steps_that_cost_nothing_of_their_own_still_make_a_profile() -> None:
    proportional = [StepSample(0.01 * batch, batch, 100, 0) for batch in range(1, 17) for _ in range(4)]
    assert fit_profile(proportional, CPU).profile.step_s(8, 100) == pytest.approx(0.08, rel=0.01)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=f"31 engine steps were seen; at least {MIN_STEPS}"):
        fit_profile(steps(CPU, 31), CPU)


def test_a_step_that_was_seen_too_short_is_one_of_many() -> None:
    seen = steps(CPU, 300)
    for duration_s in (0.0, 1e-9, 1e-5):
        fitted = fit_profile([*seen, seen[7]._replace(duration_s=duration_s)], CPU, find_knees=False).profile
        assert costs(fitted) == pytest.approx(costs(CPU), rel=0.02)


def test_a_fitted_profile_is_a_file_that_loads(tmp_path: Path) -> None:
    fitted = replace(
        fit_profile(steps(CPU, 200, noise=0.03), CPU).profile,
        batch_knee=8.5,
        per_sequence_above_s=0.001,
        prefill_knee=96,
        per_prefill_token_above_s=0.0002,
    )
    file = tmp_path / "fitted.yaml"
    file.write_text(profile_text(fitted), encoding="utf-8")
    loaded = load_profile(str(file))
    for kind in ((1, 100, 0), (16, 3000, 0), (16, 3000, 200)):
        assert loaded.step_s(*kind) == pytest.approx(fitted.step_s(*kind), rel=1e-12)
    assert (loaded.name, loaded.detail, loaded.kv_tokens) == (fitted.name, fitted.detail, fitted.kv_tokens)
    assert loaded.provenance == fitted.provenance


def current(live: LiveFit, base: Profile) -> Profile:
    profile = live.profile(base)
    assert profile is not None
    return profile


def test_a_live_fit_follows_the_steps() -> None:
    live = LiveFit()
    assert live.profile(CPU) is None
    busy = replace(CPU, fixed_s=0.05, per_sequence_s=0.003)  # somebody else has half of the machine
    for step in steps(CPU, 1000, noise=0.05):
        live.add(step)
    assert costs(current(live, CPU)) == pytest.approx(costs(CPU), rel=0.1)
    for step in steps(busy, 1100, noise=0.05):
        live.add(step)
    assert costs(current(live, CPU)) == pytest.approx(costs(busy), rel=0.1)


def test_a_live_fit_leaves_the_knees_where_they_are() -> None:
    bent = replace(CPU, prefill_knee=128, per_prefill_token_above_s=CPU.per_prefill_token_s)
    live = LiveFit()
    for step in steps(bent, 1000, noise=0.05):
        live.add(step)
    fitted = current(live, bent)
    assert fitted.prefill_knee == 128
    assert fitted.step_s(8, 900, 400) == pytest.approx(bent.step_s(8, 900, 400), rel=0.05)


def test_what_a_run_does_not_vary_stays_as_in_the_base() -> None:
    live = LiveFit()
    for _ in range(300):
        live.add(StepSample(2.0 * CPU.step_s(8, 800), 8, 800, 0))
    slow = current(live, CPU)
    assert slow.step_s(8, 800) == pytest.approx(2.0 * CPU.step_s(8, 800), rel=0.01)
    assert costs(slow) == pytest.approx([2.0 * cost for cost in costs(CPU)], rel=0.1)


def test_a_live_fit_is_made_anew_only_now_and_then() -> None:
    live, made = LiveFit(), steps(CPU, 400, noise=0.05)
    for step in made[:200]:
        live.add(step)
    first = current(live, CPU)
    for step in made[200 : 200 + REFIT_STEPS - 1]:
        live.add(step)
    assert current(live, CPU) is first
    live.add(made[-1])
    assert current(live, CPU) is not first
    assert current(live, EAGER).floor_s > 0.0  # of another base


def test_vllms_reports_become_steps() -> None:
    """One report a step; the engine's own clock shows in the gaps between tokens."""
    seen: list[StepSample] = []
    gauges = Gauges(seen.append)

    def report(context: int, new: int, running: int, prefill: int, gaps: list[float]) -> None:
        gauges.context = context
        details = SimpleNamespace(
            num_ctx_requests=new, num_generation_requests=len(gaps), num_ctx_tokens=prefill
        )
        stats = SimpleNamespace(
            num_running_reqs=running, num_waiting_reqs=0, kv_cache_usage=0.1, iteration_details=details
        )
        gauges.record(stats, SimpleNamespace(inter_token_latencies_iter=gaps, num_preempted_reqs=0))

    report(50, 2, 2, 50, [])  # from idle: nobody knows when it began
    report(52, 0, 2, 0, [0.020, 0.020])
    report(54, 1, 3, 30, [0.035, 0.055])  # one of them was preempted in between
    assert seen == [StepSample(0.020, 2, 52, 0), StepSample(0.035, 3, 84, 30)]
    assert gauges.read().step_ms == 35.0
