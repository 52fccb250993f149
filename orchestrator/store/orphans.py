"""Orphans: what a provider holds in this installation's name and no run wants.

Owns the table `orphans`: what the sweep saw and since when, and the decision to give it back, which
is committed before the provider is called. An orphan is sure once sweeps have seen it over the time
of grace: a list may be old, and a release under way. Rows stay when it is gone, for the bill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    delete,
    insert,
    select,
    update,
)

from orchestrator.providers.base import Owned
from orchestrator.state import GroupState
from orchestrator.store import lease
from orchestrator.store.tables import host_groups, installation, orphans

HOUR = timedelta(hours=1)
AT_ONCE = 1000


@dataclass(frozen=True)
class Orphan:
    """`price_per_hour` is of all its hosts; None: not known. `sure` is what may be given back."""

    provider: str
    name: str
    hosts: int | None
    price_per_hour: float | None
    why: str
    first_seen_at: datetime
    last_seen_at: datetime
    reap_asked_at: datetime | None
    gone_at: datetime | None
    sure: bool

    @property
    def cost(self) -> float | None:
        """What it has cost since it was first seen, until it was last seen."""
        if self.price_per_hour is None:
            return None
        until = self.gone_at or self.last_seen_at
        return self.price_per_hour * ((until - self.first_seen_at) / HOUR)


@dataclass(frozen=True)
class Listing:
    """What a provider listed as its own. `prices` are those of what no row has a price for."""

    provider: str
    owned: Sequence[Owned]
    prices: Mapping[str, float]


class NotAnOrphan(Exception):
    """It is not to be given back, or not any more."""


def prefix(installation_id: str) -> str:
    """With which the name of everything begins that this installation asks a provider for."""
    return f"lh-{installation_id}-"


# ---- the sweep's writes ------------------------------------------------------------------------


def sweep(
    connection: Connection,
    listing: Listing,
    installation_id: str,
    grace: timedelta,
    token: int,
    now: datetime,
) -> list[str]:
    """Keeps what was seen, and answers the names that are to be given back now.

    Intent comes before effect, so a row that is not there now was not there when the provider
    listed. Raises `lease.Fenced`.
    """
    lease.check(connection, token)
    ours = prefix(installation_id)
    seen = {one.name: one for one in listing.owned if one.name.startswith(ours)}
    unwanted = _unwanted(connection, list(seen))
    known = {row["name"]: row for row in _open(connection, listing.provider)}
    for name in known.keys() - unwanted.keys():
        _gone(connection, known[name], grace, now)
    for name, (why, price) in unwanted.items():
        if name in known:
            _set(connection, known[name], last_seen_at=now, why=why, hosts=seen[name].hosts)
        else:
            costs = listing.prices.get(name) if price is None else price
            _first_seen(connection, listing.provider, seen[name], why, costs, now)
    if not reaps(connection):
        return []
    return [orphan.name for orphan in _due(connection, listing.provider, grace, now)]


def _unwanted(connection: Connection, names: list[str]) -> dict[str, tuple[str, float | None]]:
    """Those that no run wants: why, and the price of the group's row."""
    found: dict[str, Any] = {}
    for first in range(0, len(names), AT_ONCE):
        part = names[first : first + AT_ONCE]
        g = host_groups.c
        query = select(g.name, g.state, g.run_id, g.price_per_hour).where(g.name.in_(part))
        found.update((row.name, row) for row in connection.execute(query))
    unwanted: dict[str, tuple[str, float | None]] = {}
    for name in names:
        row = found.get(name)
        if row is None:
            unwanted[name] = ("no run has ever asked for it, or the run was deleted", None)
        elif row.state == GroupState.GONE:
            words = f"run {row.run_id} had given it back, and it was there again or still"
            unwanted[name] = (words, row.price_per_hour)
        elif row.state == GroupState.RELEASING:
            words = f"run {row.run_id} gives it back, and it does not go"
            unwanted[name] = (words, row.price_per_hour)
    return unwanted


def _open(connection: Connection, provider: str) -> Sequence[RowMapping]:
    query = select(orphans).where(orphans.c.provider == provider, orphans.c.gone_at.is_(None))
    return connection.execute(query.order_by(orphans.c.name)).mappings().all()


def _first_seen(
    connection: Connection, provider: str, what: Owned, why: str, price: float | None, now: datetime
) -> None:
    connection.execute(
        insert(orphans).values(
            provider=provider,
            name=what.name,
            hosts=what.hosts,
            price_per_hour=price,
            why=why,
            first_seen_at=now,
            last_seen_at=now,
        )
    )


def _gone(connection: Connection, row: RowMapping, grace: timedelta, now: datetime) -> None:
    """What was never sure was a release under way, and is forgotten."""
    if _sure(row, grace):
        _set(connection, row, gone_at=now)
    else:
        connection.execute(delete(orphans).where(_is(row)))


def _set(connection: Connection, row: RowMapping, **values: object) -> None:
    connection.execute(update(orphans).where(_is(row)).values(values))


def _is(row: RowMapping) -> ColumnElement[bool]:
    return and_(*(orphans.c[key] == row[key] for key in ("provider", "name", "first_seen_at")))


def _due(connection: Connection, provider: str, grace: timedelta, now: datetime) -> list[Orphan]:
    """The sure ones; the decision about each is kept."""
    rows = [row for row in _open(connection, provider) if _sure(row, grace)]
    for row in rows:
        if row["reap_asked_at"] is None:
            _set(connection, row, reap_asked_at=now)
    return [_orphan(row, grace) for row in rows]


def _sure(row: RowMapping, grace: timedelta) -> bool:
    """Seen by two sweeps at least, and for long enough."""
    span = row["last_seen_at"] - row["first_seen_at"]
    return span > timedelta() and span >= grace


def allow(connection: Connection, provider: str, name: str, token: int) -> timedelta:
    """How long from now the release may begin; looked at just before it.

    Raises `lease.Fenced` unless `token` leads and its lease lasts, `NotAnOrphan` when somebody
    wants it after all or nobody has decided to give it back.
    """
    left = lease.lasting(connection, token)
    decided = any(
        row["name"] == name and row["reap_asked_at"] for row in _open(connection, provider)
    )
    if not decided or not reaps(connection) or name not in _unwanted(connection, [name]):
        raise NotAnOrphan(f"{name} of {provider} is not to be given back")
    return left


# ---- people ------------------------------------------------------------------------------------


def reaps(connection: Connection) -> bool:
    """Whether orphans are given back by themselves: not after a restore until a person says so."""
    row = connection.execute(
        select(installation.c.restored_at, installation.c.sweep_confirmed_at)
    ).one_or_none()
    if row is None or row.restored_at is None:
        return True
    return row.sweep_confirmed_at is not None and row.sweep_confirmed_at >= row.restored_at


def confirm(connection: Connection, grace: timedelta, now: datetime) -> list[Orphan]:
    """A person wants what is listed as sure to be given back; the leader's next sweep does it.

    Also ends the time after a restore in which the sweep only lists.
    """
    connection.execute(update(installation).values(sweep_confirmed_at=now))
    asked = [one for one in listed(connection, grace) if one.sure and one.reap_asked_at is None]
    for orphan in asked:
        connection.execute(
            update(orphans)
            .where(orphans.c.name == orphan.name, orphans.c.gone_at.is_(None))
            .values(reap_asked_at=now)
        )
    return [one for one in listed(connection, grace) if one.sure]


def listed(connection: Connection, grace: timedelta, *, gone: bool = False) -> list[Orphan]:
    """What is there now, or with `gone` everything that ever was; the oldest first."""
    query = select(orphans).order_by(orphans.c.first_seen_at, orphans.c.provider, orphans.c.name)
    query = query if gone else query.where(orphans.c.gone_at.is_(None))
    return [_orphan(row, grace) for row in connection.execute(query).mappings()]


def providers(connection: Connection) -> list[str]:
    """Those that ever had one."""
    return list(
        connection.scalars(select(orphans.c.provider).distinct().order_by(orphans.c.provider))
    )


def _orphan(row: RowMapping, grace: timedelta) -> Orphan:
    values: dict[str, Any] = dict(row)
    return Orphan(**values, sure=_sure(row, grace))
