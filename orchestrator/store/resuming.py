"""A resume with all that it may carry: another spec, an earlier checkpoint, batches to skip.

Owns the rows of a new spec revision and how the parts of a resume combine in one transaction. The
spec comes checked whole; `based_on` is the revision that it was made from. Must not import the API.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select, update

from orchestrator import revisions
from orchestrator.reconcile import limits
from orchestrator.state import Desired, RunState
from orchestrator.store import audit, claims, reads, rows
from orchestrator.store.audit import Actor
from orchestrator.store.branching import Rollback, open_branch
from orchestrator.store.conditions import CURRENT
from orchestrator.store.rows import AnyRow
from orchestrator.store.tables import attempts, host_groups, runs
from orchestrator.store.timeline import tell
from orchestrator.store.wishes import (
    NotAccepted,
    Wished,
    add_revision,
    decided,
    keep_wish,
    locked,
    renewed,
)
from orchestrator.wish_table import Accepted, Unchanged, Wish
from worker.protocol import AnySpec, PolicySpec


@dataclass(frozen=True)
class Revised:
    """A whole new spec, and the revision that it was made from."""

    job: AnySpec
    based_on: int


@dataclass(frozen=True)
class Resume:
    """What a resume asks for beyond going on; all of it may be left out."""

    reason: str | None = None
    revised: Revised | None = None
    start: int | str | None = None
    skip_batches: int = 0

    @property
    def moves(self) -> bool:
        return self.start is not None or self.skip_batches > 0


def resume(
    connection: Connection, now: datetime, id_or_name: str, asked: Resume, who: Actor
) -> Wished:
    """Lets the run go on as asked, all of it or nothing; raises `NoSuchRun` and `NotAccepted`."""
    run = locked(connection, id_or_name)
    found = decided(run, Wish.RESUME)
    if asked.revised is not None and _revise(connection, now, run, asked.revised, asked, who):
        found = decided(run, Wish.REVISE)
    if asked.moves:
        moved = decided(run, Wish.ROLLBACK)
        wanted = Rollback(asked.start, asked.skip_batches, asked.reason)
        open_branch(connection, now, run, wanted, who)
        # Unlike a rollback alone, a resume also wakes a run that rests.
        found = Accepted(moved.then, Desired.RUN) if isinstance(moved, Accepted) else moved
    if isinstance(found, Unchanged):
        return Wished(run.id, changed=False)
    job = asked.revised.job if asked.revised else reads.job_spec(connection, run.id, run.revision)
    _refuse_reached_limit(connection, now, run, job.policy)
    keep_wish(connection, now, run, renewed(run, found), who, asked.reason)
    return Wished(run.id, changed=True)


def _revise(
    connection: Connection,
    now: datetime,
    run: AnyRow,
    revised: Revised,
    asked: Resume,
    who: Actor,
) -> bool:
    """Whether the spec changes; it then has a new revision, and the run is on it."""
    decided(run, Wish.REVISE)
    refuse_revised_since(run, revised.based_on)
    before = reads.job_spec(connection, run.id, run.revision)
    changed = revisions.changes(before, revised.job)
    if not changed.all:
        return False
    number = run.revision + 1
    words = revisions.note(before, revised.job)
    note = f"{asked.reason} ({words})" if asked.reason else words
    add_revision(connection, now, run.id, number, revised.job, who, note)
    values = {"revision": number, "priority": revised.job.priority}
    connection.execute(update(runs).where(runs.c.id == run.id).values(values))
    if not changed.restart:
        _keep_attempt(connection, run, number)
    wanted = revised.job.hosts
    claims.drop_unfit(connection, run.id, wanted.provider, wanted.count)
    tell(connection, run.id, "revised", now, revision=number, changes=words, by=who.name)
    audit.note(
        connection,
        now,
        who,
        "run.revise",
        run.id,
        {"revision": run.revision},
        {"revision": number, "changes": words},
    )
    return True


def _keep_attempt(connection: Connection, run: AnyRow, revision: int) -> None:
    """No trainer sees the difference, so the current attempt is the new revision's as it is."""
    connection.execute(
        update(attempts)
        .where(
            attempts.c.run_id == run.id,
            CURRENT,
            attempts.c.revision == run.revision,
        )
        .values(revision=revision)
    )


def refuse_revised_since(run: AnyRow, based_on: int) -> None:
    if run.revision != based_on:
        raise NotAccepted(
            "revision-changed",
            f"The run is at revision {run.revision} now; the change was made to {based_on}.",
            f"Look at what changed and ask again: longhaul show {run.name}",
        )


def _refuse_reached_limit(
    connection: Connection, now: datetime, run: AnyRow, policy: PolicySpec
) -> None:
    """A run at rest over a limit of its spec would only be paused again."""
    if RunState(run.state) not in (RunState.PAUSED, RunState.FAILED):
        return
    query = select(host_groups).where(host_groups.c.run_id == run.id)
    groups = [rows.group(row) for row in connection.execute(query).mappings()]
    limit = limits.reached(policy, limits.used(groups, now))
    if limit is not None:
        raise NotAccepted(
            "limit-reached",
            f"{limit.words}. It would be paused again at once.",
            f"Raise the limit: longhaul resume {run.name} --set {limit.field}=NUMBER",
        )
