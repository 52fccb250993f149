"""From rows to what people read: incidents and events.

Owns the causal story of a stop. Must not write, nor import FastAPI.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from pydantic import TypeAdapter
from sqlalchemy import Connection

from orchestrator.api import cursors
from orchestrator.api.logs import clean
from orchestrator.api.schemas import (
    EventPage,
    EventView,
    EvidenceView,
    IncidentPage,
    IncidentView,
)
from orchestrator.api.stories import STORIES
from orchestrator.records import Evidence
from orchestrator.service import Service
from orchestrator.state import Verdict
from orchestrator.store import history
from orchestrator.store import views as rows
from orchestrator.store.wishes import find

EVIDENCE = TypeAdapter(tuple[Evidence, ...])
LINES = TypeAdapter(tuple[str, ...])


def events(
    connection: Connection,
    service: Service,
    id_or_name: str,
    cursor: str | None = None,
    limit: int = 100,
    kinds: Collection[str] = (),
) -> EventPage:
    """Oldest first, of these kinds alone where there are any; the cursor is an event's id."""
    run = find(connection, id_or_name)
    after = cursors.optional(cursors.number, cursor) or 0
    found = rows.events_after(connection, run.id, after, limit + 1, kinds)
    shown, more = cursors.page(found, limit, lambda row: str(row.id))
    return EventPage(items=tuple(_event(row) for row in shown), next_cursor=more)


def _event(row: rows.AnyRow) -> EventView:
    return EventView(
        id=row.id,
        attempt=row.attempt,
        rank=row.rank,
        kind=row.kind,
        at=row.at,
        body=json.loads(row.body),
    )


def incidents(
    connection: Connection, service: Service, id_or_name: str
) -> tuple[IncidentView, ...]:
    """Newest first."""
    run = find(connection, id_or_name)
    return _stories(connection, service, run, rows.incidents_of(connection, run.id))


def incident_page(
    connection: Connection,
    service: Service,
    id_or_name: str,
    cursor: str | None = None,
    limit: int = 100,
) -> IncidentPage:
    """Newest first; the cursor is the number of the last one shown."""
    run = find(connection, id_or_name)
    before = cursors.optional(cursors.number, cursor)
    found = rows.incidents_of(connection, run.id, before, limit + 1)
    shown, more = cursors.page(found, limit, lambda row: str(row.number))
    return IncidentPage(items=_stories(connection, service, run, shown), next_cursor=more)


def _stories(
    connection: Connection, service: Service, run: rows.AnyRow, opened: Sequence[rows.AnyRow]
) -> tuple[IncidentView, ...]:
    if not opened:
        return ()
    told = history.told(connection, run.id)
    made = {row.number: row for row in rows.attempts_of(connection, run.id)}
    return tuple(_story(connection, service, run, row, told, made) for row in opened)


def _story(
    connection: Connection,
    service: Service,
    run: rows.AnyRow,
    row: rows.AnyRow,
    told: Mapping[int, int],
    made: Mapping[int, rows.AnyRow],
) -> IncidentView:
    story = STORIES[Verdict(row.verdict)]
    waits = row.needs_person and row.closed_at is None
    last = _last_step_at(connection, run.id, row.attempt) or row.opened_at
    until = row.closed_at or service.clock.now()
    return IncidentView(
        number=row.number,
        attempt=row.attempt,
        verdict=row.verdict,
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        closed_by_attempt=row.closed_by_attempt,
        needs_person=waits,
        headline=story.headline.format(attempt=row.attempt),
        seen=evidence(row.evidence),
        concluded=f"{_sentence(clean(row.summary))} {story.concluded}",
        done=tuple(clean(line) for line in LINES.validate_json(row.done)),
        left=story.left if waits else (),
        command=story.command.format(name=run.name) if waits else None,
        how_to_tell=story.how_to_tell,
        lost_seconds=max(0.0, (until - last).total_seconds()),
        lost_steps=_lost_steps(connection, run.id, row.attempt, told, made),
    )


def _last_step_at(connection: Connection, run_id: str, attempt: int) -> datetime | None:
    point = rows.last_point(connection, run_id, attempt)
    return None if point is None else point.at


def _lost_steps(
    connection: Connection,
    run_id: str,
    attempt: int,
    told: Mapping[int, int],
    made: Mapping[int, rows.AnyRow],
) -> int:
    """Steps that the attempt told and that are, or would be, trained again."""
    reached = told.get(attempt, 0)
    following = made.get(attempt + 1)
    if following is not None:
        kept = following.resumed_from_step
    elif attempt in made:
        kept = rows.newest_usable_step(connection, run_id, made[attempt].branch)
    else:
        kept = reached
    return max(0, reached - kept)


def _sentence(words: str) -> str:
    words = words.strip()
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")


def evidence(text: str | None) -> tuple[EvidenceView, ...]:
    found = EVIDENCE.validate_json(text) if text else ()
    return tuple(EvidenceView(at=one.at, source=one.source, text=clean(one.text)) for one in found)
