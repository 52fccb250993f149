"""From a checkpoint back to the very state that was saved, or a reason why not."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.options import MultiprocessingOptions

from worker import bucket
from worker.digest import Digester, Named, combined, named_arrays
from worker.ends import CheckpointUnusable, Invalid, StorageFailed
from worker.manifest import STATE, LoopRecord, Manifest, proven_manifest, verify_files
from worker.protocol import AttemptSpec, DataPlan, ResumePoint
from worker.step import TrainState
from worker.storage import OutOfReach, in_bucket, place_of
from worker.watch import Seen

Reader = Callable[[PurePath, dict[str, Any]], Named]


@dataclass(frozen=True)
class Restored:
    state: TrainState
    state_digest: str
    seen: Seen
    owes_eval: bool


def read_arrays(folder: PurePath, wanted: dict[str, Any]) -> Named:
    """Reads the arrays by name, laid out as `wanted` says (shape, type and sharding of each).

    Each process by itself: those of a gang that stands by are not told of a checkpoint together.
    """
    me = jax.process_index()
    alone = MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        return checkpointer.restore(epath.Path(folder), args=ocp.args.StandardRestore(wanted))


def restore(
    spec: AttemptSpec,
    point: ResumePoint,
    abstract: TrainState,
    text: str,
    read: Reader = read_arrays,
) -> Restored:
    """Brings back the state at `point`, shaped and laid out as `abstract`.

    Every file is checked while the arrays are read, and every array once it is on the device; what
    fails either is not used. Raises CheckpointUnusable with the reason, or Invalid when the text is
    not the one trained on so far; a fork that changed the data goes on with another text and
    another plan. Raises StorageFailed where a bucket could not be asked: that says nothing of the
    checkpoint.
    """
    try:
        return _restored(spec, point, abstract, text, read)
    except OutOfReach as error:
        raise StorageFailed(f"the checkpoint cannot be reached: {error.strerror}") from error


def _restored(
    spec: AttemptSpec, point: ResumePoint, abstract: TrainState, text: str, read: Reader
) -> Restored:
    folder = place_of(point.uri)
    manifest = proven_manifest(folder, point.manifest_sha256)
    _check_place(manifest.loop, None if point.other_data else spec.data_plan, point.step)
    if manifest.loop.text != text and not point.other_data:
        raise Invalid(
            "the text is not the one that this run was trained on so far",
            field="/data/source",
            hint="Bring the files back as they were, or fork the run to go on with other text.",
        )
    wanted = named_arrays(abstract)
    _check_shapes(manifest, wanted)
    found = _read_and_verify(folder, manifest, wanted, read)
    digest = _check_digests(manifest, found)
    leaves = [found[name] for name in wanted]
    state = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
    _check_counters(manifest.loop, state)
    loop = manifest.loop
    seen = Seen() if point.other_data else Seen(loop.losses, loop.suspects)
    return Restored(state, digest, seen, loop.owes_eval)


def _read_and_verify(
    folder: PurePath, manifest: Manifest, wanted: dict[str, Any], read: Reader
) -> Named:
    """Both at once, since each takes about one core. A file's own fault is the better reason."""
    with ThreadPoolExecutor(1, thread_name_prefix="verify") as beside:
        verified = beside.submit(verify_files, folder, manifest)
        try:
            found = read(folder / STATE, wanted)
        except Exception as error:
            if in_bucket(folder) and (words := bucket.out_of_reach(error, str(folder))):
                raise OutOfReach(errno.EIO, words) from error
            verified.result()
            raise CheckpointUnusable(f"the arrays cannot be read: {error}") from error
        verified.result()
    return found


def _check_place(loop: LoopRecord, plan: DataPlan | None, step: int) -> None:
    """Where it stands, and that `plan`, if it is to be followed on, is the one it was made by."""
    if loop.step != step:
        raise CheckpointUnusable(f"it holds step {loop.step}, the ledger says {step}")
    if loop.next_batch != loop.data_plan.batch_index(step):
        raise CheckpointUnusable(
            f"its next batch is {loop.next_batch}, but its data plan says"
            f" {loop.data_plan.batch_index(step)}"
        )
    if plan is None:
        return
    if loop.data_plan.seed != plan.seed or not set(loop.data_plan.skips) <= set(plan.skips):
        raise CheckpointUnusable("it was trained on another data plan")


def _check_shapes(manifest: Manifest, wanted: dict[str, Any]) -> None:
    if other := set(manifest.arrays) ^ set(wanted):
        raise CheckpointUnusable(f"its arrays are not this model's: {min(other)}")
    for name, array in wanted.items():
        record = manifest.arrays[name]
        if record.shape != array.shape or record.dtype != str(array.dtype):
            raise CheckpointUnusable(
                f"{name} is {record.dtype} {record.shape}, not {array.dtype} {array.shape}"
            )


def _check_digests(manifest: Manifest, found: Named) -> str:
    digest = Digester()(found)
    for name, record in manifest.arrays.items():
        if digest.arrays[name] != record.digest:
            raise CheckpointUnusable(f"{name} was restored with other numbers than were saved")
    whole = combined(digest, found)
    if whole != manifest.state_digest:
        raise CheckpointUnusable("the manifest's digest of the whole state is not its arrays'")
    return whole


def _check_counters(loop: LoopRecord, state: TrainState) -> None:
    step, next_batch = int(state.step), int(state.next_batch)
    if (step, next_batch) != (loop.step, loop.next_batch):
        raise CheckpointUnusable(
            f"the state stands at step {step} and batch {next_batch},"
            f" the loop at step {loop.step} and batch {loop.next_batch}"
        )
