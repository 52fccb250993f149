"""From rows to what people read: incidents, events and log lines.

Owns the causal story of a stop and what of a log may be shown. Must not write, nor import FastAPI.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime

from pydantic import TypeAdapter
from sqlalchemy import Connection

from orchestrator.api.schemas import (
    EventPage,
    EventView,
    EvidenceView,
    IncidentView,
    LogLine,
    LogPage,
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
# Terminal sequences first, then whatever control character is left except the tab.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0a-\x1f\x7f-\x9f]"
)


def clean(line: str) -> str:
    """A machine's words without what could steer a terminal or a page."""
    return _CONTROL.sub("", line)


def events(
    connection: Connection, service: Service, id_or_name: str, after: int = 0, limit: int = 100
) -> EventPage:
    """Oldest first; `next_cursor` is the id to hand in as `after`."""
    run = find(connection, id_or_name)
    found = rows.events_after(connection, run.id, after, limit + 1)
    items = tuple(
        EventView(
            id=row.id,
            attempt=row.attempt,
            rank=row.rank,
            kind=row.kind,
            at=row.at,
            body=json.loads(row.body),
        )
        for row in found[:limit]
    )
    return EventPage(items=items, next_cursor=str(items[-1].id) if len(found) > limit else None)


def logs(
    connection: Connection,
    service: Service,
    id_or_name: str,
    after: int | None = None,
    attempt: int | None = None,
    limit: int = 200,
) -> LogPage:
    """The lines after id `after`, or the last `limit` ones; oldest first either way.

    `next_cursor` goes into `after` for the next page; None where no more lines are stored now.
    """
    run = find(connection, id_or_name)
    more = False
    if after is None:
        found = rows.log_tail(connection, run.id, limit, attempt)
    else:
        found = rows.log_after(connection, run.id, after, limit + 1, attempt)
        found, more = found[:limit], len(found) > limit
    items = tuple(log_line(row) for row in found)
    return LogPage(items=items, next_cursor=items[-1].id if more else None)


def log_line(row: rows.AnyRow) -> LogLine:
    return LogLine(id=row.id, attempt=row.attempt, rank=row.rank, at=row.at, line=clean(row.line))


def incidents(
    connection: Connection, service: Service, id_or_name: str
) -> tuple[IncidentView, ...]:
    """Newest first."""
    run = find(connection, id_or_name)
    told = history.told(connection, run.id)
    made = {row.number: row for row in rows.attempts_of(connection, run.id)}
    now = service.clock.now()
    found: list[IncidentView] = []
    for row in rows.incidents_of(connection, run.id):
        story = STORIES[Verdict(row.verdict)]
        waits = row.needs_person and row.closed_at is None
        last = _last_step_at(connection, run.id, row.attempt) or row.opened_at
        found.append(
            IncidentView(
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
                lost_seconds=max(0.0, ((row.closed_at or now) - last).total_seconds()),
                lost_steps=_lost_steps(connection, run.id, row.attempt, told, made),
            )
        )
    return tuple(found)


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
