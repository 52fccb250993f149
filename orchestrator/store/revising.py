"""Verdicts that are revised and branches that are opened, in the database.

Owns what else must say the same: the incident of the attempt, and the timeline. Decides nothing;
called by `writes` within the transaction of a plan.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, func, insert, select, update

from orchestrator.reconcile.plan import OpenBranch, ReviseVerdict
from orchestrator.store import rows
from orchestrator.store.tables import attempts, branches, incidents, runs
from orchestrator.store.timeline import tell


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


def open_branch(
    connection: Connection, run_id: str, parent: int, change: OpenBranch, now: datetime
) -> None:
    """The run is on the new branch from now on; its data plan is the parent's and the skips."""
    of = branches.c.run_id == run_id
    text = connection.scalar(select(branches.c.data_plan).where(of, branches.c.number == parent))
    assert text is not None
    plan = rows.data_plan(text)
    plan = plan.model_copy(update={"skips": (*plan.skips, *change.skips)})
    number = (connection.scalar(select(func.max(branches.c.number)).where(of)) or 0) + 1
    connection.execute(
        insert(branches).values(
            run_id=run_id,
            number=number,
            parent=parent,
            from_checkpoint=change.from_checkpoint,
            from_step=change.from_step,
            data_plan=plan.model_dump_json(),
            reason=change.reason,
            created_at=now,
        )
    )
    connection.execute(update(runs).where(runs.c.id == run_id).values(branch=number))
    words = {
        "number": number,
        "parent": parent,
        "from_checkpoint": change.from_checkpoint,
        "from_step": change.from_step,
        "skips": [skip.model_dump() for skip in change.skips],
        "reason": change.reason,
    }
    tell(connection, run_id, "branch_opened", now, attempt=None, **words)
