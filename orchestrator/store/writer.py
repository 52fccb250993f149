"""The one thread that writes: many pieces of work, one commit.

Each piece runs under a savepoint of its own, so that one that fails takes no other with it. Pieces
that ask for the same work of a batch run as one; when that fails, each runs by itself. A piece that
is not urgent may wait a moment for others to share its commit. A result is handed back only after
the commit, so whoever sees it may rely on it after a crash.

What agents report comes in crowds, and a crowd may be seconds long. A decision, the lease or a
person's wish does not stand in that line: a lease that is renewed too late is lost, and then every
run is looked at anew, which makes the crowd longer.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

A = TypeVar("A")
T = TypeVar("T")
E = TypeVar("E", bound=Exception)
MAX_GROUP = 64  # more share little more of a commit's price, and the next one waits for them
TRIES = 5
# PostgreSQL ends one of two transactions that wait for each other's rows, as two replicas' may.
GAVE_WAY = frozenset({"40P01", "40001"})  # deadlock_detected, serialization_failure

Batch = Callable[[Connection, Sequence[A]], Sequence[T | E]]


@dataclass(frozen=True)
class _Piece:
    """Work on `arguments`, which yields a result, or an exception as a value, for each of them."""

    work: Callable[[Connection, Sequence[Any]], Sequence[Any]]
    argument: Any
    future: Future[Any]
    handed_in_at: float = field(default_factory=time.monotonic)


_Outcome = tuple[_Piece, Any, Exception | None]


class WriterClosed(Exception):
    """The service is shutting down and takes no more writes."""


class Writer:
    """Batched pieces run in the order in which they were handed in, and so do all others, which go
    ahead of them; `engine` must begin immediately."""

    def __init__(self, engine: Engine) -> None:
        self.on_commit: Callable[[float], None] | None = None  # told the seconds of each
        self._engine = engine
        self._ahead: deque[_Piece] = deque()
        self._batched: deque[_Piece] = deque()
        self._held: list[_Piece] = []
        self._closed = False
        self._some = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="writer", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` inside a write transaction; returns after its commit."""
        return await asyncio.wrap_future(self.submit(work))

    async def run_batched(self, work: Batch[A, T, E], argument: A, within: float = 0.0) -> T:
        """Runs `work` on this argument and on those of other callers together.

        `work` answers with a result for each argument, in order; an exception among them is raised
        for its own caller. It is begun `within` seconds, and before a batched piece that is handed
        in later.
        """
        if within <= 0:
            return await asyncio.wrap_future(self.submit_batched(work, argument))
        future: Future[T] = Future()
        with self._handing():
            if not self._held:
                asyncio.get_running_loop().call_later(within, self._hand_in_held)
            self._held.append(_Piece(work, argument, future))
        return await asyncio.wrap_future(future)

    @property
    def lag(self) -> float:
        """Seconds that the oldest of the batched pieces that wait for their turn has waited."""
        with self._some:
            return time.monotonic() - self._batched[0].handed_in_at if self._batched else 0.0

    def _hand_in_held(self) -> None:
        with self._some:
            self._release()
            self._some.notify()

    def _release(self) -> None:
        self._batched.extend(self._held)
        self._held.clear()

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        def alone(connection: Connection, _: Sequence[None]) -> Sequence[T]:
            return (work(connection),)

        future: Future[T] = Future()
        with self._handing():
            self._ahead.append(_Piece(alone, None, future))
        return future

    def submit_batched(self, work: Batch[A, T, E], argument: A) -> Future[T]:
        future: Future[T] = Future()
        with self._handing():
            self._release()
            self._batched.append(_Piece(work, argument, future))
        return future

    @contextmanager
    def _handing(self) -> Generator[None]:
        with self._some:
            if self._closed:
                raise WriterClosed
            yield
            self._some.notify()

    def close(self) -> None:
        """Finishes what was submitted, then stops."""
        with self._some:
            self._closed = True
            self._release()
            self._some.notify()
        self._thread.join()

    def _loop(self) -> None:
        while (group := self._next_group()) is not None:
            if not group:
                continue
            try:
                outcomes = self._commit(group)
            except Exception as error:  # noqa: BLE001 - the commit failed, so every piece of it did
                outcomes: list[_Outcome] = [(piece, None, error) for piece in group]
            for outcome in outcomes:
                piece, result, error = self._once_more(outcome)
                if error is not None:
                    piece.future.set_exception(error)
                else:
                    piece.future.set_result(result)

    def _once_more(self, outcome: _Outcome) -> _Outcome:
        """A piece that gave way to another replica's runs again, with no lock but its own."""
        piece, _, error = outcome
        for _ in range(TRIES):
            if error is None or not _gave_way(error):
                break
            try:
                [outcome] = self._commit([piece])
            except Exception as failed:  # noqa: BLE001 - handed to whoever asked
                outcome = (piece, None, failed)
            error = outcome[2]
        return outcome

    def _next_group(self) -> list[_Piece] | None:
        """The next pieces to share a commit; None once the writer was closed and nothing is left.

        Those that go ahead share theirs with few others, since somebody waits for it.
        """
        with self._some:
            while not self._ahead and not self._batched:
                if self._closed:
                    return None
                self._some.wait()
            line = self._ahead or self._batched
            group = [line.popleft() for _ in range(min(len(line), MAX_GROUP))]
        return [piece for piece in group if piece.future.set_running_or_notify_cancel()]

    def _commit(self, group: list[_Piece]) -> list[_Outcome]:
        began = time.monotonic()
        try:
            with self._engine.begin() as connection:
                return [
                    outcome
                    for work, pieces in itertools.groupby(group, key=lambda piece: piece.work)
                    for outcome in self._attempt(connection, work, list(pieces))
                ]
        finally:
            if self.on_commit is not None:
                self.on_commit(time.monotonic() - began)

    def _attempt(
        self,
        connection: Connection,
        work: Callable[[Connection, Sequence[Any]], Sequence[Any]],
        pieces: list[_Piece],
    ) -> list[_Outcome]:
        try:
            with connection.begin_nested():
                results = work(connection, [piece.argument for piece in pieces])
        except Exception as error:  # noqa: BLE001 - handed to whoever asked
            if len(pieces) == 1:
                return [(pieces[0], None, error)]
            return [one for piece in pieces for one in self._attempt(connection, work, [piece])]
        return [_outcome(piece, result) for piece, result in zip(pieces, results, strict=True)]


def _gave_way(error: Exception) -> bool:
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in GAVE_WAY


def _outcome(piece: _Piece, result: Any) -> _Outcome:
    return (piece, None, result) if isinstance(result, Exception) else (piece, result, None)
