"""Verdicts that are revised and branches that are opened, in the database.

Owns the rows of a new branch, and what else must say the same as a revised verdict: the incident of
the attempt, and the timeline. Decides nothing; called within the transaction of a plan or a wish.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, func, insert, select, update

from orchestrator.reconcile.plan import OpenBranch, ReviseVerdict
from orchestrator.store import reads, rows
from orchestrator.store.tables import attempts, branches, incidents, runs
from orchestrator.store.timeline import tell
from worker.protocol import DataPlan


def revise(connection: Connection, run_id: str, change: ReviseVerdict, now: datetime) -> None:
    """The attempt's row keeps the verdict that it had first."""
    here = (attempts.c.run_id == run_id, attempts.c.number == change.number)
    before = connection.execute(
        select(attempts.c.verdict, attempts.c.revised_from).where(*here)
    ).one()
    told: dict[str, object] = {
        "verdict": change.verdict,
        "summary": change.summary,
        "evidence": rows.evidence_text(change.evidence),
    }
    row = told | {
        "bad_step": change.bad_step,
        "revised_from": before.revised_from or before.verdict,
        "revised_at": now,
    }
    connection.execute(update(attempts).where(*here).values(row))
    connection.execute(
        update(incidents)
        .where(
            incidents.c.run_id == run_id,
            incidents.c.attempt == change.number,
            incidents.c.verdict == before.verdict,
        )
        .values(told)
    )
    words = {"from": before.verdict, "to": change.verdict, "summary": change.summary}
    tell(connection, run_id, "verdict_revised", now, attempt=change.number, **words)


def add_branch(
    connection: Connection,
    run_id: str,
    now: datetime,
    parent: int,
    from_checkpoint: str | None,
    from_step: int,
    plan: DataPlan,
    *,
    reason: str,
) -> int:
    """The new branch's number; the run is on it from now on."""
    newest = select(func.max(branches.c.number)).where(branches.c.run_id == run_id)
    number = (connection.scalar(newest) or 0) + 1
    connection.execute(
        insert(branches).values(
            run_id=run_id,
            number=number,
            parent=parent,
            from_checkpoint=from_checkpoint,
            from_step=from_step,
            data_plan=plan.model_dump_json(),
            reason=reason,
            created_at=now,
        )
    )
    connection.execute(update(runs).where(runs.c.id == run_id).values(branch=number))
    return number


def open_branch(
    connection: Connection, run_id: str, parent: int, change: OpenBranch, now: datetime
) -> None:
    """The run is on the new branch from now on; its data plan is the parent's and the skips."""
    plan = reads.data_plan(connection, run_id, parent)
    plan = plan.model_copy(update={"skips": (*plan.skips, *change.skips)})
    origin, step = change.from_checkpoint, change.from_step
    number = add_branch(connection, run_id, now, parent, origin, step, plan, reason=change.reason)
    words = {
        "number": number,
        "parent": parent,
        "from_checkpoint": change.from_checkpoint,
        "from_step": change.from_step,
        "skips": [skip.model_dump() for skip in change.skips],
        "reason": change.reason,
    }
    tell(connection, run_id, "branch_opened", now, attempt=None, **words)
