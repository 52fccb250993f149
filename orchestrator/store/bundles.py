"""Bundles as rows: written part by part, whole once the last one is there, gone when unnamed.

Each call is one short transaction, so that a large bundle holds up nobody's reports. A bundle is
named by its content: whoever writes a part of it writes the same. Must not import the API.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, select, update

from orchestrator.store.tables import bundle_parts, bundles, revisions, upsert

PREFIX = "sha256:"
PART_BYTES = 1 << 16
_NAMED = re.compile(r'"bundle":\s*"sha256:([0-9a-f]{64})"')


def size_of(connection: Connection, sha256: str) -> int | None:
    """In bytes; None where there is no such bundle, or not all of it yet."""
    b = bundles.c
    return connection.scalar(select(b.bytes).where(b.sha256 == sha256, b.kept_at.is_not(None)))


def begin(connection: Connection, sha256: str, size: int, now: datetime) -> None:
    statement = upsert(connection, bundles).values(sha256=sha256, bytes=size, used_at=now)
    connection.execute(
        statement.on_conflict_do_update(index_elements=["sha256"], set_={"used_at": now})
    )


def add(connection: Connection, sha256: str, first: int, parts: Sequence[bytes]) -> None:
    """Parts of `PART_BYTES` each, but for the last one; `first` is the number of the first one."""
    rows = [
        {"sha256": sha256, "part": number, "content": content}
        for number, content in enumerate(parts, first)
    ]
    connection.execute(upsert(connection, bundle_parts).on_conflict_do_nothing(), rows)


def finish(connection: Connection, sha256: str, now: datetime) -> None:
    """Every part is there."""
    here = bundles.c.sha256 == sha256
    connection.execute(update(bundles).where(here).values(kept_at=now, used_at=now))


def part(connection: Connection, sha256: str, number: int) -> bytes:
    """Empty after the last one."""
    p = bundle_parts.c
    query = select(p.content).where(p.sha256 == sha256, p.part == number)
    return connection.scalar(query) or b""


def use(connection: Connection, sha256: str, now: datetime) -> bool:
    """Keeps the bundle from being dropped for a while; False where it is not there."""
    here = bundles.c.sha256 == sha256, bundles.c.kept_at.is_not(None)
    return connection.execute(update(bundles).where(*here).values(used_at=now)).rowcount == 1


def unnamed(connection: Connection, cutoff: datetime) -> list[str]:
    """Those that nobody has used since `cutoff`, and that no revision of any run names."""
    b, r = bundles.c, revisions.c
    old = connection.scalars(select(b.sha256).where(b.used_at < cutoff).order_by(b.sha256)).all()
    if not old:
        return []
    specs = connection.scalars(select(r.spec).where(r.spec.like(f"%{PREFIX}%")))
    named = {sha256 for spec in specs for sha256 in _NAMED.findall(spec)}
    return [sha256 for sha256 in old if sha256 not in named]


def drop(connection: Connection, sha256: str, cutoff: datetime) -> bool:
    """With its parts, unless it was used since `cutoff` after all. Nothing is ever left to do."""
    old = bundles.c.sha256 == sha256, bundles.c.used_at < cutoff
    connection.execute(delete(bundles).where(*old))
    return False
