"""Thousands of bodies that nobody should send, from clients that may leave at any moment.

``python tests/hostile.py`` prints what came back and how much memory the server held after each round; the
suite does a small one. ``driftsched serve`` runs in a process of its own on the simulated engine. No answer
may be a 5xx, 200 and 202 only go to what makes sense, and memory levels off.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from served_process import served_process

KEY = "acme-key-0123456789"
CONFIG = """
name: hostile
speed: 200
engine: {capacity: 64}
tenants: [{name: acme, max_queued: 1000}]
keys: {acme: env:KEY_ACME}
journal: jobs.sqlite
"""
CLIENTS = 16
LEAVES = 0.05  # share of clients that go away before their answer
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/jobs")
NAMES = (
    "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "stream",
    "stream_options", "seed", "n", "model", "ignore_eos", "tools", "logit_bias", "\x1b[2J", "",
)  # fmt: skip
KNOWN = frozenset(NAMES[:13])
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 5, 10**18, 10**400, 1.5, -0.0, 1e308, "", "x", "\x1b]0;title\x07", "\u202e",
    "\x00", "\ud800", "secret " * 500, [], {}, [[]], [None], {"": {}}, ["x"], [1, 2],
    {"include_usage": True}, [{"role": "user", "content": "secret"}], [{"role": "user", "content": None}],
)  # fmt: skip


@dataclass
class Found:
    """What came back, and what the server held (MB): before, and after each round."""

    answers: Counter[int] = field(default_factory=Counter)  # by status; 0: the client left
    senseless: list[bytes] = field(default_factory=list)  # bodies that were accepted
    leaks: list[str] = field(default_factory=list)  # refusals that quote the body
    rss_mb: list[float] = field(default_factory=list)

    def text(self) -> str:
        memory = ", ".join(f"{mb:.0f}" for mb in self.rss_mb)
        return (
            f"answers {dict(sorted(self.answers.items()))}; accepted though senseless {len(self.senseless)}; "
            f"quoted {len(self.leaks)}; memory after each round {memory} MB"
        )


def body_of(chance: random.Random) -> bytes:
    """One of many kinds; the large ones are rare."""
    kind = chance.random()
    if kind < 0.6:  # anything for anything
        count = chance.randint(0, 5)
        fields = {chance.choice(NAMES): chance.choice(VALUES) for _ in range(count)}
        return json.dumps({"prompt": "x", **fields} if chance.random() < 0.3 else fields).encode()
    if kind < 0.9:  # a good one, damaged
        good = bytearray(json.dumps({"prompt": "Say it.", "max_tokens": 3, "stop": ["é"]}).encode())
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(good))
            good[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        return bytes(good)
    if kind < 0.97:
        depth = chance.choice((100, 900, 1000, 1100, 100_000))
        return chance.choice(
            (b"[" * depth, b'{"a":' * depth, b'{"stop":' + b"[" * depth + b"]" * depth + b"}")
        )
    if kind < 0.98:
        return b'{"messages": [' + b"[]," * chance.randint(1, 1_000_000) + b"[]]}"
    if kind < 0.99:
        names = ", ".join(f'"{number}": 1' for number in range(chance.randint(1, 200_000)))
        return f'{{"prompt": "x", {names}}}'.encode()
    return b'{"prompt": "' + b"secret " * chance.randint(100_000, 1_200_000) + b'"}'  # up to 8 MB


def makes_sense(raw: bytes) -> bool:
    """Roughly: whatever it says, it is a request that one can mean."""
    body = json.loads(raw)
    asked = {name for name, value in body.items() if value not in (None, [], {}, "none")}
    cap = body.get("max_tokens") or body.get("max_completion_tokens") or 1
    return bool(asked & {"prompt", "messages"}) and asked <= KNOWN and 1 <= cap < 10_000


async def ask(http: aiohttp.ClientSession, chance: random.Random, found: Found) -> None:
    raw = body_of(chance)
    patience_s = chance.uniform(0, 0.01) if chance.random() < LEAVES else 60.0
    status, text = 0, ""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError):
        async with (
            asyncio.timeout(patience_s),
            http.post(chance.choice(PATHS), data=io.BytesIO(raw)) as answer,
        ):
            status = answer.status
            text = await answer.text()
    assert status or patience_s < 1, "a client that waited had no answer"
    found.answers[status] += 1
    if status in (200, 202):
        if not makes_sense(raw):
            found.senseless.append(raw[:200])
    elif "secret" in text or "\x1b" in text:
        found.leaks.append(text[:200])


async def play(url: str, process: psutil.Process, rounds: int, bodies: int, found: Found) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    found.rss_mb.append(process.memory_info().rss / 1e6)
    async with aiohttp.ClientSession(url, headers=headers) as http:
        for number in range(rounds):
            chance = random.Random(number)
            left = iter(range(bodies))

            async def client(chance: random.Random = chance, left: Any = left) -> None:
                for _ in left:
                    await ask(http, chance, found)

            await asyncio.gather(*(client() for _ in range(CLIENTS)))
            await asyncio.sleep(0.2)  # those who left last have been seen to leave
            found.rss_mb.append(process.memory_info().rss / 1e6)


async def hostile(folder: Path, *, rounds: int, bodies: int) -> Found:
    """Raises AssertionError when the server ends, or leaves somebody without an answer."""
    found = Found()
    config = folder / "hostile.yaml"
    config.write_text(CONFIG)
    async with served_process(config, {"KEY_ACME": KEY}) as (port, process):
        await play(f"http://127.0.0.1:{port}", process, rounds, bodies, found)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--bodies", type=int, default=10_000, help="in each round")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and leave no server behind
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(hostile(Path(folder), rounds=args.rounds, bodies=args.bodies))
    print(found.text())
    for each in (*found.senseless[:10], *found.leaks[:10]):
        print(ascii(each))
    return 0


if __name__ == "__main__":
    sys.exit(main())
