"""The agents' side of the database: registration, and every event stored exactly once.

A report and its acknowledged sequence number are one transaction. The reports that came together
are written together, each still refused or taken by itself. Decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Integer, bindparam, func, select, update

from orchestrator.store import commands
from orchestrator.store.callers import (
    LIVE_GROUPS,
    AgentRefused,
    Caller,
    GroupNotWanted,
    Known,
    ProtocolRefused,
    identify,
    known_hosts,
    prove_instance,
)
from orchestrator.store.gathered import Gathered
from orchestrator.store.intake import Intake, find_attempts
from orchestrator.store.tables import attempts, hosts
from orchestrator.store.timeline import tell
from worker.protocol import SUPPORTED_PROTOCOLS, AgentReport, Command, Register, Registered

PLACE_LENGTH = 100


@dataclass(frozen=True)
class Delivery:
    """One report as it arrived, with the secret that its sender showed.

    `storage_root` is where attempts that it may be told to start keep their files.
    """

    call: AgentReport
    secret: str
    now: datetime
    storage_root: str = ""

    @property
    def host(self) -> tuple[str, int]:
        return self.call.group, self.call.host


@dataclass(frozen=True)
class Stored:
    """What one report brought: `decisive` when a decision may depend on it, `exits` when the
    other hosts' commands may: also where host 0's spare is to be met elsewhere now. `commands` are
    the sender's own, as of the same transaction."""

    acked_seq: int
    run_id: str
    decisive: bool
    exits: bool
    kinds: Counter[str]
    dropped: int
    commands: tuple[Command, ...] = ()


def register(connection: Connection, call: Register, secret: str, now: datetime) -> Registered:
    """Lets a new agent process speak for its host; the one before is refused from now on.

    Repeated by the same process, it changes nothing. Raises `AgentRefused`.
    """
    caller = identify(connection, call.group, call.host, secret)
    if call.protocol not in SUPPORTED_PROTOCOLS:
        known = ", ".join(map(str, sorted(SUPPORTED_PROTOCOLS)))
        raise ProtocolRefused(f"protocol {call.protocol} is not served here, only {known}")
    if caller.group_state not in LIVE_GROUPS:
        raise GroupNotWanted(f"host group {call.group} is {caller.group_state}")
    if caller.instance != call.instance:
        _take_over(connection, caller, call, now)
    return Registered(protocol=call.protocol, acked_seq=caller.acked_seq, at=now)


def _take_over(connection: Connection, caller: Caller, call: Register, now: datetime) -> None:
    """The agent came after the run's attempts, also by a clock that has been set back since."""
    newest = connection.scalar(
        select(func.max(attempts.c.created_at)).where(attempts.c.run_id == caller.run_id)
    )
    came_at = now if newest is None else max(now, newest + timedelta(microseconds=1))
    connection.execute(
        update(hosts)
        .where(hosts.c.group == call.group, hosts.c.index == call.host)
        .values(
            instance=call.instance,
            protocol=call.protocol,
            address=call.facts.address,
            free_port=call.facts.free_port,
            facts=call.facts.model_dump_json(),
            registered_at=came_at,
            last_seen_at=now,
            spoke_at=None,
            running_attempt=None,
            standby=None,
            standby_ready=False,
        )
    )
    seen = {"group": call.group, "host": call.host, "hostname": call.facts.hostname}
    tell(connection, caller.run_id, "agent_registered", now, attempt=None, **seen)


def report(connection: Connection, call: AgentReport, secret: str, now: datetime) -> Stored:
    """Stores what is new in the report and acknowledges it. Raises `AgentRefused`."""
    [outcome] = reports(connection, [Delivery(call, secret, now)])
    if isinstance(outcome, AgentRefused):
        raise outcome
    return outcome


def reports(connection: Connection, deliveries: Sequence[Delivery]) -> list[Stored | AgentRefused]:
    """Stores what is new in each report, in order, and answers each sender by itself.

    Sequence numbers may have gaps (a spool thins its telemetry when it is full), but only rising
    ones above the acknowledged are taken.
    """
    known = known_hosts(connection, {one.host for one in deliveries})
    proven = [_prove(known.get(one.host), one) for one in deliveries]
    taken = [
        (one, caller)
        for one, caller in zip(deliveries, proven, strict=True)
        if isinstance(caller, Caller)
    ]
    answers = iter(_store(connection, taken))
    return [next(answers) if isinstance(caller, Caller) else caller for caller in proven]


def _prove(known: Known | None, one: Delivery) -> Caller | AgentRefused:
    try:
        return prove_instance(known, one.call.instance, one.secret)
    except AgentRefused as refusal:
        return refusal


_Taken = tuple[Delivery, Caller]


def _store(connection: Connection, taken: Sequence[_Taken]) -> list[Stored]:
    named = {(caller.run_id, e.attempt) for one, caller in taken for e in one.call.events}
    known = find_attempts(connection, named) if named else {}
    gathered = Gathered()
    acked = {one.host: caller.acked_seq for one, caller in taken}
    intakes: list[Intake] = []
    for one, caller in taken:
        intake = Intake(gathered, caller, known, one.now)
        acked[one.host] = intake.take_after(acked[one.host], one.call.events)
        intake.exits |= caller.host == 0 and one.call.standby != caller.standby
        intakes.append(intake)
    differing = gathered.write(connection)
    for intake in intakes:
        intake.decisive |= intake.run_id in differing
    _acknowledge(connection, [one for one, _ in taken], acked)
    return _answers(connection, taken, intakes)


def _acknowledge(
    connection: Connection, deliveries: Sequence[Delivery], acked: Mapping[tuple[str, int], int]
) -> None:
    """One row for each host; of two reports of the same, the later one tells how it is."""
    values = {
        one.host: {
            "of_group": one.call.group,
            "of_host": one.call.host,
            "acked": acked[one.host],
            "now": one.now,
            "spoke": _spoke_at(one),
            "running": one.call.running_attempt,
            "port": one.call.free_port,
            "place": _place(one.call.standby),
            "ready": one.call.standby_ready,
        }
        for one in deliveries
    }
    if values:
        connection.execute(_SEEN, [values[host] for host in sorted(values)])


def _spoke_at(one: Delivery) -> datetime | None:
    """None also where that would be in the future: the clock was set back since."""
    answered_at = one.call.answered_at
    return None if answered_at is None or answered_at > one.now else answered_at


def _place(standby: str | None) -> str | None:
    """None also for what no address is so long as."""
    return standby if standby is None or len(standby) <= PLACE_LENGTH else None


_SEEN = (
    update(hosts)
    .where(hosts.c.group == bindparam("of_group"), hosts.c.index == bindparam("of_host"))
    .values(
        acked_seq=bindparam("acked"),
        last_seen_at=bindparam("now"),
        spoke_at=bindparam("spoke"),
        running_attempt=bindparam("running"),
        standby=bindparam("place"),
        standby_ready=bindparam("ready"),
        free_port=func.coalesce(bindparam("port", type_=Integer), hosts.c.free_port),
    )
)


def _answers(
    connection: Connection, taken: Sequence[_Taken], intakes: Sequence[Intake]
) -> list[Stored]:
    sights = commands.see_all(connection, {one.host for one, _ in taken}) if taken else {}
    found: list[Stored] = []
    for (one, caller), intake in zip(taken, intakes, strict=True):
        sight = sights.get(one.host)
        told: tuple[Command, ...] = ()
        if sight is not None:
            if commands.settle_never_started(connection, sight, one.call.known_commands, one.now):
                intake.exits = intake.decisive = True
                sight = commands.see(connection, *one.host) or sight
            told = commands.commands_of(connection, sight, one.storage_root)
        found.append(
            Stored(
                acked_seq=intake.acked,
                run_id=caller.run_id,
                decisive=intake.decisive,
                exits=intake.exits,
                kinds=intake.kinds,
                dropped=intake.dropped,
                commands=told,
            )
        )
    return found
