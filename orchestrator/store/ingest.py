"""The agents' side of the database: registration, and every event stored exactly once.

A report and its acknowledged sequence number are one transaction. Events of an ended attempt are
kept as telemetry under their own attempt and change no state. Decides nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select, update

from orchestrator.records import Attempt
from orchestrator.state import AttemptState
from orchestrator.store import commands, ledger_events, rows
from orchestrator.store.callers import (
    LIVE_GROUPS,
    Caller,
    GroupNotWanted,
    ProtocolRefused,
    identify,
    identify_instance,
)
from orchestrator.store.tables import (
    attempts,
    evals,
    events,
    hosts,
    log_lines,
    metric_points,
    trainers,
    upsert,
)
from orchestrator.store.timeline import fit, line, tell
from worker.protocol import (
    SUPPORTED_PROTOCOLS,
    AgentReport,
    CheckpointRejected,
    CheckpointWritten,
    Envelope,
    Evaluated,
    HostNotice,
    LogLines,
    PhaseEntered,
    Register,
    Registered,
    Resumed,
    SaveFailed,
    StateNotFinite,
    StepBeat,
    StepCompleted,
    TrainerExited,
    TrainerFailed,
    TrainerFinished,
    TrainerStarted,
    Unknown,
)

LINE_LENGTH = 8192
INT_LIMIT = 1 << 31
BIG_LIMIT = 1 << 63
QUIET = StepCompleted | StepBeat | LogLines  # no line in the timeline
DECISIVE = (
    TrainerStarted
    | CheckpointRejected
    | StateNotFinite
    | TrainerFailed
    | TrainerFinished
    | TrainerExited
)


@dataclass(frozen=True)
class Stored:
    """What one report brought: `decisive` when a decision may depend on it, `exits` when the
    other hosts' commands may."""

    acked_seq: int
    run_id: str
    decisive: bool
    exits: bool
    kinds: Counter[str]
    dropped: int


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
    return Registered(protocol=call.protocol, acked_seq=caller.acked_seq)


def _take_over(connection: Connection, caller: Caller, call: Register, now: datetime) -> None:
    connection.execute(
        update(hosts)
        .where(hosts.c.group == call.group, hosts.c.index == call.host)
        .values(
            instance=call.instance,
            protocol=call.protocol,
            address=call.facts.address,
            free_port=call.facts.free_port,
            facts=call.facts.model_dump_json(),
            registered_at=now,
            last_seen_at=now,
            running_attempt=None,
        )
    )
    seen = {"group": call.group, "host": call.host, "hostname": call.facts.hostname}
    tell(connection, caller.run_id, "agent_registered", now, attempt=None, **seen)


def report(connection: Connection, call: AgentReport, secret: str, now: datetime) -> Stored:
    """Stores what is new in the report and acknowledges it. Raises `AgentRefused`.

    Sequence numbers may have gaps (a spool thins its telemetry when it is full), but only rising
    ones above the acknowledged are taken.
    """
    caller = identify_instance(connection, call.group, call.host, call.instance, secret)
    intake = _Intake(connection, caller, now)
    acked = caller.acked_seq
    for envelope in call.events:
        if acked < envelope.seq < BIG_LIMIT:
            acked = envelope.seq
            intake.take(envelope)
    intake.flush()
    seen: dict[str, object] = {
        "acked_seq": acked,
        "last_seen_at": now,
        "running_attempt": call.running_attempt,
    }
    if call.free_port is not None:
        seen["free_port"] = call.free_port
    here = (hosts.c.group == call.group, hosts.c.index == call.host)
    connection.execute(update(hosts).where(*here).values(seen))
    exits = intake.exits or commands.settle_never_started(connection, call, now)
    return Stored(
        acked, caller.run_id, intake.decisive or exits, exits, intake.kinds, intake.dropped
    )


class _Intake:
    """Sorts the events of one report into rows, then writes each table once."""

    def __init__(self, connection: Connection, caller: Caller, now: datetime) -> None:
        self.kinds: Counter[str] = Counter()
        self.dropped = 0
        self.decisive = False
        self.exits = False
        self._connection = connection
        self._caller = caller
        self._now = now
        self._attempts: dict[int, Attempt | None] = {}
        self._points: list[dict[str, object]] = []
        self._evals: list[dict[str, object]] = []
        self._notice: tuple[HostNotice, datetime] | None = None
        self._logs: list[dict[str, object]] = []
        self._lines: list[dict[str, object]] = []
        self._trainers: dict[int, dict[str, object]] = {}
        self._marks: dict[int, dict[str, datetime]] = {}
        self._ledger: list[tuple[Attempt, datetime, CheckpointWritten | CheckpointRejected]] = []

    def take(self, envelope: Envelope) -> None:
        attempt = self._attempt(envelope.attempt) if _storable(envelope) else None
        if attempt is None or envelope.rank != self._caller.host:
            self.dropped += 1
            return
        event = envelope.event
        at = min(envelope.at, self._now)
        self.kinds["unknown" if isinstance(event, Unknown) else event.kind] += 1
        self.decisive |= isinstance(event, DECISIVE)
        self._sort(envelope, attempt, at)
        if not isinstance(event, QUIET):
            told = line(
                self._caller.run_id,
                event.kind,
                at,
                self._now,
                event.model_dump(),
                attempt.number,
                envelope.rank,
            )
            self._lines.append(told)

    def _attempt(self, number: int) -> Attempt | None:
        """The caller's own attempt of that number, looked up once a report."""
        if number not in self._attempts:
            row = (
                self._connection.execute(
                    select(attempts).where(
                        attempts.c.run_id == self._caller.run_id,
                        attempts.c.number == number,
                        attempts.c.group == self._caller.group,
                    )
                )
                .mappings()
                .one_or_none()
            )
            self._attempts[number] = rows.attempt(row) if row else None
        return self._attempts[number]

    def _sort(self, envelope: Envelope, attempt: Attempt, at: datetime) -> None:
        event = envelope.event
        match event:
            case PhaseEntered():
                self._mark(attempt, "spawned_at", at)
                self._trainer(attempt, phase=event.phase.value, phase_at=at)
            case TrainerStarted():
                self._mark(attempt, "spawned_at", at)
                key = None if event.numerics_key is None else fit(event.numerics_key, LINE_LENGTH)
                self._trainer(attempt, pid=event.pid, numerics_key=key)
            case StepCompleted():
                self._mark(attempt, "first_step_at", at)
                self._trainer(attempt, last_step=event.step, last_step_at=at)
                self._points.append(_point(self._caller.run_id, attempt.number, at, event))
            case StepBeat():
                self._trainer(attempt, last_step=event.step, last_step_at=at)
            case Evaluated():
                self._evals.append(_eval(self._caller.run_id, attempt.number, at, event))
            case CheckpointWritten() | CheckpointRejected():
                self._ledger.append((attempt, at, event))
            case TrainerFailed():
                hint = None if event.hint is None else fit(event.hint, LINE_LENGTH)
                self._trainer(attempt, failure=fit(event.error, LINE_LENGTH), hint=hint)
            case TrainerFinished():
                self._trainer(attempt, finished_step=event.step, drained=event.drained)
            case TrainerExited():
                self.exits = True
                self._trainer(attempt, **_exit(event, at))
            case LogLines():
                self._logs += _log_rows(self._caller.run_id, envelope, at, event)
            case StateNotFinite():
                where = fit(event.where, LINE_LENGTH)
                self._trainer(attempt, diverged_step=event.step, diverged_where=where)
            case HostNotice():
                self._notice = (event, at)
                self.decisive = True
            case Resumed() | SaveFailed() | Unknown():
                pass

    def _mark(self, attempt: Attempt, column: str, at: datetime) -> None:
        """The first of its kind in the attempt; an ended attempt keeps what it had."""
        if attempt.state is AttemptState.ENDED or getattr(attempt, column) is not None:
            return
        if column not in self._marks.setdefault(attempt.number, {}):
            self._marks[attempt.number][column] = at
            self.decisive = True

    def _trainer(self, attempt: Attempt, **values: object) -> None:
        self._trainers.setdefault(attempt.number, {}).update(values)

    def flush(self) -> None:
        for number, values in self._trainers.items():
            self._upsert_trainer(number, values)
        for table, found in ((metric_points, self._points), (evals, self._evals)):
            if found:
                self._connection.execute(
                    upsert(self._connection, table).on_conflict_do_nothing(), found
                )
        for table, found in ((log_lines, self._logs), (events, self._lines)):
            if found:
                self._connection.execute(table.insert(), found)
        for number, marks in self._marks.items():
            self._mark_attempt(number, marks)
        if self._notice is not None:
            self._keep_notice(*self._notice)
        for attempt, at, event in self._ledger:
            ledger_events.note(self._connection, attempt, at, event)

    def _upsert_trainer(self, number: int, values: dict[str, object]) -> None:
        key = {"run_id": self._caller.run_id, "attempt": number, "rank": self._caller.host}
        self._connection.execute(
            upsert(self._connection, trainers)
            .values(**key, **values)
            .on_conflict_do_update(index_elements=list(key), set_=values)
        )

    def _keep_notice(self, event: HostNotice, at: datetime) -> None:
        """The host's newest word about its own end."""
        self._connection.execute(
            update(hosts)
            .where(hosts.c.group == self._caller.group, hosts.c.index == self._caller.host)
            .values(notice=event.notice, notice_at=at, notice_text=fit(event.text, LINE_LENGTH))
        )

    def _mark_attempt(self, number: int, marks: dict[str, datetime]) -> None:
        """Each mark once, whichever host told first."""
        for column, at in marks.items():
            self._connection.execute(
                update(attempts)
                .where(
                    attempts.c.run_id == self._caller.run_id,
                    attempts.c.number == number,
                    attempts.c.state != AttemptState.ENDED,
                    attempts.c[column].is_(None),
                )
                .values({column: at})
            )


def _storable(envelope: Envelope) -> bool:
    """Numbers that no column holds would make the same report fail for ever."""
    if abs(envelope.attempt) >= INT_LIMIT:
        return False
    if isinstance(envelope.event, Unknown):
        return True
    numbers = {
        name: value
        for name, value in envelope.event.__dict__.items()
        if isinstance(value, int) and name != "bytes"
    }
    large = getattr(envelope.event, "bytes", 0)
    return all(abs(value) < INT_LIMIT for value in numbers.values()) and abs(large) < BIG_LIMIT


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _point(run_id: str, attempt: int, at: datetime, event: StepCompleted) -> dict[str, object]:
    return {
        "run_id": run_id,
        "attempt": attempt,
        "step": event.step,
        "at": at,
        "loss": _finite(event.loss),
        "grad_norm": _finite(event.grad_norm),
        "learning_rate": _finite(event.learning_rate) or 0.0,
        "tokens": event.tokens,
        "seconds": _finite(event.seconds) or 0.0,
        "data_wait": _finite(event.data_wait) or 0.0,
        "batch_hash": fit(event.batch_hash, 32),
    }


def _eval(run_id: str, attempt: int, at: datetime, event: Evaluated) -> dict[str, object]:
    return {
        "run_id": run_id,
        "attempt": attempt,
        "step": event.step,
        "at": at,
        "loss": _finite(event.loss),
        "batches": event.batches,
        "seconds": _finite(event.seconds) or 0.0,
    }


def _exit(event: TrainerExited, at: datetime) -> dict[str, object]:
    values: dict[str, object] = {
        "exited_at": at,
        "exit_code": event.exit_code,
        "signal": event.signal,
        "killed_by_agent": event.killed_by_agent,
        "why_killed": None if event.why_killed is None else fit(event.why_killed, LINE_LENGTH),
        "killed_for": event.killed_for,
        "memory_killer": None
        if event.memory_killer is None
        else fit(event.memory_killer, LINE_LENGTH),
        "last_lines": rows.lines_text(tuple(fit(text, LINE_LENGTH) for text in event.last_lines)),
    }
    if event.last_step is not None:
        values["last_step"] = event.last_step
    return values


def _log_rows(
    run_id: str, envelope: Envelope, at: datetime, event: LogLines
) -> list[dict[str, object]]:
    return [
        {
            "run_id": run_id,
            "attempt": envelope.attempt,
            "rank": envelope.rank,
            "at": at,
            "line": fit(text, LINE_LENGTH),
        }
        for text in event.lines
    ]
