"""What an agent is told to do, derived from rows at every look.

Level-triggered: nothing is queued, so nothing can be lost or obeyed twice. The same rows give the
same bytes, because an agent's long poll ends when the digest of its commands changes.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, bindparam, func, select

from orchestrator.reconcile.evidence import how_it_ended
from orchestrator.reconcile.versions import understood
from orchestrator.records import Attempt, Host, Trainer
from orchestrator.state import AttemptState, Desired, GroupState
from orchestrator.store import giving_up, reads, rows
from orchestrator.store.rows import AnyRow
from orchestrator.store.tables import attempts, host_groups, hosts, runs, trainers, upsert
from worker.protocol import (
    AttemptSpec,
    Command,
    DeleteCheckpoints,
    DrainTrainer,
    Drill,
    ExitCode,
    KillTrainer,
    LeaveAt,
    ResumePoint,
    Retire,
    SaveNow,
    StandBy,
    StartTrainer,
)

NO_COMMANDS = ""


@dataclass(frozen=True)
class Sight:
    """What the commands for one host follow from; `attempt` is the run's last one.

    `branch` is the run's; an attempt on another one has nothing to save.
    """

    group_state: GroupState
    desired: Desired
    host: Host
    attempt: Attempt | None
    trainers: tuple[Trainer, ...]
    branch: int | None = None
    save_request: int = 0  # the newest wish for a save that no checkpoint has answered, else 0
    standby: str | None = None  # where host 0's spare is to be met
    newest: ResumePoint | None = None  # what the next attempt would begin with, for such a spare
    to_delete: tuple[str, ...] = ()  # folders of the run's deleted checkpoints that may remain


def commands_for(
    connection: Connection, group: str, host: int, storage_root: str
) -> tuple[Command, ...]:
    """The commands for one host of a group; none for a host that is not known."""
    sight = see(connection, group, host)
    return () if sight is None else commands_of(connection, sight, storage_root)


def commands_of(connection: Connection, sight: Sight, storage_root: str) -> tuple[Command, ...]:
    """The commands that follow from `sight`."""

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
        return (*_of_the_past(sight), *_deletes(sight), Retire())
    return (*_of_trainers(sight, spec), *_deletes(sight))


def _of_the_past(sight: Sight) -> tuple[Command, ...]:
    """What a host that was cut off still trains when it comes back, which counts no more: it is
    ended for that, and says so, before its agent leaves."""
    running = sight.host.running_attempt
    if running is None or _current(sight) is not None:
        return ()
    return (KillTrainer(attempt=running, reason=_why_not_current(sight, running)),)


def _deletes(sight: Sight) -> tuple[Command, ...]:
    """By host 0, which told of the saves too; what is gone is told as of the run's last attempt."""
    last = sight.attempt
    mine = last is not None and last.group == sight.host.group and sight.host.index == 0
    if last is None or not mine or not sight.to_delete:
        return ()
    return (DeleteCheckpoints(run_id=last.run_id, attempt=last.number, uris=sight.to_delete),)


def _of_trainers(sight: Sight, spec: Callable[[Attempt], AttemptSpec]) -> tuple[Command, ...]:
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
    leave = _leave(sight, attempt, mine) if running else []
    if attempt.state is AttemptState.DRAINING:
        grace = spec(attempt).job.policy.grace_seconds
        return [DrainTrainer(attempt=attempt.number, grace_seconds=grace), *leave]
    if leave:
        return leave
    if running and rank == 0 and attempt.drill is not None:
        return [Drill(attempt=attempt.number, victim=attempt.drill)]
    if running and _saves(sight):
        return [SaveNow(attempt=attempt.number, request=sight.save_request)]
    if running and rank > 0 and sight.standby is not None:
        return [StandBy(attempt=attempt.number, coordinator=sight.standby, point=sight.newest)]
    if running or _has_started(mine) or not _registered_before(sight.host, attempt):
        return []
    return [StartTrainer(spec=spec(attempt), rank=rank)]


def _leave(sight: Sight, attempt: Attempt, mine: Trainer | None) -> list[Command]:
    """The processes of a program's gang leave together: after the first step that none of them
    has answered for. Until each has told, the others hear that it is time to."""
    told = [one.leave_after for one in sight.trainers if one.leave_after is not None]
    if not told:
        return []
    if mine is None or mine.leave_after is None:
        return [LeaveAt(attempt=attempt.number)]
    silent = [one for one in sight.trainers if one.exited and one.leave_after is None]
    if len(told) + len(silent) < attempt.processes:
        return []
    # With the word of those that have left by now: what the others were told stays as it was.
    return [LeaveAt(attempt=attempt.number, step=max(told) + 1)]


def _saves(sight: Sight) -> bool:
    """Host 0 alone is told: the wish goes round the gang with the next step, and two hosts that
    hear of it at different steps would save twice."""
    return sight.save_request > 0 and sight.host.index == 0


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
    if attempt.state is AttemptState.DRAINING and sight.branch not in (None, attempt.branch):
        return f"the run goes on as branch {sight.branch}"
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
    if last is not None and last.number > running:
        return f"attempt {running} is superseded by attempt {last.number}"
    return f"attempt {running} is not the run's current one"


def see(connection: Connection, group: str, host: int) -> Sight | None:
    return see_all(connection, [(group, host)]).get((group, host))


def see_all(
    connection: Connection, wanted: Collection[tuple[str, int]]
) -> dict[tuple[str, int], Sight]:
    """What the commands for these (group, index) follow from; unknown hosts are left out.

    A few more hosts of the same groups may be among them.
    """
    owners = _owners(connection, {group for group, _ in wanted})
    last = _last_attempts(connection, {row.run_id for row in owners.values()})
    gangs = _gangs(connection, last.values())
    meeting = {row.run_id for row in owners.values() if row.standby is not None}
    newest = reads.newest_points(connection, [last[run] for run in meeting if run in last])
    left = giving_up.left_to_delete(connection, {row.run_id for row in owners.values()})
    indices = {index for _, index in wanted}
    found = connection.execute(_HOSTS, {"groups": list(owners), "indices": list(indices)})
    sights: dict[tuple[str, int], Sight] = {}
    for host in map(rows.host, found.mappings()):
        owner = owners[host.group]
        sights[host.group, host.index] = Sight(
            group_state=GroupState(owner.state),
            desired=Desired(owner.desired),
            host=host,
            attempt=last.get(owner.run_id),
            trainers=tuple(gangs[owner.run_id]),
            branch=owner.branch,
            standby=owner.standby,
            newest=newest.get(owner.run_id),
            save_request=owner.save_request if owner.save_request > owner.save_served else 0,
            to_delete=left.get(owner.run_id, ()),
        )
    return sights


# Made once: agents report all the time, and to make a statement costs more than to run it.
_HOSTS = select(hosts).where(
    hosts.c.group.in_(bindparam("groups", expanding=True)),
    hosts.c.index.in_(bindparam("indices", expanding=True)),
)
_first = hosts.alias("first")
_OWNERS = (
    select(
        host_groups.c.name,
        host_groups.c.state,
        host_groups.c.run_id,
        runs.c.desired,
        runs.c.branch,
        runs.c.save_request,
        runs.c.save_served,
        _first.c.standby,
    )
    .join(runs, runs.c.id == host_groups.c.run_id)
    .outerjoin(_first, and_(_first.c.group == host_groups.c.name, _first.c.index == 0))
    .where(host_groups.c.name.in_(bindparam("groups", expanding=True)))
)
_later = attempts.alias("later")
_LAST_ATTEMPTS = select(attempts).where(
    attempts.c.run_id.in_(bindparam("runs", expanding=True)),
    attempts.c.number
    == select(func.max(_later.c.number))
    .where(_later.c.run_id == attempts.c.run_id)
    .correlate(attempts)
    .scalar_subquery(),
)
_GANGS = (
    select(trainers)
    .where(
        trainers.c.run_id.in_(bindparam("runs", expanding=True)),
        trainers.c.attempt.in_(bindparam("numbers", expanding=True)),
    )
    .order_by(trainers.c.run_id, trainers.c.rank)
)


def _owners(connection: Connection, groups: Collection[str]) -> dict[str, AnyRow]:
    """Each group's state with its run and what people want of that."""
    found = connection.execute(_OWNERS, {"groups": list(groups)})
    return {row.name: row for row in found.all()}


def _last_attempts(connection: Connection, run_ids: Collection[str]) -> dict[str, Attempt]:
    found = connection.execute(_LAST_ATTEMPTS, {"runs": list(run_ids)})
    return {attempt.run_id: attempt for attempt in map(rows.attempt, found.mappings())}


def _gangs(
    connection: Connection, of_attempts: Collection[Attempt]
) -> defaultdict[str, list[Trainer]]:
    """The trainers of these attempts by run, in order of their ranks."""
    numbers = {attempt.run_id: attempt.number for attempt in of_attempts}
    gangs: defaultdict[str, list[Trainer]] = defaultdict(list)
    wanted = {"runs": list(numbers), "numbers": list(set(numbers.values()))}
    for row in connection.execute(_GANGS, wanted).mappings():
        if row["attempt"] == numbers[row["run_id"]]:
            gangs[row["run_id"]].append(rows.trainer(row))
    return gangs


def settle_never_started(
    connection: Connection, sight: Sight, known_commands: str, now: datetime
) -> bool:
    """Records the end of a trainer that was never begun and never will be.

    A gang may be stopped before each host was told to start. An agent that has the stop in hand
    (`known_commands` is its digest) and runs nothing has no exit to tell of, and the attempt would
    wait for it for ever.
    """
    attempt, host = _current(sight), sight.host
    if attempt is None or host.running_attempt == attempt.number:
        return False
    mine = next((t for t in sight.trainers if t.rank == host.index), None)
    if _has_started(mine) or (mine is not None and mine.exited):
        return False
    stop = _stop_reason(sight, attempt)
    if stop is None and attempt.state is not AttemptState.DRAINING:
        return False
    if known_commands != commands_digest(commands_of(connection, sight, storage_root="")):
        return False
    values = {
        "exited_at": now,
        "killed_by_agent": True,
        "why_killed": f"never started; {stop or 'a stop was asked for'}",
    }
    key = {"run_id": attempt.run_id, "attempt": attempt.number, "rank": host.index}
    connection.execute(
        upsert(connection, trainers)
        .values(**key, **values)
        .on_conflict_do_update(index_elements=list(key), set_=values)
    )
    return True
