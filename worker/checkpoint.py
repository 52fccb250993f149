"""Saves that go on while training does, and that can be proven afterwards.

Owns the order of a save: digest on the device, copy to the host, files by Orbax in the background,
then on process 0 the manifest and the marker. A state that is not finite is never saved.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Protocol

import orbax.checkpoint as ocp
from etils import epath

from worker import bucket
from worker.digest import Digester, Named, combined, named_arrays
from worker.ends import Diverged, StorageFailed
from worker.manifest import (
    ACCEPTED,
    STATE,
    Abandoned,
    ArrayRecord,
    LoopRecord,
    commit,
    write_acceptance,
    write_order,
)
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
from worker.storage import OutOfReach, folder_at, in_bucket, place_of
from worker.watch import Seen

KEEP_TRYING_SECONDS, KEEP_PAUSE_SECONDS = 600.0, 2.0
TRIES = 3  # where the policy says nothing of failed saves


class Writer(Protocol):
    """Writes arrays to a folder in the background."""

    def start(self, folder: PurePath, arrays: Named) -> None:
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

    def start(self, folder: PurePath, arrays: Named) -> None:
        self._checkpointer.save(epath.Path(folder), args=ocp.args.PyTreeSave(arrays), force=True)

    def wait(self) -> None:
        self._checkpointer.wait_until_finished()


@dataclass(frozen=True)
class Save:
    """One save under way."""

    step: int
    final: bool
    request: int
    folder: PurePath
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
    `carried` are small files that lie in every checkpoint: the tokenizer's.
    """

    def __init__(
        self,
        spec: AttemptSpec,
        rank: int,
        text: str,
        send: Callable[[Report], None],
        new_writer: Callable[[], Writer] = OrbaxWriter,
        now: Callable[[], float] = time.monotonic,
        carried: Mapping[str, bytes] | None = None,
    ) -> None:
        self._spec, self._rank, self._text, self._send = spec, rank, text, send
        self._carried = carried or {}
        self._now = now
        self._limit = spec.job.save_limit_seconds
        self._new_writer = new_writer
        self._writer = new_writer()
        self._digester = Digester()
        self._under_way: Save | None = None
        self._abandoned: list[Save] = []
        self._ordering = threading.Lock()
        self._failures = 0
        self._why = ""
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
                # What is there was left by a save that was never marked whole.
                folder_at(save.folder).make()
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
            save.finished.wait()  # all is there, and the marker is being written
            return
        self._abandoned.append(save)
        self._failed(save.step, TimeoutError(f"it was not written within {self._limit:g} s"))

    def _refuse_held(self, folder: PurePath) -> None:
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
            return f"nothing was saved for {unsaved:.0f} s, and the last try failed: {self._why}"
        if many is not None and self._failures >= many:
            return f"{self._failures} saves in a row failed, the last because {self._why}"
        return None

    @property
    def last_failed(self) -> bool:
        return self._failures > 0

    def leave_order(self) -> None:
        """Leaves beside the checkpoints to come what the attempt was told; waits for nothing.

        So the newest branch is known to an import even before its first checkpoint.
        """

        def leave() -> None:
            try:
                with self._ordering:
                    write_order(self._spec)
            except OSError as error:  # the first save does it, or fails as well
                print(f"the attempt's order is not stored yet: {error}", flush=True)

        threading.Thread(target=leave, name="order", daemon=True).start()

    def keep_acceptance(self, acceptance: CheckpointAccepted) -> None:
        """Leaves the control plane's acceptance beside its checkpoint."""
        place = self._spec.checkpoint_uri(acceptance.step)
        gives_up = self._now() + KEEP_TRYING_SECONDS
        while True:
            try:
                return write_acceptance(place, acceptance)
            except OutOfReach as error:
                if self._now() > gives_up:
                    raise
                print(f"the acceptance is not stored yet: {error.strerror}", flush=True)
                time.sleep(KEEP_PAUSE_SECONDS)

    def acceptance_stands(self, step: int) -> bool:
        try:
            return folder_at(self._spec.checkpoint_uri(step)).holds(ACCEPTED)
        except OutOfReach:
            return False

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
        folder = place_of(spec.checkpoint_uri(step))
        whole = combined(digest, arrays)
        return Save(step, final, request, folder, loop, records, whole, self._now())

    def _finish(self, save: Save, writer: Writer, stall: float) -> None:
        try:
            self._complete(save, writer, stall)
        finally:
            save.finished.set()

    def _complete(self, save: Save, writer: Writer, stall: float) -> None:
        mine = False

        def claim() -> bool:
            nonlocal mine
            mine = save.claimed()
            return mine

        try:
            writer.wait()
            written = self._proven(save, stall, claim) if self._rank == 0 else None
        except Abandoned:
            return
        except Exception as error:  # noqa: BLE001 - a failed save must not end the training
            if mine or save.claimed():
                self._failed(save.step, error)
            return
        if not mine and not claim():
            return
        if written is not None:
            self._send(written)
        self._failures, self._saved_at = 0, self._now()
        self._send(Saving(step=save.step, active=False))

    def _proven(self, save: Save, stall: float, claim: Callable[[], bool]) -> CheckpointWritten:
        """Marks it whole, if nobody has given it up by then."""
        with self._ordering:
            write_order(self._spec)
        for name, content in self._carried.items():
            folder_at(save.folder).write(name, content)
        manifest, sha256 = commit(save.folder, save.loop, save.records, save.state_digest, claim)
        return CheckpointWritten(
            checkpoint_id=self._spec.checkpoint_id(save.step),
            step=save.step,
            uri=self._spec.checkpoint_uri(save.step),
            bytes=manifest.bytes,
            files=len(manifest.files),
            manifest_sha256=sha256,
            state_digest=save.state_digest,
            stall_seconds=stall,
            write_seconds=self._now() - save.began,
            final=save.final,
            save_request=save.request,
        )

    def _failed(self, step: int, error: Exception) -> None:
        """Reports, and begins afresh: Orbax may raise one failure twice."""
        self._failures += 1
        reason = self._why = in_words(error, self._spec.storage)
        print(f"save at step {step} failed: {reason}", flush=True)
        self._send(SaveFailed(step=step, reason=reason))
        self._send(Saving(step=step, active=False))
        self._writer = self._new_writer()


def in_words(error: BaseException, storage: str) -> str:
    """Why a save failed, for a person: a full disk and a missing permission are called that."""
    seen: BaseException | None = error
    while seen is not None:
        full = isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(seen):
            return "the disk is full: free space where the checkpoints are stored"
        if isinstance(seen, OutOfReach):
            return str(seen.strerror)
        if in_bucket(storage) and (words := bucket.out_of_reach(seen, storage)):
            return words
        seen = seen.__cause__ or seen.__context__
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else 'no message'}"
