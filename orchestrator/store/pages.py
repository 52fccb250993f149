"""Messages to the person on call: what is to be sent, and what became of it.

Owns the table `pages`. A row is made in the transaction that opens the incident, so that no crash
loses it. Must not import the API.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, and_, insert, or_, select, update

from orchestrator.store.tables import incidents, pages

KEPT_TRYING = timedelta(hours=24)
FIRST_WAIT = timedelta(seconds=5)
LONGEST_WAIT = timedelta(minutes=15)
OVER = "the incident closed before this was sent"


@dataclass(frozen=True)
class Page:
    """One message that is due. `closed`: nobody needs it any more."""

    id: int
    run_id: str
    incident: int
    created_at: datetime
    tries: int
    closed: bool

    def next_try(self, now: datetime, asked: timedelta = timedelta(0)) -> datetime | None:
        """When to try again after a try at `now` failed, not before `asked`; None: give up."""
        growing = FIRST_WAIT * 2 ** min(self.tries, 16)
        at = now + max(min(growing, LONGEST_WAIT), min(asked, LONGEST_WAIT))
        return at if at < self.created_at + KEPT_TRYING else None


def want(connection: Connection, run_id: str, incident: int, now: datetime) -> None:
    """The incident needs a person: they are to be told once."""
    connection.execute(
        insert(pages).values(run_id=run_id, incident=incident, created_at=now, next_try_at=now)
    )


def due(connection: Connection, now: datetime, limit: int) -> list[Page]:
    """Those whose time has come, the oldest first."""
    p, i = pages.c, incidents.c
    # One that was over as it was opened stopped nothing, and is told all the same.
    over = or_(i.closed_at > i.opened_at, i.needs_person.is_(False))
    query = (
        select(p.id, p.run_id, p.incident, p.created_at, p.tries, over.label("over"))
        .join(incidents, and_(i.run_id == p.run_id, i.number == p.incident))
        .where(p.sent_at.is_(None), p.given_up_at.is_(None), p.next_try_at <= now)
        .order_by(p.next_try_at, p.id)
        .limit(limit)
    )
    return [
        Page(
            id=row.id,
            run_id=row.run_id,
            incident=row.incident,
            created_at=row.created_at,
            tries=row.tries,
            closed=bool(row.over),
        )
        for row in connection.execute(query)
    ]


def sent(connection: Connection, page: Page, now: datetime) -> None:
    _update(connection, page, tries=page.tries + 1, sent_at=now, error=None)


def failed(
    connection: Connection, page: Page, now: datetime, error: str, next_try: datetime | None
) -> None:
    """Keeps the words of the failure; without a next try the page is given up."""
    again = {"given_up_at": now} if next_try is None else {"next_try_at": next_try}
    _update(connection, page, tries=page.tries + 1, error=error, **again)


def drop(connection: Connection, page: Page, now: datetime) -> None:
    """Nobody needs to be told any more."""
    _update(connection, page, given_up_at=now, error=OVER)


def _update(connection: Connection, page: Page, **values: object) -> None:
    connection.execute(update(pages).where(pages.c.id == page.id).values(**values))
