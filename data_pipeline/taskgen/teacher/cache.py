"""Replies and spending on the disk: one SQLite file that a kill at any moment leaves usable.

`requests` has a row for each request that was ever sent, written before it goes out with the most
it can cost, and corrected when it ends. So what a killed run had in flight counts as spent, and
the sum over the rows is the spending of all runs. `replies` has each reply, written in the same
transaction that corrects its request. Neither holds a question, a key or an address.
"""

import asyncio
import concurrent.futures
import dataclasses
import pathlib
import sqlite3
from typing import Any

from data_pipeline.taskgen.teacher import budget, reply

_APPLICATION_ID = 0x54454143  # "TEAC"
_VERSION = 1
_TABLES = """
CREATE TABLE replies (
    key TEXT PRIMARY KEY,
    text TEXT NOT NULL,
    reasoning TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    dollars REAL NOT NULL,
    estimated INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    outcome TEXT NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    dollars REAL NOT NULL
) STRICT;
"""
_IN_FLIGHT = "in flight"
_LOST = "lost"  # in flight when an earlier run was killed
_ANSWERED = "answered"

type _Statement = tuple[str, tuple[Any, ...]]


class Store:
    """The file, open for this process alone.

    One thread does all that touches it. Transactions that wait for the disk at the same time are
    made one, so a thousand requests a second do not need a thousand syncs.
    """

    def __init__(self, path: pathlib.Path):
        """Open the file, or make it.

        Raises:
            ValueError: the file is something else, damaged, or another process has it.
        """
        self._path = path
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="teacher-cache")
        self._waiting: list[tuple[list[_Statement], asyncio.Future[None]]] = []
        self._flushing: asyncio.Task[None] | None = None
        try:
            self._database = self._thread.submit(_open, path).result()
            self.spent, self._next_id = self._thread.submit(self._take_stock).result()
        except sqlite3.Error as error:
            self._thread.shutdown()
            raise ValueError(_refusal(path, error)) from error
        except ValueError:
            self._thread.shutdown()
            raise

    async def find(self, key: str) -> reply.Reply | None:
        """The reply to a question, if it ever came."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._find, key)

    async def begin(self, key: str, most: budget.Spend) -> int:
        """Note that a request is about to be sent, and the most it can cost; returns its number."""
        number = self._next_id
        self._next_id += 1
        await self._write([
            (
                "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?)",
                (number, key, _IN_FLIGHT, *dataclasses.astuple(most)),
            )
        ])  # fmt: skip
        return number

    async def answer(self, number: int, key: str, came: reply.Reply) -> None:
        """Keep a reply; when this returns it is on the disk."""
        counts = (came.input_tokens, came.output_tokens, came.dollars)
        await self._write([
            (
                "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (key, came.text, came.reasoning, came.finish_reason, *counts, came.estimated),
            ),
            _ended(number, _ANSWERED, budget.Spend(*counts)),
        ])  # fmt: skip

    async def fail(self, number: int, kind: str, spend: budget.Spend) -> None:
        """Note that a request ended without a reply."""
        await self._write([_ended(number, kind, spend)])

    async def close(self) -> None:
        """Write what waits, and let the file go."""
        if self._flushing is not None:
            await self._flushing
        await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        self._thread.shutdown()

    async def _write(self, statements: list[_Statement]) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((statements, done))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        await asyncio.shield(done)  # a caller who leaves does not take the others' writes along

    async def _flush(self) -> None:
        """Commit what waits, until nothing does."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            statements = [statement for some, _ in batch for statement in some]
            try:
                await loop.run_in_executor(self._thread, self._commit, statements)
            except Exception as error:  # whatever it is, those who wait are told
                if isinstance(error, sqlite3.Error):
                    error = OSError(f"{self._path}: {error}")
                for _, done in batch:
                    done.set_exception(error)
            else:
                for _, done in batch:
                    done.set_result(None)

    # What follows runs in the thread.

    def _take_stock(self) -> tuple[budget.Spend, int]:
        """What was spent so far, and the next request's number."""
        self._commit(
            [(f"UPDATE requests SET outcome = '{_LOST}' WHERE outcome = ?", (_IN_FLIGHT,))]
        )
        counts = self._database.execute(
            "SELECT coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),"
            " coalesce(sum(dollars), 0.0), coalesce(max(id), 0) + 1 FROM requests"
        ).fetchone()
        return budget.Spend(*counts[:3]), counts[3]

    def _find(self, key: str) -> reply.Reply | None:
        row = self._database.execute(
            "SELECT text, reasoning, finish_reason, input_tokens, output_tokens, dollars, estimated"
            " FROM replies WHERE key = ?",
            (key,),
        ).fetchone()
        if row is None:
            return None
        return reply.Reply(*row[:5], cached=True, dollars=row[5], estimated=bool(row[6]))

    def _commit(self, statements: list[_Statement]) -> None:
        with self._database:  # commits, or rolls back on an error
            self._database.execute("BEGIN IMMEDIATE")
            for sql, values in statements:
                self._database.execute(sql, values)


def _ended(number: int, outcome: str, spend: budget.Spend) -> _Statement:
    return (
        "UPDATE requests SET outcome = ?, input_tokens = ?, output_tokens = ?, dollars = ?"
        " WHERE id = ?",
        (outcome, *dataclasses.astuple(spend), number),
    )


def _open(path: pathlib.Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    try:
        # One process at a time: two would each spend the whole budget.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")  # a reply survives the machine's end, too
        database.execute("BEGIN IMMEDIATE")
        _make_tables(database, path)
        database.execute("COMMIT")
    except BaseException:
        database.close()
        raise
    return database


def _make_tables(database: sqlite3.Connection, path: pathlib.Path) -> None:
    """In a new file; in an old one they must be ours."""
    found = tuple(
        database.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version")
    )
    if found == (_APPLICATION_ID, _VERSION):
        return
    if found != (0, 0) or database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        raise ValueError(
            f"{path}: a database of another program, or of another version of this one; name "
            "another file or remove it"
        )
    for statement in _TABLES.split(";"):
        database.execute(statement)
    database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    database.execute(f"PRAGMA user_version = {_VERSION}")


def _refusal(path: pathlib.Path, error: sqlite3.Error) -> str:
    if "locked" in str(error):
        return f"{path}: another process uses this teacher's cache; wait for it to end, or stop it"
    return f"{path}: no cache of the teacher ({error}); name another file or remove it"
