"""Rollbacks: the checkpoint that a person names, and the branch that is opened there.

Owns which checkpoint a step or an id means, and the rows of a new branch. The checkpoints of the
branch that is left stay in the ledger; none of them is on the new line, so none comes back
(invariant 6). Must not import the API.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select, update

from orchestrator.data_plan import plan_from
from orchestrator.state import USABLE_CHECKPOINTS
from orchestrator.store import audit, reads
from orchestrator.store.audit import Actor
from orchestrator.store.conditions import USABLE
from orchestrator.store.revising import add_branch
from orchestrator.store.rows import AnyRow
from orchestrator.store.tables import checkpoints, runs
from orchestrator.store.timeline import tell
from orchestrator.store.wishes import (
    NotAccepted,
    Unchanged,
    Wished,
    decided,
    locked,
    no_such_checkpoint,
    renewed,
    storable,
)
from orchestrator.wish_table import Wish
from worker.protocol import DataPlan, Skip

NEAREST = 4


@dataclass(frozen=True)
class Start:
    """Where a branch begins: after `step` updates of `branch`; None is the run's beginning."""

    branch: int
    step: int
    checkpoint: AnyRow | None = None

    @property
    def words(self) -> str:
        return self.checkpoint.id if self.checkpoint is not None else "the beginning"


@dataclass(frozen=True)
class Rollback:
    """`to` is a step or a checkpoint's id; None is the newest usable checkpoint of the line."""

    to: int | str | None
    skip_batches: int = 0
    reason: str | None = None


def rollback(
    connection: Connection, now: datetime, id_or_name: str, asked: Rollback, who: Actor
) -> Wished:
    """Moves the run to a new branch; raises `NoSuchRun` and `NotAccepted`.

    A running run is restarted from there, a resting one stays at rest.
    """
    run = locked(connection, id_or_name)
    found = decided(run, Wish.ROLLBACK)
    assert not isinstance(found, Unchanged), "a rollback always opens a branch"
    open_branch(connection, now, run, asked, who)
    if found.renews:
        connection.execute(update(runs).where(runs.c.id == run.id).values(renewed(run, found)))
    return Wished(run.id, changed=True)


def open_branch(
    connection: Connection, now: datetime, run: AnyRow, asked: Rollback, who: Actor
) -> int:
    """The new branch's number; the run is on it from now on."""
    start = start_at(connection, run, asked.to)
    _refuse_the_end(connection, run, start)
    why = asked.reason or "asked for by a person"
    plan = _plan(connection, run, start, asked.skip_batches, why)
    origin = start.checkpoint.id if start.checkpoint is not None else None
    number = add_branch(connection, run.id, now, start.branch, origin, start.step, plan, reason=why)
    before = {"branch": run.branch}
    after: dict[str, object] = {
        "branch": number,
        "from_checkpoint": origin,
        "from_step": start.step,
        "skip_batches": asked.skip_batches,
        "reason": asked.reason,
    }
    tell(
        connection,
        run.id,
        "branch_opened",
        now,
        branch=number,
        left=run.branch,
        from_checkpoint=origin,
        from_step=start.step,
        skips=_words(plan.skips),
        reason=why,
        by=who.name,
    )
    audit.note(connection, now, who, "run.rollback", run.id, before, after)
    return number


def start_at(connection: Connection, run: AnyRow, to: int | str | None) -> Start:
    """The usable checkpoint that is meant; raises `NotAccepted` where there is none."""
    match to:
        case None:
            return _newest(connection, run)
        case int():
            return _at_step(connection, run, to)
        case str():
            return _by_id(connection, run, to)


def _newest(connection: Connection, run: AnyRow) -> Start:
    found = [row for row in usable(connection, run) if _on_line(connection, run, row)]
    if found:
        return _start(found[0])
    return _beginning(connection, run)


def _at_step(connection: Connection, run: AnyRow, step: int) -> Start:
    """On the run's own line if there is one, else the one of the youngest branch."""
    if step == 0:
        return _beginning(connection, run)
    found = [row for row in usable(connection, run) if row.step == step]
    if not found:
        raise _nothing_there(connection, run, step)
    own = [row for row in found if _on_line(connection, run, row)]
    return _start((own or found)[0])


def _by_id(connection: Connection, run: AnyRow, checkpoint: str) -> Start:
    c = checkpoints.c
    row = None
    if storable(checkpoint):
        query = select(checkpoints).where(c.run_id == run.id, c.id == checkpoint)
        row = connection.execute(query.with_for_update(read=True)).first()
    if row is None:
        raise no_such_checkpoint(run, "The run has no checkpoint with this id.")
    if row.state not in USABLE_CHECKPOINTS:
        why = f": {row.reason}" if row.reason else ""
        raise NotAccepted(
            "checkpoint-not-usable",
            f"The checkpoint {row.id} is {row.state}{why}.",
            f"Choose an accepted or verified one: longhaul checkpoints {run.name}",
        )
    return _start(row)


def usable(connection: Connection, run: AnyRow) -> Sequence[AnyRow]:
    """Every checkpoint of the run that can be resumed from, highest step first.

    Of several at one step, the youngest branch's and attempt's come first.
    """
    c = checkpoints.c
    query = (
        select(checkpoints)
        .where(c.run_id == run.id, USABLE)
        .order_by(c.step.desc(), c.branch.desc(), c.attempt.desc())
    )
    return connection.execute(query.with_for_update(read=True)).all()


def _on_line(connection: Connection, run: AnyRow, checkpoint: AnyRow) -> bool:
    return any(
        branch == checkpoint.branch and (limit is None or checkpoint.step <= limit)
        for branch, limit in reads.lineage(connection, run.id, run.branch)
    )


def _start(checkpoint: AnyRow) -> Start:
    return Start(checkpoint.branch, checkpoint.step, checkpoint)


def _beginning(connection: Connection, run: AnyRow) -> Start:
    if run.forked_run is not None:
        raise no_such_checkpoint(
            run, "The run is a fork: it begins at its first checkpoint, not at step 0."
        )
    return Start(branch=1, step=0)


def _nothing_there(connection: Connection, run: AnyRow, step: int) -> NotAccepted:
    near = sorted(usable(connection, run), key=lambda row: abs(row.step - step))[:NEAREST]
    names = ", ".join(f"{row.id} at step {row.step}" for row in near)
    return NotAccepted(
        "no-such-checkpoint",
        f"The run has no usable checkpoint at step {step}.",
        f"Near it: {names}." if near else "It has none at all yet; step 0 is its beginning.",
    )


def _refuse_the_end(connection: Connection, run: AnyRow, start: Start) -> None:
    steps = reads.job_spec(connection, run.id, run.revision).steps
    if start.step >= steps:
        raise NotAccepted(
            "nothing-left-to-train",
            f"{start.words} is the run's last step, {steps}: nothing is left to train.",
            "Choose an earlier checkpoint.",
        )


def _plan(connection: Connection, run: AnyRow, start: Start, batches: int, why: str) -> DataPlan:
    origin = reads.data_plan(connection, run.id, start.branch)
    current = reads.data_plan(connection, run.id, run.branch)
    return plan_from(origin, current, start.step, batches, why)


def _words(skips: Sequence[Skip]) -> list[str]:
    return [f"batches {skip.first} to {skip.last}: {skip.reason}" for skip in skips]
