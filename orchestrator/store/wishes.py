"""The writes that people cause: a run submitted, wished otherwise, or deleted.

Owns which wish makes sense in which state. A wish changes `desired` and its generation and nothing
that is observed. Each function is one piece of work for the writer. Must not import the API.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, or_, select, update

from orchestrator.state import TERMINAL_RUNS, Desired, GroupState, RunState
from orchestrator.store.tables import (
    attempts,
    branches,
    evals,
    events,
    host_groups,
    idempotency_keys,
    metric_points,
    metric_rollups,
    revisions,
    runs,
)
from worker.protocol import SPEC_VERSION, DataPlan, JobSpec

NAME_LENGTH = 40


class NotAccepted(Exception):
    """The wish makes no sense as things stand; nothing was changed."""

    def __init__(self, slug: str, detail: str, hint: str) -> None:
        super().__init__(detail)
        self.slug = slug
        self.detail = detail
        self.hint = hint


class NoSuchRun(Exception):
    """No run has this id or name."""


@dataclass(frozen=True)
class Submitted:
    run_id: str
    made: bool


@dataclass(frozen=True)
class Wished:
    """`changed` is False when the run already stood as wished."""

    run_id: str
    changed: bool


def fingerprint(job: JobSpec) -> str:
    """The same for the same spec, however it was written down."""
    return hashlib.sha256(job.model_dump_json().encode()).hexdigest()


def find(connection: Connection, id_or_name: str) -> Row[*tuple[Any, ...]]:
    """The run's row; ids begin with a digit and names with a letter. Raises `NoSuchRun`."""
    if not id_or_name.isascii() or not id_or_name.isprintable():
        raise NoSuchRun(id_or_name)  # no database needs to be asked, and some refuse such text
    query = select(runs).where(or_(runs.c.id == id_or_name, runs.c.name == id_or_name))
    row = connection.execute(query).first()
    if row is None:
        raise NoSuchRun(id_or_name)
    return row


def known_submission(connection: Connection, job: JobSpec, key: str | None) -> str | None:
    """The run that this submission made before, by its key; raises `NotAccepted`.

    Also refuses a name that is taken, so that a caller may look before longer checks.
    """
    if key is not None:
        query = select(idempotency_keys).where(idempotency_keys.c.key == key)
        seen = connection.execute(query).first()
        if seen is not None:
            if seen.body_sha256 != fingerprint(job):
                raise NotAccepted(
                    "idempotency-key-reused",
                    "This Idempotency-Key was used for another spec.",
                    "Send a new key with a new spec; repeat a key only to repeat a request.",
                )
            return seen.run_id
    taken = connection.execute(select(runs.c.id).where(runs.c.name == job.name)).first()
    if taken is not None:
        free = free_name(connection, job.name)
        raise NotAccepted(
            "name-taken",
            f"There is a run named '{job.name}' already.",
            f"Names are unique; '{free}' is free.",
        )
    return None


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
    connection: Connection, now: datetime, job: JobSpec, key: str | None, author: str
) -> Submitted:
    """Makes the run, its first revision and its first branch; raises `NotAccepted`."""
    known = known_submission(connection, job, key)
    if known is not None:
        return Submitted(known, made=False)
    run_id = f"{secrets.randbelow(10)}{secrets.token_hex(5)}"
    connection.execute(
        insert(runs).values(
            id=run_id,
            name=job.name,
            owner=author,
            priority=0,
            desired=Desired.RUN,
            desired_generation=1,
            settled_generation=0,
            state=RunState.QUEUED,
            state_since=now,
            revision=1,
            branch=1,
            created_at=now,
        )
    )
    connection.execute(
        insert(revisions).values(
            run_id=run_id,
            number=1,
            spec_version=SPEC_VERSION,
            spec=job.model_dump_json(),
            author=author,
            note="submitted",
            created_at=now,
        )
    )
    connection.execute(
        insert(branches).values(
            run_id=run_id,
            number=1,
            from_step=0,
            data_plan=DataPlan(seed=job.seed).model_dump_json(),
            reason="submitted",
            created_at=now,
        )
    )
    if key is not None:
        connection.execute(
            insert(idempotency_keys).values(
                key=key, body_sha256=fingerprint(job), run_id=run_id, created_at=now
            )
        )
    _note(connection, now, run_id, "submitted", {"by": author, "name": job.name})
    return Submitted(run_id, made=True)


def wish(
    connection: Connection,
    now: datetime,
    id_or_name: str,
    desired: Desired,
    author: str,
    reason: str | None = None,
) -> Wished:
    """Records what people want of the run; raises `NoSuchRun` and `NotAccepted`."""
    run = find(connection, id_or_name)
    if not _changes(RunState(run.state), Desired(run.desired), desired, run.name):
        return Wished(run.id, changed=False)
    generation = run.desired_generation + 1
    connection.execute(
        update(runs)
        .where(runs.c.id == run.id)
        .values(desired=desired, desired_generation=generation)
    )
    said: dict[str, object] = {
        "desired": desired,
        "generation": generation,
        "by": author,
        "reason": reason,
    }
    _note(connection, now, run.id, "wish", said)
    return Wished(run.id, changed=True)


def _changes(state: RunState, before: Desired, wished: Desired, name: str) -> bool:
    """Whether the wish is a new one; raises `NotAccepted` where it makes no sense."""
    over = f"The run has {state}; it can not be "
    match wished:
        case _ if state in (RunState.SUCCEEDED, RunState.CANCELLED):
            raise NotAccepted(
                "run-is-over",
                f"The run is over: it has {_been(state)}.",
                "Submit a new run with the same spec and a new name.",
            )
        case Desired.RUN if before is Desired.CANCEL:
            raise NotAccepted(
                "run-is-being-cancelled",
                "The run is being cancelled, which can not be taken back.",
                "Submit a new run with the same spec and a new name.",
            )
        case Desired.PAUSE if before is Desired.CANCEL:
            raise NotAccepted(
                "run-is-being-cancelled",
                "The run is being cancelled and stops anyway.",
                f"Watch it stop: longhaul watch {name}",
            )
        case Desired.RUN:
            return state in (RunState.PAUSED, RunState.FAILED) or before is not Desired.RUN
        case Desired.PAUSE if state is RunState.FAILED:
            raise NotAccepted(
                "run-is-over",
                over + "paused: nothing of it runs.",
                f"Go on with it: longhaul resume {name}",
            )
        case Desired.CANCEL if state is RunState.FAILED:
            raise NotAccepted(
                "run-is-over",
                over + "cancelled: nothing of it runs.",
                "Delete it if it is of no use, or resume it.",
            )
        case Desired.PAUSE | Desired.CANCEL:
            return before is not wished


def _been(state: RunState) -> str:
    return "been cancelled" if state is RunState.CANCELLED else str(state)


def remove(connection: Connection, id_or_name: str) -> str:
    """Deletes a terminal run whose hosts are gone, and returns its id. Its files stay."""
    run = find(connection, id_or_name)
    if RunState(run.state) not in TERMINAL_RUNS:
        raise NotAccepted(
            "run-is-not-over",
            f"The run is {run.state}; only a run that is over can be deleted.",
            f"Cancel it first: longhaul cancel {run.name}",
        )
    g = host_groups.c
    held = connection.execute(
        select(g.name).where(g.run_id == run.id, g.state != GroupState.GONE)
    ).first()
    if held is not None:
        raise NotAccepted(
            "hosts-still-held",
            f"The host group {held.name} of the run is not given back yet.",
            "Longhaul gives it back by itself; try again in a moment.",
        )
    for table in (metric_points, metric_rollups, evals):
        connection.execute(delete(table).where(table.c.run_id == run.id))
    connection.execute(delete(attempts).where(attempts.c.run_id == run.id))
    connection.execute(delete(runs).where(runs.c.id == run.id))
    return run.id


def _note(
    connection: Connection, now: datetime, run_id: str, kind: str, body: dict[str, object]
) -> None:
    connection.execute(
        insert(events).values(
            run_id=run_id, kind=kind, at=now, received_at=now, body=json.dumps(body)
        )
    )
