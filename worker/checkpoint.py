"""Saves that go on while training does, and that can be proven afterwards.

Owns the order of a save: digest on the device, copy to the host, files by Orbax in the background,
then on process 0 the manifest and the marker. A state that is not finite is never saved.
"""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import orbax.checkpoint as ocp

from worker.digest import Digester, Named, combined, named_arrays
from worker.ends import Diverged, StorageFailed
from worker.manifest import ACCEPTED, STATE, ArrayRecord, LoopRecord, commit, write_acceptance
from worker.protocol import (
    AttemptSpec,
    CheckpointAccepted,
    CheckpointWritten,
    Report,
    SaveFailed,
    Saving,
    StateNotFinite,
)
from worker.step import TrainState
from worker.watch import Seen

TRIES = 3


class Writer(Protocol):
    """Writes arrays to a folder in the background."""

    def start(self, folder: Path, arrays: Named) -> None:
        """Returns once the arrays may be overwritten."""
        ...

    def wait(self) -> None:
        """Returns once the files are in place; raises what went wrong."""
        ...


class OrbaxWriter:
    def __init__(self) -> None:
        self._checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())

    def start(self, folder: Path, arrays: Named) -> None:
        self._checkpointer.save(folder, args=ocp.args.StandardSave(arrays), force=True)

    def wait(self) -> None:
        self._checkpointer.wait_until_finished()


@dataclass(frozen=True)
class Save:
    """One save under way."""

    step: int
    final: bool
    request: int
    folder: Path
    loop: LoopRecord
    records: dict[str, ArrayRecord]
    state_digest: str
    began: float
    stall: float = 0.0


class Saver:
    """At most one save is under way: the next one waits for it, and that wait is stall."""

    def __init__(
        self,
        spec: AttemptSpec,
        rank: int,
        text: str,
        send: Callable[[Report], None],
        new_writer: Callable[[], Writer] = OrbaxWriter,
    ) -> None:
        self._spec, self._rank, self._text, self._send = spec, rank, text, send
        self._new_writer = new_writer
        self._writer = new_writer()
        self._digester = Digester()
        self._thread: threading.Thread | None = None
        self._failures = 0

    def prepare(self, abstract: TrainState) -> None:
        """Compiles the digest of states like `abstract`, so that no save waits for it."""
        self._digester = Digester(named_arrays(abstract))

    def save(
        self,
        state: TrainState,
        step: int,
        *,
        final: bool = False,
        request: int = 0,
        seen: Seen | None = None,
        owes_eval: bool = False,
    ) -> None:
        """Starts to save `state`; returns when training may overwrite it.

        `request` is the newest wish for a save that this one answers, `seen` what the rules that
        watch the loss remember; `owes_eval` says that whoever goes on here evaluates first.

        Raises Diverged, and saves nothing, when a number of the state is not finite. Raises
        StorageFailed when this is one failure too many.
        """
        asked = time.monotonic()
        self.settle()
        arrays = named_arrays(state)
        save = self._prepare(arrays, step, final, request, seen or Seen(), owes_eval)
        self._send(Saving(step=step, active=True))
        try:
            if self._rank == 0:
                if save.folder.exists():
                    shutil.rmtree(save.folder)  # left by a save that was never marked whole
                save.folder.mkdir(parents=True)
            self._writer.start(save.folder / STATE, arrays)
        except Exception as error:  # noqa: BLE001 - a failed save must not end the training
            self._failed(step, error)
            return
        stall = time.monotonic() - asked
        self._thread = threading.Thread(
            target=self._finish, args=(save, stall), name=f"save-{step}", daemon=True
        )
        self._thread.start()

    def settle(self) -> None:
        """Waits for the save under way. Raises StorageFailed after too many failures in a row."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        # One process of a gang cannot try again alone: the others would not take part.
        if self._failures >= (TRIES if self._spec.process_count == 1 else 1):
            raise StorageFailed(f"{self._failures} saves in a row failed")

    @property
    def last_failed(self) -> bool:
        return self._failures > 0

    def keep_acceptance(self, acceptance: CheckpointAccepted) -> None:
        """Leaves the control plane's acceptance beside its checkpoint."""
        write_acceptance(Path(self._spec.checkpoint_uri(acceptance.step)), acceptance)

    def acceptance_stands(self, step: int) -> bool:
        return (Path(self._spec.checkpoint_uri(step)) / ACCEPTED).exists()

    def _prepare(
        self, arrays: Named, step: int, final: bool, request: int, seen: Seen, owes_eval: bool
    ) -> Save:
        digest = self._digester(arrays)
        if digest.not_finite:
            where = ", ".join(digest.not_finite[:3])
            self._send(StateNotFinite(step=step, where=where))
            raise Diverged(f"the state after step {step} is not finite: {where}")
        spec = self._spec
        records = {
            name: ArrayRecord(shape=array.shape, dtype=str(array.dtype), digest=digest.arrays[name])
            for name, array in arrays.items()
        }
        loop = LoopRecord(
            run_id=spec.run_id,
            attempt=spec.attempt,
            branch=spec.branch,
            revision=spec.revision,
            step=step,
            next_batch=spec.data_plan.batch_index(step),
            data_plan=spec.data_plan,
            text=self._text,
            losses=seen.losses,
            suspects=seen.suspects,
            owes_eval=owes_eval,
        )
        folder = Path(spec.checkpoint_uri(step))
        whole = combined(digest, arrays)
        return Save(step, final, request, folder, loop, records, whole, time.monotonic())

    def _finish(self, save: Save, stall: float) -> None:
        try:
            self._writer.wait()
            if self._rank == 0:
                manifest, sha256 = commit(save.folder, save.loop, save.records, save.state_digest)
                self._send(
                    CheckpointWritten(
                        checkpoint_id=self._spec.checkpoint_id(save.step),
                        step=save.step,
                        uri=str(save.folder),
                        bytes=manifest.bytes,
                        files=len(manifest.files),
                        manifest_sha256=sha256,
                        state_digest=save.state_digest,
                        stall_seconds=stall,
                        write_seconds=time.monotonic() - save.began,
                        final=save.final,
                        save_request=save.request,
                    )
                )
        except Exception as error:  # noqa: BLE001 - a failed save must not end the training
            self._failed(save.step, error)
        else:
            self._failures = 0
            self._send(Saving(step=save.step, active=False))

    def _failed(self, step: int, error: Exception) -> None:
        """Reports, and begins afresh: Orbax may raise one failure twice."""
        self._failures += 1
        reason = in_words(error)
        print(f"save at step {step} failed: {reason}", flush=True)
        self._send(SaveFailed(step=step, reason=reason))
        self._send(Saving(step=step, active=False))
        self._writer = self._new_writer()


def in_words(error: BaseException) -> str:
    """Why a save failed, for a person: a full disk is called that."""
    seen: BaseException | None = error
    while seen is not None:
        full = isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(seen):
            return "the disk is full: free space where the checkpoints are stored"
        seen = seen.__cause__ or seen.__context__
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else 'no message'}"
