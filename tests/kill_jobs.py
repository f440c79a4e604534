"""kill -9 under job load, again and again on one journal: nothing acknowledged is lost, nothing ends twice.

``python tests/kill_jobs.py --kills 200 --seed 1`` prints what it found; the suite does a few. Half of the
kills come at a random moment, the others as soon as a commit, or the taking up of old jobs, is under way: the
server says in shared memory what it is doing, and each kill is counted by all that it has interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

JOBS = "/v1/jobs"
CLIENTS = 8
STATE = struct.Struct("BBII")  # in a commit, taking up old jobs (2: done), queued, in flight
CONFIG = """
name: kills
speed: 20
engine: {capacity: 8}
tenants: [{name: default, max_queued: 60}]
"""


def shared(state: Path) -> mmap.mmap:
    """The memory in which a server says what it is doing."""
    with state.open("r+b") as file:
        return mmap.mmap(file.fileno(), STATE.size)


class Broken(AssertionError):
    """A promise was not kept."""


# -- the server: driftsched serve that also says what it is doing -------------------------------------


def serve(state: Path, arguments: list[str]) -> int:
    """Run in a process of its own."""
    from scheduler.cli import main
    from scheduler.gateway.jobs import Jobs
    from scheduler.live.journal import Journal
    from scheduler.live.session import Session

    told = shared(state)
    commit, recover, pump = Journal._commit, Jobs.recover, Session.pump

    def told_commit(self: Journal, group: Any) -> None:
        told[0] = 1
        commit(self, group)
        told[0] = 0

    async def told_recover(self: Jobs) -> int:
        told[1] = 1
        try:
            return await recover(self)
        finally:
            told[1] = 2

    def told_pump(self: Session) -> None:
        pump(self)
        totals = self.scheduler.books.totals
        struct.pack_into("II", told, 4, totals.queued, totals.in_flight)

    Journal._commit, Jobs.recover, Session.pump = told_commit, told_recover, told_pump  # type: ignore[method-assign]
    return main(arguments)


# -- the clients, and who kills -----------------------------------------------------------------------


class Killing:
    """One journal, server after server."""

    def __init__(self, folder: Path, seed: int, extra: list[str]) -> None:
        self.chance = random.Random(seed)
        self.phases: Counter[str] = Counter()
        self.acknowledged: dict[str, str] = {}  # job -> its idempotency key
        self.endings: dict[str, str] = {}  # job -> what its client saw of its end
        self.cut_off: list[tuple[str, Any]] = []  # posts without an answer: key and body
        self.resent = 0
        self._serial = 0
        state = folder / "state"
        state.write_bytes(bytes(STATE.size))
        self._doing = shared(state)
        config = folder / "kills.yaml"
        config.write_text(CONFIG)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}{JOBS}"
        served = ["serve", "--listen", f"127.0.0.1:{port}", "--journal", str(folder / "jobs.sqlite")]
        served += ["--config", str(config), *extra]
        self._command = [sys.executable, __file__, "--serve", str(state), *served]

    def doing(self) -> tuple[int, int, int, int]:
        """In a commit, taking up old jobs, queued, in flight."""
        return STATE.unpack(self._doing)

    @contextmanager
    def server(self, *, ready: bool = True) -> Iterator[subprocess.Popen[bytes]]:
        self._doing[:] = bytes(STATE.size)
        with subprocess.Popen(self._command, stderr=subprocess.PIPE) as process:
            try:
                assert process.stderr is not None
                while ready and not (line := process.stderr.readline()).startswith(b"ready"):
                    if not line:
                        raise Broken("a server ended before it was ready")
                yield process
            finally:
                process.kill()

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        commit, recovery, queued, in_flight = self.doing()
        self.phases["inside a commit"] += commit
        self.phases["while taking up old jobs"] += recovery == 1
        self.phases["jobs queued"] += queued > 0
        self.phases["jobs running"] += in_flight > 0
        self.phases["kills"] += 1

    async def once(self) -> None:
        """A server from its start to its kill."""
        if self.acknowledged and self.chance.random() < 0.2:
            with self.server(ready=False) as process:
                await self._until(lambda: self.doing()[1], process)
                self.kill(process)
            return
        with self.server() as process:
            async with aiohttp.ClientSession() as http:
                clients = [asyncio.create_task(self._client(http)) for _ in range(CLIENTS)]
                clients.append(asyncio.create_task(self._watch(http, process)))
                await asyncio.sleep(self.chance.uniform(0.02, 0.6))
                if not self.acknowledged:  # on a slow machine: else nothing could be lost
                    await self._until(lambda: self.acknowledged, process)
                if self.chance.random() < 0.4:
                    await self._until(lambda: self.doing()[0], process)
                self.kill(process)
                await asyncio.gather(*clients)

    async def _until(self, doing: Any, process: subprocess.Popen[bytes]) -> None:
        """Busy, as commits are short; the loop has its turns, so that clients go on."""
        until_s = time.monotonic() + 20
        while not doing() and time.monotonic() < until_s:
            await asyncio.sleep(0)
            if process.poll() is not None:
                raise Broken("a server ended by itself")

    async def _client(self, http: aiohttp.ClientSession) -> None:
        """Post until the server is gone; what had no answer is posted again, with its key."""
        while True:
            if self.cut_off:
                key, body = self.cut_off.pop()
                self.resent += 1
            else:
                self._serial += 1
                key = f"key-{self._serial}"
                body = {"prompt": f"Job {self._serial}.", "max_tokens": self.chance.randint(1, 100)}
            try:
                async with http.post(self._url, json=body, headers={"Idempotency-Key": key}) as answer:
                    told = await answer.json()
                    if answer.status == 202:
                        self.acknowledged[told["id"]] = key
                    elif answer.status != 429:
                        raise Broken(f"status {answer.status}: {told}")
            except (aiohttp.ClientError, OSError):
                self.cut_off.append((key, body))
                return
            await asyncio.sleep(0.01)

    async def _watch(self, http: aiohttp.ClientSession, process: subprocess.Popen[bytes]) -> None:
        try:
            while process.poll() is None:  # where nothing was acknowledged yet, nothing is asked
                for job in list(self.acknowledged)[-40:]:
                    await self._look(http, job)
                await asyncio.sleep(0.01)
        except (aiohttp.ClientError, OSError):
            return

    async def _look(self, http: aiohttp.ClientSession, job: str) -> bool:
        """Whether it has ended. Raises Broken when it is lost, or has ended in two ways."""
        async with http.get(f"{self._url}/{job}") as answer:
            told = await answer.json()
            if answer.status != 200:
                raise Broken(f"{job} was acknowledged and is lost")
        if told["status"] in ("queued", "running"):
            if job in self.endings:
                raise Broken(f"{job} had ended and is {told['status']}")
            return False
        told.pop("created_at")
        if self.endings.setdefault(job, json.dumps(told)) != json.dumps(told):
            raise Broken(f"{job} has ended twice")
        return True

    async def settle(self) -> None:
        """The last server: every acknowledged job ends, and no key stands for two."""
        with self.server():
            async with aiohttp.ClientSession() as http:
                until_s = time.monotonic() + 300
                for job in self.acknowledged:
                    while not await self._look(http, job):
                        if time.monotonic() > until_s:
                            raise Broken(f"{job} does not end")
                        await asyncio.sleep(0.02)
        keys = Counter(self.acknowledged.values())
        if keys and max(keys.values()) > 1:
            raise Broken("one idempotency key stands for two jobs")

    def text(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.phases.items())
        ended = Counter(json.loads(ending)["status"] for ending in self.endings.values())
        return (
            f"{counts}; posts cut off and sent again {self.resent}; "
            f"acknowledged {len(self.acknowledged)}, lost 0, ended twice 0, ended {dict(ended)}"
        )


async def kills(folder: Path, *, count: int, seed: int, extra: list[str]) -> Killing:
    """So many, then one server that is left to finish. Raises Broken."""
    killing = Killing(folder, seed, extra)
    for number in range(1, count + 1):
        await killing.once()
        if number % 20 == 0:
            print(f"{number} of {count}", file=sys.stderr, flush=True)
    await killing.settle()
    return killing


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        return serve(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "extra", nargs="*", help="for driftsched serve, such as -- --engine vllm --model smollm2"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        done = asyncio.run(kills(Path(folder), count=args.kills, seed=args.seed, extra=args.extra))
    print(done.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
