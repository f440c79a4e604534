"""The benches at small sizes: what they count, the shape of what they return. No figure is judged here."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextvars import copy_context
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from driftui.bench import Child, bench_screen
from driftui.bench_child import IN_SCREEN, MeteredLoop
from scheduler.bench import core
from scheduler.bench.engine import Side, Turn, Work, compare, requests_of, share_claim, through
from scheduler.bench.result import BenchError, Claim, Result
from scheduler.cli import main
from scheduler.core.policies import POLICIES
from scheduler.engines.engine import EngineConfigError, EngineError
from scheduler.live.run import LiveRun
from scheduler.load.scenario import Scenario
from scheduler.plan import make_plan

SMALL = Work(requests=6, tokens=4, concurrency=2)


def silent(line: str) -> None:
    """Progress that nobody reads."""


def test_the_document_of_a_result() -> None:
    result = Result("core", "how", [{"a": 1, "b": 0.5}], [Claim("x", 2.0, 3.0, False)])
    document = result.document()
    (claim,) = document.pop("claims")
    assert document == {"schema": 1, "bench": "core", "rows": [{"a": 1, "b": 0.5}], "protocol": "how"}
    wanted = {"id": "x", "target": 2.0, "ours": 3.0, "ok": False, "tolerance": 0.0, "paper": None}
    assert claim.items() >= wanted.items()
    assert "x: 3 (target 2): NOT reached" in result.text()
    assert not all(claim.ok for claim in result.claims)


def test_bench_core_measures_every_policy_beside_its_yardstick() -> None:
    sizes = core.Sizes(rounds=1, cycles=50, queued=40, deep=100, swapped=100)
    result = core.bench_core(silent, sizes=sizes)
    assert [row["what"] for row in result.rows] == ["cycle"] * len(POLICIES) + ["push+pop"] * 2 + ["swap"]
    assert all(row["us_per_request"] > 0 and row["heapq_us"] > 0 for row in result.rows)
    assert {row["queued"] for row in result.rows} == {40, 100}
    assert [claim.id for claim in result.claims] == [
        "cycle_requests_per_s",
        "push_pop_us_at_1m",
        "swap_longest_slice_ms",
    ]
    assert "50 times with 40 queued" in result.protocol
    json.dumps(result.document(), allow_nan=False)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder that is whole as far as a plan looks."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    return str(tmp_path)


def test_both_sides_get_the_same_prompts_with_forced_lengths(model: str) -> None:
    plan = SMALL.plan(model)
    first, again = requests_of(plan), requests_of(plan)
    assert len(first) == 6
    assert plan.capacity == 2
    assert [(r.id, r.prompt, r.forced_tokens) for r in first] == [
        (r.id, r.prompt, r.forced_tokens) for r in again
    ]
    assert all(1 <= (request.forced_tokens or 0) <= 8 == request.max_tokens for request in first)
    assert len({request.forced_tokens for request in first}) > 1


class Turns:
    """Stands in for the engine and for both sides; tokens and seconds of a turn are given."""

    def __init__(self, ours_tokens: int = 100) -> None:
        self.llm = self
        self.played: list[str] = []
        self._ours_tokens = ours_tokens

    async def reset_prefix_cache(self) -> None:
        self.played.append("-")

    async def base(self, plan: Any) -> Turn:
        return self._play("base", plan, Turn(100, 2.0))

    async def ours(self, plan: Any) -> Turn:
        return self._play("ours", plan, Turn(self._ours_tokens, 2.5, float(len(self.played))))

    def _play(self, side: str, plan: Any, turn: Turn) -> Turn:
        """The engine slows down by 0.1 s a turn."""
        slower_s = 0.1 * self.played.count("-")
        self.played.append(f"{side} {plan.scenario.load[0].count}")
        return turn._replace(took_s=turn.took_s + slower_s)

    async def compare(self, model: str, pairs: int) -> list[dict[str, Any]]:
        sides = Side("base", self.base), Side("ours", self.ours)
        return await compare(silent, self, SMALL, model, pairs, sides)  # type: ignore[arg-type]


async def test_pairs_alternate_after_a_warm_up(model: str) -> None:
    turns = Turns()
    rows = await turns.compare(model, 3)
    base, ours = ["-", "base 6"], ["-", "ours 6"]
    first, then = [*base, *ours, *ours, *base], [*ours, *base, *base, *ours]
    assert turns.played == ["base 2", "ours 2", *first, *then, *first]
    assert [row["first"] for row in rows] == ["base", "ours", "base"]
    # Turns 1 and 4 of four, or 2 and 3: what the machine does meanwhile is the same for both sides.
    assert rows[1] == {
        "pair": 2,
        "first": "ours",
        "tokens": 200,
        "base_tokens_per_s": pytest.approx(200 / (4.0 + 0.6 + 0.7)),
        "ours_tokens_per_s": pytest.approx(200 / (5.0 + 0.5 + 0.8)),
        "ratio": pytest.approx(5.3 / 6.3),
        "loop_lag_p99_ms": 17.0,
    }


async def test_sides_that_did_not_do_the_same_work_are_not_compared(model: str) -> None:
    with pytest.raises(BenchError, match="base made 200 tokens and ours 198"):
        await Turns(ours_tokens=99).compare(model, 1)


@pytest.mark.parametrize(("ratios", "share", "ok"), [((0.9, 0.96, 1.0), 0.96, True), ((0.94,), 0.94, False)])
def test_the_claim_is_on_the_median_ratio(ratios: tuple[float, ...], share: float, ok: bool) -> None:
    assert share_claim("name", [{"ratio": ratio} for ratio in ratios]) == Claim("name", 0.95, share, ok)


def simulated(**stream: Any) -> LiveRun:
    scenario = Scenario.model_validate(
        {
            "name": "small",
            "speed": 1000.0,
            "tenants": ({"name": "a"},),
            "load": ({"tenant": "a", "arrivals": "at-once", "count": 3, **stream},),
        }
    )
    return LiveRun(make_plan(scenario))


async def test_a_turn_is_a_whole_run() -> None:
    turn = await through(simulated())
    assert turn.tokens > 3
    assert turn.took_s > 0


async def test_a_run_that_loses_requests_is_no_turn() -> None:
    with pytest.raises(BenchError, match="0 of 3 requests finished"):
        await through(simulated(patience="10ms"))


def test_only_the_screens_callbacks_are_metered() -> None:
    inside = copy_context()
    inside.run(IN_SCREEN.set, True)
    burnt_s = {True: 0.0, False: 0.0}  # inside the screen, and outside

    def burn() -> None:
        began_s = time.thread_time()
        while (spent_s := time.thread_time() - began_s) < 0.02:
            pass
        burnt_s[IN_SCREEN.get()] += spent_s

    async def work(loop: MeteredLoop) -> tuple[float, float]:
        async def burner() -> None:
            burn()
            await asyncio.sleep(0)
            burn()

        await loop.create_task(burner())
        others_s = loop.screen_cpu_s()
        await loop.create_task(burner(), context=inside)
        done = asyncio.Event()
        loop.call_later(0, burn, context=inside)
        loop.call_soon_threadsafe(burn, context=inside)
        loop.call_later(0.001, done.set)
        await done.wait()
        return others_s, loop.screen_cpu_s()

    with asyncio.Runner(loop_factory=MeteredLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, MeteredLoop)
        others_s, all_s = runner.run(work(loop))
    assert others_s == 0
    assert burnt_s[True] >= 0.08
    assert burnt_s[True] <= all_s < burnt_s[True] + burnt_s[False]


@pytest.mark.slow
def test_bench_screen_measures_refreshes_and_a_stalled_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    result = bench_screen(silent, refreshes=6, stall_s=2.5)  # a slow screen draws every 2 s
    refresh, stall = result.rows
    assert 0 < refresh["median_ms"] <= refresh["p99_ms"] <= refresh["p999_ms"] == refresh["max_ms"]
    assert refresh["refreshes"] == 6
    assert refresh["bytes_per_refresh"] > 1000  # it has really drawn
    assert refresh["python_loop_ms"] > 0
    assert refresh["json_dumps_ms"] > 0
    assert stall["longest_stall_ms"] > 0
    assert stall["unread_bytes"] > 1000  # it has really been kept waiting
    assert [claim.id for claim in result.claims] == [
        "refresh_median_ms",
        "refresh_p999_ms",
        "longest_stall_ms",
    ]
    json.dumps(result.document(), allow_nan=False)


def test_a_measured_process_that_fails_is_an_error() -> None:
    with Child("--nonsense") as child, pytest.raises(BenchError, match="exit code 2"):
        list(child.messages(silent))


def test_a_process_that_still_draws_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reports nothing for longer than a silent one may take: each look at the clock is a second later."""
    script = "import time, os; [(os.write(1, b'x'), time.sleep(0.02)) for _ in range(40)]"
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda argv, **more: popen([sys.executable, "-S", "-c", script], **more)
    )
    monkeypatch.setattr("driftui.bench._QUIET_S", 20)
    monkeypatch.setattr("driftui.bench.time", SimpleNamespace(monotonic=count().__next__))
    with Child() as child:
        assert list(child.messages(silent)) == []
        assert child.bytes_read == 40


@pytest.mark.parametrize(
    ("kind", "error"),
    [("config_error", EngineConfigError), ("engine_error", EngineError), ("error", BenchError)],
)
def test_what_the_measured_process_cannot_do_is_raised_here(kind: str, error: type[Exception]) -> None:
    class Refused(Child):
        def _lines(self) -> Iterator[bytes]:
            yield json.dumps({kind: "model 'nosuch' is nowhere"}).encode()

    with Refused("--nonsense") as child, pytest.raises(error, match="'nosuch' is nowhere"):
        list(child.messages(silent))


def test_the_command_prints_one_document_and_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missed = Result("core", "how", [{"a": 1}], [Claim("x", 2.0, 1.0, False)])

    def bench(tell: Any) -> Result:
        tell("half way")
        return missed

    monkeypatch.setattr(core, "bench_core", bench)
    assert main(["bench", "core", "--json", "--out", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == missed.document()
    assert shown.err == "half way\n"
    assert json.loads((tmp_path / "new" / "bench-core.json").read_text()) == missed.document()


def test_a_bench_that_has_nowhere_to_write_does_not_begin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(core, "bench_core", lambda tell: pytest.fail("it began"))
    assert main(["bench", "core", "--out", f"{__file__}/new"]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_a_bench_that_cannot_run_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bench(tell: Any) -> Result:
        raise BenchError("no pseudo-terminal here")

    monkeypatch.setattr(core, "bench_core", bench)
    assert main(["bench", "core"]) == 1
    assert capsys.readouterr().err == "driftsched: no pseudo-terminal here\n"


@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_sizes_are_whole_numbers(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "screen", "--refreshes", value])
    assert exit_.value.code == 2
    assert "--refreshes" in capsys.readouterr().err


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.usefixtures("real_engine")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of vLLM, torch and what they import
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_bench_engine_on_the_real_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    sizes = ["--requests", "6", "--tokens", "4", "--concurrency", "2", "--pairs", "2"]
    assert main(["bench", "engine", "--json", *sizes]) == 0
    shown = capfd.readouterr()
    document = json.loads(shown.out)
    assert [row["first"] for row in document["rows"]] == ["direct", "ours"]
    tokens = sum(request.forced_tokens or 0 for request in requests_of(SMALL.plan("smollm2")))
    assert {row["tokens"] for row in document["rows"]} == {2 * tokens}
    assert all(row["ratio"] > 0 and row["loop_lag_p99_ms"] > 0 for row in document["rows"])
    assert document["claims"][0]["id"] == "throughput_share"
    assert "pair 2 of 2" in shown.err
