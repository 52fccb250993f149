"""The audit log: who did what, from where, and what was so before and after.

Rows are only ever added; triggers of the database refuse everything else. A note is written in the
transaction of the deed, so neither exists without the other. No secret may be handed in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from orchestrator.roles import Role
from orchestrator.store.tables import audit

TARGET_LENGTH = 120
_FACTS = ("before", "after")


@dataclass(frozen=True)
class Actor:
    """A person at work: their name, the role that they act in, and the address they come from.

    `remote` is None where it is not known; `token` is the id of the token that let them in.
    """

    name: str
    role: Role
    remote: str | None
    token: str | None = None


@dataclass(frozen=True)
class Entry:
    """One row of the log."""

    id: int
    at: datetime
    actor: str
    role: str
    remote: str | None
    token_id: str | None
    action: str
    target: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def note(
    connection: Connection,
    now: datetime,
    who: Actor,
    action: str,
    target: str | None,
    before: Mapping[str, object] | None = None,
    after: Mapping[str, object] | None = None,
) -> None:
    """Adds one row; `action` is like 'run.pause', `target` the id of what it was done to."""
    connection.execute(
        insert(audit).values(
            at=now,
            actor=who.name,
            role=who.role,
            remote=who.remote,
            token_id=who.token,
            action=action,
            target=None if target is None else target[:TARGET_LENGTH],
            before=_text(before),
            after=_text(after),
        )
    )


def _text(facts: Mapping[str, object] | None) -> str | None:
    return None if facts is None else json.dumps(facts, default=str)


def page(
    connection: Connection,
    limit: int,
    before: int | None = None,
    actor: str | None = None,
    target: str | None = None,
    action: str | None = None,
) -> list[Entry]:
    """At most `limit` rows with ids under `before`, newest first; filters match exactly."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(audit.c.id < before)
    for column, wanted in (
        (audit.c.actor, actor),
        (audit.c.target, target),
        (audit.c.action, action),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    return [_entry({**row}) for row in connection.execute(query).mappings()]


def _entry(row: dict[Any, Any]) -> Entry:
    for name in _FACTS:
        row[name] = None if row[name] is None else json.loads(row[name])
    return Entry(**row)
