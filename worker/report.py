"""The trainer's end of the socket to its agent: events out, acceptances and drains in.

Owns the connection and three threads, so that training never waits for the agent: one writes events
from a queue, one reads, and one stores acceptances, which may take long. When the agent closes the
socket it is dead or has given this trainer up, and the process leaves at once. Imported before JAX
is, and must not import it.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path

from pydantic import ValidationError

from worker.protocol import (
    TO_SPARE,
    TO_TRAINER,
    CheckpointAccepted,
    Phase,
    PhaseEntered,
    Report,
    SpareReady,
    StartTrainer,
    ToSparePreload,
    ToSpareWarm,
    ToTrainerAccepted,
    ToTrainerDrain,
    ToTrainerSave,
)

ORPHANED = 1  # the exit code after the agent is gone; nobody is left to read it


class AgentLink:
    """The open connection. Thread-safe; `drain` is set once the trainer is asked to leave."""

    def __init__(self, connection: socket.socket) -> None:
        self.drain = threading.Event()
        self.save_request = 0
        self._connection = connection
        self._lines: BufferedReader = connection.makefile("rb")
        self._outbox: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        self._acceptances: queue.SimpleQueue[CheckpointAccepted | None] = queue.SimpleQueue()
        self._accepted: dict[str, CheckpointAccepted] = {}
        self._news = threading.Condition()
        self._threads = (
            threading.Thread(target=self._write, name="events-out", daemon=True),
            threading.Thread(target=self._read, name="commands-in", daemon=True),
            threading.Thread(target=self._store, name="acceptances", daemon=True),
        )
        self._keep: Callable[[CheckpointAccepted], None] = lambda _: None

    @classmethod
    def connect(cls, path: Path) -> AgentLink:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(path))
        return cls(connection)

    def start(self) -> StartTrainer:
        """Reads the first line, then begins to send and to listen."""
        line = self._lines.readline()
        if not line:
            os._exit(ORPHANED)
        order = StartTrainer.model_validate_json(line)
        for thread in self._threads:
            thread.start()
        return order

    def next_for_spare(self) -> ToSpareWarm | ToSparePreload | StartTrainer:
        """The next line to a trainer that waits; with its order it begins to send and to listen."""
        line = self._lines.readline()
        if not line:
            os._exit(ORPHANED)
        message = TO_SPARE.validate_json(line)
        if isinstance(message, StartTrainer):
            for thread in self._threads:
                thread.start()
        return message

    def say(self, told: SpareReady) -> None:
        """A waiting trainer's own word to its agent."""
        try:
            self._connection.sendall(told.model_dump_json().encode() + b"\n")
        except OSError:
            os._exit(ORPHANED)

    def close(self) -> None:
        """Ends the threads and the connection, once the agent has closed its side."""
        self._outbox.put(b"")
        self._acceptances.put(None)
        for thread in self._threads:
            thread.join()
        self._lines.close()
        self._connection.close()

    def send(self, event: Report) -> None:
        """Queues one event; never waits."""
        self._outbox.put(event.model_dump_json().encode() + b"\n")

    def flush(self, seconds: float) -> bool:
        """Waits until all that was queued has reached the socket; False if time ran out."""
        written = threading.Event()
        self._outbox.put(written)
        return written.wait(seconds)

    def keep_acceptances(self, keep: Callable[[CheckpointAccepted], None]) -> None:
        """Has `keep` store each acceptance before anyone who waits for it learns of it."""
        self._keep = keep

    def accepted(self, checkpoint_id: str, seconds: float) -> CheckpointAccepted | None:
        """The control plane's acceptance, waiting up to `seconds` for it."""
        with self._news:
            self._news.wait_for(lambda: checkpoint_id in self._accepted, timeout=seconds)
            return self._accepted.get(checkpoint_id)

    def _write(self) -> None:
        try:
            while True:
                item = self._outbox.get()
                if isinstance(item, threading.Event):
                    item.set()
                elif not item:
                    return
                else:
                    self._connection.sendall(item)
        except OSError:
            os._exit(ORPHANED)

    def _read(self) -> None:
        try:
            for line in self._lines:
                self._obey(line)
        except OSError:
            pass
        os._exit(ORPHANED)

    def _obey(self, line: bytes) -> None:
        try:
            command = TO_TRAINER.validate_json(line)
        except ValidationError as error:
            print(f"ignored a command from the agent: {error}", file=sys.stderr, flush=True)
            return
        match command:
            case ToTrainerAccepted(acceptance=acceptance):
                self._acceptances.put(acceptance)
            case ToTrainerDrain():
                self.drain.set()
            case ToTrainerSave(request=request):
                self.save_request = max(self.save_request, request)

    def _store(self) -> None:
        while (acceptance := self._acceptances.get()) is not None:
            try:
                self._keep(acceptance)
            except OSError as error:
                print(f"the acceptance could not be stored: {error}", file=sys.stderr)
            with self._news:
                self._accepted[acceptance.checkpoint_id] = acceptance
                self._news.notify_all()


class PhaseClock:
    """Reports each phase as it is entered, with how long the one before it took."""

    def __init__(self, link: AgentLink) -> None:
        self._link = link
        self._phase: Phase | None = None
        self._since = time.monotonic()

    def enter(self, phase: Phase) -> None:
        if phase == self._phase:
            return
        now = time.monotonic()
        before, seconds = self._phase, now - self._since
        self._link.send(
            PhaseEntered(
                phase=phase, previous=before, previous_seconds=None if before is None else seconds
            )
        )
        if before is not None:
            print(f"{phase}: after {seconds:.2f} s of {before}", flush=True)
        self._phase, self._since = phase, now
