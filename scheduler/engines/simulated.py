"""The simulated engine: the twin's GPU model under the run's clock.

One timer waits for the GPU's next event; no request sleeps through its answer. What the scheduler needs
exactly (first token, end, gaps) carries the twin's own instants, however late the loop wakes up; on a
``PlannedClock`` what follows from them happens at those instants too. The tokens between are handed over a
few times a second of real time, at any speed of the clock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import cycle, islice
from math import inf

from scheduler.core.types import Request
from scheduler.engines.clock import Clock
from scheduler.engines.engine import Chunk, EngineLost, EngineTelemetry
from scheduler.twin.answer import answer
from scheduler.twin.gpu import Gpu, NeverFits
from scheduler.twin.profile import Profile
from scheduler.twin.simulate import RESTART_S

# How often a stream hands over what came since, real seconds.
PROGRESS_S = 0.25
STREAMED_PROGRESS_S = 0.05  # to a client that reads along

_WORDS = ("this ", "text ", "is ", "a ", "placeholder ", "and ", "means ", "nothing ")


def _cut(tokens: int, finish: str, stop: Sequence[str]) -> tuple[int, str, Iterator[str]]:
    """Tokens, finish and words of an answer that ends before the first of these strings."""
    words = list(islice(cycle(_WORDS), tokens))
    text = "".join(words)
    found = [at + len(each) for each in stop if (at := text.find(each)) >= 0]
    if not found:
        return tokens, finish, iter(words)
    end = min(found)
    begin = min(at for each in stop if (at := text.find(each, 0, end)) >= 0)
    length, kept = 0, []
    for word in words:  # up to the token with which the string was complete
        kept.append(word[: max(0, begin - length)])
        length += len(word)
        if length >= end:
            break
    return len(kept), "stop", iter(kept)


class _Stream:
    """One request in the engine: what it was told so far and what its reader has not fetched yet."""

    def __init__(self, request: Request, finish: str, words: Iterator[str] | None) -> None:
        self.id = request.id
        self.progress_s = STREAMED_PROGRESS_S if request.streamed else PROGRESS_S
        self.finish = finish  # when it gets to its end
        self.told = 0  # tokens in all chunks so far
        self.chunks: deque[Chunk] = deque()
        self.lost = False
        self._words = words
        self._waiter: asyncio.Future[None] | None = None

    def tell(
        self,
        tokens: int,
        finish: str = "",
        at_s: float | None = None,
        gaps: dict[int, int] | None = None,
    ) -> None:
        """Make a chunk of what is new when ``tokens`` have been generated in all."""
        new = tokens - self.told
        text = "".join(islice(self._words, new)) if self._words else ""
        self.told = tokens
        self.chunks.append(Chunk(new, finish, text, at_s=at_s, gaps=gaps))
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Until there is something to read; once tokens flow, no longer than the progress interval."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(self.progress_s, self.wake) if self.told else None
        try:
            await self._waiter
        finally:
            if timer is not None:
                timer.cancel()


class SimulatedEngine:
    """One simulated replica. Delays are in run time, as all the twin's times are."""

    simulated = True
    honours_seed = True  # there is no chance in it

    def __init__(
        self,
        profile: Profile,
        capacity: int,
        clock: Clock,
        *,
        start_delay_s: float = 0.5,
        text: bool = False,
    ) -> None:
        """``text``: stream placeholder words, one a token, for clients that want to see something."""
        self.profile = profile
        self._capacity = capacity
        self._clock = clock
        self._start_delay_s = start_delay_s
        self._text = text
        self._gpu: Gpu[str] | None = None  # None while it is down
        self._crashed = False
        self._stopped = False
        self._streams: dict[str, _Stream] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = inf

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def detail(self) -> str:
        return self.profile.detail

    @property
    def max_model_len(self) -> int:
        return self.profile.max_model_len

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        return "\n".join(message["content"] for message in messages)

    async def start(self) -> None:
        if self._gpu is not None:
            return
        self._stopped = False
        if self._crashed:
            up = asyncio.Event()  # at an instant of the run
            self._clock.call_at(self._clock.now() + RESTART_S, up.set)
            await up.wait()
        else:
            await asyncio.sleep(self._start_delay_s / self._clock.speed)
        if self._stopped:
            raise EngineLost("the simulated engine was stopped while it started")
        self._gpu = Gpu(self.profile, self._capacity, track_gaps=True)

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        gpu = self._gpu
        if gpu is None:
            raise EngineLost("the simulated engine is not running")
        outcome = answer(request)
        tokens, finish = outcome.output_tokens, outcome.finish
        words: Iterator[str] | None = cycle(_WORDS) if self._text else None
        if words and request.sampling.stop and request.forced_tokens is None:
            tokens, finish, words = _cut(tokens, finish, request.sampling.stop)
        self._collect(gpu)
        try:
            gpu.start(request.id, request.prompt_tokens, tokens)
        except NeverFits:
            yield Chunk(0, "error")
            return
        self._streams[request.id] = stream = _Stream(request, finish, words)
        self._arm(gpu)
        try:
            while True:
                if not stream.chunks and not stream.lost:
                    await stream.wait()
                if not stream.chunks and not stream.lost:
                    self._progress(gpu, stream)
                while stream.chunks:
                    chunk = stream.chunks.popleft()
                    yield chunk
                    if chunk.finish:
                        return
                if stream.lost:
                    raise EngineLost("the simulated engine crashed")
        finally:
            self._end(gpu, stream)  # the reader went away

    async def abort(self, request_id: str) -> None:
        stream = self._streams.get(request_id)
        if self._gpu is not None and stream is not None:
            self._end(self._gpu, stream)

    async def stop(self) -> None:
        if self._gpu is not None:
            for stream in list(self._streams.values()):
                self._end(self._gpu, stream)
        self._stopped = True
        self._shut()

    def crash(self) -> None:
        gpu = self._gpu
        if gpu is None:
            return
        self._collect(gpu)
        lost = list(self._streams.values())
        self._shut()
        self._crashed = True
        for stream in lost:
            stream.lost = True
            stream.wake()

    def telemetry(self) -> EngineTelemetry:
        gpu = self._gpu
        if gpu is None:
            return EngineTelemetry(alive=not self._crashed)
        self._collect(gpu)
        state = gpu.state()
        return EngineTelemetry(
            running=state.running,
            waiting=state.waiting,
            kv_use=state.kv_tokens / self.profile.kv_tokens,
            preemptions=state.preemptions,
            steps=state.steps,
            step_ms=state.step_s * 1e3,
        )

    def _arm(self, gpu: Gpu[str]) -> None:
        due_s = gpu.next_event()
        if due_s == self._due_s:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due_s = due_s
        if due_s < inf:
            self._timer = self._clock.call_at(due_s, self._on_due, gpu)

    def _on_due(self, gpu: Gpu[str]) -> None:
        self._due_s = inf
        self._timer = None
        self._collect(gpu)
        self._arm(gpu)

    def _collect(self, gpu: Gpu[str]) -> float:
        """Hand the streams what the GPU has done by now; returns now."""
        now = self._clock.now()
        for kind, sequence in gpu.advance(now):
            if kind == "first":
                self._streams[sequence.key].tell(1, at_s=sequence.first_s)
            else:
                stream = self._streams.pop(sequence.key)
                stream.tell(sequence.length, stream.finish, sequence.last_s, sequence.gaps)
        return now

    def _progress(self, gpu: Gpu[str], stream: _Stream) -> None:
        self._collect(gpu)
        if stream.id in self._streams:
            tokens = gpu.tokens(stream.id)
            if tokens > stream.told:
                stream.tell(tokens)

    def _end(self, gpu: Gpu[str], stream: _Stream) -> None:
        """Take a stream out, unless it has come to its end by itself."""
        if self._streams.get(stream.id) is not stream:
            return
        now = self._collect(gpu)
        if self._streams.pop(stream.id, None) is not None:
            stream.tell(gpu.cancel(stream.id), "abort", now)
        self._arm(gpu)

    def _shut(self) -> None:
        self._gpu = None
        self._streams = {}
        self._due_s = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
