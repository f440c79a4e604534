"""What a preview says, held against what then happens where nothing is left to chance; and its parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import chain, pairwise
from math import inf
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest

from scheduler.bench.preview import Case, Found, judge
from scheduler.core.guard import Beside
from scheduler.core.slots import MicroBatch
from scheduler.core.types import Estimate, Limits, Request, Slo, State, Tenant
from scheduler.load.scenario import load_scenario
from scheduler.plan import make_plan
from scheduler.twin.future import POINT_SEED, AnswerLengths, as_before, draw_future
from scheduler.twin.outlook import Outlook, Window
from scheduler.twin.packing import packed, unpacked
from scheduler.twin.picture import (
    MAX_ARRIVALS,
    MIN_RECENT_S,
    RECENT_S,
    Pending,
    Picture,
    Recent,
)
from scheduler.twin.predictions import Prediction
from scheduler.twin.preview import (
    HORIZON_S,
    MAX_HORIZON_S,
    band,
    forecast,
    horizon_of,
    play,
    who_waits_longer,
)
from scheduler.twin.profile_file import load_profile
from scheduler.virtual import VirtualRun

TENANTS = (Tenant("acme", "premium", 5.0), Tenant("lab", "batch", 2.0))


def pending(number: int, point: float = 100.0, upper: float = 400.0, **changes: Any) -> Pending:
    tenant = TENANTS[number % 2]
    estimate = Estimate(20, point, upper, "summary", point)
    made = Pending(tenant.name, tenant.tier, 0.1 * number, 20, 400, estimate, None, 0)
    return made._replace(**changes)


def picture(queued: int = 100, running: int = 8, **changes: Any) -> Picture:
    made = Picture(
        now=100.0,
        policy="fifo",
        tenants=TENANTS,
        queued=tuple(pending(number, 40.0 + number % 7 * 50) for number in range(queued)),
        running=tuple(pending(number, generated=30) for number in range(running)),
        recent_s=100.0,
        arrivals=tuple(pending(number, arrival_s=float(number)) for number in range(1, 100)),
        ratios={},
        capacities=(8,),
        max_num_seqs=8,
        batch=None,
        limits=Limits(),
        max_inflight_tokens=None,
        max_model_len=inf,
        profile=load_profile("l4", "qwen1.5-1.8b-chat"),
    )
    return replace(made, **changes)


def packed_whole(what: Picture) -> list[bytes]:
    return list(packed(what, [what.queued]))


def played(what: Picture, policy: str, seed: int = 0) -> dict[str, float]:
    return dict(play(what, policy, draw_future(what, HORIZON_S, seed), HORIZON_S).figures)


def test_the_same_picture_and_seed_give_the_same_figures() -> None:
    assert played(picture(), "fair+two-class") == played(unpacked(packed_whole(picture())), "fair+two-class")
    assert played(picture(), "sjf") != played(picture(), "sjf", seed=1)


def test_who_may_not_wait_is_gone_in_time_however_busy_the_slots() -> None:
    came = tuple(pending(number, arrival_s=float(number), ttl_s=0.001) for number in range(1, 100))
    what = picture(queued=0, running=1, capacities=(1,), max_num_seqs=1, arrivals=came)
    assert played(what, "fifo")["longest_wait_s"] == pytest.approx(0.001)


def test_what_runs_at_the_very_start_is_played_on() -> None:
    """It is prefilled before the picture's time, which is then below 0."""
    assert played(picture(queued=0, arrivals=(), now=0.0), "fifo")["ended"] == 8


def test_an_answer_begins_when_it_is_asked_for() -> None:
    """Not when the GPU, idle since, had its last step."""
    came = tuple(
        pending(number, 100.0, 100.0, arrival_s=10.0 * number, max_tokens=100) for number in range(1, 10)
    )
    tenants = tuple(replace(tenant, slo=Slo(ttft_s=0.1)) for tenant in TENANTS)
    figures = played(picture(queued=0, running=0, arrivals=came, tenants=tenants), "fifo")
    assert figures["e2e.p50"] == pytest.approx(100 * 0.016, rel=0.05)
    assert figures["goodput.requests_per_s"] * HORIZON_S == pytest.approx(figures["ended"])


def test_a_course_is_what_shorter_plays_come_to() -> None:
    what = picture()
    future = draw_future(what, 100.0, 0)
    whole = play(what, "sjf", future, 100.0, 30.0)
    shorter = [play(what, "sjf", future, span_s).figures["e2e.p50"] for span_s in (30.0, 60.0, 90.0)]
    assert whole.course == shorter
    assert whole.figures == play(what, "sjf", future, 100.0).figures


@pytest.mark.parametrize(
    "changes",
    [
        {"limits": Limits(max_queued=40, max_in_flight=6, ttl_s=105.0)},
        {"batch": MicroBatch(8, 0.01)},
        {"max_inflight_tokens": 2000.0, "capacities": (4, 2)},
    ],
)
def test_the_requests_of_a_future_serve_one_play_after_another(changes: dict[str, Any]) -> None:
    what = picture(**changes)
    future, fresh = (draw_future(what, HORIZON_S, 0) for _ in range(2))
    first = play(what, "fair+two-class", future, HORIZON_S)
    assert play(what, "sjf", future, HORIZON_S) == play(what, "sjf", fresh, HORIZON_S)
    assert play(what, "fair+two-class", future, HORIZON_S) == first
    untouched = draw_future(what, HORIZON_S, 0)
    for used, unused in zip(chain(*future), chain(*untouched), strict=True):
        as_before([used])
        assert asdict(used) == asdict(unused)


def test_policies_do_what_they_are_known_for() -> None:
    fifo, sjf, priority, fair = (
        played(picture(), policy) for policy in ("fifo", "sjf", "priority", "fair credit=0")
    )
    assert sjf["e2e.p50"] < fifo["e2e.p50"]
    assert 0.5 < fifo["fairness.jain"] < fair["fairness.jain"] <= 1.0
    assert priority["tiers.premium.e2e.p99"] < fifo["tiers.premium.e2e.p99"]
    assert who_waits_longer(priority, fifo) == ("lab",)


@pytest.mark.parametrize("policy", ["fifo", "sjf", "weighted", "fair", "edf", "lottery", "packed"])
def test_nobody_is_lost(policy: str) -> None:
    what = picture()
    come = len(what.queued) + len(what.running) + len(draw_future(what, HORIZON_S, 0).arrivals)
    figures = played(what, policy)
    assert figures["ended"] + figures["here"] == come
    packed = played(replace(what, batch=MicroBatch(8, 0.01)), policy)
    assert packed["ended"] + packed["here"] == come
    assert packed["e2e.p50"] > figures["e2e.p50"], "a blocking batch holds slots"


def test_a_burst_of_answers_that_run_to_their_limit_is_predicted_as_it_comes(tmp_path: Path) -> None:
    """No chance is left: every answer is cut, and nothing comes after. Only what runs is resumed a little
    off, for its tokens are prefilled anew.
    """
    (tmp_path / "s.yaml").write_text(
        """
name: cut
engine: {capacity: 8}
tenants: [{name: acme, tier: premium}, {name: lab, tier: batch}]
load:
  - tenant: {acme: 1, lab: 1}
    arrivals: at-once
    count: 400
    mix: {short_qa: 2, technical: 1}
    max_tokens: {short_qa: 30, technical: 200}
    lengths: {lognormal: {short_qa: [900, 0.1], technical: [900, 0.1]}}
timeline: [{at: 30s, policy: sjf}]
""",
        encoding="utf-8",
    )
    document = VirtualRun(make_plan(load_scenario(str(tmp_path / "s.yaml")), clock="virtual")).run()
    (found,) = document["predictions"]
    assert (found["at_s"], found["from"], found["to"]) == (30.0, "fifo", "sjf")
    for figure, value in found["observed"].items():
        if figure.endswith(("p50", "p95", "p99", "mean")) or figure == "longest_wait_s":
            assert found["predicted"][figure] == pytest.approx(value, rel=0.02), figure
    assert found["stay"]["e2e.p50"] > found["predicted"]["e2e.p50"]
    assert found["observed_s"] < found["horizon_s"], "the run ended before"


def test_a_switch_closes_the_span_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        """
name: twice
tenants: [{name: acme}]
load: [{tenant: acme, arrivals: {poisson: 6}, for: 200s}]
timeline: [{at: 20s, policy: sjf}, {at: 50s, policy: fair}, {at: 55s, policy: fair}]
""",
        encoding="utf-8",
    )
    plan = make_plan(load_scenario(str(tmp_path / "s.yaml")), clock="virtual")
    first, second = VirtualRun(plan).run()["predictions"]
    assert (first["observed_s"], first["horizon_s"]) == (30.0, HORIZON_S)
    assert second["observed_s"] == pytest.approx(HORIZON_S)
    assert second["observed"]["ended"] > 500


# -- parts ------------------------------------------------------------------------------------------------


def test_lengths_follow_what_ended_lately() -> None:
    ratios = {("acme", "summary", 9): [1.0] * 10 + [2.0] * 10, ("lab", "summary", 9): [0.5] * 3}
    lengths = AnswerLengths(ratios)
    mine, other = pending(0), pending(1)
    assert [lengths.draw(mine, u) for u in (0.0, 0.49, 0.51, 0.99)] == [100, 100, 200, 200]
    assert lengths.draw(other, 0.1) == 50, "too few of its own: those of its category"
    assert lengths.draw(mine._replace(generated=150), 0.0) == 200, "it is longer than 150 already"
    assert 250 < lengths.draw(mine._replace(generated=250), 0.5) <= 400
    assert lengths.draw(mine._replace(generated=77, finish="stop"), 0.5) == 77


def test_what_was_cut_is_cut_again() -> None:
    lengths = AnswerLengths({("acme", "summary", 9): [1.0] * 10 + [inf] * 10})
    assert [lengths.draw(pending(0), u) for u in (0.1, 0.9)] == [100, 400]


def test_without_a_past_lengths_spread_around_the_estimate() -> None:
    lengths = AnswerLengths({})
    draws = [lengths.draw(pending(0, upper=200.0), u) for u in (0.05, 0.25, 0.5, 0.75, 0.9, 0.999)]
    assert draws[2] == 100
    assert draws[4] == 200
    assert all(less < more for less, more in pairwise(draws))
    assert draws[-1] <= 400
    late = [lengths.draw(pending(0, upper=200.0, generated=180), u) for u in (0.0, 0.5, 0.9)]
    assert late[0] > 180
    assert all(less < more for less, more in pairwise(late))
    assert lengths.draw(pending(0, upper=101.0, generated=399), 0.5) == 400, (
        "far past what was thought possible"
    )


def test_the_horizon_is_until_the_queue_is_gone_within_bounds() -> None:
    assert horizon_of(picture(queued=0)) == HORIZON_S
    assert horizon_of(picture(queued=20)) == HORIZON_S
    assert HORIZON_S < horizon_of(picture(queued=800)) < MAX_HORIZON_S
    assert horizon_of(picture(queued=20_000)) == MAX_HORIZON_S


def test_bands_and_forecasts() -> None:
    draws = [{"e2e.p50": float(value), "ended": float(value)} for value in range(1, 11)]
    low, high = band(draws)
    assert (low["e2e.p50"], high["e2e.p50"]) == (1.0, 9.0)
    usual, cautious = forecast(draws)
    assert (usual["e2e.p50"], cautious["e2e.p50"], cautious["ended"]) == (5.5, 8.0, 3.0)


def ended(at_s: float, arrival_s: float) -> Request:
    return Request(
        *("r", "acme", "premium", arrival_s, 10, 10),
        state=State.FINISHED,
        ended_s=at_s,
        dispatched_s=arrival_s + 1.0,
        first_token_s=arrival_s + 2.0,
    )


def test_who_is_still_here_counts_with_its_age() -> None:
    outlook = Outlook(TENANTS, 100.0, 50.0)
    outlook.ended([ended(110.0, 105.0)])
    outlook.still_here([Request("w", "lab", "batch", 90.0, 10, 10)], 150.0)
    figures = outlook.figures()
    assert (figures["e2e.p50"], figures["e2e.p99"], figures["tiers.batch.e2e.p50"]) == (5.0, 60.0, 60.0)
    assert (figures["longest_wait_s"], figures["ended"], figures["here"]) == (60.0, 1.0, 1.0)
    assert figures["goodput.requests_per_s"] == 1 / 50


def test_goodput_counts_what_met_its_objectives() -> None:
    outlook = Outlook([Tenant("acme", "premium", slo=Slo(e2e_s=4.0))], 100.0, 50.0)
    outlook.ended([ended(110.0, 105.0), ended(111.0, 108.0), ended(112.0, 108.0)])
    figures = outlook.figures()
    assert (figures["ended"], figures["goodput.requests_per_s"]) == (3.0, 2 / 50)


def test_what_is_observed_so_far_is_held_against_as_long_a_span() -> None:
    prediction = Prediction(100.0, "fifo", "sjf", 12.0, TENANTS)
    waits = [Request("w", "lab", "batch", 98.0, 10, 10)]
    assert prediction.beside(105.0, waits) is None, "nothing is predicted yet"
    prediction.course = [3.0, 4.0]
    assert prediction.beside(105.0, waits) == Beside(7.0, 3.0)
    prediction.on_ended(ended(106.0, 97.0))
    assert prediction.beside(110.0, waits) == Beside(9.0, 4.0)
    assert prediction.beside(115.0, waits) is None, "nothing is predicted of so long a span"
    prediction.close(110.0, waits)
    assert prediction.beside(110.0, waits) is None


def test_a_line_is_told_where_a_median_was_predicted_and_found() -> None:
    prediction = Prediction(100.0, "fifo", "sjf", 60.0, TENANTS)
    prediction.on_ended(ended(106.0, 97.0))
    prediction.predicted = {"e2e.p50": 8.04}
    assert prediction.line() is None, "nothing was found yet"
    prediction.close(110.0, [])
    assert prediction.line() == "sjf: predicted p50 8.0 s, observed 9.0 s (E2E over 10 s)"
    for predicted in (None, {"ended": 0.0}):
        prediction.predicted = predicted
        assert prediction.line() is None, "nobody was expected to end"


def test_who_expired_counts_with_its_age() -> None:
    outlook = Outlook(TENANTS, 100.0, 50.0)
    outlook.ended([ended(110.0, 105.0)])
    gone = Request("w", "lab", "batch", 90.0, 10, 10, state=State.EXPIRED)
    gone.ended_s = 120.0
    outlook.ended([gone])
    figures = outlook.figures()
    assert (figures["tiers.batch.e2e.p99"], figures["longest_wait_s"], figures["ended"]) == (30.0, 30.0, 1.0)


def test_a_window_is_no_longer_than_the_time_since_the_switch() -> None:
    window = Window(60.0)
    for at_s in (10.0, 50.0, 90.0):
        window.add(ended(at_s, at_s - 5.0))
    assert window.figures(TENANTS, 100.0)["ended"] == 2
    assert window.figures(TENANTS, 100.0, since_s=70.0)["ended"] == 1


def test_a_window_forgets_though_nobody_asks_for_figures() -> None:
    window = Window(60.0)
    for at_s in range(1000):
        window.add(ended(float(at_s), at_s - 5.0))
    assert len(window._ended) == 61


def test_the_future_is_the_recent_past_backwards_then_forwards() -> None:
    what = picture(arrivals=tuple(pending(0, arrival_s=at_s) for at_s in (40.0, 90.0, 99.0)), recent_s=100.0)
    come = [request.arrival_s for request in draw_future(what, 300.0, 0).arrivals]
    assert come == [101.0, 110.0, 160.0, 240.0, 290.0, 299.0, 301.0, 310.0, 360.0]
    assert draw_future(what, 9.0, 0).arrivals[-1].arrival_s == 101.0


def test_futures_differ_by_as_much_as_the_past_leaves_open() -> None:
    """Steady arrivals leave less open than bursts, many finished answers less than few."""

    def spread(what: Picture) -> tuple[float, float]:
        futures = [draw_future(what, 100.0, seed) for seed in range(1, 41)]
        counts = [len(future.arrivals) for future in futures]
        tokens = [fmean(r.intended_tokens or 0 for r in future.arrivals) for future in futures]
        return pstdev(counts), pstdev(tokens)

    def come(at_s: Iterable[float]) -> tuple[Pending, ...]:
        return tuple(pending(0, arrival_s=float(each)) for each in at_s)

    def known(copies: int) -> dict[tuple[str, str, int], list[float]]:
        return {("acme", "summary", 9): sorted([0.5, 1.0, 1.5, 3.0] * copies)}

    steady = picture(arrivals=come(range(1, 100)), ratios=known(32))
    bursts = picture(arrivals=come(at_s / 2 for at_s in range(200) if at_s // 20 % 2), ratios=known(4))
    count, tokens = spread(steady)
    assert 10.0 < count < 20.0, "about sqrt(2 x 99)"
    wider = spread(bursts)
    assert wider[0] > 1.5 * count
    assert wider[1] > 1.5 * tokens
    assert draw_future(bursts, 100.0, POINT_SEED).arrivals[0].arrival_s == 100.5, (
        "the point is the past as it was"
    )


def test_what_is_recent() -> None:
    recent = Recent()
    assert recent.arrivals(0.0) == (MIN_RECENT_S, ())
    for number in range(300):
        recent.arrived(Request(str(number), "acme", "premium", float(number), 10, 10))
    span_s, arrivals = recent.arrivals(299.0)
    assert span_s == RECENT_S
    assert [request.arrival_s for request in arrivals] == [float(at) for at in range(180, 300)]
    for number in range(2 * MAX_ARRIVALS):
        recent.arrived(Request(f"more {number}", "acme", "premium", 300.0 + number / 1000, 10, 10))
    span_s, arrivals = recent.arrivals(309.0)
    assert len(arrivals) == MAX_ARRIVALS
    assert MIN_RECENT_S == span_s > 309.0 - arrivals[0].arrival_s, "only so far back is known"


def test_the_bench_judges_by_what_came() -> None:
    def figures(p50_s: float, premium_p99_s: float) -> dict[str, float]:
        return {"e2e.p50": p50_s, "tiers.premium.e2e.p99": premium_p99_s}

    def good(observed: dict[str, dict[str, float]]) -> Any:
        said = {"sjf": (figures(4.0, 10.0),), "fifo": (figures(9.0, 12.0),)}
        return judge(Found(Case("load", 1, 200.0, "fifo"), 9, 120.0, said, observed))["good"]

    assert good({"sjf": figures(5.0, 20.0), "fifo": figures(6.0, 20.0)})
    assert good({"sjf": figures(5.2, 20.0), "fifo": figures(5.0, 20.0)}), "near the best is as good"
    assert not good({"sjf": figures(5.4, 20.0), "fifo": figures(5.0, 20.0)})
    assert not good({"sjf": figures(5.0, 40.0), "fifo": figures(6.0, 20.0)}), "premium waits too long"
    assert good({"sjf": figures(5.0, 40.0), "fifo": figures(6.0, 60.0)}), "neither keeps the limit"
