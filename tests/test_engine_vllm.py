"""The real engine: vLLM with the small model, on whatever this machine has.

One engine serves the tests in their order, in one event loop; the last ones kill it and stop it.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from processes import running_children
from waiting import until

from scheduler.core.types import Request, Sampling
from scheduler.engines import vllm_setup
from scheduler.engines.engine import Chunk, EngineConfigError, EngineLost
from scheduler.engines.vllm import VllmEngine
from scheduler.engines.vllm_setup import preflight
from scheduler.twin.fit import StepSample

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.usefixtures("real_engine"),
    pytest.mark.asyncio(loop_scope="module"),
    # Of vLLM, torch and what they import; none of ours.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # A start that fails leaves vLLM's ZeroMQ context to the garbage collector, which says so.
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]


SPAWN_S = 120.0  # vLLM is imported before


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    preflight("smollm2")
    engine = VllmEngine("smollm2", max_num_seqs=4, keep_text=True, args={"max_model_len": 512})
    await engine.start()
    yield engine
    await engine.stop()


def ask(name: str, max_tokens: int, prompt: str = "Tell me a long story.", **fields: object) -> Request:
    request = Request(name, "acme", "standard", 0.0, prompt_tokens=0, max_tokens=max_tokens, prompt=prompt)
    for field, value in fields.items():
        setattr(request, field, value)
    return request


async def answer(engine: VllmEngine, request: Request) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request)]


def tokens(chunks: list[Chunk]) -> int:
    return sum(chunk.tokens for chunk in chunks)


def engine_children() -> list[psutil.Process]:
    """Children that hold an engine; the resource tracker is Python's own and ends with us."""
    return [child for child, line in running_children() if "resource_tracker" not in line]


async def test_a_stream_counts_its_tokens_and_ends_by_length(engine: VllmEngine) -> None:
    chunks = await answer(engine, ask("long", 21))
    assert tokens(chunks) == 21
    assert [chunk.finish for chunk in chunks] == [""] * (len(chunks) - 1) + ["length"]
    assert chunks[0].tokens == 1  # the first token comes at once, the others a few at a time
    assert len(chunks) < 21
    # The chat template is longer than the prompt.
    assert chunks[0].prompt_tokens is not None
    assert chunks[0].prompt_tokens > 20
    assert all(chunk.prompt_tokens is None for chunk in chunks[1:])
    assert "".join(chunk.text for chunk in chunks).strip()


async def test_an_answer_that_ends_by_itself(engine: VllmEngine) -> None:
    greedy = Sampling(temperature=0.0)
    chunks = await answer(
        engine, ask("short", 200, "Answer with one word: is the sky blue?", sampling=greedy)
    )
    assert chunks[-1].finish == "stop"
    assert 0 < tokens(chunks) < 200


async def test_a_stop_string(engine: VllmEngine) -> None:
    chunks = await answer(engine, ask("stop", 200, sampling=Sampling(temperature=0.0, stop=("e",))))
    assert chunks[-1].finish == "stop"
    assert "e" not in "".join(chunk.text for chunk in chunks)


async def test_forced_lengths(engine: VllmEngine) -> None:
    for forced, cap, length, finish in ((150, 200, 150, "stop"), (300, 60, 60, "length")):
        chunks = await answer(engine, ask("forced", cap, "Answer with one word: yes?", forced_tokens=forced))
        assert (tokens(chunks), chunks[-1].finish) == (length, finish)


async def test_streams_run_side_by_side_even_under_one_id(engine: VllmEngine) -> None:
    first, second = await asyncio.gather(
        *(answer(engine, ask("twin", 50, forced_tokens=length)) for length in (30, 40))
    )
    assert (tokens(first), tokens(second)) == (30, 40)
    telemetry = engine.telemetry()
    assert telemetry.steps is not None
    assert telemetry.steps >= 40
    assert telemetry.step_ms is not None
    assert telemetry.step_ms > 0
    await until(lambda: engine.telemetry().running == 0)  # told with the step after the last


async def test_every_step_is_told_and_makes_a_profile(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[StepSample] = []
    monkeypatch.setattr(engine, "on_step", seen.append)
    prompts = await asyncio.gather(
        *(answer(engine, ask(f"step-{length}", 50, forced_tokens=length)) for length in (20, 30, 40))
    )
    monkeypatch.undo()
    prompt_tokens = [chunks[0].prompt_tokens or 0 for chunks in prompts]
    # Nobody knows how long the first took, and on a busy machine the longest may come some steps later.
    assert 38 <= len(seen) <= 60
    assert all(step.duration_s > 0.0 for step in seen)
    assert max(step.batch for step in seen) == 3
    assert sum(step.prefill for step in seen) <= sum(prompt_tokens)
    assert seen[-1].batch == 1  # the longest goes on alone
    assert abs(seen[-1].context - prompt_tokens[-1] - 40) <= vllm_setup.STREAM_INTERVAL + 1
    # What the engine makes of its own steps: those of the tests before, too.
    await answer(engine, ask("more", 60, forced_tokens=60))
    profile = engine.profile
    assert profile is not None
    assert profile.max_model_len == 512
    assert profile.kv_tokens > 512
    step_ms = engine.telemetry().step_ms
    assert step_ms is not None
    assert profile.step_s(1, 60) * 1e3 == pytest.approx(step_ms, rel=3.0)  # of the same order


async def test_abort_ends_the_stream_with_what_it_had(engine: VllmEngine) -> None:
    seen = []
    async for chunk in engine.generate(ask("aborted", 400, forced_tokens=400)):
        seen.append(chunk)
        if tokens(seen) > 8 and not chunk.finish:
            assert engine.telemetry().running == 1
            await engine.abort("aborted")
    assert seen[-1].finish == "abort"
    assert 8 < tokens(seen) < 400
    await engine.abort("aborted")  # ended already: ignored
    await engine.abort("never heard of")


async def test_abort_before_the_first_token(engine: VllmEngine) -> None:
    stream = engine.generate(ask("early", 400))
    await engine.abort("early")
    assert [chunk async for chunk in stream] == [Chunk(0, "abort")]


async def test_a_consumer_that_leaves_frees_its_slot(engine: VllmEngine) -> None:
    task = asyncio.create_task(answer(engine, ask("left", 400, forced_tokens=400)))
    await answer(engine, ask("witness", 3))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: engine.telemetry().running == 0)


async def test_a_prompt_beyond_the_context_fails_alone(engine: VllmEngine) -> None:
    assert engine.max_model_len == 512
    for words in (600, 20_000):  # rendered on the loop, and in a thread
        assert await answer(engine, ask("huge", 5, "word " * words)) == [Chunk(0, "error")]
    assert tokens(await answer(engine, ask("after", 5))) == 5


async def test_what_it_says_of_itself(engine: VllmEngine) -> None:
    assert engine.capacity == 6
    assert "SmolLM2-135M-Instruct" in engine.detail
    assert not engine.simulated


async def test_seeds_go_where_they_are_safe(engine: VllmEngine) -> None:
    seeded = ask("seed", 5, sampling=Sampling(seed=1))
    assert engine._sampling(seeded).seed == (1 if engine.honours_seed else None)
    assert tokens(await answer(engine, seeded)) == 5


async def test_the_terminals_signals_are_ours_alone(engine: VllmEngine) -> None:
    children = engine_children()
    assert children
    for child in children:
        child.send_signal(signal.SIGINT)
    assert tokens(await answer(engine, ask("after ctrl-c", 5))) == 5


async def test_a_crash_ends_every_stream_and_the_engine_comes_back(engine: VllmEngine) -> None:
    streams = [asyncio.create_task(answer(engine, ask(f"lost {i}", 400, forced_tokens=400))) for i in (1, 2)]
    await answer(engine, ask("witness", 3))
    engine.crash()
    for lost in await asyncio.gather(*streams, return_exceptions=True):
        assert isinstance(lost, EngineLost)
    with pytest.raises(EngineLost):
        await answer(engine, ask("too late", 5))
    assert not engine.telemetry().alive
    await engine._release()  # the first thing that start() does
    assert "Still there?" in engine.render_chat([{"role": "user", "content": "Still there?"}])
    await engine.start()
    assert engine.telemetry().alive
    assert tokens(await answer(engine, ask("retried", 5))) == 5


async def test_stop_leaves_nothing_behind(engine: VllmEngine) -> None:
    await asyncio.gather(engine.stop(), engine.stop())
    assert engine_children() == []
    assert not [child for child in multiprocessing.active_children() if child.name == "EngineCore"]
    with pytest.raises(EngineLost):
        await answer(engine, ask("stopped", 5))
    await engine.stop()


async def test_unknown_argument_names_the_right_one() -> None:
    engine = VllmEngine("smollm2", max_num_seqs=4, args={"max_modle_len": 512})
    with pytest.raises(EngineConfigError, match="did you mean 'max_model_len'"):
        await engine.start()


async def test_stop_does_not_wait_for_a_start() -> None:
    engine = VllmEngine("smollm2", max_num_seqs=4)
    starting = asyncio.create_task(engine.start())
    await until(multiprocessing.active_children, SPAWN_S)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert engine_children() == []
    gc.collect()


async def test_kill_9_takes_the_engine_with_it(tmp_path: Path) -> None:
    """Killed at the worst moment: the child exists, and has not yet imported what would watch for us."""
    script = tmp_path / "victim.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio
            from scheduler.engines.vllm import VllmEngine

            if __name__ == "__main__":
                asyncio.run(VllmEngine("smollm2", max_num_seqs=4).start())
            """
        )
    )
    victim = await asyncio.create_subprocess_exec(sys.executable, script, stderr=subprocess.DEVNULL)

    def spawned() -> list[psutil.Process]:
        assert victim.returncode is None
        return [child for child, line in running_children(victim.pid) if "spawn_main" in line]

    await until(spawned, SPAWN_S)
    children = spawned()
    victim.kill()
    await victim.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
