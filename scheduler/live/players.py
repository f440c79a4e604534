"""Two processes in which previews are played, so that the event loop does nothing but take the picture.

Each is started when it is first needed. It is niced, it runs in a session of its own, where no key of the
terminal reaches it, and it ends with the pipe to us: no exit of ours, kill -9 included, leaves one behind.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from math import inf

from scheduler.live.preview_child import LENGTH, Job
from scheduler.twin.packing import packed
from scheduler.twin.picture import Pending, Picture
from scheduler.twin.preview import Backlog, Played

PLAYERS = 2


class PlayerLost(RuntimeError):
    """A preview could not be played: its process ended."""


class Packed:
    """A picture on its way to the players, how far ahead it is to be played, and by what steps."""

    _numbers = count()

    def __init__(self, parts: Sequence[bytes], horizon_s: float, step_s: float = inf) -> None:
        self.number = next(self._numbers)
        self.parts = parts
        self.horizon_s = horizon_s
        self.step_s = step_s


async def pack(picture: Picture, queued: Iterable[Sequence[Pending]], step_s: float = inf) -> Packed:
    """Part by part, each in a turn of the loop of its own; ``queued`` is what waits, read meanwhile."""
    backlog = Backlog()

    def added_up() -> Iterator[Sequence[Pending]]:
        for waiting in queued:
            backlog.add(waiting)
            yield waiting

    parts = []
    for part in packed(picture, added_up()):
        parts.append(part)
        await asyncio.sleep(0)
    return Packed(parts, backlog.horizon_s(picture), step_s)


class _Player:
    def __init__(self) -> None:
        self._process: Process | None = None
        self._left: list[Process] = []
        self._has: int | None = None  # number of the picture that it has
        self._one_at_a_time = asyncio.Lock()

    async def play(self, packed: Packed, policy: str, seed: int) -> Played:
        """Raises PlayerLost."""
        async with self._one_at_a_time:
            process = self._process or await self._start()
            try:
                return await self._exchange(process, packed, policy, seed)
            except (OSError, asyncio.IncompleteReadError) as error:
                self._leave()
                raise PlayerLost("the process that plays previews ended") from error
            except asyncio.CancelledError:
                self._leave()  # or the answer would be taken for that of the next job
                raise

    async def _exchange(self, process: Process, packed: Packed, policy: str, seed: int) -> Played:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        new = () if self._has == packed.number else packed.parts
        job = pickle.dumps(Job(len(new), policy, seed, packed.horizon_s, packed.step_s))
        for data in (job, *new):
            stdin.write(LENGTH.pack(len(data)) + data)
            await stdin.drain()
        self._has = packed.number
        (size,) = LENGTH.unpack(await stdout.readexactly(LENGTH.size))
        played: Played = pickle.loads(await stdout.readexactly(size))
        return played

    async def _start(self) -> Process:
        command = (sys.executable, "-P", "-m", "scheduler.live.preview_child")
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise PlayerLost(f"no process to play previews: {error.strerror}") from error
        self._has, self._process = None, process
        return process

    def _leave(self) -> None:
        """The process ends by itself when its stdin does; the next job gets a new one."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._left.append(self._process)
            self._process = None

    async def stop(self) -> None:
        self._leave()
        await asyncio.gather(*(process.wait() for process in self._left))


def longest_first(policies: Iterable[str]) -> list[str]:
    """A sharing rule with an ordering inside takes longest to play: begun last, it would be waited for while
    the other process has nothing left to do.
    """
    return sorted(policies, key=lambda policy: "+" not in policy)


class Players:
    """Plays policies over futures of a picture, several at a time."""

    def __init__(self) -> None:
        self._players = [_Player() for _ in range(PLAYERS)]

    async def play(
        self,
        packed: Packed,
        jobs: Iterable[tuple[str, int]],
        on_played: Callable[[str, int, Played], None],
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Play (policy, seed) after (policy, seed), while they are ``wanted``. Raises PlayerLost."""
        todo = iter(jobs)

        async def work(player: _Player) -> None:
            for policy, seed in todo:
                if not wanted():
                    return
                on_played(policy, seed, await player.play(packed, policy, seed))

        workers = [asyncio.ensure_future(work(player)) for player in self._players]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                if not worker.cancelling():  # a second time would break off what the first one cleans up
                    worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def stop(self) -> None:
        """No process is left."""
        await asyncio.gather(*(player.stop() for player in self._players))
