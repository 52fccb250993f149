"""A fault on purpose: something of a run's current attempt is to be killed, to see it come back.

Owns what must hold before that. The kill itself is a command to an agent, derived from the row of
the attempt; what follows is decided as after any fault. Must not import the API.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select, update

from orchestrator.records import Attempt
from orchestrator.state import AttemptState, Desired, RunState
from orchestrator.store import audit, reads, views
from orchestrator.store.audit import Actor
from orchestrator.store.rows import AnyRow
from orchestrator.store.tables import attempts, hosts
from orchestrator.store.timeline import tell
from orchestrator.store.wishes import NotAccepted, locked
from worker.protocol import PROTOCOL_VERSION, Victim


@dataclass(frozen=True)
class Drill:
    """`force` waives that the run must be well and have an accepted checkpoint."""

    victim: Victim
    reason: str | None = None
    force: bool = False


@dataclass(frozen=True)
class Drilled:
    """The attempt that is to be killed, and the step that the next one would resume from."""

    run_id: str
    attempt: Attempt
    resumes_from: int


def ask(
    connection: Connection, now: datetime, id_or_name: str, drill: Drill, who: Actor
) -> Drilled:
    """Raises `NoSuchRun` and `NotAccepted`."""
    run = locked(connection, id_or_name)
    current = reads.current_attempt(connection, run.id)
    resumes_from = views.newest_usable_step(connection, run.id, run.branch)
    attempt = _allowed(connection, run, current, resumes_from, drill)
    here = (attempts.c.run_id == run.id, attempts.c.number == attempt.number)
    values = {"drill": drill.victim, "drill_at": now, "drill_by": who.name}
    connection.execute(update(attempts).where(*here).values(values))
    about = {"attempt": attempt.number, "kill": drill.victim, "reason": drill.reason}
    told = {"by": who.name, "kill": drill.victim, "reason": drill.reason}
    tell(connection, run.id, "drill_asked", now, attempt=attempt.number, **told)
    audit.note(connection, now, who, "run.drill", run.id, None, about | {"force": drill.force})
    return Drilled(run.id, attempt, resumes_from)


def _allowed(
    connection: Connection, run: AnyRow, attempt: Attempt | None, resumes_from: int, drill: Drill
) -> Attempt:
    if attempt is None or attempt.state is AttemptState.REQUESTED:
        raise NotAccepted(
            "nothing-runs",
            f"The run is {run.state}, so there is nothing to kill.",
            f"See what it waits for: longhaul show {run.name}",
        )
    if attempt.drill is not None:
        raise NotAccepted(
            "drill-under-way",
            f"A drill was asked for in attempt {attempt.number} already.",
            f"Wait until it is back: longhaul watch {run.name}",
        )
    _refuse_old_agent(connection, run, attempt)
    why = None if drill.force else _not_well(run, attempt)
    if why is not None:
        raise NotAccepted(
            "run-not-well",
            f"{why}: a drill would only hide what is the matter.",
            f"Wait until it trains (longhaul watch {run.name}), or force it with --force.",
        )
    if not drill.force and not resumes_from:
        raise NotAccepted(
            "no-checkpoint",
            "The run has no accepted checkpoint: it would begin again.",
            f"Save first (longhaul checkpoint {run.name}), or force it with --force.",
        )
    return attempt


def _not_well(run: AnyRow, attempt: Attempt) -> str | None:
    if run.state != RunState.RUNNING or run.desired != Desired.RUN:
        return f"The run is {run.state}, and asked to {run.desired}"
    if attempt.state is not AttemptState.RUNNING:
        return f"Attempt {attempt.number} is {attempt.state}"
    return None


def _refuse_old_agent(connection: Connection, run: AnyRow, attempt: Attempt) -> None:
    here = (hosts.c.group == attempt.group, hosts.c.index == 0)
    spoken = connection.scalar(select(hosts.c.protocol).where(*here))
    if spoken is not None and spoken < PROTOCOL_VERSION:
        raise NotAccepted(
            "agent-too-old",
            f"The agent of the run's host 0 speaks protocol {spoken}, and knows of no drills.",
            f"Pause and resume the run; it gets a new agent: longhaul pause {run.name}",
        )
