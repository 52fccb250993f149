"""Rows of many reports, gathered and written together, once for each table.

Owns the statements; what becomes a row is `intake.py`'s. Decides nothing.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, Executable, bindparam, func, update

from orchestrator.records import Attempt
from orchestrator.store import bulk, ledger_events, replaying, rollups
from orchestrator.store.callers import Caller
from orchestrator.store.conditions import CURRENT
from orchestrator.store.ledger_events import LedgerEvent
from orchestrator.store.tables import attempts, evals, events, hosts, log_lines, trainers, upsert
from orchestrator.store.timeline import fit
from worker.protocol import HostNotice

LINE_LENGTH = 8192
LOG_COLUMNS = ("run_id", "attempt", "rank", "at", "line")
INFINITE = 1e9

AttemptKey = tuple[str, int]
TrainerKey = tuple[str, int, int]


@dataclass
class Gathered:
    """Rows of one or more reports, to be written together."""

    points: list[tuple[bulk.Cell, ...]] = field(default_factory=list)
    again: dict[AttemptKey, replaying.Span] = field(default_factory=dict)
    logs: list[tuple[bulk.Cell, ...]] = field(default_factory=list)
    evals: list[dict[str, object]] = field(default_factory=list)
    lines: list[dict[str, object]] = field(default_factory=list)
    trainers: dict[TrainerKey, dict[str, object]] = field(default_factory=dict)
    marks: dict[AttemptKey, dict[str, datetime]] = field(default_factory=dict)
    starts: list[tuple[AttemptKey, str, float]] = field(default_factory=list)
    paces: list[dict[str, object]] = field(default_factory=list)
    notices: list[tuple[Caller, HostNotice, datetime]] = field(default_factory=list)
    ledger: list[tuple[Attempt, datetime, LedgerEvent]] = field(default_factory=list)

    def write(self, connection: Connection) -> set[str]:
        """Returns the runs of which the rows themselves showed something to decide about."""
        self._write_trainers(connection)
        rollups.store_points(connection, self.points)
        bulk.insert_rows(connection, log_lines, LOG_COLUMNS, self.logs)
        if self.evals:
            statement = upsert(connection, evals).on_conflict_do_nothing()
            connection.execute(statement, self.evals)
        if self.lines:
            connection.execute(events.insert(), self.lines)
        for key, marks in self.marks.items():
            _mark_attempt(connection, key, marks)
        for key, column, seconds in self.starts:
            _time_start(connection, key, column, seconds)
        if self.paces:
            connection.execute(_BEST_PACE, self.paces)
        for caller, event, at in self.notices:
            _keep_notice(connection, caller, event, at)
        for attempt, at, event in self.ledger:
            ledger_events.note(connection, attempt, at, event)
        return replaying.compare(connection, self.again)

    def _write_trainers(self, connection: Connection) -> None:
        """One statement for all trainers of which the same columns are told."""
        alike: defaultdict[tuple[str, ...], list[dict[str, object]]] = defaultdict(list)
        for (run_id, attempt, rank), values in sorted(self.trainers.items()):
            key = {"run_id": run_id, "attempt": attempt, "rank": rank}
            alike[tuple(sorted(values))].append(key | values)
        for columns, found in alike.items():
            connection.execute(_upsert_trainers(connection, columns), found)


_UPSERTS: dict[tuple[str, ...], Executable] = {}


def _upsert_trainers(connection: Connection, columns: tuple[str, ...]) -> Executable:
    """Made once for each of the few sets of columns: to make one costs more than to run it."""
    key = (connection.dialect.name, *columns)
    if key not in _UPSERTS:
        statement = upsert(connection, trainers)
        _UPSERTS[key] = statement.on_conflict_do_update(
            index_elements=["run_id", "attempt", "rank"],
            set_={column: statement.excluded[column] for column in columns},
        )
    return _UPSERTS[key]


def _time_start(connection: Connection, key: AttemptKey, column: str, seconds: float) -> None:
    run_id, number = key
    before = func.coalesce(attempts.c[column], 0.0)
    connection.execute(
        update(attempts)
        .where(attempts.c.run_id == run_id, attempts.c.number == number, CURRENT)
        .values({column: before + seconds})
    )


_BEST_PACE = (
    update(attempts)
    .where(
        attempts.c.run_id == bindparam("of_run"),
        attempts.c.number == bindparam("of_attempt"),
        CURRENT,
        func.coalesce(attempts.c.best_pace_seconds, INFINITE) > bindparam("told"),
    )
    .values(best_pace_seconds=bindparam("told"))
)


def _mark_attempt(connection: Connection, key: AttemptKey, marks: dict[str, datetime]) -> None:
    """Each mark once, whichever host told first."""
    run_id, number = key
    for column, at in marks.items():
        connection.execute(
            update(attempts)
            .where(
                attempts.c.run_id == run_id,
                attempts.c.number == number,
                CURRENT,
                attempts.c[column].is_(None),
            )
            .values({column: at})
        )


def _keep_notice(connection: Connection, caller: Caller, event: HostNotice, at: datetime) -> None:
    """The host's newest word about its own end."""
    connection.execute(
        update(hosts)
        .where(hosts.c.group == caller.group, hosts.c.index == caller.host)
        .values(notice=event.notice, notice_at=at, notice_text=fit(event.text, LINE_LENGTH))
    )
