"""From rows to what people read: incidents and events.

Owns the causal story of a stop. Must not write, nor import FastAPI.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from itertools import pairwise

from pydantic import TypeAdapter
from sqlalchemy import Connection

from orchestrator.api import cursors
from orchestrator.api.history_schemas import EventPage, EventView
from orchestrator.api.logs import clean
from orchestrator.api.schemas import EvidenceView, IncidentPage, IncidentView
from orchestrator.api.stories import STORIES
from orchestrator.records import Evidence
from orchestrator.service import Service
from orchestrator.state import RETRY_CLASS, Desired, RetryClass, RunState, Verdict
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
    opened = rows.incidents_of(connection, run.id)
    return _stories(connection, service, run, opened, opened)


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
    stories = _stories(connection, service, run, shown, found)
    return IncidentPage(items=stories, next_cursor=more)


def needs_person(run: rows.AnyRow) -> bool:
    """Failed, or paused by Longhaul itself, and nobody has wished anything since."""
    asked = run.desired_generation > run.settled_generation
    if run.state == RunState.FAILED:
        return not (asked and run.desired == Desired.RUN)
    return run.state == RunState.PAUSED and run.desired == Desired.RUN and not asked


def _stories(
    connection: Connection,
    service: Service,
    run: rows.AnyRow,
    opened: Sequence[rows.AnyRow],
    known: Sequence[rows.AnyRow],
) -> tuple[IncidentView, ...]:
    """Of `opened`; `known` holds the one before the oldest of them too, where there is one."""
    if not opened:
        return ()
    before = {row.number: older for row, older in pairwise(known)}
    told = history.told(connection, run.id)
    made = {row.number: row for row in rows.attempts_of(connection, run.id)}
    return tuple(
        _story(connection, service, run, row, before.get(row.number), told, made) for row in opened
    )


def _story(
    connection: Connection,
    service: Service,
    run: rows.AnyRow,
    row: rows.AnyRow,
    before: rows.AnyRow | None,
    told: Mapping[int, int],
    made: Mapping[int, rows.AnyRow],
) -> IncidentView:
    story = STORIES[Verdict(row.verdict)]
    waits = row.needs_person and row.closed_at is None and needs_person(run)
    stopped = RETRY_CLASS[Verdict(row.verdict)] is not RetryClass.GO_ON
    since = _lost_since(connection, run.id, row, before, made.get(row.attempt))
    until = row.closed_at or service.clock.now()
    ended = made.get(row.attempt)
    drill = ended is not None and ended.drill is not None and stopped
    headline = story.headline.format(attempt=row.attempt)
    return IncidentView(
        number=row.number,
        attempt=row.attempt,
        verdict=row.verdict,
        opened_at=row.opened_at,
        closed_at=row.closed_at,
        closed_by_attempt=row.closed_by_attempt,
        needs_person=waits,
        asked_person=row.needs_person,
        headline=f"Drill: {headline[:1].lower()}{headline[1:]}" if drill else headline,
        seen=evidence(row.evidence),
        concluded=f"{sentence(clean(row.summary))} {story.concluded}",
        done=tuple(clean(line) for line in LINES.validate_json(row.done)),
        left=tuple(one.format(name=run.name) for one in story.left) if waits or not stopped else (),
        command=story.command.format(name=run.name) if waits else None,
        how_to_tell=story.how_to_tell,
        lost_seconds=max(0.0, (until - since).total_seconds()) if stopped else 0.0,
        lost_steps=_lost_steps(connection, run.id, row.attempt, told, made) if stopped else 0,
        stopped=stopped,
        drill=drill,
        runbook=runbook(service, Verdict(row.verdict)),
    )


def runbook(service: Service, verdict: Verdict) -> str:
    base = service.settings.public_url or service.settings.url
    return f"{base}/runbook#{verdict}"


def _lost_since(
    connection: Connection,
    run_id: str,
    row: rows.AnyRow,
    before: rows.AnyRow | None,
    attempt: rows.AnyRow | None,
) -> datetime:
    """The last step before the stop, where it was this stop that ended the attempt.

    No second counts for two stops: a new one closes the one before.
    """
    ended_it = attempt is not None and attempt.verdict == row.verdict
    point = rows.last_point(connection, run_id, row.attempt) if ended_it else None
    since = row.opened_at if point is None else point.at
    return max(since, before.closed_at) if before is not None and before.closed_at else since


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


def sentence(words: str) -> str:
    """With a capital and a full stop; a field's name at its start is kept as it must be typed."""
    words = words.strip()
    first = words.split(" ", 1)[0]
    begun = words if "." in first or "_" in first else words[:1].upper() + words[1:]
    return begun + ("" if words.endswith((".", "!", "?")) else ".")


def evidence(text: str | None) -> tuple[EvidenceView, ...]:
    found = EVIDENCE.validate_json(text) if text else ()
    return tuple(EvidenceView(at=one.at, source=one.source, text=clean(one.text)) for one in found)
