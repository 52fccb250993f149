"""The database of the simulated world: SQLite in memory, which outlives every controller.

One connection and one engine serve all simulations of a process, so that SQLAlchemy compiles each
statement once; every simulation begins with a fresh copy of the empty tables. Reads are remembered
for as long as no table that they read was written to.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import StaticPool

from orchestrator.store import commands, looks, reads, tables
from tests.scenarios.clock import FakeClock, PlaneClock

NAMES = re.compile(rf"\b({'|'.join(map(re.escape, tables.metadata.tables))})\b")
WRITTEN = re.compile(r'\s*(?:INSERT INTO|UPDATE)\s+"?(\w+)')
EVERY = "*"


class Memo:
    """What each read answered, and at which version of the tables that it touched."""

    def __init__(self) -> None:
        self._versions: Counter[str] = Counter()
        self._known: dict[Any, tuple[dict[str, int], Any]] = {}
        self._reading: list[set[str]] = []
        self._touched: dict[str, tuple[frozenset[str], str | None]] = {}
        self._dirty = False

    def clear(self) -> None:
        self._known.clear()
        self._reading.clear()

    def recall(self, name: Any, read: Callable[[], Any]) -> Any:
        """What `read` answers, asked anew only when what it rests on has changed."""
        known = self._known.get(name)
        if known is not None and self._fresh(known[0]):
            self._rests_on(known[0])
            return known[1]
        touched: set[str] = {EVERY}
        self._reading.append(touched)
        try:
            found = read()
        finally:
            self._reading.pop()
        self._rests_on(touched)
        self._known[name] = ({table: self._versions[table] for table in touched}, found)
        return found

    def _fresh(self, rests_on: dict[str, int]) -> bool:
        return all(self._versions[table] == version for table, version in rests_on.items())

    def _rests_on(self, touched: Any) -> None:
        if self._reading:
            self._reading[-1].update(touched)

    def seen(self, statement: str) -> None:
        """A statement is about to run."""
        if statement not in self._touched:
            self._touched[statement] = _touches(statement)
        read, written = self._touched[statement]
        if written is not None:
            self._versions[written] += 1
            self._dirty = True
        self._rests_on(read)

    def begun(self) -> None:
        self._dirty = False

    def rolled_back(self) -> None:
        """Also how a connection that only read is given back."""
        if self._dirty:
            self.all_changed()

    def all_changed(self) -> None:
        self._versions[EVERY] += 1


def _touches(statement: str) -> tuple[frozenset[str], str | None]:
    read = frozenset(NAMES.findall(statement))
    if statement.lstrip().startswith(("SELECT", "BEGIN")):
        return read, None
    written = WRITTEN.match(statement)
    return read, written.group(1) if written else EVERY


class _Shared:
    """What all simulations of this process use, one after another."""

    def __init__(self) -> None:
        self.clock = PlaneClock(FakeClock())
        self.memo = Memo()
        self.raw = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self.raw.create_function("julianday", 1, self._julian_day)
        self.engine: Engine = create_engine(
            "sqlite://", creator=lambda: self.raw, poolclass=StaticPool, query_cache_size=5000
        )
        event.listen(self.engine, "begin", self._begin)
        event.listen(self.engine, "rollback", lambda _: self.memo.rolled_back())
        event.listen(self.engine, "before_cursor_execute", self._seen)
        tables.metadata.create_all(self.engine)
        self.empty = self.raw.serialize()

    def _julian_day(self, what: str) -> float:
        """By the clock of the world that is simulated now."""
        return self.clock.julian_day(what)

    def _seen(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.memo.seen(statement)

    def _begin(self, _connection: Connection) -> None:
        self.memo.begun()
        self.raw.execute("BEGIN")  # past SQLAlchemy, which would spend more on it than SQLite does


@functools.cache
def _shared() -> _Shared:
    return _Shared()


class Database:
    """Every table, in memory. `julianday` is the control plane's clock, so leases follow it.

    A new one empties the one before: a process simulates one world at a time.
    """

    def __init__(self, clock: PlaneClock) -> None:
        shared = _shared()
        shared.clock = clock
        shared.memo.clear()
        shared.memo.all_changed()
        shared.raw.deserialize(shared.empty)
        shared.raw.execute("PRAGMA foreign_keys = ON")
        self.raw = shared.raw
        self.engine = shared.engine
        self._memo = shared.memo
        self.leader: str | None = None  # the control plane that took the lease last
        self.woken: Counter[str] = Counter()  # what arrived for each run, as the API announces it

    def known(self, name: Any, read: Callable[[Connection], Any]) -> Any:
        """What `read` answers; asked anew only when a row that it rests on has changed."""

        def ask() -> Any:
            with self.engine.connect() as connection:
                return read(connection)

        return self._memo.recall(name, ask)

    @property
    def changes(self) -> int:
        return self.raw.total_changes

    def write(self, work: Callable[[Connection], Any]) -> Any:
        with self.engine.begin() as connection:
            return work(connection)

    def attempt(self, work: Callable[[Connection], Any]) -> Any:
        """What `work` would answer or raise now; nothing of it stays."""
        with self.engine.connect() as connection, connection.begin() as transaction:
            try:
                return work(connection)
            finally:
                transaction.rollback()

    def committed(self, query: str, *given: object) -> list[tuple[Any, ...]]:
        """What stands in the database at this moment, whatever else happens then."""
        assert not self.raw.in_transaction
        return self.rows(query, *given)

    def rows(self, query: str, *given: object) -> list[tuple[Any, ...]]:
        return self.raw.execute(query, given).fetchall()


@contextlib.contextmanager
def remembered_reads() -> Iterator[None]:
    """The store's reads answer from memory while their tables stay as they were."""
    memo = _shared().memo
    with contextlib.ExitStack() as stack:
        for module in (looks, reads, commands):
            for name, read in _reads_of(module):
                stack.enter_context(mock.patch.object(module, name, _remembering(memo, read)))
        yield


def _reads_of(module: ModuleType) -> list[tuple[str, Callable[..., Any]]]:
    """Functions of the module itself that take a connection and are no writes."""
    found = inspect.getmembers(module, inspect.isfunction)
    return [
        (name, read)
        for name, read in found
        if read.__module__ == module.__name__
        and next(iter(inspect.signature(read).parameters), "") == "connection"
        and name not in ("snapshot", "settle_never_started")
    ]


def _remembering(memo: Memo, read: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(read)
    def recall(connection: Connection, *given: Any, **named: Any) -> Any:
        try:
            name = (read, given, tuple(named.items()))
            hash(name)
        except TypeError:
            return read(connection, *given, **named)
        return memo.recall(name, lambda: read(connection, *given, **named))

    return recall
