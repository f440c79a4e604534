"""The journal of durable jobs: one SQLite file in WAL mode, written by one thread in groups.

What a future of this file reports as done is on disk: ``synchronous=FULL``, one commit for all that came
while the last one ran. A tail torn by a crash is left out by SQLite's own checksums. The file is 0600: it
holds prompts and answers.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

_VERSION = 2
_SCHEMA = """
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    idempotency_key TEXT,
    body_digest BLOB NOT NULL,
    body BLOB NOT NULL,
    tier TEXT NOT NULL,
    ttl_s REAL,
    accepted REAL NOT NULL,
    ended REAL,
    status TEXT,
    result BLOB,
    UNIQUE (tenant, idempotency_key)
);
CREATE INDEX jobs_ended ON jobs (ended) WHERE ended NOT NULL;
CREATE INDEX jobs_kept ON jobs (ended, seq) WHERE result NOT NULL;
CREATE TABLE learned (estimator TEXT PRIMARY KEY, state TEXT NOT NULL);
"""
_MAX_GROUP = 500  # writes in one commit
_KEPT = "SELECT SUM(LENGTH(body) + LENGTH(result)) FROM jobs WHERE result NOT NULL"


class JournalError(OSError):
    """The journal cannot be opened, read or written; says what to do."""


class Entry(NamedTuple):
    """One job as it was promised. Times are wall-clock seconds since the epoch."""

    id: str
    tenant: str
    idempotency_key: str | None
    body_digest: bytes
    body: bytes  # tenant data
    tier: str
    ttl_s: float | None
    accepted: float
    ended: float | None = None
    status: str | None = None  # how it ended
    result: bytes | None = None  # JSON: the answer or the error; tenant data; None once it was dropped


_COLUMNS = ", ".join(Entry._fields)
T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]


class Journal:
    """Methods return futures of the loop; they are carried out in the order of the calls."""

    def __init__(self, path: Path) -> None:
        """Open or create it, for this process alone. Raises JournalError."""
        self.path = path
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._kept_bytes: int | None = None  # of texts of ended jobs, so that no purge adds them all up
        self._todo: SimpleQueue[tuple[Work, asyncio.Future[Any]] | None] = SimpleQueue()
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            path.chmod(0o600)
            self._db = _opened(path)
        except (OSError, sqlite3.Error) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise JournalError(
                f"journal {str(path)!a}: {why}; it must be a journal of this program, writable, and used by "
                "one server at a time (a broken one can be moved away)"
            ) from error
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    # -- what is written -----------------------------------------------------------------------------

    def add(self, entry: Entry) -> asyncio.Future[None]:
        """Promise a job: once this is done, it is kept."""
        marks = ", ".join("?" * len(entry))
        return self._ask(lambda db: _run(db, f"INSERT INTO jobs ({_COLUMNS}) VALUES ({marks})", entry))

    def finish(self, job_id: str, status: str, result: bytes, ended: float) -> asyncio.Future[None]:
        """How it ended; the first ending stays."""
        sql = (
            "UPDATE jobs SET status = ?, result = ?, ended = ? WHERE id = ? AND ended IS NULL "
            "RETURNING LENGTH(body) + LENGTH(result)"
        )

        def work(db: sqlite3.Connection) -> None:
            for (size,) in db.execute(sql, (status, result, ended, job_id)).fetchall():
                if self._kept_bytes is not None:
                    self._kept_bytes += size

        return self._ask(work)

    def learn(self, estimator: str, state: str) -> asyncio.Future[None]:
        """What the estimator of this name knows about lengths, as JSON."""
        sql = "INSERT OR REPLACE INTO learned VALUES (?, ?)"
        return self._ask(lambda db: _run(db, sql, (estimator, state)))

    def purge(self, before: float, keep_bytes: int) -> asyncio.Future[None]:
        """Forget jobs that ended before this time, and drop the oldest texts over so many bytes.

        A job whose texts were dropped is still known, and so is its idempotency key: nothing runs twice.
        """

        def work(db: sqlite3.Connection) -> None:
            if self._kept_bytes is None:
                self._kept_bytes = db.execute(_KEPT).fetchone()[0] or 0
            gone = db.execute(
                "DELETE FROM jobs WHERE ended < ? RETURNING LENGTH(body) + COALESCE(LENGTH(result), 0)",
                (before,),
            )
            self._kept_bytes -= sum(size for (size,) in gone.fetchall())
            oldest = db.execute(
                "SELECT seq, LENGTH(body) + LENGTH(result) FROM jobs "
                "WHERE result NOT NULL ORDER BY ended, seq"
            )
            dropped = []
            while self._kept_bytes > keep_bytes:
                seq, size = next(oldest)
                self._kept_bytes -= size
                dropped.append((seq,))
            oldest.close()
            db.executemany("UPDATE jobs SET body = x'', result = NULL WHERE seq = ?", dropped)

        return self._ask(work)

    # -- what is read --------------------------------------------------------------------------------

    def find(self, tenant: str, job_id: str) -> asyncio.Future[Entry | None]:
        """A tenant's own job."""
        return self._ask(lambda db: _one(db, "tenant = ? AND id = ?", (tenant, job_id)))

    def find_by_key(self, tenant: str, key: str) -> asyncio.Future[Entry | None]:
        return self._ask(lambda db: _one(db, "tenant = ? AND idempotency_key = ?", (tenant, key)))

    def unfinished(self) -> asyncio.Future[list[Entry]]:
        """All that was promised and has not ended, in its order of arrival."""
        sql = f"SELECT {_COLUMNS} FROM jobs WHERE ended IS NULL ORDER BY seq"
        return self._ask(lambda db: [Entry(*row) for row in db.execute(sql)])

    def learned(self) -> asyncio.Future[dict[str, str]]:
        """The state of each estimator, by its name."""
        return self._ask(lambda db: dict(db.execute("SELECT estimator, state FROM learned")))

    # -- the thread ----------------------------------------------------------------------------------

    async def close(self) -> None:
        """Write what is still to be written; what is asked from now on fails."""
        self._closed = True
        self._todo.put(None)
        await asyncio.to_thread(self._thread.join)

    def _ask(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            future.set_exception(JournalError("the journal is closed"))
        else:
            self._todo.put((work, future))
        return future

    def _write(self) -> None:
        closing = False
        while not closing:
            group = [self._todo.get()]
            while len(group) < _MAX_GROUP and not self._todo.empty():
                group.append(self._todo.get())
            closing = None in group
            self._commit([item for item in group if item is not None])
        self._db.close()

    def _commit(self, group: list[tuple[Work, asyncio.Future[Any]]]) -> None:
        """All of it or nothing; then each by itself, so that nobody's work fails for another's."""
        results: list[Any] = []
        failure: JournalError | None = None
        try:
            self._db.execute("BEGIN IMMEDIATE")
            results = [work(self._db) for work, _ in group]
            self._db.execute("COMMIT")
        except (sqlite3.Error, ValueError) as error:  # ValueError: text that is no UTF-8
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._kept_bytes = None
            if len(group) > 1:
                for each in group:
                    self._commit([each])
                return
            failure = JournalError(f"the journal cannot be written: {error}")
        self._loop.call_soon_threadsafe(_settle, [future for _, future in group], results, failure)


def _settle(futures: list[asyncio.Future[Any]], results: list[Any], failure: JournalError | None) -> None:
    for index, future in enumerate(futures):
        if future.done():
            continue  # nobody waits for it any more
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(results[index])


def _opened(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.Error for what is no journal of this version, or in use."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
    try:
        _prepare(db)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    db.execute("BEGIN IMMEDIATE")  # takes the lock, and keeps it
    if version == 0:
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {_VERSION}")
    elif version != _VERSION:
        raise sqlite3.DatabaseError(f"it has version {version}, this program writes {_VERSION}")
    db.execute("COMMIT")
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError("it is damaged")


def _run(db: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> None:
    db.execute(sql, values)


def _one(db: sqlite3.Connection, where: str, values: tuple[Any, ...]) -> Entry | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE {where}", values).fetchone()
    return None if row is None else Entry(*row)
