"""Which runs may have been meant by a name that no run has."""

from __future__ import annotations

import difflib

from sqlalchemy import Connection, select

from orchestrator.store.tables import runs

NEWEST = 1000  # further back nobody looks
MOST, LIKENESS = 3, 0.6
LONGEST = 80  # of what is compared; an id or a name is shorter


def near_names(connection: Connection, asked: str) -> list[str]:
    """Those that begin like it first, then those that are written much like it."""
    asked = asked[:LONGEST].lower()
    query = select(runs.c.name).order_by(runs.c.created_at.desc()).limit(NEWEST)
    names = list(connection.execute(query).scalars())
    begin = [name for name in names if asked and name.startswith(asked)]
    alike = difflib.get_close_matches(asked, names, MOST, LIKENESS)
    return list(dict.fromkeys([*begin, *alike]))[:MOST]
