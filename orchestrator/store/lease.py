"""The leader lease: one control plane's right to decide, for a while.

Time is the database's own, so that replicas with wrong clocks cannot both hold it. The token rises
with each change of owner and each release; a write of a decision names the token that it was made
under, and `check` refuses it once somebody else has the lease.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import BigInteger, Connection, case, literal, select, type_coerce, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from orchestrator.store.tables import EPOCH, Instant, leases, upsert

LEADER = "leader"
NOBODY = ""


class Fenced(Exception):
    """Somebody else holds the lease: this control plane no longer decides."""


class DatabaseNow(FunctionElement[int]):
    """The database's wall clock in microseconds since the epoch (SQLite's counts milliseconds)."""

    type = BigInteger()
    inherit_cache = True
    name = "database_now"


@compiles(DatabaseNow, "sqlite")
def _sqlite_now(_element: DatabaseNow, _compiler: SQLCompiler, **_kw: object) -> str:
    return "(CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000)"


@compiles(DatabaseNow, "postgresql")
def _postgresql_now(_element: DatabaseNow, _compiler: SQLCompiler, **_kw: object) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"


def acquire(connection: Connection, name: str, owner: str, ttl: timedelta) -> int | None:
    """Takes or renews the lease until `ttl` from now; None while somebody else holds it."""
    if not owner:
        raise ValueError("a lease needs an owner's name")
    until = type_coerce(DatabaseNow() + literal(ttl // timedelta(microseconds=1)), Instant)
    statement = upsert(connection, leases).values(name=name, owner=owner, token=1, expires_at=until)
    changed = case((leases.c.owner == owner, 0), else_=1)
    return connection.scalar(
        statement.on_conflict_do_update(
            index_elements=[leases.c.name],
            set_={"owner": owner, "token": leases.c.token + changed, "expires_at": until},
            where=(leases.c.owner == owner) | (leases.c.expires_at < DatabaseNow()),
        ).returning(leases.c.token)
    )


def release(connection: Connection, name: str, owner: str) -> None:
    """Gives the lease up, if `owner` has it; a decision still under way is fenced by it."""
    connection.execute(
        update(leases)
        .where(leases.c.name == name, leases.c.owner == owner)
        .values(owner=NOBODY, token=leases.c.token + 1, expires_at=EPOCH)
    )


def remaining(connection: Connection, token: int, name: str = LEADER) -> timedelta:
    """How long `token` has the lease for certain; negative once it may be taken. As `check`."""
    check(connection, token, name)
    until, now = connection.execute(
        select(leases.c.expires_at, DatabaseNow()).where(leases.c.name == name)
    ).one()
    return until - EPOCH - timedelta(microseconds=now)


def lasting(connection: Connection, token: int, name: str = LEADER) -> timedelta:
    """As `remaining`, and raises `Fenced` also where the lease has run out."""
    left = remaining(connection, token, name)
    if left <= timedelta():
        raise Fenced(f"the lease of token {token} has run out and is not renewed yet")
    return left


def check(connection: Connection, token: int, name: str = LEADER) -> None:
    """Raises `Fenced` unless `token` is the newest; holds the lease still until the commit.

    A lease that has run out but that nobody else took is still good: nobody decided in between.
    """
    newest = connection.scalar(
        select(leases.c.token).where(leases.c.name == name).with_for_update(read=True)
    )
    if newest != token:
        raise Fenced(f"lease {name} is at token {newest}, this decision was made under {token}")
