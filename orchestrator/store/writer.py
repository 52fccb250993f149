"""The one thread that writes: many pieces of work, one commit.

Each piece runs under a savepoint of its own, so that one that fails takes no other with it. A
result is handed back only after the commit, so whoever sees it may rely on it after a crash.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine

T = TypeVar("T")
MAX_GROUP = 256


@dataclass(frozen=True)
class _Piece:
    work: Callable[[Connection], Any]
    future: Future[Any]


class WriterClosed(Exception):
    """The service is shutting down and takes no more writes."""


class Writer:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pieces: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="writer", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` inside a write transaction; returns after its commit."""
        return await asyncio.wrap_future(self.submit(work))

    def submit(self, work: Callable[[Connection], T]) -> Future[T]:
        if self._closed:
            raise WriterClosed
        future: Future[T] = Future()
        self._pieces.put(_Piece(work, future))
        return future

    def close(self) -> None:
        """Finishes what was submitted, then stops."""
        self._closed = True
        self._pieces.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while (group := self._next_group()) is not None:
            try:
                outcomes = self._commit(group)
            except Exception as error:  # noqa: BLE001 - the commit failed, so every piece of it did
                outcomes = [(piece, None, error) for piece in group]
            for piece, result, error in outcomes:
                if error is not None:
                    piece.future.set_exception(error)
                else:
                    piece.future.set_result(result)

    def _next_group(self) -> list[_Piece] | None:
        first = self._pieces.get()
        if first is None:
            return None
        group = [first]
        while len(group) < MAX_GROUP:
            try:
                piece = self._pieces.get_nowait()
            except queue.Empty:
                break
            if piece is None:
                self._pieces.put(None)
                break
            group.append(piece)
        return [piece for piece in group if piece.future.set_running_or_notify_cancel()]

    def _commit(self, group: list[_Piece]) -> list[tuple[_Piece, Any, Exception | None]]:
        outcomes: list[tuple[_Piece, Any, Exception | None]] = []
        with self._engine.begin() as connection:
            for piece in group:
                try:
                    with connection.begin_nested():
                        outcomes.append((piece, piece.work(connection), None))
                except Exception as error:  # noqa: BLE001 - handed to whoever asked
                    outcomes.append((piece, None, error))
        return outcomes
