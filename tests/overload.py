"""Four times as many requests as the engine can answer, from 50 tenants: 10,000 wait, for minutes.

``python tests/overload.py`` prints what it found; the suite does a small one. ``driftsched serve`` runs in a
process of its own on the simulated engine. Each request that waits is a connection that waits. Some clients
leave, some give a deadline. Afterwards every request that did not leave must have had an answer, the limits
must have held, and the server's books must be the clients'.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import sys
import tempfile
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
from served_process import served_process

OPERATOR = "operator-key-0123456789"
LEAVES, DEADLINES, DEADLINE_S = 0.02, 0.05, 20
OVER = 4.0  # times what the engine can answer
CONFIG = """
name: overload
speed: {speed}
engine: {{capacity: {capacity}}}
policy: fair
tenants:
{tenants}
keys:
{keys}
operator: env:KEY_OPERATOR
"""


@dataclass
class Sizes:
    """How much of it."""

    tenants: int = 50
    queued: int = 200  # of each tenant, at most
    in_flight: int = 3  # of every second tenant, at most
    capacity: int = 64  # of the engine
    speed: float = 1.0
    seconds: float = 300.0
    calibration_s: float = 10.0


@dataclass
class Found:
    """What clients and samples of the server have seen."""

    answers: Counter[int] = field(default_factory=Counter)  # by status
    left: int = 0
    sent: int = 0
    offered_per_s: float = 0.0
    queued: list[int] = field(default_factory=list)
    over_limit: list[str] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    connections: int = 0  # files that the server had open, at most
    cpu_share: list[float] = field(default_factory=list)  # the server's, of one core
    loop_lag_ms: list[float] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)  # by outcome, as the server counts
    submitted: int = 0

    @property
    def full_mb(self) -> float:
        """The server's memory when first as much waited as ever (within 2 %)."""
        return next(
            mb
            for mb, queued in zip(self.rss_mb, self.queued, strict=True)
            if queued > 0.98 * self.most_queued
        )

    @property
    def most_queued(self) -> int:
        return max(self.queued)

    @property
    def unanswered(self) -> int:
        return self.sent - self.left - self.answers.total()

    def text(self) -> str:
        return (
            f"sent {self.sent} ({self.offered_per_s:.0f}/s), answers {dict(self.answers)}, left {self.left}, "
            f"unanswered {self.unanswered}; most queued {self.most_queued}, limits exceeded "
            f"{len(self.over_limit)}; the server counts {self.submitted} = {dict(self.ended)}; its memory "
            f"{self.full_mb:.0f} MB when first full, {max(self.rss_mb):.0f} at most with "
            f"{self.connections} connections; its CPU {median(self.cpu_share):.0%} of a core; "
            f"loop lag p99 in 10 s: median {median(self.loop_lag_ms):.1f} ms, worst "
            f"{max(self.loop_lag_ms):.1f} ms"
        )


class _Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.transport: asyncio.Transport
        self._got = b""
        self.leaving: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if found and length and len(body) >= int(length[1]):
            self._got = b""
            if self.leaving is not None:
                self.leaving.cancel()
                self.leaving = None
            self.load.answered(self, int(head[9:12]))

    def leave(self) -> None:
        self.transport.abort()
        self.load.found.left += 1
        self.load.one_less()


class Load:
    """Requests at a rate, whatever becomes of them; connections are used again when they are free."""

    def __init__(self, port: int, sizes: Sizes, found: Found) -> None:
        self.found = found
        self.waiting = 0
        self.idle = asyncio.Event()
        self._port = port
        self._tenants = sizes.tenants
        self._chance = random.Random(1)
        self._free: list[_Client] = []
        self._loop = asyncio.get_running_loop()

    async def send(self, *, plain: bool = False) -> None:
        while self._free:
            client = self._free.pop()
            if not client.transport.is_closing():
                break
        else:
            _, client = await self._loop.create_connection(lambda: _Client(self), "127.0.0.1", self._port)
        chance = self._chance
        tenant = chance.randrange(self._tenants)
        body = json.dumps({"prompt": "Count the sheep. " * 5, "max_tokens": chance.randint(8, 40)})
        head = f"Authorization: Bearer {key_of(tenant)}\r\nContent-Type: application/json\r\nHost: x\r\n"
        if not plain and chance.random() < DEADLINES:
            head += f"X-DriftSched-Deadline: {DEADLINE_S}s\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        client.transport.write(f"POST /v1/completions HTTP/1.1\r\n{head}{body}".encode())
        self.found.sent += 1
        self.waiting += 1
        self.idle.clear()
        if not plain and chance.random() < LEAVES:
            client.leaving = self._loop.call_later(chance.uniform(0.01, 5), client.leave)

    def answered(self, client: _Client, status: int) -> None:
        self.found.answers[status] += 1
        self._free.append(client)
        self.one_less()

    def one_less(self) -> None:
        self.waiting -= 1
        if not self.waiting:
            self.idle.set()

    async def at_rate(self, per_s: float, seconds: float) -> None:
        due_s = began_s = self._loop.time()
        while due_s < began_s + seconds:
            due_s += self._chance.expovariate(per_s)
            if (wait_s := due_s - self._loop.time()) > 0:
                await asyncio.sleep(wait_s)
            await self.send()

    async def calibrate(self, seconds: float, clients: int) -> float:
        """Requests per second that the engine can answer."""
        began_s, before = self._loop.time(), self.found.answers.total()
        while self._loop.time() < began_s + seconds:
            while self.waiting < clients:
                await self.send(plain=True)
            await asyncio.sleep(0.001)
        return (self.found.answers.total() - before) / (self._loop.time() - began_s)


def key_of(tenant: int) -> str:
    return f"key-of-tenant-number-{tenant:04}"


async def sample(port: int, process: psutil.Process, sizes: Sizes, found: Found) -> None:
    """Look once."""
    ask = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {OPERATOR}"}
    )

    def scrape() -> str:
        with urllib.request.urlopen(ask, timeout=30) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(scrape)
    queued = _of_tenants(text, "driftsched_queue_size")
    running = _of_tenants(text, "driftsched_in_flight")
    found.queued.append(sum(queued.values()))
    for tenant, count in queued.items():
        if count > sizes.queued:
            found.over_limit.append(f"{tenant} has {count} queued")
    for tenant, count in running.items():
        if int(tenant[1:]) % 2 and count > sizes.in_flight:
            found.over_limit.append(f"{tenant} has {count} in flight")
    found.rss_mb.append(process.memory_info().rss / 1e6)
    found.connections = max(found.connections, process.num_fds())
    found.cpu_share.append(process.cpu_percent() / 100)  # since the last look
    if lag := re.search(r"^driftsched_loop_lag_p99_seconds (\S+)", text, re.MULTILINE):
        found.loop_lag_ms.append(float(lag[1]) * 1e3)
    found.submitted = sum(_of_tenants(text, "driftsched_requests_submitted_total").values())
    found.ended = Counter()
    for outcome, count in re.findall(
        r'^driftsched_requests_ended_total{outcome="(\w+)".*?} (\S+)', text, re.MULTILINE
    ):
        found.ended[outcome] += int(float(count))


def _of_tenants(text: str, name: str) -> dict[str, int]:
    return {t: int(float(v)) for t, v in re.findall(rf'^{name}{{tenant="(\w+)"}} (\S+)', text, re.MULTILINE)}


async def overload(folder: Path, sizes: Sizes) -> Found:
    """Raises AssertionError when the server ends by itself."""
    found = Found()
    names = [f"t{number}" for number in range(sizes.tenants)]
    tenants = [
        f"  - {{name: {name}, max_queued: {sizes.queued}"
        + (f", max_in_flight: {sizes.in_flight}}}" if n % 2 else "}")
        for n, name in enumerate(names)
    ]
    keys = [f"  {name}: env:KEY_{n}" for n, name in enumerate(names)]
    config = folder / "overload.yaml"
    lists = {"tenants": "\n".join(tenants), "keys": "\n".join(keys)}
    config.write_text(CONFIG.format(speed=sizes.speed, capacity=sizes.capacity, **lists))
    environ = {f"KEY_{n}": key_of(n) for n in range(sizes.tenants)} | {"KEY_OPERATOR": OPERATOR}
    async with served_process(config, environ) as (port, process):
        await _play(port, process, sizes, found)
    return found


async def _play(port: int, process: psutil.Process, sizes: Sizes, found: Found) -> None:
    load = Load(port, sizes, found)
    # The best of three: a machine that stands still for a moment makes the engine no slower.
    clients = 3 * sizes.capacity // 2
    rates = [await load.calibrate(sizes.calibration_s / 3, clients) for _ in range(3)]
    found.offered_per_s = OVER * max(rates)
    sending = asyncio.create_task(load.at_rate(found.offered_per_s, sizes.seconds))
    while not sending.done():
        await sample(port, process, sizes, found)
        await asyncio.wait([sending], timeout=sizes.seconds / 60)
    await sending
    async with asyncio.timeout(300):
        await load.idle.wait()
        await sample(port, process, sizes, found)
        while found.submitted > found.ended.total():  # those who left last have not been seen to leave
            await asyncio.sleep(0.05)
            await sample(port, process, sizes, found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and leave no server behind
    with tempfile.TemporaryDirectory() as folder:
        print(asyncio.run(overload(Path(folder), Sizes(seconds=args.seconds))).text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
