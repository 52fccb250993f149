"""Back to a checkpoint before the trouble, on a new branch that skips the batches in between.

Pure. Owns which checkpoint and which batches; how often that is done is the budget's matter.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.reconcile.plan import OpenBranch
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Checkpoint
from orchestrator.state import CheckpointState
from worker.protocol import DataPlan, Skip


def back_before(snap: Snapshot, bad_step: int) -> OpenBranch | None:
    """None where no usable checkpoint is older than `bad_step`."""
    older = [checkpoint for checkpoint in snap.checkpoints if checkpoint.step < bad_step]
    if not older:
        return None
    start = max(older, key=_preference)
    plan = snap.data_plan or DataPlan(seed=snap.job.seed)
    reason = f"it diverged at step {bad_step}; back to step {start.step}"
    return OpenBranch(start.id, start.step, skips(plan, start.step, bad_step, reason), reason)


def _preference(checkpoint: Checkpoint) -> tuple[int, bool, int]:
    """The newest; of several at one step a verified one."""
    return checkpoint.step, checkpoint.state is CheckpointState.VERIFIED, checkpoint.attempt


def skips(plan: DataPlan, from_step: int, bad_step: int, reason: str) -> tuple[Skip, ...]:
    """The batches that took the run from `from_step` to `bad_step`, in plan order.

    Those that the plan skips already are left out: skips that overlap would count twice.
    """
    indexes = (plan.batch_index(step) for step in range(from_step, bad_step))
    return tuple(Skip(first=a, last=b, reason=reason) for a, b in _stretches(indexes))


def _stretches(rising: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for index in rising:
        if found and found[-1][1] == index - 1:
            found[-1] = (found[-1][0], index)
        else:
            found.append((index, index))
    return found
