"""Reads of log lines.

Lines are told in the order of their ids. On PostgreSQL two replicas may commit ids out of order, so
a reader who remembers the last id would miss the later commit of a lower one: such reads leave out
what is newer than the oldest transaction still under way. Must not import the API.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Row,
    and_,
    literal_column,
    not_,
    select,
    true,
)

from orchestrator.store.tables import log_lines


@dataclass(frozen=True)
class Lines:
    """Which lines of a run: beyond the ids `after` and `before`, of one attempt, host and time.

    `since` is included and `until` is not.
    """

    after: int | None = None
    before: int | None = None
    attempt: int | None = None
    rank: int | None = None
    since: datetime | None = None
    until: datetime | None = None


ALL_LINES = Lines()


def lines(
    connection: Connection,
    run_id: str,
    wanted: Lines = ALL_LINES,
    limit: int = 1000,
    *,
    newest: bool = False,
) -> Sequence[Row[*tuple[Any, ...]]]:
    """The first `limit` lines in order, or the `newest` ones, newest first."""
    line = log_lines.c
    query = select(log_lines).where(line.run_id == run_id, *_wanted(wanted), *_settled(connection))
    order = line.id.desc() if newest else line.id
    return connection.execute(query.order_by(order).limit(limit)).all()


def held_back(connection: Connection, run_id: str, after: int) -> bool:
    """Whether `lines` leaves out some beyond the id `after`; it has to be asked again for them."""
    line = log_lines.c
    settled = and_(true(), *_settled(connection))
    query = select(line.id).where(line.run_id == run_id, line.id > after, not_(settled))
    return connection.execute(query.limit(1)).first() is not None


def _wanted(wanted: Lines) -> Iterator[ColumnElement[bool]]:
    line = log_lines.c
    if wanted.after is not None:
        yield line.id > wanted.after
    if wanted.before is not None:
        yield line.id < wanted.before
    if wanted.attempt is not None:
        yield line.attempt == wanted.attempt
    if wanted.rank is not None:
        yield line.rank == wanted.rank
    if wanted.since is not None:
        yield line.at >= wanted.since
    if wanted.until is not None:
        yield line.at < wanted.until


def _settled(connection: Connection) -> Iterator[ColumnElement[bool]]:
    """No line that a transaction still under way could get between this one and earlier ones."""
    if connection.dialect.name == "postgresql":
        yield literal_column(
            "age(log_lines.xmin) > age((mod(pg_snapshot_xmin(pg_current_snapshot())::text::numeric,"
            " 4294967296))::text::xid)",
            Boolean,
        )
