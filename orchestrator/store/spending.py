"""What all hosts together cost in a stretch of time. Reads only.

Hosts of a run that was deleted are not counted: their rows went with it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Connection, or_, select

from orchestrator.store.tables import host_groups

HOUR = timedelta(hours=1)


def spent(connection: Connection, since: datetime, until: datetime) -> float | None:
    """In the currency of the prices, from all up until gone; None where no group has a price."""
    g = host_groups.c
    priced = g.price_per_hour.is_not(None)
    if connection.execute(select(g.name).where(priced).limit(1)).first() is None:
        return None
    held = select(g.ready_at, g.released_at, g.price_per_hour).where(
        priced, g.ready_at < until, or_(g.released_at.is_(None), g.released_at > since)
    )
    return sum(
        max((min(gone or until, until) - max(ready, since)) / HOUR, 0.0) * price
        for ready, gone, price in connection.execute(held)
    )
