"""A program's checkpoint becomes one of the ledger, and is handed back to a program.

Owns `checkpoints/<step>/state` for programs: their files as they wrote them, with the proof beside.
Between the program's place and ours files are moved or linked, and copied only where neither can
be: a checkpoint that is finished is not written to again. Must not import JAX.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from worker.ends import CheckpointUnusable
from worker.manifest import MARKER, STATE, LoopRecord, Manifest, commit, verify, write_order
from worker.protocol import AttemptSpec, ResumePoint

PLACE = "place"  # where below its storage the program itself had a checkpoint
NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS})


class CanNotTake(Exception):
    """What the program handed over can be no checkpoint; the message says why."""


def take(
    spec: AttemptSpec, step: int, path: Path, place: str | None = None
) -> tuple[Manifest, str]:
    """Makes the attempt's checkpoint at `step` of what lies at `path`; its manifest and hash.

    It is taken away from there, unless it was found at `place` of a program's storage: such a
    program looks for it there again. Raises CanNotTake and OSError; then nothing counts.
    """
    folder = Path(spec.checkpoint_uri(step))
    _refuse(path, folder)
    if folder.exists():
        shutil.rmtree(folder)  # left by a try that was never marked whole
    folder.mkdir(parents=True)
    state, move = folder / STATE, place is None
    if place is not None:
        (folder / PLACE).write_text(place, encoding="utf-8")
    if path.is_dir():
        _move(path, state) if move else link_tree(path, state)
    else:
        state.mkdir()
        _move(path, state / path.name) if move else _link(path, state / path.name)
    loop = LoopRecord(
        run_id=spec.run_id,
        attempt=spec.attempt,
        branch=spec.branch,
        revision=spec.revision,
        step=step,
        next_batch=spec.data_plan.batch_index(step),
        data_plan=spec.data_plan,
        text="",
    )
    write_order(spec)
    return commit(folder, loop, {})


def _refuse(path: Path, folder: Path) -> None:
    if (folder / MARKER).exists():
        raise CanNotTake(f"the checkpoint at step {folder.name} of this attempt is there already")
    if not path.exists():
        raise CanNotTake(f"there is nothing at {path}")
    if path.resolve() in (*folder.parents, folder):
        raise CanNotTake(f"{path} holds the checkpoints themselves")
    for found in (path, *path.rglob("*")):
        if found.is_symlink() or not (found.is_file() or found.is_dir()):
            raise CanNotTake(f"{found} is a link or no file: its content could not be proven")


def proven(point: ResumePoint) -> Path:
    """What the program wrote at the checkpoint, every byte of it compared with the manifest.

    Raises CheckpointUnusable.
    """
    folder = Path(point.uri)
    manifest = verify(folder, point.manifest_sha256)
    if manifest.loop.step != point.step:
        raise CheckpointUnusable(
            f"it holds step {manifest.loop.step}, the ledger says {point.step}"
        )
    if manifest.arrays or not (folder / STATE).is_dir():
        raise CheckpointUnusable("no program wrote it")
    return folder / STATE


def put_back(state: Path, storage: Path, otherwise: Path) -> None:
    """Links a checkpoint into a new attempt's storage, where the program had it before."""
    place = otherwise
    with contextlib.suppress(OSError):
        place = storage / (state.parent / PLACE).read_text(encoding="utf-8")
    if not place.exists():
        link_tree(state, place)


def link_tree(source: Path, target: Path) -> None:
    """The same files under another name. Only folders, and files that are not links, are in it."""
    target.mkdir(parents=True)
    for found in sorted(source.rglob("*")):
        place = target / found.relative_to(source)
        if found.is_dir():
            place.mkdir()
        else:
            _link(found, place)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copy2(source, target, follow_symlinks=False)


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.move(source, target)
