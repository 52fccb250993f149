"""What an agent does to checkpoints beside its trainer: proves them, and removes them.

Owns one thread at low priority, so that neither the training nor the agent's watch waits for a
disk. A removal takes the marker away first: whatever a kill leaves behind counts nowhere, and the
next try removes the rest. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import PurePosixPath

from worker.ends import CheckpointUnusable, Invalid
from worker.manifest import ACCEPTED, MARKER, verify
from worker.protocol import (
    CheckpointRejected,
    CheckpointVerified,
    CheckpointWritten,
    DeleteCheckpoints,
    FilesDeleted,
)
from worker.storage import BUCKETS, OutOfReach, folder_at, in_bucket

NICENESS = 10
Outcome = CheckpointVerified | CheckpointRejected | FilesDeleted
log = logging.getLogger("longhaul.agent")


def proven(written: CheckpointWritten) -> CheckpointVerified | CheckpointRejected | None:
    """Compares a checkpoint with its manifest: every byte, or a bucket's own checksums.

    None where it could not be read: that says something of the storage, not of the checkpoint.
    """
    began = time.monotonic()
    try:
        verify(written.uri, written.manifest_sha256)
    except (OutOfReach, Invalid) as error:
        log.error("%s could not be verified: %s", written.checkpoint_id, error)
        return None
    except CheckpointUnusable as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            log.error("%s could not be verified: %s", written.checkpoint_id, error)
            return None
        return CheckpointRejected(checkpoint_id=written.checkpoint_id, reason=str(error))
    seconds = time.monotonic() - began
    return CheckpointVerified(checkpoint_id=written.checkpoint_id, seconds=seconds)


def remove(uri: str, run_id: str) -> FilesDeleted | None:
    """Removes a checkpoint's folder; None where it could not be, or is no checkpoint of the run.

    One that is gone already was removed.
    """
    if not _is_checkpoint_of(run_id, uri):
        log.error("will not delete %s: it is no checkpoint of run %s", uri, run_id)
        return None
    try:
        folder_at(uri).remove((MARKER, ACCEPTED))
    except (OSError, Invalid) as error:
        log.error("could not delete %s: %s", uri, error)  # the next answer asks again
        return None
    return FilesDeleted(uri=uri)


def _is_checkpoint_of(run_id: str, uri: str) -> bool:
    """`<storage>/runs/<run>/a<attempt>/checkpoints/<step>`, as the control plane derives it."""
    path = PurePosixPath(f"/{uri.removeprefix(BUCKETS)}" if in_bucket(uri) else uri)
    parts = path.parts[-5:]
    if not path.is_absolute() or ".." in path.parts or len(parts) < 5:
        return False
    runs, run, attempt, checkpoints, step = parts
    named = (runs, run, attempt[:1], checkpoints) == ("runs", run_id, "a", "checkpoints")
    return named and attempt[1:].isdecimal() and step.isdecimal()


class Keeper:
    """`tell` is called in the thread of the event loop that `prove` and `delete` are called in."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._taken: set[str] = set()  # removed, or on the list

    def prove(self, written: CheckpointWritten, tell: Callable[[Outcome], object]) -> None:
        """Has the checkpoint proven when its turn comes."""
        loop = asyncio.get_running_loop()

        def job() -> None:
            outcome = proven(written)
            if outcome is not None:
                _soon(loop, lambda: tell(outcome))

        self._add(job)

    def delete(self, command: DeleteCheckpoints, tell: Callable[[Outcome], object]) -> None:
        """Has each folder removed that is not removed already, nor about to be."""
        loop = asyncio.get_running_loop()
        for uri in command.uris:
            if uri not in self._taken:
                self._taken.add(uri)
                self._add(lambda uri=uri: self._remove(uri, command.run_id, loop, tell))

    def _remove(
        self,
        uri: str,
        run_id: str,
        loop: asyncio.AbstractEventLoop,
        tell: Callable[[Outcome], object],
    ) -> None:
        outcome = remove(uri, run_id)
        if outcome is None:
            _soon(loop, lambda: self._taken.discard(uri))
        else:
            _soon(loop, lambda: tell(outcome))

    async def idle(self, seconds: float) -> None:
        """Waits until all that was asked for so far is done, or that long."""
        if self._thread is None:
            return
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        self._add(lambda: _soon(loop, done.set))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), seconds)

    def _add(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)
        if self._thread is None:
            # A daemon: an agent that must go does not wait for a disk.
            self._thread = threading.Thread(target=self._work, name="keeper", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while True:
            self._jobs.get()()


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # the agent has ended meanwhile
        loop.call_soon_threadsafe(call)
