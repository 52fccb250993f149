"""A run and its ledger made again from what lies in its storage.

Owns the rows of an imported run: it rests as `paused`, its attempts are over, and its next one has
a number that no folder has. Steps, events and the hours before are not in a storage: the run's
clock begins anew. Must not import the API.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, insert, select, update

from orchestrator.ledger.finding import Found, FoundRun
from orchestrator.state import (
    AttemptState,
    CheckpointState,
    Desired,
    GroupState,
    RunState,
    Verdict,
)
from orchestrator.store import audit
from orchestrator.store.audit import Actor
from orchestrator.store.rows import AnyRow
from orchestrator.store.tables import (
    attempts,
    branches,
    checkpoints,
    host_groups,
    installation,
    runs,
)
from orchestrator.store.timeline import tell
from orchestrator.store.wishes import NotAccepted, add_revision, refuse_taken_name

OLD_WISH, NEW_WISH = 0, 1
SUMMARY = "from before the import; what became of it is not known"


@dataclass(frozen=True)
class Imported:
    run_id: str
    name: str
    counts: Sequence[Found]
    left: Sequence[Found]


def import_run(
    connection: Connection,
    now: datetime,
    found: FoundRun,
    taken: Collection[str],
    source: str,
    who: Actor,
) -> Imported:
    """`taken` are checkpoints that count although nothing says so; raises `NotAccepted`."""
    job = found.job
    offered = _offered(found, taken)
    known = connection.execute(select(runs).where(runs.c.id == found.id)).first()
    if known is not None:
        return _take(connection, now, known, found, offered, who)
    refuse_taken_name(connection, job.name)
    counts = [*found.checkpoints, *offered]
    _run(connection, now, found, source, who)
    for number, spec in sorted(found.revisions.items()):
        add_revision(connection, now, found.id, number, spec, who, f"imported from {source}")
    _branches(connection, now, found)
    _attempts(connection, now, found, counts)
    for one in (*counts, *([] if found.inherited is None else [found.inherited])):
        _checkpoint(connection, now, found.id, one, offered=one in offered)
    connection.execute(update(installation).values(restored_at=now, sweep_confirmed_at=None))
    told: dict[str, object] = {"source": source, "checkpoints": len(counts)}
    told["taken"] = sorted(taken)
    about = {"by": who.name, "name": job.name, **told}
    tell(connection, found.id, "imported", now, attempt=None, **about)
    audit.note(connection, now, who, "run.import", found.id, None, {"name": job.name, **told})
    left = [one for one in found.offered if one.id not in taken]
    return Imported(found.id, job.name, counts, left)


def _offered(found: FoundRun, taken: Collection[str]) -> list[Found]:
    if unknown := set(taken) - {one.id for one in found.offered}:
        raise NotAccepted(
            "no-such-checkpoint",
            f"{min(unknown)} is not among what the run {found.job.name} offers.",
            "Without --take, an import says what there is.",
        )
    return [one for one in found.offered if one.id in taken]


def _take(
    connection: Connection,
    now: datetime,
    run: AnyRow,
    found: FoundRun,
    offered: Sequence[Found],
    who: Actor,
) -> Imported:
    """A run that is known and rests may still be given what it was offered."""
    here = select(checkpoints.c.id).where(checkpoints.c.run_id == run.id)
    ledger = set(connection.execute(here).scalars())
    if not offered or run.state != RunState.PAUSED or ledger & {one.id for one in offered}:
        raise NotAccepted(
            "run-known",
            f"The run {run.name} ({run.id}) is known here already: it is {run.state}.",
            "Leave it be; while it is paused, --take adds checkpoints that it lacks.",
        )
    for one in offered:
        _checkpoint(connection, now, run.id, one, offered=True)
        connection.execute(
            update(attempts)
            .where(
                attempts.c.run_id == run.id,
                attempts.c.number == one.attempt,
                func.coalesce(attempts.c.accepted_step, 0) < one.step,
            )
            .values(accepted_step=one.step)
        )
    ids = sorted(one.id for one in offered)
    tell(connection, run.id, "imported", now, by=who.name, taken=ids)
    audit.note(connection, now, who, "run.import", run.id, None, {"taken": ids})
    left = [one for one in found.offered if one not in offered and one.id not in ledger]
    return Imported(run.id, run.name, [*found.checkpoints, *offered], left)


def _run(connection: Connection, now: datetime, found: FoundRun, source: str, who: Actor) -> None:
    job, newest = found.job, found.newest
    begun = found.inherited
    connection.execute(
        insert(runs).values(
            id=found.id,
            name=job.name,
            owner=who.name,
            priority=job.priority,
            desired=Desired.PAUSE,
            desired_generation=NEW_WISH,
            settled_generation=NEW_WISH,
            state=RunState.PAUSED,
            state_since=now,
            reason=f"imported from {source}",
            revision=max(found.revisions),
            branch=newest.branch,
            created_at=now,
            forked_run=found.forked_run,
            forked_checkpoint=None if begun is None else _origin(begun),
        )
    )


def _origin(begun: Found) -> str:
    """The checkpoint's id in the run that made it: its folder's names say it."""
    attempt, _, step = begun.uri.split("/")[-3:]
    return f"{attempt}-s{step}"


def _branches(connection: Connection, now: datetime, found: FoundRun) -> None:
    for branch in found.branches():
        connection.execute(
            insert(branches).values(
                run_id=found.id,
                number=branch.number,
                parent=branch.parent,
                from_checkpoint=branch.from_checkpoint,
                from_step=branch.from_step,
                data_plan=branch.data_plan.model_dump_json(),
                other_data=branch.other_data,
                reason="imported",
                created_at=now,
            )
        )


def _attempts(
    connection: Connection, now: datetime, found: FoundRun, counts: Sequence[Found]
) -> None:
    """They are over, on hosts that are gone; the newest folder's number is taken in any case."""
    hosts = found.job.hosts
    group = f"{found.id}-imported"
    connection.execute(
        insert(host_groups).values(
            name=group,
            run_id=found.id,
            generation=0,
            provider=hosts.provider,
            hosts=hosts.count,
            devices=hosts.devices,
            state=GroupState.GONE,
            created_at=now,
            released_at=now,
            detail="from before the import",
        )
    )
    for number in range(1, found.newest_attempt + 1):
        order = found.orders.get(number)
        steps = [one.step for one in counts if one.attempt == number]
        point = None if order is None else order.resume
        connection.execute(
            insert(attempts).values(
                run_id=found.id,
                number=number,
                revision=found.newest.revision if order is None else order.revision,
                branch=found.newest.branch if order is None else order.branch,
                group=group,
                processes=hosts.count if order is None else order.process_count,
                state=AttemptState.ENDED,
                desired_generation=OLD_WISH,
                resume_checkpoint=None if point is None else point.checkpoint_id,
                resumed_from_step=0 if point is None else point.step,
                created_at=now,
                ended_at=now,
                accepted_step=max(steps, default=None),
                verdict=Verdict.SUPERSEDED,
                summary=SUMMARY,
            )
        )


def _checkpoint(
    connection: Connection, now: datetime, run_id: str, found: Found, *, offered: bool
) -> None:
    connection.execute(
        insert(checkpoints).values(
            run_id=run_id,
            id=found.id,
            attempt=found.attempt,
            branch=found.branch,
            step=found.step,
            uri=found.uri,
            state=CheckpointState.ACCEPTED,
            bytes=found.bytes,
            files=found.files,
            manifest_sha256=found.manifest_sha256,
            state_digest=found.state_digest,
            stall_seconds=0.0,
            write_seconds=0.0,
            written_at=found.accepted_at or now,
            accepted_at=found.accepted_at or now,
            reason="taken by a person at the import" if offered else None,
        )
    )
