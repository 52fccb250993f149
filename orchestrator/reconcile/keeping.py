"""Which checkpoints of a run are no longer kept, and what protects the others.

Pure. A checkpoint is given up only when a newer one of its branch is proven (invariant 7), and
never while a branch, a fork or the current attempt may go back to it. The decision is committed
before any file is touched: from then on nothing can begin there, whatever becomes of the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.reconcile.plan import DeleteCheckpoint
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import INHERITED, Kept
from orchestrator.state import CheckpointState
from worker.protocol import BestSpec, KeepSpec

AT_ONCE = 50  # one commit gives up so many at most


def given_up(snap: Snapshot) -> tuple[DeleteCheckpoint, ...]:
    """The oldest first; nothing where the spec keeps everything."""
    keep = snap.job.checkpoint.keep
    if keep is None or not snap.kept:
        return ()
    stay = _kept_by_rule(keep, snap) | _protected(snap)
    proven = _proven(snap.kept)
    why = _words(keep)
    spare = [
        one for one in snap.kept if one.id not in stay and one.step < proven.get(one.branch, 0)
    ]
    spare.sort(key=lambda one: (one.step, one.attempt))
    return tuple(DeleteCheckpoint(one.id, one.step, why) for one in spare[:AT_ONCE])


def _proven(kept: Iterable[Kept]) -> dict[int, int]:
    """The highest step of each branch that was verified or restored."""
    found: dict[int, int] = {}
    for one in kept:
        if one.state is CheckpointState.VERIFIED and one.attempt != INHERITED:
            found[one.branch] = max(one.step, found.get(one.branch, 0))
    return found


def _protected(snap: Snapshot) -> set[str]:
    needed = {one.id for one in snap.kept if one.needed or one.attempt == INHERITED}
    if snap.current is not None and snap.current.resume_checkpoint is not None:
        needed.add(snap.current.resume_checkpoint)
    return needed


def _kept_by_rule(keep: KeepSpec, snap: Snapshot) -> set[str]:
    """Of the run's own line; of branches that were left, only what nothing newer has proven."""
    line = sorted(
        (one for one in snap.kept if one.on_line), key=lambda one: (one.step, one.attempt)
    )
    stay = {one.id for one in line[-keep.newest :]}
    if keep.every_steps is not None:
        stay |= _milestones(line, keep.every_steps)
    if keep.best is not None:
        stay |= _best(line, keep.best)
    return stay


def _milestones(line: Sequence[Kept], every: int) -> set[str]:
    """The first one at or after each multiple of `every`: saves by time seldom fall on one."""
    first: dict[int, str] = {}
    for one in line:
        if one.step >= every:
            first.setdefault(one.step // every, one.id)
    return set(first.values())


def _best(line: Sequence[Kept], best: BestSpec) -> set[str]:
    measured: list[tuple[float, int, str]] = []
    for one in line:
        value = one.eval_loss if best.metric == "eval_loss" else one.loss
        if value is not None:
            measured.append((value, -one.step, one.id))
    return {name for _, _, name in sorted(measured)[: best.n]}


def _words(keep: KeepSpec) -> str:
    parts = [f"newest {keep.newest}"]
    if keep.every_steps is not None:
        parts.append(f"every {keep.every_steps} steps")
    if keep.best is not None:
        parts.append(f"best {keep.best.n} by {keep.best.metric}")
    return f"not kept: checkpoint.keep has {', '.join(parts)}"
