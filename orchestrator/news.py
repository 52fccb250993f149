"""Carries wake-ups between replicas on one PostgreSQL, by LISTEN and NOTIFY.

Owns one connection and one thread. Losing either costs latency, never correctness: whoever waits
also looks by the clock, and more often while this is not connected. Must not import the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.engine import make_url

if TYPE_CHECKING:
    import psycopg

log = structlog.get_logger(__name__)
CHANNEL = "longhaul_wakes"
PAYLOAD_BYTES = 7500  # PostgreSQL takes less than 8000
MOST_PENDING = 50_000
GATHER_SECONDS = 0.01
QUIET_SECONDS = 10.0
RETRY_SECONDS = 1.0


class PostgresNews:
    """`hear` is called, in this object's thread, with the topics that another replica sent."""

    def __init__(self, url: str, hear: Callable[[tuple[str, ...]], None]) -> None:
        self._conninfo = make_url(url).set(drivername="postgresql")
        self._hear = hear
        self._me = secrets.token_hex(4)
        self._pending: dict[str, None] = {}
        self._lock = threading.Lock()
        self._wake_reading, self._wake_writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._closing = threading.Event()
        self._connected = False
        self._thread = threading.Thread(target=self._live, name="news", daemon=True)
        self._thread.start()

    @property
    def connected(self) -> bool:
        return self._connected

    def send(self, topics: tuple[str, ...]) -> None:
        """Sent together with whatever else comes within a moment; kept while not connected."""
        with self._lock:
            first = not self._pending
            if len(self._pending) < MOST_PENDING:
                self._pending.update(dict.fromkeys(topics))
        if first:
            self._ring()

    def close(self) -> None:
        self._closing.set()
        self._ring()
        self._thread.join(5.0)
        if not self._thread.is_alive():
            os.close(self._wake_reading)
            os.close(self._wake_writing)

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # full: the thread will wake up anyway
            os.write(self._wake_writing, b"\0")

    # ---- the thread ------------------------------------------------------------------------------

    def _live(self) -> None:
        import psycopg

        while not self._closing.is_set():
            try:
                with psycopg.connect(
                    self._conninfo.render_as_string(hide_password=False),
                    autocommit=True,
                    connect_timeout=5,
                    application_name="longhaul news",
                ) as connection:
                    self._talk(connection)
            except psycopg.Error as error:
                log.warning("wake-ups of other replicas are cut off", reason=str(error).strip())
            finally:
                self._connected = False
            self._closing.wait(RETRY_SECONDS)

    def _talk(self, connection: psycopg.Connection) -> None:
        connection.add_notify_handler(lambda notice: self._heard(notice.payload))
        connection.execute(f"LISTEN {CHANNEL}")
        self._connected = True
        while not self._closing.is_set():
            readable, _, _ = select.select(
                (connection.fileno(), self._wake_reading), (), (), QUIET_SECONDS
            )
            if self._wake_reading in readable:
                self._closing.wait(GATHER_SECONDS)
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_reading, 4096)
            self._exchange(connection)

    def _exchange(self, connection: psycopg.Connection) -> None:
        """Sends what is pending. Any answer of the server brings the notices with it."""
        with self._lock:
            topics, self._pending = list(self._pending), {}
        sent = 0
        try:
            for payload, number in _payloads(self._me, topics):
                connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))
                sent += number
            if not topics:
                connection.execute("SELECT 1")
        except BaseException:
            with self._lock:  # another connection sends them
                self._pending = dict.fromkeys(topics[sent:]) | self._pending
            raise

    def _heard(self, payload: str) -> None:
        sender, *topics = json.loads(payload)
        if sender != self._me:
            self._hear(tuple(topics))


def _payloads(sender: str, topics: list[str]) -> Iterator[tuple[str, int]]:
    """As few texts as hold them all, each with the number of its topics."""
    part, size = [sender], len(sender) + 4
    for topic in topics:
        more = len(json.dumps(topic)) + 2
        if size + more > PAYLOAD_BYTES and len(part) > 1:
            yield json.dumps(part), len(part) - 1
            part, size = [sender], len(sender) + 4
        part.append(topic)
        size += more
    if len(part) > 1:
        yield json.dumps(part), len(part) - 1
