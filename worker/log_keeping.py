"""Logs, whole, beside the checkpoints: what outlives the host that they were written on.

Owns the copies. A log is cut into parts of a bounded size, since an object of a bucket can not
grow: the last one is replaced as the log grows, the others stay. What an agent did not get to, the
next one on its host does. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from worker.ends import Invalid
from worker.host import write_whole
from worker.storage import folder_at, in_bucket

PART_BYTES = 1 << 20
ON_DISK_SECONDS, IN_BUCKET_SECONDS = 5.0, 15.0  # each time a part is written anew
ENDED_SECONDS = 1.0  # another attempt may be about to begin, and has the machine for itself
MOST_BACKOFF_SECONDS = 300.0
NICENESS = 10
RECORD = ".kept"
log = logging.getLogger("longhaul.agent")
Hide = Callable[[str], str]


class KeptLog:
    """One file that grows, and its parts in the folder `uri`: `name-0001.log` and so on.

    `hide` takes out what must not leave the host. It is not written down, so that such a log is not
    left to another agent.
    """

    def __init__(self, path: Path, uri: str, name: str, hide: Hide | None = None) -> None:
        self.path, self.ended = path, False
        self._uri, self._name, self._hide = uri, name, hide
        self._part, self._begin = 1, 0
        self._seen = -1
        self.failures = 0
        self.due_at = 0.0

    @classmethod
    def recorded(cls, record: Path) -> KeptLog:
        """The log of an earlier agent, from where it had come to. Raises ValueError, KeyError."""
        told = json.loads(record.read_text(encoding="utf-8"))
        made = cls(record.with_suffix(""), str(told["uri"]), str(told["name"]))
        made._part, made._begin, made.ended = int(told["part"]), int(told["begin"]), True
        return made

    @property
    def every(self) -> float:
        return IN_BUCKET_SECONDS if in_bucket(self._uri) else ON_DISK_SECONDS

    @property
    def _record(self) -> Path:
        return self.path.with_name(self.path.name + RECORD)

    def keep(self, now: float) -> bool:
        """Brings the copy up to date; whether it was done. It is due again later in any case."""
        ended = self.ended
        try:
            self._bring(ended)
        except (OSError, Invalid) as error:
            self.failures += 1
            if self.failures == 1:
                log.warning("%s can not be kept in %s: %s", self.path.name, self._uri, error)
            every = ON_DISK_SECONDS * 2.0 ** min(self.failures, 10)
            self.due_at = now + min(every, MOST_BACKOFF_SECONDS)
            return False
        self.failures = 0
        self.due_at = now + self.every
        return True

    def forget(self) -> None:
        """All of it is kept."""
        with contextlib.suppress(OSError):
            self._record.unlink(missing_ok=True)

    def _bring(self, ended: bool) -> None:
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return
        if size == self._seen and not ended:
            return
        self._note()
        while self._put_part(self._next_part(), ended):
            self._note()
        self._seen = size

    def _next_part(self) -> bytes:
        """And one byte more, where there is one."""
        with self.path.open("rb") as file:
            file.seek(self._begin)
            return file.read(PART_BYTES + 1)

    def _put_part(self, data: bytes, ended: bool) -> bool:
        """Whether it was a whole one, so that another follows."""
        whole = len(data) > PART_BYTES
        lines = data.rfind(b"\n", 0, PART_BYTES) + 1
        if whole:
            data = data[: lines or PART_BYTES]
        elif not ended:
            data = data[:lines]  # half a line might hold half a secret
        if data:
            shown = data if self._hide is None else self._hidden(data)
            folder_at(self._uri).put(f"{self._name}-{self._part:04d}.log", shown)
        if whole:
            self._part, self._begin = self._part + 1, self._begin + len(data)
        return whole

    def _hidden(self, data: bytes) -> bytes:
        assert self._hide is not None
        return self._hide(data.decode(errors="replace")).encode()

    def _note(self) -> None:
        if self._hide is None:
            told = {"uri": self._uri, "name": self._name, "part": self._part, "begin": self._begin}
            write_whole(self._record, json.dumps(told))


class LogKeeper:
    """One thread at low priority that keeps the logs that it is told of."""

    def __init__(self) -> None:
        self._logs: dict[Path, KeptLog] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def adopt(self, folder: Path) -> None:
        """What an earlier agent has left of its logs."""
        for record in sorted(folder.glob(f"*{RECORD}")):
            try:
                self._add(KeptLog.recorded(record))
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s says nothing: %s", record.name, error)

    def follow(self, path: Path, uri: str, name: str, hide: Hide | None = None) -> None:
        kept = KeptLog(path, uri, name, hide)
        kept.due_at = time.monotonic() + kept.every
        self._add(kept)

    def ended(self, path: Path) -> None:
        """Nothing more is written there."""
        with self._lock:
            if path in self._logs:
                self._logs[path].ended = True
                self._logs[path].due_at = time.monotonic() + ENDED_SECONDS
        self._wake.set()

    def all_ended(self) -> None:
        """Nobody writes any more."""
        with self._lock:
            for one in self._logs.values():
                one.ended, one.due_at = True, 0.0
        self._wake.set()

    async def idle(self, seconds: float) -> None:
        """Waits until every log that has ended is kept whole or has failed to be, or that long."""
        with self._lock:
            for one in self._logs.values():
                if one.ended:
                    one.due_at, one.failures = 0.0, 0
        self._wake.set()
        deadline = time.monotonic() + seconds
        while self._left() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def _left(self) -> bool:
        with self._lock:
            return any(one.ended and not one.failures for one in self._logs.values())

    def _add(self, kept: KeptLog) -> None:
        with self._lock:
            self._logs[kept.path] = kept
        self._wake.set()
        if self._thread is None:
            # A daemon: an agent that must go does not wait for a storage.
            self._thread = threading.Thread(target=self._work, name="logs", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while True:
            self._wake.wait(self.look())
            self._wake.clear()

    def look(self) -> float:
        """Keeps what is due; seconds until something is again."""
        with self._lock:
            logs = list(self._logs.values())
        for one in logs:
            now = time.monotonic()
            if now < one.due_at:
                continue
            ended = one.ended
            if one.keep(now) and ended:
                one.forget()
                with self._lock:
                    if self._logs.get(one.path) is one:
                        del self._logs[one.path]
        with self._lock:
            due = [one.due_at for one in self._logs.values()]
        return max(0.05, min(due, default=time.monotonic() + ON_DISK_SECONDS) - time.monotonic())
