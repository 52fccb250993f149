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
from dataclasses import dataclass, field
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

TRIES = 3  # where the policy says nothing of failed saves


class Writer(Protocol):
    """Writes arrays to a folder in the background."""

    def start(self, folder: Path, arrays: Named) -> None:
        """Returns once the arrays may be overwritten."""
        ...

    def wait(self) -> None:
        """Returns once the files are in place; raises what went wrong."""
        ...


class OrbaxWriter:
    """Uncompressed: trained weights and moments shrink by a twelfth, which is not worth its CPU."""

    def __init__(self) -> None:
        handler = ocp.PyTreeCheckpointHandler(use_zarr3=True, use_compression=False)
        self._checkpointer = ocp.AsyncCheckpointer(handler)

    def start(self, folder: Path, arrays: Named) -> None:
        self._checkpointer.save(folder, args=ocp.args.PyTreeSave(arrays), force=True)

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
    began: float  # monotonic
    finished: threading.Event = field(default_factory=threading.Event)
    claim: threading.Lock = field(default_factory=threading.Lock)

    def claimed(self) -> bool:
        """True once, for whoever decides first what has become of it."""
        return self.claim.acquire(blocking=False)


class Saver:
    """At most one save is under way: the next one waits for it, and that wait is stall.

    A save that is not written within its limit is abandoned: its thread may go on for as long as
    the storage keeps it, but commits nothing any more, and the next save has a writer of its own.
    """

    def __init__(
        self,
        spec: AttemptSpec,
        rank: int,
        text: str,
        send: Callable[[Report], None],
        new_writer: Callable[[], Writer] = OrbaxWriter,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec, self._rank, self._text, self._send = spec, rank, text, send
        self._now = now
        self._limit = spec.job.save_limit_seconds
        self._new_writer = new_writer
        self._writer = new_writer()
        self._digester = Digester()
        self._under_way: Save | None = None
        self._abandoned: list[Save] = []
        self._failures = 0
        self._saved_at = now()

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
        asked = self._now()
        self.settle()
        arrays = named_arrays(state)
        save = self._prepare(arrays, step, final, request, seen or Seen(), owes_eval)
        self._send(Saving(step=step, active=True))
        try:
            self._refuse_held(save.folder)
            if self._rank == 0:
                if save.folder.exists():
                    shutil.rmtree(save.folder)  # left by a save that was never marked whole
                save.folder.mkdir(parents=True)
            self._writer.start(save.folder / STATE, arrays)
        except Exception as error:  # noqa: BLE001 - a failed save must not end the training
            self._failed(step, error)
            return
        stall = self._now() - asked
        self._under_way = save
        writer = self._writer
        threading.Thread(
            target=self._finish, args=(save, writer, stall), name=f"save-{step}", daemon=True
        ).start()

    def settle(self) -> None:
        """Waits for the save under way, no longer than its limit.

        Raises StorageFailed when the policy bears no more failures.
        """
        save = self._under_way
        if save is not None and not save.finished.wait(max(0.0, self._left(save))):
            self._abandon(save)
        self._under_way = None
        why = self._too_much()
        if why is not None:
            raise StorageFailed(why)

    def check(self) -> None:
        """Abandons the save under way if it is over its limit; never waits.

        Only where this process is alone: the others of a gang take part in the next save, whose
        `settle` comes at the same step for all.
        """
        save = self._under_way
        if save is not None and self._left(save) <= 0 and self._spec.process_count == 1:
            self.settle()

    def _left(self, save: Save) -> float:
        return save.began + self._limit - self._now()

    def _abandon(self, save: Save) -> None:
        if not save.claimed():
            save.finished.wait()  # its files are there, and the proof is being written
            return
        self._abandoned.append(save)
        self._failed(save.step, TimeoutError(f"it was not written within {self._limit:g} s"))

    def _refuse_held(self, folder: Path) -> None:
        """A thread that was given up may still write there, and would spoil what comes next."""
        self._abandoned = [one for one in self._abandoned if not one.finished.is_set()]
        if any(one.folder == folder for one in self._abandoned):
            raise TimeoutError("an earlier try, which was given up, still writes there")

    def _too_much(self) -> str | None:
        """Why training does not go on; None while the policy bears it."""
        if not self._failures:
            return None
        policy, many = self._spec.job.policy, self._spec.job.policy.max_failed_saves
        unsaved = self._now() - self._saved_at
        if policy.max_unsaved_seconds is None:
            # One process of a gang cannot try again alone: the others would not take part.
            many = many or (TRIES if self._spec.process_count == 1 else 1)
        elif unsaved > policy.max_unsaved_seconds:
            return f"nothing was saved for {unsaved:.0f} s, and the last try failed"
        if many is not None and self._failures >= many:
            return f"{self._failures} saves in a row failed"
        return None

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
        return Save(step, final, request, folder, loop, records, whole, self._now())

    def _finish(self, save: Save, writer: Writer, stall: float) -> None:
        try:
            self._complete(save, writer, stall)
        finally:
            save.finished.set()

    def _complete(self, save: Save, writer: Writer, stall: float) -> None:
        try:
            writer.wait()
        except Exception as error:  # noqa: BLE001 - a failed save must not end the training
            if save.claimed():
                self._failed(save.step, error)
            return
        if not save.claimed():
            return
        try:
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
                        write_seconds=self._now() - save.began,
                        final=save.final,
                        save_request=save.request,
                    )
                )
        except Exception as error:  # noqa: BLE001 - a failed save must not end the training
            self._failed(save.step, error)
        else:
            self._failures, self._saved_at = 0, self._now()
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
