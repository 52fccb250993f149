"""Forks: a new run whose first branch begins at another run's checkpoint.

Owns the rows of a fork. Its ledger has a row of its own for the inherited checkpoint, which stays
where it is; a deleted source therefore takes nothing from it but the files' first home. Must not
import the API.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select

from orchestrator import revisions
from orchestrator.data_plan import plan_from
from orchestrator.records import INHERITED
from orchestrator.store import audit, reads
from orchestrator.store.audit import Actor
from orchestrator.store.branching import start_at
from orchestrator.store.resuming import Revised, refuse_revised_since
from orchestrator.store.rows import AnyRow
from orchestrator.store.tables import branches, checkpoints
from orchestrator.store.timeline import tell
from orchestrator.store.wishes import (
    NotAccepted,
    Submitted,
    decided,
    known_request,
    locked,
    new_run,
    refuse_taken_name,
    remember_request,
)
from orchestrator.wish_table import Wish
from worker.protocol import DataPlan


@dataclass(frozen=True)
class Fork:
    """`revised` is the fork's whole spec, made from a revision of the source's."""

    revised: Revised
    at: int | str
    reason: str | None
    key: str | None
    digest: str


def request_digest(source_id: str, body: Mapping[str, object]) -> str:
    """The same for the same request to fork the same run."""
    text = json.dumps({"fork": source_id, "body": body}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def inherited_id(step: int) -> str:
    """Never the id of an own checkpoint, which begins with its attempt: a1-s100."""
    return f"fork-s{step}"


def fork(connection: Connection, now: datetime, source: str, asked: Fork, who: Actor) -> Submitted:
    """Makes the new run; raises `NoSuchRun` and `NotAccepted`. The source is not touched."""
    known = known_request(connection, asked.key, who.name, lambda: asked.digest)
    if known is not None:
        return Submitted(known, made=False)
    run, job = locked(connection, source), asked.revised.job
    decided(run, Wish.FORK)
    refuse_revised_since(run, asked.revised.based_on)
    refuse_taken_name(connection, job.name)
    start = start_at(connection, run, asked.at)
    if start.checkpoint is None:
        raise NotAccepted(
            "nothing-to-inherit",
            "Step 0 is before the first checkpoint: there is nothing to inherit.",
            "Submit a new run with the same spec: longhaul submit FILE",
        )
    if start.step >= job.steps:
        raise NotAccepted(
            "nothing-left-to-train",
            f"{start.words} stands at step {start.step}, and the fork would end at {job.steps}.",
            f"Set more steps, as in --set steps={2 * start.step}, or take an earlier checkpoint.",
        )
    forked = (run.id, start.checkpoint.id)
    words = _words(connection, run, start.checkpoint, asked)
    run_id = new_run(connection, now, job, who, words, forked)
    _first_branch(connection, now, run, run_id, start.checkpoint, asked, words)
    _inherit(connection, run_id, start.checkpoint)
    remember_request(connection, now, asked.key, who, asked.digest, run_id)
    _tell_both(connection, now, run, run_id, asked, start.checkpoint.id, who)
    after = {"run": run_id, "name": job.name, "checkpoint": start.checkpoint.id}
    audit.note(connection, now, who, "run.fork", run.id, None, after)
    return Submitted(run_id, made=True)


def _tell_both(
    connection: Connection,
    now: datetime,
    run: AnyRow,
    run_id: str,
    asked: Fork,
    checkpoint: str,
    who: Actor,
) -> None:
    name, by, why = asked.revised.job.name, who.name, asked.reason
    tell(
        connection,
        run_id,
        "submitted",
        now,
        by=by,
        name=name,
        forked_run=run.id,
        checkpoint_id=checkpoint,
        reason=why,
    )
    tell(
        connection,
        run.id,
        "forked",
        now,
        by=by,
        name=name,
        run=run_id,
        checkpoint_id=checkpoint,
        reason=why,
    )


def _words(connection: Connection, run: AnyRow, checkpoint: AnyRow, asked: Fork) -> str:
    before = reads.job_spec(connection, run.id, run.revision)
    changed = revisions.note(before, asked.revised.job)
    why = f"{asked.reason}: " if asked.reason else ""
    return f"{why}forked from {run.name} ({run.id}) at {checkpoint.id}; {changed}"


def _first_branch(
    connection: Connection,
    now: datetime,
    run: AnyRow,
    run_id: str,
    checkpoint: AnyRow,
    asked: Fork,
    words: str,
) -> None:
    """Follows the source's plan on; a fork that reads other data has a plan of its own."""
    job = asked.revised.job
    before = reads.job_spec(connection, run.id, run.revision)
    own_data = revisions.reorders_data(revisions.changes(before, job))
    if own_data:
        plan = DataPlan(seed=job.seed)
    else:
        origin = reads.data_plan(connection, run.id, checkpoint.branch)
        current = reads.data_plan(connection, run.id, run.branch)
        plan = plan_from(origin, current, checkpoint.step, 0, "")
    connection.execute(
        insert(branches).values(
            run_id=run_id,
            number=1,
            from_checkpoint=inherited_id(checkpoint.step),
            from_step=checkpoint.step,
            data_plan=plan.model_dump_json(),
            other_data=own_data or _inherited_other_data(connection, run, checkpoint),
            reason=words,
            created_at=now,
        )
    )


def _inherited_other_data(connection: Connection, run: AnyRow, checkpoint: AnyRow) -> bool:
    """A fork of a fork may begin at the very checkpoint that its source inherited."""
    return checkpoint.attempt == INHERITED and reads.has_other_data(
        connection, run.id, checkpoint.branch
    )


def _inherit(connection: Connection, run_id: str, checkpoint: AnyRow) -> None:
    """A row for the same files; only its id, its attempt and its branch are the fork's."""
    c = checkpoints.c
    query = select(checkpoints).where(c.run_id == checkpoint.run_id, c.id == checkpoint.id)
    source = connection.execute(query).mappings().one()
    own = {"run_id": run_id, "id": inherited_id(checkpoint.step), "attempt": INHERITED, "branch": 1}
    connection.execute(insert(checkpoints).values({**source, **own}))
