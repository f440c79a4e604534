"""The gateway beside ``vllm serve``: the same model, arguments and clients (a part of ``bench gateway``)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import aiohttp

from scheduler.bench.engine import Work, requests_of
from scheduler.bench.result import BenchError, Claim, Result
from scheduler.engines.vllm_setup import engine_args, engine_env, omp_threads, preflight, quiet_env

WORK = Work(requests=36, tokens=48, concurrency=16)
CLIENTS = 24
SINGLES, SINGLE_TOKENS = 80, 8
THROUGHPUT_SHARE, ADDED_TTFT_MS = 0.98, 2.0

START_S, STOP_S, ANSWER_S = 240.0, 30.0, 300.0

PROTOCOL = (
    "Beside vLLM's own server: `driftsched serve` and `vllm serve` (as the module that it runs) are both up "
    "on loopback with the same model and the same engine arguments and environment, those of `driftsched`; "
    "while one is asked, the other is idle. throughput: {clients} streaming clients share {work}; the time "
    "is from the first request to the last token, tokens are as the servers count them. {pairs} pairs of two "
    "turns for each side, in the order one, other, other, one; the side that goes first alternates, no side "
    "is asked a prompt twice; the claim is the median of the pairs' ratios. TTFT: then {singles} times a "
    "single request of {tokens} tokens to each, in turn, nothing "
    "else running; from sending it to the first text. The claim is the difference of the medians."
)


class _Served(NamedTuple):
    """A server that is up."""

    name: str
    url: str


def beside_vllm(tell: Callable[[str], None], model: str, *, pairs: int) -> Result:
    """Some minutes. Raises PlanError, EngineError, BenchError."""
    requests = [(r.prompt, r.forced_tokens or r.max_tokens) for r in requests_of(WORK.plan(model))]
    resolved = preflight(model)
    with tempfile.TemporaryDirectory() as folder:
        tell("starting driftsched serve and vllm serve")
        with _driftsched(model, Path(folder)) as ours, _vllm(resolved) as theirs:
            sides = (theirs, ours)
            for side in sides:
                asyncio.run(_until_up(side))
                tell(f"{side.name} is up, warming up")
                asyncio.run(_share(side, [(f"Warm up. {prompt}", 8) for prompt, _ in requests[:CLIENTS]]))
            rows = [_pair(tell, sides, requests, number, pairs) for number in range(1, pairs + 1)]
            tell(f"{SINGLES} single requests to each")
            single = asyncio.run(_one_at_a_time(sides, [prompt for prompt, _ in requests]))
    claims = [
        Claim.at_least("share_of_vllm_serve", THROUGHPUT_SHARE, median(row["share"] for row in rows)),
        Claim.at_most("added_ttft_p50_ms", ADDED_TTFT_MS, single["added_ttft_ms"]),
    ]
    protocol = PROTOCOL.format(clients=CLIENTS, work=WORK, pairs=pairs, singles=SINGLES, tokens=SINGLE_TOKENS)
    return Result("gateway", protocol, [*rows, single], claims)


# -- what is measured ---------------------------------------------------------------------------------


def _pair(
    tell: Callable[[str], None],
    sides: tuple[_Served, _Served],
    requests: Sequence[tuple[str, int]],
    number: int,
    pairs: int,
) -> dict[str, Any]:
    one, other = sides if number % 2 else sides[::-1]
    took_s = {side.name: 0.0 for side in sides}
    for half, order in enumerate(((one, other), (other, one))):
        # Another beginning, so that no prompt is in the prefix cache.
        asked = [(f"{number}.{half} {prompt}", tokens) for prompt, tokens in requests]
        for side in order:
            took_s[side.name] += asyncio.run(_share(side, asked))
    made = 2 * sum(tokens for _, tokens in requests)
    row: dict[str, Any] = {"pair": number, "first": one.name}
    row |= {f"{side.name}_tokens_per_s": made / took_s[side.name] for side in sides}
    row["share"] = took_s["vllm"] / took_s["gateway"]
    tell(f"pair {number} of {pairs}: {row['share']:.1%} of vllm serve")
    return row


async def _share(side: _Served, requests: Sequence[tuple[str, int]]) -> float:
    """Seconds for all the requests, shared by the clients. Raises BenchError."""
    waiting = iter(requests)
    async with _session() as http:

        async def client() -> int:
            return sum([(await _ask(http, side, prompt, tokens))[0] for prompt, tokens in waiting])

        began_s = time.perf_counter()
        counts = await asyncio.gather(*(client() for _ in range(CLIENTS)))
        took_s = time.perf_counter() - began_s
    if sum(counts) != sum(tokens for _, tokens in requests):
        raise BenchError(f"{side.name} made {sum(counts)} tokens, not as many as it was asked for")
    return took_s


async def _one_at_a_time(sides: tuple[_Served, _Served], prompts: Sequence[str]) -> dict[str, Any]:
    """TTFT of single requests, to one side and the other in turn."""
    ttft_s: dict[str, list[float]] = {side.name: [] for side in sides}
    async with _session() as http:
        for number in range(SINGLES):
            prompt = f"Single {number}. {prompts[number % len(prompts)]}"
            for side in sides if number % 2 else sides[::-1]:
                ttft_s[side.name].append((await _ask(http, side, prompt, SINGLE_TOKENS))[1])
    p50_ms = {name: median(values) * 1e3 for name, values in ttft_s.items()}
    figures = {f"{name}_ttft_p50_ms": value for name, value in p50_ms.items()}
    return {"singles": SINGLES, **figures, "added_ttft_ms": p50_ms["gateway"] - p50_ms["vllm"]}


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S))


async def _ask(http: aiohttp.ClientSession, side: _Served, prompt: str, tokens: int) -> tuple[int, float]:
    """(tokens of the answer, seconds to its first text) of one streamed completion. Raises BenchError."""
    body = {
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent_s, first_s, made = time.perf_counter(), 0.0, 0
    async with http.post(f"{side.url}/v1/completions", json=body) as answer:
        if answer.status != 200:
            raise BenchError(f"{side.name}: status {answer.status}")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise BenchError(f"{side.name} broke an answer off")
            if not first_s and any(choice["text"] for choice in event["choices"]):
                first_s = time.perf_counter()
            if event.get("usage"):
                made = event["usage"]["completion_tokens"]
    return made, first_s - sent_s


# -- the servers --------------------------------------------------------------------------------------


@contextmanager
def _driftsched(model: str, folder: Path) -> Iterator[_Served]:
    config = folder / "serve.yaml"
    engine = {"kind": "vllm", "model": model, "capacity": WORK.concurrency}
    config.write_text(json.dumps({"name": "bench", "engine": engine, "tenants": [{"name": "default"}]}))
    port = _free_port()
    command = ["-m", "scheduler.cli", "serve", "--config", str(config), "--listen", f"127.0.0.1:{port}"]
    with _running(command, dict(os.environ)):
        yield _Served("gateway", f"http://127.0.0.1:{port}")


@contextmanager
def _vllm(resolved: str) -> Iterator[_Served]:
    from vllm.platforms import current_platform

    device = "cpu" if current_platform.is_cpu() else "cuda"
    env = {**os.environ, **quiet_env()}
    env |= engine_env(device, omp_threads() if device == "cpu" else 0, os.environ)
    port = _free_port()
    command = ["-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command.append("--disable-uvicorn-access-log")
    for name, value in engine_args(resolved, WORK.concurrency, {}, device).items():
        if name != "enable_logging_iteration_details":  # for our own logger of steps
            command += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    with _running(command, env):
        yield _Served("vllm", f"http://127.0.0.1:{port}")


@contextmanager
def _running(command: list[str], env: dict[str, str]) -> Iterator[None]:
    """A server and its children, in a session of its own, which ends with the block, at SIGTERM too."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with subprocess.Popen(
        [sys.executable, *command],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            signal.signal(signal.SIGTERM, before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _until_up(side: _Served) -> None:
    """Raises BenchError."""
    address = f"{side.url}/{'ready' if side.name == 'gateway' else 'health'}"
    until_s = time.monotonic() + START_S
    async with _session() as http:
        while time.monotonic() < until_s:
            try:
                async with http.get(address) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass  # not yet
            await asyncio.sleep(0.5)
    raise BenchError(f"{side.name} was not up within {START_S:g} s")
