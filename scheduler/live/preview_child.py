"""The process that plays previews: jobs come on stdin, answers go to stdout, both as length-prefixed pickles.

It ends when its stdin does, in the middle of a job too: whoever started it is gone, however that went.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
from queue import SimpleQueue
from struct import Struct
from typing import BinaryIO, NamedTuple

from scheduler.twin.future import Future, draw_future
from scheduler.twin.packing import unpacked
from scheduler.twin.picture import Picture
from scheduler.twin.preview import play

LENGTH = Struct("!Q")
NICENESS = 10


class Job(NamedTuple):
    """Play one policy over the seed's future of a picture; the answer is what comes of it."""

    parts: int  # of a new picture, which follow; 0 for that of the job before
    policy: str
    seed: int
    horizon_s: float
    step_s: float


def main() -> None:
    os.nice(NICENESS)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a stray print is no answer
    jobs: SimpleQueue[tuple[Job, list[bytes]]] = SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, jobs), daemon=True).start()
    picture: Picture | None = None
    future: Future | None = None
    drawn: tuple[int, float] | None = None  # which one that is; those who ask go future by future
    while True:
        (_, policy, seed, horizon_s, step_s), parts = jobs.get()
        if parts:
            picture, drawn = unpacked(parts), None
        assert picture is not None
        if future is None or drawn != (seed, horizon_s):
            future, drawn = draw_future(picture, horizon_s, seed), (seed, horizon_s)
        played = play(picture, policy, future, horizon_s, step_s)
        answer = pickle.dumps(played, pickle.HIGHEST_PROTOCOL)
        answers.write(LENGTH.pack(len(answer)) + answer)
        answers.flush()


def _listen(stdin: BinaryIO, jobs: SimpleQueue[tuple[Job, list[bytes]]]) -> None:
    while True:
        job: Job = pickle.loads(_read(stdin))
        jobs.put((job, [_read(stdin) for _ in range(job.parts)]))


def _read(stdin: BinaryIO) -> bytes:
    """One frame; there is no other end than that of stdin, and the main thread may sit in a long job then."""
    head = stdin.read(LENGTH.size)
    if len(head) == LENGTH.size:
        (size,) = LENGTH.unpack(head)
        if len(data := stdin.read(size)) == size:
            return data
    os._exit(0)


if __name__ == "__main__":
    main()
