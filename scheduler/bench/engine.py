"""``driftsched bench engine``: tokens/s of all of DriftSched beside the same prompts straight to vLLM."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

from scheduler.bench.result import BenchError, Claim, Result
from scheduler.core.types import CATEGORIES, Request
from scheduler.engines.engine import EngineLost
from scheduler.engines.vllm import VllmEngine
from scheduler.engines.vllm_setup import preflight
from scheduler.live.run import LiveRun
from scheduler.load.scenario import Scenario
from scheduler.plan import Plan, make_plan

SHARE = 0.95

TENANTS = {"bench-premium": "premium", "bench-standard": "standard", "bench-batch": "batch"}  # with tiers
FORCED = ({"at": 0, "drift": {"output_scale": 1, "force": True}},)  # answers as long as drawn

PAIRED = (
    "The prefix cache is emptied before each turn. After a short warm-up of both, {pairs} pairs of two turns "
    "for each side, in the order one, other, other, one: a machine whose pace changes steadily favours "
    "neither. The side that goes first alternates. The claim is the median of the pairs' ratios."
)
PROTOCOL = (
    "One process, one event loop, one engine for both sides; its start is not counted. A turn answers "
    "the same {work}, either straight: as many clients as DriftSched keeps requests in flight, each "
    "rendering a prompt, calling AsyncLLM.generate and counting tokens until none is left; or "
    "through a whole headless live run: load, estimates, scheduler, session, telemetry every 200 ms, "
    "figures of run.json. Same sampling and output options. Time runs from the first call to the last "
    "token. " + PAIRED
)


@dataclass(frozen=True, slots=True)
class Work:
    """What is done in each turn. Lengths are forced, so both sides generate the same number of tokens."""

    requests: int = 40  # all at once
    tokens: int = 96  # median answer; log-normal, sigma 0.4, cut at twice the median
    concurrency: int = 16  # vLLM's batch; two more requests are in flight

    def __str__(self) -> str:
        return (
            f"{self.requests} prompts, all there from the start, with forced answers of {self.tokens} tokens "
            f"in the median, on an engine that batches {self.concurrency}"
        )

    def plan(self, model: str) -> Plan:
        """A run of this work on the real engine. Raises PlanError, EngineConfigError."""
        scenario = Scenario.model_validate(
            {
                "name": "bench",
                "engine": {"kind": "vllm", "capacity": self.concurrency},
                "tenants": tuple({"name": name, "tier": tier} for name, tier in TENANTS.items()),
                "load": (
                    {
                        "tenant": dict.fromkeys(TENANTS, 1),
                        "arrivals": "at-once",
                        "count": self.requests,
                        "max_tokens": 2 * self.tokens,
                        "lengths": {"lognormal": dict.fromkeys(CATEGORIES, (self.tokens, 0.4))},
                    },
                ),
                "timeline": FORCED,
            }
        )
        return make_plan(scenario, engine="vllm", model=model)


class Turn(NamedTuple):
    """One side's way through the work, once."""

    tokens: int
    took_s: float
    loop_lag_p99_ms: float | None = None


class Side(NamedTuple):
    """A way to do the work."""

    name: str
    play: Callable[[Plan], Awaitable[Turn]]


def bench_engine(tell: Callable[[str], None], *, model: str, work: Work, pairs: int) -> Result:
    """Some minutes. Raises PlanError, EngineError, BenchError.

    The engine prints on file descriptors 1 and 2: see ``live.output.engine_output_to``.
    """
    result = Result("engine", PROTOCOL.format(work=work, pairs=pairs))
    tell("importing vLLM")
    preflight(model)
    rows = asyncio.run(_compare_engine(tell, work, model, pairs))
    result.rows.extend(rows)
    result.claims.append(share_claim("throughput_share", rows))
    return result


async def _compare_engine(
    tell: Callable[[str], None], work: Work, model: str, pairs: int
) -> list[dict[str, Any]]:
    async with shared_engine(work.plan(model), tell) as engine:

        async def direct(plan: Plan) -> Turn:
            return await straight(engine, requests_of(plan))

        async def ours(plan: Plan) -> Turn:
            return await through(LiveRun(plan, engine=engine))

        sides = Side("direct", direct), Side("ours", ours)
        return await compare(tell, engine, work, model, pairs, sides)


class SharedEngine(VllmEngine):
    """Outlives the runs that use it: their stop is not its own."""

    @property
    def llm(self) -> Any:
        """vLLM's ``AsyncLLM`` while it is up."""
        return self._llm

    async def stop(self) -> None:
        """See ``close``."""

    async def close(self) -> None:
        await super().stop()


@asynccontextmanager
async def shared_engine(plan: Plan, tell: Callable[[str], None]) -> AsyncIterator[SharedEngine]:
    """The engine of ``plan``, up. Raises EngineError."""
    engine = SharedEngine(plan.model, max_num_seqs=plan.capacity)
    tell(f"starting {engine.detail}")
    try:
        await engine.start()
        tell(f"{engine.detail} is up")
        yield engine
    finally:
        await engine.close()


async def compare(
    tell: Callable[[str], None],
    engine: SharedEngine,
    work: Work,
    model: str,
    pairs: int,
    sides: tuple[Side, Side],
) -> list[dict[str, Any]]:
    """One row for each pair. Raises BenchError when the sides did not do the same work."""
    base, ours = sides
    warm_up = replace(work, requests=work.concurrency, tokens=8).plan(model)
    for side in sides:
        tell(f"warming up, {side.name}")
        await side.play(warm_up)
    plan, rows = work.plan(model), []
    for number in range(1, pairs + 1):
        one, other = sides if number % 2 else (ours, base)
        turns: dict[str, list[Turn]] = {base.name: [], ours.name: []}
        for side in (one, other, other, one):
            await engine.llm.reset_prefix_cache()
            turn = await side.play(plan)
            turns[side.name].append(turn)
            tell(f"pair {number} of {pairs}, {side.name}: {turn.tokens / turn.took_s:.1f} tokens/s")
        tokens = {name: sum(turn.tokens for turn in mine) for name, mine in turns.items()}
        if tokens[base.name] != tokens[ours.name]:
            raise BenchError(
                f"{base.name} made {tokens[base.name]} tokens and {ours.name} {tokens[ours.name]}"
            )
        lags_ms = [turn.loop_lag_p99_ms for turn in turns[ours.name] if turn.loop_lag_p99_ms is not None]
        per_s = {name: tokens[name] / sum(turn.took_s for turn in mine) for name, mine in turns.items()}
        rows.append(
            {
                "pair": number,
                "first": one.name,
                "tokens": tokens[base.name],
                **{f"{name}_tokens_per_s": figure for name, figure in per_s.items()},
                "ratio": per_s[ours.name] / per_s[base.name],
                "loop_lag_p99_ms": max(lags_ms, default=None),
            }
        )
    return rows


def share_claim(name: str, rows: Sequence[dict[str, Any]]) -> Claim:
    """On the median of the pairs' ratios."""
    return Claim.at_least(name, SHARE, median(row["ratio"] for row in rows))


async def through(run: LiveRun) -> Turn:
    """Play a run to its end. Raises EngineError, BenchError."""
    document, took_s = await play_out(run)
    return Turn(document["tokens"]["output"], took_s, document["loop_lag_ms"]["p99"])


async def play_out(run: LiveRun) -> tuple[dict[str, Any], float]:
    """The run.json of a run to its end, and the seconds from its start to its last token.

    Raises EngineError; BenchError where not every request has finished.
    """
    began_s = time.perf_counter()
    await run.start()
    await run.session.drained.wait()
    took_s = time.perf_counter() - began_s
    document = await run.stop()
    if run.session.failure is not None:
        raise run.session.failure
    counts = document["requests"]
    if not counts["submitted"] == counts["finished"] > 0:
        raise BenchError(f"{counts['finished']} of {counts['submitted']} requests finished")
    return document, took_s


async def straight(engine: SharedEngine, requests: Sequence[Request]) -> Turn:
    """The same prompts without DriftSched, by as many clients as it keeps in flight. Raises EngineLost."""
    from vllm.v1.engine.exceptions import EngineDeadError

    llm, waiting = engine.llm, iter(requests)

    async def client() -> int:
        tokens = 0
        for request in waiting:
            async for output in llm.generate(_render(llm, request.prompt), _sampling(request), request.id):
                tokens += len(output.outputs[0].token_ids)
        return tokens

    began_s = time.perf_counter()
    try:
        tokens = sum(await asyncio.gather(*(client() for _ in range(engine.capacity))))
    except EngineDeadError as error:
        raise EngineLost("the engine died") from error
    return Turn(tokens, time.perf_counter() - began_s)


def requests_of(plan: Plan) -> list[Request]:
    """What the run's load brings at its very start."""
    return [action for action in plan.workload().take(0.0) if isinstance(action, Request)]


# Written out, not borrowed from VllmEngine: what that costs is what is measured.


def _render(llm: Any, prompt: str) -> Any:
    """A prompt as vLLM wants it, in the model's chat template if there is one."""
    from vllm.renderers.inputs.preprocess import parse_model_prompt

    renderer, tokenizer = llm.renderer, llm.get_tokenizer()
    how = renderer.default_cmpl_tok_params
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        how = renderer.default_chat_tok_params
    return renderer.render_cmpl([parse_model_prompt(llm.model_config, prompt)], how)[0]


def _sampling(request: Request) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=request.sampling.temperature,
        top_p=request.sampling.top_p,
        min_tokens=request.forced_tokens,
        max_tokens=request.forced_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
