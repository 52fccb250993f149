"""The writes that people cause: a run submitted, wished otherwise, or deleted.

Which wish makes sense in which state is `wish_table`'s; this module keeps what follows. A wish
changes `desired` and its generation and nothing that is observed. Each function is one piece of
work for the writer. Must not import the API.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, exists, insert, or_, select, update

from orchestrator.roles import Role
from orchestrator.state import Desired, RunState
from orchestrator.store import audit, bundles, reads
from orchestrator.store.audit import Actor
from orchestrator.store.conditions import HELD, USABLE
from orchestrator.store.rows import AnyRow
from orchestrator.store.tables import (
    attempts,
    branches,
    checkpoints,
    evals,
    host_groups,
    metric_points,
    metric_rollups,
    request_keys,
    revisions,
    runs,
)
from orchestrator.store.timeline import tell
from orchestrator.wish_table import Accepted, Refused, Unchanged, Wish, outcome
from worker.protocol import SPEC_VERSION, AnySpec, CommandSpec, DataPlan

NAME_LENGTH = 40
_WISHES = {Desired.RUN: Wish.RESUME, Desired.PAUSE: Wish.PAUSE, Desired.CANCEL: Wish.CANCEL}


class NotAccepted(Exception):
    """The wish makes no sense as things stand; nothing was changed."""

    def __init__(self, slug: str, detail: str, hint: str) -> None:
        super().__init__(detail)
        self.slug = slug
        self.detail = detail
        self.hint = hint


class NotAllowed(Exception):
    """The caller's role does not reach so far; the message says what it would need."""


class NoSuchRun(Exception):
    """No run has this id or name."""


@dataclass(frozen=True)
class Submitted:
    run_id: str
    made: bool


@dataclass(frozen=True)
class Wished:
    """`changed` is False when the run already stood as wished.

    `group` is the host group whose agents have something new to do at once.
    """

    run_id: str
    changed: bool
    group: str | None = None


def fingerprint(job: AnySpec) -> str:
    """The same for the same spec, however it was written down.

    Over what was given alone, so that a default that a later version adds changes nothing.
    """
    return hashlib.sha256(job.model_dump_json(exclude_unset=True).encode()).hexdigest()


def storable(name: str) -> bool:
    """Else no database needs to be asked for it, and some refuse such text."""
    return name.isascii() and name.isprintable()


def find(connection: Connection, id_or_name: str) -> AnyRow:
    """The run's row; ids begin with a digit and names with a letter. Raises `NoSuchRun`."""
    if not storable(id_or_name):
        raise NoSuchRun(id_or_name)
    query = select(runs).where(or_(runs.c.id == id_or_name, runs.c.name == id_or_name))
    row = connection.execute(query).first()
    if row is None:
        raise NoSuchRun(id_or_name)
    return row


def no_such_checkpoint(run: AnyRow, why: str) -> NotAccepted:
    return NotAccepted(
        "no-such-checkpoint", why, f"They are listed by: longhaul checkpoints {run.name}"
    )


def locked(connection: Connection, id_or_name: str) -> AnyRow:
    """The run's row, which nobody else changes until the commit. Raises `NoSuchRun`."""
    found = find(connection, id_or_name)
    query = select(runs).where(runs.c.id == found.id).with_for_update()
    row = connection.execute(query).first()
    if row is None:
        raise NoSuchRun(id_or_name)
    return row


def known_submission(
    connection: Connection, job: AnySpec, key: str | None, owner: str
) -> str | None:
    """The run that this submission made before, by its key; raises `NotAccepted`.

    Also refuses a name that is taken, so that a caller may look before longer checks.
    """
    made = known_request(connection, key, owner, lambda: fingerprint(job), job)
    if made is None:
        refuse_taken_name(connection, job.name)
    return made


def known_request(
    connection: Connection,
    key: str | None,
    owner: str,
    digest: Callable[[], str],
    job: AnySpec | None = None,
) -> str | None:
    """The run that `owner`'s request with this key made; raises `NotAccepted` for another body.

    A spec is also known by what it means: the one kept with the run, read as specs are read today,
    may be the given one although an older version took another digest of it.
    """
    if key is None:
        return None
    k = request_keys.c
    query = select(request_keys).where(k.key == key, k.owner == owner)
    seen = connection.execute(query).first()
    if seen is None:
        return None
    if seen.body_sha256 != digest() and not _is_first_spec(connection, seen.run_id, job):
        raise NotAccepted(
            "idempotency-key-reused",
            "This Idempotency-Key was used for another request.",
            "Send a new key with a new spec; repeat a key only to repeat a request.",
        )
    return seen.run_id


def _is_first_spec(connection: Connection, run_id: str, job: AnySpec | None) -> bool:
    return job is not None and reads.job_spec(connection, run_id, 1) == job


def remember_request(
    connection: Connection, now: datetime, key: str | None, who: Actor, digest: str, run_id: str
) -> None:
    if key is not None:
        connection.execute(
            insert(request_keys).values(
                owner=who.name, key=key, body_sha256=digest, run_id=run_id, created_at=now
            )
        )


def refuse_taken_name(connection: Connection, name: str) -> None:
    taken = connection.execute(select(runs.c.id).where(runs.c.name == name)).first()
    if taken is not None:
        free = free_name(connection, name)
        raise NotAccepted(
            "name-taken",
            f"There is a run named '{name}' already.",
            f"Names are unique; '{free}' is free.",
        )


def free_name(connection: Connection, name: str) -> str:
    """`name-2`, or the next number that no run has."""
    stem = re.sub(r"-\d+$", "", name) or name
    query = select(runs.c.name).where(runs.c.name.startswith(stem[: NAME_LENGTH - 7]))
    taken = set(connection.execute(query).scalars())
    number = 2
    while (free := f"{stem[: NAME_LENGTH - len(str(number)) - 1]}-{number}") in taken:
        number += 1
    return free


def submit(
    connection: Connection, now: datetime, job: AnySpec, key: str | None, who: Actor
) -> Submitted:
    """Makes the run, its first revision and its first branch; raises `NotAccepted`."""
    known = known_submission(connection, job, key, who.name)
    if known is not None:
        return Submitted(known, made=False)
    run_id = new_run(connection, now, job, who, "submitted")
    plan = DataPlan(seed=job.seed)
    connection.execute(
        insert(branches).values(
            run_id=run_id,
            number=1,
            from_step=0,
            data_plan=plan.model_dump_json(),
            reason="submitted",
            created_at=now,
        )
    )
    remember_request(connection, now, key, who, fingerprint(job), run_id)
    tell(connection, run_id, "submitted", now, by=who.name, name=job.name)
    audit.note(connection, now, who, "run.submit", run_id, None, {"name": job.name})
    return Submitted(run_id, made=True)


def new_run(
    connection: Connection,
    now: datetime,
    job: AnySpec,
    who: Actor,
    note: str,
    forked: tuple[str, str] | None = None,
) -> str:
    """The rows of a queued run and its first revision, without a branch; returns its id.

    `forked` names the run and the checkpoint that it begins at.
    """
    run_id = f"{secrets.randbelow(10)}{secrets.token_hex(5)}"
    from_run, from_checkpoint = forked or (None, None)
    connection.execute(
        insert(runs).values(
            id=run_id,
            name=job.name,
            owner=who.name,
            priority=job.priority,
            desired=Desired.RUN,
            desired_generation=1,
            settled_generation=0,
            state=RunState.QUEUED,
            state_since=now,
            revision=1,
            branch=1,
            created_at=now,
            queued_at=now,
            forked_run=from_run,
            forked_checkpoint=from_checkpoint,
        )
    )
    add_revision(connection, now, run_id, 1, job, who, note)
    return run_id


def add_revision(
    connection: Connection,
    now: datetime,
    run_id: str,
    number: int,
    job: AnySpec,
    who: Actor,
    note: str,
) -> None:
    """Raises `NotAccepted` where the bundle that it names was dropped since it was looked for."""
    if isinstance(job, CommandSpec) and job.bundle is not None:
        _use_bundle(connection, now, job.bundle)
    connection.execute(
        insert(revisions).values(
            run_id=run_id,
            number=number,
            spec_version=SPEC_VERSION,
            spec=job.model_dump_json(),
            author=who.name,
            note=note,
            created_at=now,
        )
    )


def _use_bundle(connection: Connection, now: datetime, bundle: str) -> None:
    if not bundles.use(connection, bundle.removeprefix(bundles.PREFIX), now):
        raise NotAccepted(
            "no-such-bundle",
            f"The service has no bundle {bundle}.",
            "Give a workdir instead: 'longhaul submit' packs it and sends it first.",
        )


def decided(run: AnyRow, wish: Wish) -> Accepted | Unchanged:
    """What the table says to the wish as the run stands; raises `NotAccepted`."""
    found = outcome(wish, RunState(run.state), Desired(run.desired))
    if isinstance(found, Refused):
        hint = f"What can be done instead: {found.instead.format(run=run.name)}"
        raise NotAccepted(found.slug, found.why, hint)
    return found


def renewed(run: AnyRow, accepted: Accepted) -> dict[str, object]:
    """The run's columns under the new wish.

    A pause of a paused run is answered as it is made.
    """
    desired = accepted.desired or Desired(run.desired)
    if not accepted.renews:
        return {"desired": desired}
    generation = run.desired_generation + 1
    values: dict[str, object] = {"desired": desired, "desired_generation": generation}
    if RunState(run.state) is RunState.PAUSED and desired is Desired.PAUSE:
        values["settled_generation"] = generation
    return values


def wish(
    connection: Connection,
    now: datetime,
    id_or_name: str,
    desired: Desired,
    who: Actor,
    reason: str | None = None,
) -> Wished:
    """Records what people want of the run; raises `NoSuchRun` and `NotAccepted`."""
    run = locked(connection, id_or_name)
    found = decided(run, _WISHES[desired])
    if isinstance(found, Unchanged):
        return Wished(run.id, changed=False)
    keep_wish(connection, now, run, renewed(run, found), who, reason)
    return Wished(run.id, changed=True)


def keep_wish(
    connection: Connection,
    now: datetime,
    run: AnyRow,
    values: dict[str, object],
    who: Actor,
    reason: str | None,
) -> None:
    """Writes the new wish, tells the timeline, and notes who it was."""
    connection.execute(update(runs).where(runs.c.id == run.id).values(values))
    desired = Desired(str(values["desired"]))
    generation = values.get("desired_generation", run.desired_generation)
    tell(
        connection,
        run.id,
        "wish",
        now,
        desired=desired,
        generation=generation,
        by=who.name,
        reason=reason,
    )
    before = {"desired": run.desired, "state": run.state}
    after = {"desired": desired, "reason": reason}
    audit.note(connection, now, who, f"run.{_WISHES[desired]}", run.id, before, after)


def remove(connection: Connection, now: datetime, id_or_name: str, who: Actor) -> str:
    """Deletes a run that is over and whose hosts are gone, and returns its id. Its files stay.

    Raises `NotAllowed` where it is another person's and the caller is no admin.
    """
    run = locked(connection, id_or_name)
    if run.owner != who.name and not who.role.includes(Role.ADMIN):
        raise NotAllowed(f"The run belongs to {run.owner}; only they or an admin may delete it.")
    decided(run, Wish.DELETE)
    _refuse_held_hosts(connection, run.id)
    _refuse_dependent_forks(connection, run.id)
    for table in (metric_points, metric_rollups, evals):
        connection.execute(delete(table).where(table.c.run_id == run.id))
    connection.execute(delete(attempts).where(attempts.c.run_id == run.id))
    connection.execute(delete(runs).where(runs.c.id == run.id))
    before = {"name": run.name, "owner": run.owner, "state": run.state}
    audit.note(connection, now, who, "run.delete", run.id, before)
    return run.id


def _refuse_held_hosts(connection: Connection, run_id: str) -> None:
    g = host_groups.c
    held = connection.execute(select(g.name).where(g.run_id == run_id, HELD)).first()
    if held is not None:
        raise NotAccepted(
            "hosts-still-held",
            f"The host group {held.name} of the run is not given back yet.",
            "Longhaul gives it back by itself; try again in a moment.",
        )


def _refuse_dependent_forks(connection: Connection, run_id: str) -> None:
    """A run without rows invites to delete its files, and a fork may still begin at one of them."""
    own = exists().where(
        checkpoints.c.run_id == runs.c.id,
        checkpoints.c.attempt > 0,
        USABLE,
    )
    over = (RunState.SUCCEEDED, RunState.CANCELLED)
    query = select(runs.c.name).where(runs.c.forked_run == run_id, runs.c.state.not_in(over), ~own)
    needing = list(connection.execute(query.order_by(runs.c.name).limit(5)).scalars())
    if needing:
        raise NotAccepted(
            "forks-depend-on-it",
            f"{', '.join(needing)} begins at a checkpoint of this run and has no own one yet.",
            f"Wait for its first checkpoint, or cancel it: longhaul cancel {needing[0]}",
        )
