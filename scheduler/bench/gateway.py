"""``driftsched bench gateway``: requests per second through the gateway, beside a bare aiohttp echo."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

from scheduler.bench.gateway_load import Load, closed_loop
from scheduler.bench.gateway_vllm import beside_vllm
from scheduler.bench.result import BenchError, Claim, Result
from scheduler.core.metrics import nearest_rank

CONNECTIONS = 64
ROUNDS, ROUND_S, WARM_UP_S = 21, 1.0, 1.0
PER_S, SHARE_OF_ECHO, P99_MS = 1500, 0.40, 80

PATH = "/v1/completions"
BODY = json.dumps({"prompt": "Tell me something about the sea, in a few words. " * 6, "max_tokens": 16})
"""About as long as the answer to it."""

PROTOCOL = (
    "{connections} connections over loopback, each sending its next request when the last is answered. The "
    "gateway runs in a process of its own on one core, over an engine that answers at once and costs "
    "nothing: HTTP, the parameters, admission, estimate, queue, dispatch, feedback, metrics, answer and "
    "usage are all there; no streams. The echo is a bare aiohttp application that gives the same body back, "
    "in another process on the same core; while one is loaded, the other is idle. The load comes from "
    "another core. Both get bodies of {sent} bytes and answer with {gateway} (gateway) and {echo} (echo) "
    "bytes, headers included. After a warm-up of both, {rounds} rounds of {seconds:g} s each; the side that "
    "goes first alternates. cpu_us: the server's CPU time for one request. Rate and share are the medians of "
    "the rounds, p99 is over all requests of all rounds."
)


def bench_gateway(tell: Callable[[str], None], *, model: str | None, pairs: int) -> Result:
    """Less than a minute; with a ``model``, beside vLLM's own server too, four more.

    Raises BenchError; with a model, PlanError and EngineError, and the engine prints on file descriptors 1
    and 2: see ``live.output.engine_output_to``.
    """
    # The engine goes first: should it not start, nothing has been measured in vain.
    served = None if model is None else beside_vllm(tell, model, pairs=pairs)
    result = beside_echo(tell)
    if served is None:
        return result
    protocol = f"{result.protocol} {served.protocol}"
    return Result("gateway", protocol, result.rows + served.rows, result.claims + served.claims)


def beside_echo(tell: Callable[[str], None], *, rounds: int = ROUNDS, seconds: float = ROUND_S) -> Result:
    """Raises BenchError."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    with _on_core(cores[-1]), _served("echo", cores[0]) as echo, _served("gateway", cores[0]) as gateway:
        sides = (echo, gateway)
        for side in sides:
            tell(f"warming up, {side.name}")
            side.play(min(seconds, WARM_UP_S))
        rows: list[dict[str, Any]] = []
        latencies_s: list[float] = []
        for number in range(1, rounds + 1):
            order = sides if number % 2 else sides[::-1]
            halves = {side.name: side.play(seconds) for side in order}
            one, ours = halves["echo"], halves["gateway"]
            latencies_s += ours.load.latencies_s
            rows.append(
                {
                    "round": number,
                    "first": order[0].name,
                    "echo_per_s": one.load.per_s,
                    "gateway_per_s": ours.load.per_s,
                    "share": ours.load.per_s / one.load.per_s,
                    "gateway_p99_ms": nearest_rank(ours.load.latencies_s, 0.99) * 1e3,
                    "echo_cpu_us": one.cpu_us,
                    "gateway_cpu_us": ours.cpu_us,
                }
            )
            tell(f"round {number} of {rounds}: {one.load.per_s:,.0f} and {ours.load.per_s:,.0f} requests/s")
    protocol = PROTOCOL.format(
        connections=CONNECTIONS,
        sent=len(BODY),
        gateway=gateway.answer_bytes,
        echo=echo.answer_bytes,
        rounds=rounds,
        seconds=seconds,
    )
    per_s, share = (median(row[name] for row in rows) for name in ("gateway_per_s", "share"))
    p99_ms = nearest_rank(sorted(latencies_s), 0.99) * 1e3
    claims = [
        Claim.at_least("requests_per_s", PER_S, per_s),
        Claim.at_least("share_of_echo", SHARE_OF_ECHO, share),
        Claim.at_most("p99_ms", P99_MS, p99_ms),
    ]
    return Result("gateway", protocol, rows, claims)


class _Half(NamedTuple):
    """One side of one round."""

    load: Load
    cpu_us: float  # the server's, for one request


class _Side:
    """A server in its own process."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self.answer_bytes = 0
        self._process = process
        self._port = int(self._line())

    def play(self, seconds: float) -> _Half:
        """Load it for so long. Raises BenchError."""
        before_s = self._cpu_s()
        work = closed_loop(self._port, PATH, BODY.encode(), connections=CONNECTIONS, seconds=seconds)
        load = asyncio.run(work)
        self.answer_bytes = load.answer_bytes
        return _Half(load, (self._cpu_s() - before_s) / len(load.latencies_s) * 1e6)

    def _cpu_s(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise BenchError(f"the {self.name} server ended before its time")
        return line


@contextmanager
def _served(name: str, core: int) -> Iterator[_Side]:
    command = [sys.executable, "-m", "scheduler.bench.gateway_child", name, str(core)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _Side(name, process)
        finally:
            process.kill()


@contextmanager
def _on_core(core: int) -> Iterator[None]:
    """This process, meanwhile."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
