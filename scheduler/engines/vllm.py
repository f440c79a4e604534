"""vLLM as an engine: ``AsyncLLM`` in this process's event loop, its EngineCore in a child process.

The same code runs on CUDA and on a CPU; only arguments and environment differ (``vllm_setup``). Every call
that takes longer than a step of the model (building, shutting down) runs in a thread.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from multiprocessing.process import BaseProcess
from typing import Any

from scheduler.core.types import Request
from scheduler.engines.engine import Chunk, EngineConfigError, EngineLost, EngineTelemetry
from scheduler.engines.models import title
from scheduler.engines.vllm_child import leashed_spawn
from scheduler.engines.vllm_gauges import Gauges
from scheduler.engines.vllm_setup import (
    check_args,
    engine_args,
    engine_env,
    environment,
    omp_threads,
    preflight,
)
from scheduler.twin.fit import LiveFit, StepSample
from scheduler.twin.profile import Profile
from scheduler.twin.profile_file import load_profile

log = logging.getLogger(__name__)

# Tokenizing this many characters takes about a millisecond; longer prompts are tokenized in a thread.
_LONG_PROMPT = 4096

# Environment and spawn target are the process's own: engines are built one after the other.
_building = threading.Lock()


class VllmEngine:
    """One ``AsyncLLM``. ``args`` are further fields of vLLM's AsyncEngineArgs and win over our defaults."""

    simulated = False

    def __init__(
        self,
        model: str,
        *,
        max_num_seqs: int,
        args: Mapping[str, Any] | None = None,
        keep_text: bool = False,
    ) -> None:
        self.keep_text = keep_text
        self.honours_seed = False  # known once it has started: a CPU engine is never sent a seed
        self.max_model_len: int | None = None  # prompt + output tokens, known once it has started
        self._model = model
        self._max_num_seqs = max_num_seqs
        self._args = dict(args or {})
        self._detail = f"vLLM, {title(model)}"
        self.fit = LiveFit()
        self.on_step: Callable[[StepSample], None] = self.fit.add  # told of each step
        self._gauges = Gauges(lambda step: self.on_step(step))
        self.blank: Profile | None = None  # once it has started: a step model, right but for its pace
        self._llm: Any = None  # AsyncLLM; vLLM is imported in start()
        self._tokenizer: Any = None  # kept while a lost engine is built anew: chats still come
        self._starting: asyncio.Future[Any] | None = None
        self._stopping = asyncio.Lock()
        self._streams: dict[str, _Stream] = {}
        self._serial = itertools.count(1)

    @property
    def capacity(self) -> int:
        """Two more than vLLM's batch, so that a slot that falls free is filled in the next step."""
        return self._max_num_seqs + 2

    @property
    def detail(self) -> str:
        return self._detail

    @property
    def profile(self) -> Profile | None:
        """The step model that the engine's latest steps show, for the twin; None until there are some."""
        return None if self.blank is None else self.fit.profile(self.blank)

    def telemetry(self) -> EngineTelemetry:
        return replace(self._gauges.read(), alive=self._llm is None or not self._llm.errored)

    async def start(self) -> None:
        """Build the engine and wait until it answers. Raises EngineConfigError, EngineLost."""
        if self._llm is not None and not self._llm.errored:
            return
        await self._release()
        # A future of its own: the thread cannot be cancelled, and stop() must find what it has built.
        self._starting = asyncio.ensure_future(asyncio.to_thread(self._build))
        try:
            self._llm = await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            await self.stop()
            raise
        self._starting = None
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            self._tokenizer = self._llm.get_tokenizer()
            await self._llm.get_supported_tasks()
            await self._render("Are you there?")  # compiles the chat template
        except EngineDeadError as error:
            raise EngineLost("the engine died while it was starting") from error
        except ValueError as error:
            raise EngineConfigError(str(error)) from error

    def _build(self) -> Any:
        """Runs in a thread: everything here blocks, for 10 to 30 seconds in all."""
        model = preflight(self._model)
        import vllm
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        device = "cpu" if current_platform.is_cpu() else "cuda"
        check_args(self._args, {field.name for field in fields(AsyncEngineArgs)})
        threads = omp_threads() if device == "cpu" else 0
        with _building, environment(engine_env(device, threads, os.environ)), leashed_spawn():
            try:
                built = AsyncEngineArgs(**engine_args(model, self._max_num_seqs, self._args, device))
                config = built.create_engine_config()
            except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
                raise EngineConfigError(f"vLLM refuses this engine: {error}") from error
            try:
                llm = AsyncLLM.from_vllm_config(
                    config, stat_loggers=[self._gauges.attach], disable_log_stats=True
                )
            except (RuntimeError, OSError, TimeoutError) as error:
                raise EngineLost(f"the engine died while it was starting: {error}") from error
        self.honours_seed = device != "cpu"
        self.max_model_len = config.model_config.max_model_len
        cpu = f"CPU, {threads} thread{'s' * (threads != 1)}"
        where = cpu if device == "cpu" else current_platform.get_device_name()
        self._detail = f"vLLM {vllm.__version__} on {where}, {title(self._model)}"
        self.blank = _blank_profile(device, self._model, self._detail, config)
        return llm

    async def stop(self) -> None:
        """Shut down; afterwards no child is alive. Takes seconds, in a thread."""
        async with self._stopping:
            if self._starting is not None:
                await self._abandon_start(self._starting)
                self._starting = None
            await self._release()

    async def _abandon_start(self, starting: asyncio.Future[Any]) -> None:
        """Kill what the building thread has spawned; it then gives up by itself."""
        while not starting.done():
            for child in multiprocessing.active_children():
                if child.name.startswith("EngineCore"):
                    child.kill()
            await asyncio.wait([starting], timeout=0.1)
        if not starting.cancelled() and starting.exception() is None:
            self._llm = starting.result()

    async def _release(self) -> None:
        """Let go of the engine, alive or dead, and of its children."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        children = _children(llm)
        await asyncio.to_thread(llm.shutdown)
        for child in children:
            if child.is_alive():
                child.kill()
            await asyncio.to_thread(child.join)
        # vLLM leaves the context of its sockets, with two threads, to the garbage collector.
        resources = llm.engine_core.resources
        resources.input_socket.close(linger=0)
        resources.output_socket.close(linger=0)
        await asyncio.to_thread(resources.ctx.term)
        # AsyncLLM shuts down once more in __del__, which, held by a cycle, comes when the interpreter is half
        # gone and vLLM's own functions are None by then.
        llm.shutdown = _nothing_left
        self._gauges.rest()

    def crash(self) -> None:
        for child in _children(self._llm) if self._llm is not None else ():
            child.kill()

    async def abort(self, request_id: str) -> None:
        stream = self._streams.get(request_id)
        if stream is None or self._llm is None or self._llm.errored:
            return
        stream.aborted = True
        await self._llm.abort(stream.id)

    def generate(self, request: Request) -> AsyncIterator[Chunk]:
        # Known to abort() from this call on, not only from the first token. The id is ours alone: vLLM
        # takes the same id twice, a retry comes with the id of the attempt before, and vLLM logs ids.
        stream = self._streams[request.id] = _Stream(f"r{next(self._serial)}")
        return self._generate(request, stream)

    async def _generate(self, request: Request, stream: _Stream) -> AsyncIterator[Chunk]:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        llm = self._llm
        if llm is None:
            raise EngineLost("the engine is not running")
        try:
            prompt = await self._render(request.prompt, request.form)
            if stream.aborted:
                yield Chunk(0, "abort")
                return
            outputs = llm.generate(prompt, self._sampling(request), stream.id)
            total = held = 0
            try:
                async for output in outputs:
                    completion = output.outputs[0]
                    tokens = len(completion.token_ids)
                    prompt_tokens = None if total else len(output.prompt_token_ids)
                    total += tokens
                    held += tokens + (prompt_tokens or 0)
                    self._gauges.context += tokens + (prompt_tokens or 0)
                    finish = _finish(completion.finish_reason, request, total)
                    yield Chunk(tokens, finish, completion.text, prompt_tokens)
            finally:
                self._gauges.context -= held
                await outputs.aclose()  # a consumer that left early ends the request
        except EngineDeadError as error:
            raise EngineLost("the engine died") from error
        except (EngineGenerateError, VLLMClientError, ValueError) as error:
            if llm.errored:
                raise EngineLost("the engine died") from error
            # The message may quote the prompt; its type is enough to find the cause.
            log.warning("vLLM failed request %s: %s", stream.id, type(error.__cause__ or error).__name__)
            yield Chunk(0, "error")
        finally:
            if self._streams.get(request.id) is stream:
                del self._streams[request.id]

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        if self._tokenizer is None:
            raise ValueError("the engine has not started")
        from jinja2 import TemplateError

        try:
            rendered = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:  # templates refuse by raising, with words of their own
            raise ValueError(f"the model's chat template refuses it: {error}") from error
        return str(rendered)

    async def _render(self, prompt: str, form: str = "message") -> Any:
        """The prompt as vLLM's renderer gives it to the engine; a message in the model's chat template.

        Handing ``generate`` a plain string is deprecated and warns.
        """
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        renderer = self._llm.renderer
        if form == "message" and self._llm.get_tokenizer().chat_template:
            text, form = self.render_chat([{"role": "user", "content": prompt}]), "chat"
        else:
            text = prompt
        # A chat template has put the special tokens in already.
        how = renderer.default_chat_tok_params if form == "chat" else renderer.default_cmpl_tok_params
        parsed = parse_model_prompt(self._llm.model_config, text)
        if len(text) > _LONG_PROMPT:
            rendered = await renderer.render_cmpl_async([parsed], how)
        else:
            rendered = renderer.render_cmpl([parsed], how)
        return rendered[0]

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        given, forced = request.sampling, request.forced_tokens is not None
        tokens = min(request.forced_tokens or request.max_tokens, request.max_tokens)
        stop = None if forced else list(given.stop) or None
        return SamplingParams(
            temperature=given.temperature,
            top_p=given.top_p,
            # On a CPU a seeded prompt that is prefilled in chunks kills the engine.
            seed=given.seed if self.honours_seed else None,
            stop=stop,
            max_tokens=tokens,
            min_tokens=tokens if forced else 0,
            ignore_eos=forced,
            detokenize=self.keep_text or request.streamed or stop is not None,
            output_kind=RequestOutputKind.DELTA,
        )


@dataclass(slots=True)
class _Stream:
    id: str  # towards vLLM
    aborted: bool = False


def _nothing_left(timeout: float | None = None) -> None:
    """Stands in for the shutdown of an engine that is shut down."""


def _children(llm: Any) -> list[BaseProcess]:
    manager = llm.engine_core.resources.engine_manager
    return list(manager.processes) if manager is not None else []


def _blank_profile(device: str, model: str, detail: str, config: Any) -> Profile:
    """What the twin must know of the engine; how long its steps take is that of another machine."""
    like = load_profile("cpu", "smollm2") if device == "cpu" else load_profile("l4", "qwen1.5-1.8b-chat")
    cache = config.cache_config
    return replace(
        like,
        gpu=device,
        model=model,
        detail=f"twin of {detail}",
        provenance=f"Fitted to the step times of {detail}.",
        kv_tokens=cache.num_gpu_blocks * cache.block_size,
        max_model_len=config.model_config.max_model_len,
        max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens,
    )


def _finish(reason: str | None, request: Request, total: int) -> str:
    """vLLM's finish reason in our words; "" while the stream goes on."""
    if reason is None:
        return ""
    if reason == "repetition":
        return "stop"
    if reason == "length" and request.forced_tokens is not None and total < request.max_tokens:
        return "stop"  # a forced length below the cap stands for an answer that ended by itself
    return reason
