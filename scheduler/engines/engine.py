"""The engine interface: whatever turns a request into tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from scheduler.core.types import Request
from scheduler.twin.profile import Profile


class Chunk(NamedTuple):
    """Some tokens of one request. The last chunk of a stream has a ``finish``, and only it."""

    tokens: int  # new output tokens in this chunk, 0 allowed in the last one
    finish: str = ""  # "", "stop", "length", "abort" or "error"
    text: str = ""  # new text: tenant data, never logged or shown raw
    prompt_tokens: int | None = None  # in the first chunk, where the engine knows better than we
    at_s: float | None = None  # instant on the run's clock, when the engine knows it exactly
    gaps: Mapping[int, int] | None = None  # in the last chunk: the ITL histogram, when it knows it exactly


@dataclass(frozen=True, slots=True)
class EngineTelemetry:
    """What an engine tells of itself; ``None`` where it does not know."""

    running: int | None = None  # requests in the engine's batch
    waiting: int | None = None  # requests in the engine's own queue
    kv_use: float | None = None  # share of the KV cache in use, 0..1
    preemptions: int | None = None  # since start
    steps: int | None = None  # engine steps since start
    step_ms: float | None = None  # duration of the latest step
    alive: bool = True  # False once it has died: with nothing to run, no stream would tell of it


class EngineError(Exception):
    """Base of what engines raise.

    EngineError
    +- EngineConfigError   this engine cannot be built as asked: says what to do (exit code 2 or 3)
    +- EngineLost          the engine died; every stream raises it; ``start()`` may be called again
    """


class EngineConfigError(EngineError):
    """The engine cannot be built as asked."""


class EngineLost(EngineError):
    """The engine died underneath its streams."""


class Engine(Protocol):
    """One replica. All coroutines run on the session's loop; none may block it."""

    @property
    def capacity(self) -> int:
        """Concurrent requests it runs well."""

    @property
    def detail(self) -> str:
        """One line for people: "simulated NVIDIA L4, Qwen1.5-1.8B-Chat"."""

    @property
    def simulated(self) -> bool: ...

    @property
    def honours_seed(self) -> bool:
        """Whether one seed gives one answer; else seeds are not sent to it. Known once it has started."""

    @property
    def profile(self) -> Profile | None:
        """Its step model, for playing ahead in the twin; None while nothing is known of its pace."""

    @property
    def max_model_len(self) -> int | None:
        """Prompt + output tokens, known once it has started."""

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation of {"role", "content"} as the prompt that the model gets (``form="chat"``).

        Raises ValueError for one that the model's chat template refuses.
        """

    async def start(self) -> None:
        """Bring it up, or up again after EngineLost. Raises EngineConfigError, EngineLost."""

    def generate(self, request: Request) -> AsyncIterator[Chunk]:
        """Tokens as they come, finish reason last. Raises EngineLost."""

    async def abort(self, request_id: str) -> None:
        """Ask a stream to end; it then ends with finish="abort" and its count. Unknown ids are ignored."""

    async def stop(self) -> None:
        """Leave nothing behind: no task, no child process. May be called at any time, twice too."""

    def crash(self) -> None:
        """Fault injection: die as if killed; every stream then raises EngineLost."""

    def telemetry(self) -> EngineTelemetry: ...
