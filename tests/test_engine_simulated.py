"""What every engine must do, run over the simulated one, and what only the simulated one can promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from stepping_gpu import Told, told

from scheduler.core.types import Request
from scheduler.engines.clock import Clock, PlannedClock
from scheduler.engines.engine import Chunk, Engine, EngineLost
from scheduler.engines.simulated import SimulatedEngine
from scheduler.twin.gpu import Gpu
from scheduler.twin.profile_file import load_profile

PROFILE = load_profile("l4", "qwen1.5-1.8b-chat")
SPEED = 50.0
CAPACITY = 4
LONG = 8000  # tokens: still running when the test has done what it does to it

MakeEngine = Callable[[], Awaitable[Engine]]


def request(request_id: str = "r", tokens: int = 20, **fields: object) -> Request:
    given: dict[str, object] = {"prompt": "Say something.", "max_tokens": tokens, "intended_tokens": tokens}
    return Request(request_id, "acme", "standard", 0.0, 5, **(given | fields))  # type: ignore[arg-type]


async def read(engine: Engine, *args: object, **fields: object) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request(*args, **fields))]  # type: ignore[arg-type]


def running_clock(speed: float) -> Clock:
    clock = PlannedClock(asyncio.get_running_loop(), speed)
    clock.start()
    return clock


def tokens_of(chunks: list[Chunk]) -> int:
    return sum(chunk.tokens for chunk in chunks)


def finishes_once(chunks: list[Chunk]) -> bool:
    return bool(chunks[-1].finish) and not any(chunk.finish for chunk in chunks[:-1])


@pytest.fixture
def engine_factory() -> MakeEngine:
    """Makes an engine that is not started; the conformance tests use nothing else."""

    async def make() -> Engine:
        return SimulatedEngine(PROFILE, CAPACITY, running_clock(SPEED))

    return make


@pytest.fixture
async def engine(engine_factory: MakeEngine) -> AsyncIterator[Engine]:
    engine = await engine_factory()
    await engine.start()
    yield engine
    await engine.stop()


# Conformance


async def test_a_stream_ends_with_a_finish_and_all_its_tokens(engine: Engine) -> None:
    chunks = await read(engine, tokens=20)
    assert finishes_once(chunks)
    assert 1 <= tokens_of(chunks) <= 20
    assert chunks[-1].finish in ("stop", "length")


async def test_concurrent_streams_keep_their_tokens_apart(engine: Engine) -> None:
    streams = await asyncio.gather(
        *(read(engine, f"r{n}", tokens=n, forced_tokens=n) for n in range(1, 3 * CAPACITY))
    )
    assert [tokens_of(chunks) for chunks in streams] == list(range(1, 3 * CAPACITY))
    assert all(finishes_once(chunks) for chunks in streams)


async def test_abort_ends_the_stream_with_its_count(engine: Engine) -> None:
    chunks: list[Chunk] = []
    async for chunk in engine.generate(request(tokens=LONG, forced_tokens=LONG)):
        if not chunks:
            await engine.abort("r")
        chunks.append(chunk)
    assert finishes_once(chunks)
    assert chunks[-1].finish == "abort"
    assert 1 <= tokens_of(chunks) < LONG


async def test_abort_of_an_unknown_or_ended_stream_is_ignored(engine: Engine) -> None:
    await engine.abort("nobody")
    await read(engine, "r", tokens=3)
    await engine.abort("r")
    assert tokens_of(await read(engine, "again", tokens=3)) >= 1


async def test_a_reader_that_leaves_frees_its_place(engine: Engine) -> None:
    stream = engine.generate(request(tokens=LONG, forced_tokens=LONG))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert finishes_once(await read(engine, "next", tokens=3))
    assert engine.telemetry().running == 0


async def test_crash_loses_every_stream_and_start_brings_it_back(engine: Engine) -> None:
    streams = [
        asyncio.ensure_future(read(engine, f"r{n}", tokens=LONG, forced_tokens=LONG)) for n in range(6)
    ]
    await asyncio.sleep(0)
    engine.crash()
    results = await asyncio.gather(*streams, return_exceptions=True)
    assert [type(result) for result in results] == [EngineLost] * 6
    with pytest.raises(EngineLost):
        await read(engine)
    assert not engine.telemetry().alive
    await engine.start()
    assert engine.telemetry().alive
    assert finishes_once(await read(engine, tokens=5))


async def test_stop_may_come_twice_before_start_and_with_streams_open(engine_factory: MakeEngine) -> None:
    engine = await engine_factory()
    await engine.stop()
    await engine.start()
    stream = asyncio.ensure_future(read(engine, tokens=LONG, forced_tokens=LONG))
    await asyncio.sleep(0)
    await engine.stop()
    await engine.stop()
    assert (await stream)[-1].finish == "abort"


async def test_telemetry_counts_what_runs_and_what_waits(engine: Engine) -> None:
    idle = engine.telemetry()
    assert (idle.running, idle.waiting) == (0, 0)
    streams = [engine.generate(request(f"r{n}", tokens=LONG, forced_tokens=LONG)) for n in range(CAPACITY)]
    for stream in streams:
        await anext(stream)
    waiting = asyncio.ensure_future(anext(engine.generate(request("late", tokens=5))))
    await asyncio.sleep(0)
    busy = engine.telemetry()
    assert (busy.running, busy.waiting) == (CAPACITY, 1)
    assert busy.kv_use is not None
    assert 0.0 < busy.kv_use < 1.0
    assert busy.step_ms is not None
    assert busy.step_ms > 0.0
    waiting.cancel()
    for stream in streams:
        await stream.aclose()  # type: ignore[attr-defined]


# Of the simulated engine alone


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"intended_tokens": 8, "max_tokens": 10}, (8, "stop")),
        ({"intended_tokens": 10, "max_tokens": 10}, (10, "stop")),  # the end-of-text token is the last one
        ({"intended_tokens": 11, "max_tokens": 10}, (10, "length")),
        ({"intended_tokens": 3, "max_tokens": 10, "forced_tokens": 7}, (7, "stop")),  # as vLLM's (_finish)
        ({"intended_tokens": 10, "max_tokens": 10, "forced_tokens": 10}, (10, "length")),
        ({"intended_tokens": 1, "max_tokens": 10}, (1, "stop")),
    ],
)
async def test_length_and_finish(engine: Engine, fields: dict[str, int], expected: tuple[int, str]) -> None:
    chunks = await read(engine, **fields)
    assert (tokens_of(chunks), chunks[-1].finish) == expected


async def test_a_sequence_larger_than_the_kv_cache_is_an_error_of_its_own(engine: Engine) -> None:
    chunks = await read(engine, tokens=PROFILE.kv_tokens + 1)
    assert chunks == [Chunk(0, "error")]
    assert finishes_once(await read(engine, "next", tokens=3))


class SteppedClock(Clock):
    """A clock that the test turns; timers wait until it does."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self.now_s = 0.0
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def now(self) -> float:
        return self.now_s

    def call_at(self, when: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, asyncio.get_running_loop())
        self.timers.append((when, lambda: None if handle.cancelled() else callback(*args)))
        return handle

    def turn(self, now: float) -> None:
        """Let time pass; what is due fires only now, as on a loop that was busy."""
        self.now_s = now
        due = [fire for when, fire in self.timers if when <= now]
        self.timers = [timer for timer in self.timers if timer[0] > now]
        for fire in due:
            fire()


async def test_instants_and_gaps_are_the_gpus_own_however_late_the_loop_wakes_up() -> None:
    clock = SteppedClock()
    engine = SimulatedEngine(PROFILE, 2, clock, start_delay_s=0.0)
    await engine.start()
    arrivals = {"a": 0.0, "b": 0.1, "c": 0.4}
    lengths = {"a": 40, "b": 25, "c": 30}
    gpu: Gpu[str] = Gpu(PROFILE, 2, track_gaps=True)
    expected: list[Told] = []
    streams = []
    for request_id, arrival_s in arrivals.items():
        expected += told(gpu.advance(arrival_s))
        gpu.start(request_id, 5, lengths[request_id])
        clock.turn(arrival_s)
        streams.append(asyncio.ensure_future(read(engine, request_id, tokens=lengths[request_id])))
        await asyncio.sleep(0)
    expected += told(gpu.advance(100.0))
    clock.turn(0.9)
    await asyncio.sleep(0)
    while clock.timers:
        clock.turn(clock.now_s + 7.0)
        await asyncio.sleep(0)

    exact: dict[str, dict[str, Told]] = {request_id: {} for request_id in arrivals}
    for event in expected:
        exact[event.key][event.kind] = event
    for request_id, chunks in zip(arrivals, await asyncio.gather(*streams), strict=True):
        assert tokens_of(chunks) == lengths[request_id]
        assert chunks[0].at_s == exact[request_id]["first"].at_s
        assert chunks[-1].at_s == exact[request_id]["done"].at_s
        assert chunks[-1].gaps == exact[request_id]["done"].gaps
    await engine.stop()


async def test_telemetry_is_of_now_though_no_timer_has_fired() -> None:
    clock = SteppedClock()
    engine = SimulatedEngine(PROFILE, 2, clock, start_delay_s=0.0)
    await engine.start()
    reading = asyncio.ensure_future(read(engine, "a", tokens=40))
    await asyncio.sleep(0)
    gpu: Gpu[str] = Gpu(PROFILE, 2)
    gpu.start("a", 5, 40)
    for clock.now_s in (0.3, 0.5):
        gpu.advance(clock.now_s)
        assert engine.telemetry().steps == gpu.state().steps > 0
    assert engine.telemetry().kv_use == gpu.state().kv_tokens / PROFILE.kv_tokens
    await engine.stop()
    await reading


async def test_tokens_are_handed_over_as_they_come_in_few_chunks() -> None:
    engine = SimulatedEngine(PROFILE, 2, running_clock(20.0), text=True)
    await engine.start()
    stream = engine.generate(request(tokens=LONG, intended_tokens=LONG, streamed=True))  # 5 s of real time
    first, *more = [await anext(stream) for _ in range(5)]
    assert first.tokens == 1
    assert all(chunk.tokens > 10 and not chunk.finish for chunk in more), "a few times a second"
    await engine.abort("r")
    chunks = [first, *more, *[chunk async for chunk in stream]]
    assert finishes_once(chunks)
    assert len("".join(chunk.text for chunk in chunks).split()) == tokens_of(chunks)
    await engine.stop()


async def test_nothing_is_streamed_as_text_unless_asked_for(engine: Engine) -> None:
    assert all(chunk.text == "" for chunk in await read(engine, tokens=5))
