"""What an agent is told to do, derived from rows at every look.

Level-triggered: nothing is queued, so nothing can be lost or obeyed twice. The same rows give the
same bytes, because an agent's long poll ends when the digest of its commands changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from orchestrator.reconcile.policy import how_it_ended
from orchestrator.reconcile.versions import understood
from orchestrator.records import Attempt, Host, Trainer
from orchestrator.state import AttemptState, Desired, GroupState
from orchestrator.store import reads, rows
from orchestrator.store.tables import attempts, host_groups, hosts, runs, trainers, upsert
from worker.protocol import (
    AgentReport,
    AttemptSpec,
    Command,
    DrainTrainer,
    ExitCode,
    KillTrainer,
    Retire,
    StartTrainer,
)

NO_COMMANDS = ""


@dataclass(frozen=True)
class Sight:
    """What the commands for one host follow from; `attempt` is the run's last one."""

    group_state: GroupState
    desired: Desired
    host: Host
    attempt: Attempt | None
    trainers: tuple[Trainer, ...]


def commands_for(
    connection: Connection, group: str, host: int, storage_root: str
) -> tuple[Command, ...]:
    """The commands for one host of a group; none for a host that is not known."""
    sight = see(connection, group, host)
    if sight is None:
        return ()

    def spec(attempt: Attempt) -> AttemptSpec:
        return reads.attempt_spec(connection, attempt.run_id, attempt.number, storage_root)

    return understood(sight.host.protocol, derive(sight, spec))


def commands_digest(commands: Sequence[Command]) -> str:
    """Empty for no commands, so that an agent that knows of none simply waits."""
    if not commands:
        return NO_COMMANDS
    digest = hashlib.sha256()
    for command in commands:
        digest.update(command.model_dump_json().encode() + b"\n")
    return digest.hexdigest()


def derive(sight: Sight, spec: Callable[[Attempt], AttemptSpec]) -> tuple[Command, ...]:
    if sight.group_state in (GroupState.RELEASING, GroupState.GONE):
        return (Retire(),)
    attempt, running = _current(sight), sight.host.running_attempt
    if running is not None and (attempt is None or running != attempt.number):
        # Nothing else before that one is told to be dead.
        return (KillTrainer(attempt=running, reason=_why_not_current(sight, running)),)
    if attempt is None or sight.host.index >= attempt.processes:
        return ()
    return tuple(_for_current(sight, attempt, spec))


def _for_current(
    sight: Sight, attempt: Attempt, spec: Callable[[Attempt], AttemptSpec]
) -> list[Command]:
    rank, running = sight.host.index, sight.host.running_attempt == attempt.number
    mine = next((trainer for trainer in sight.trainers if trainer.rank == rank), None)
    if mine is not None and mine.exited:
        reason = "its end was recorded already"
        return [KillTrainer(attempt=attempt.number, reason=reason)] if running else []
    stop = _stop_reason(sight, attempt)
    if stop is not None:
        return [KillTrainer(attempt=attempt.number, reason=stop)]
    if attempt.state is AttemptState.DRAINING:
        grace = spec(attempt).job.policy.grace_seconds
        return [DrainTrainer(attempt=attempt.number, grace_seconds=grace)]
    if running or _has_started(mine) or not _registered_before(sight.host, attempt):
        return []
    return [StartTrainer(spec=spec(attempt), rank=rank)]


def _stop_reason(sight: Sight, attempt: Attempt) -> str | None:
    """A gang fails together: the first abnormal end of a sibling ends the rest at once."""
    failed = [
        trainer
        for trainer in sight.trainers
        if trainer.rank != sight.host.index and _failed(trainer)
    ]
    if failed:
        first = min(failed, key=lambda trainer: (trainer.exited_at, trainer.rank))
        return f"the trainer on host {first.rank} {how_it_ended(first)}"
    if attempt.state is AttemptState.DRAINING and sight.desired is Desired.CANCEL:
        return "the run is cancelled"
    return None


def _failed(trainer: Trainer) -> bool:
    return trainer.exited and trainer.exit_code not in (ExitCode.DONE, ExitCode.DRAINED)


def _has_started(trainer: Trainer | None) -> bool:
    return trainer is not None and (
        trainer.pid is not None or trainer.phase is not None or trainer.last_step is not None
    )


def _registered_before(host: Host, attempt: Attempt) -> bool:
    """An agent that came later than the attempt may stand where its trainer died already."""
    return host.registered_at is not None and host.registered_at <= attempt.created_at


def _current(sight: Sight) -> Attempt | None:
    attempt = sight.attempt
    if attempt is None or attempt.state is AttemptState.ENDED:
        return None
    return attempt if attempt.group == sight.host.group else None


def _why_not_current(sight: Sight, running: int) -> str:
    last = sight.attempt
    if last is not None and last.number == running and last.verdict is not None:
        return f"attempt {running} has ended: {last.verdict}"
    return f"attempt {running} is not the run's current one"


def see(connection: Connection, group: str, host: int) -> Sight | None:
    row = connection.execute(
        select(host_groups.c.state, host_groups.c.run_id, runs.c.desired)
        .join(runs, runs.c.id == host_groups.c.run_id)
        .where(host_groups.c.name == group)
    ).one_or_none()
    here = (
        connection.execute(select(hosts).where(hosts.c.group == group, hosts.c.index == host))
        .mappings()
        .one_or_none()
    )
    if row is None or here is None:
        return None
    attempt = _last_attempt(connection, row.run_id)
    return Sight(
        group_state=GroupState(row.state),
        desired=Desired(row.desired),
        host=rows.host(here),
        attempt=attempt,
        trainers=_gang(connection, attempt) if attempt else (),
    )


def _last_attempt(connection: Connection, run_id: str) -> Attempt | None:
    row = (
        connection.execute(
            select(attempts)
            .where(attempts.c.run_id == run_id)
            .order_by(attempts.c.number.desc())
            .limit(1)
        )
        .mappings()
        .one_or_none()
    )
    return rows.attempt(row) if row else None


def _gang(connection: Connection, attempt: Attempt) -> tuple[Trainer, ...]:
    found = connection.execute(
        select(trainers)
        .where(trainers.c.run_id == attempt.run_id, trainers.c.attempt == attempt.number)
        .order_by(trainers.c.rank)
    )
    return tuple(map(rows.trainer, found.mappings()))


def settle_never_started(connection: Connection, call: AgentReport, now: datetime) -> bool:
    """Records the end of a trainer that was never begun and never will be.

    A gang may be stopped before each host was told to start. An agent that has the stop in hand
    and runs nothing has no exit to tell of, and the attempt would wait for it for ever.
    """
    sight = see(connection, call.group, call.host)
    attempt = _current(sight) if sight else None
    if sight is None or attempt is None or call.running_attempt == attempt.number:
        return False
    mine = next((t for t in sight.trainers if t.rank == call.host), None)
    if _has_started(mine) or (mine is not None and mine.exited):
        return False
    stop = _stop_reason(sight, attempt)
    if stop is None and attempt.state is not AttemptState.DRAINING:
        return False
    told = commands_for(connection, call.group, call.host, storage_root="")
    if call.known_commands != commands_digest(told):
        return False
    values = {
        "exited_at": now,
        "killed_by_agent": True,
        "why_killed": f"never started; {stop or 'a stop was asked for'}",
    }
    key = {"run_id": attempt.run_id, "attempt": attempt.number, "rank": call.host}
    connection.execute(
        upsert(connection, trainers)
        .values(**key, **values)
        .on_conflict_do_update(index_elements=list(key), set_=values)
    )
    return True
