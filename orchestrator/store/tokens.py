"""Tokens, one-time codes and sessions: who holds one, and whether it is still good.

Owns the tables `tokens`, `login_codes` and `sessions`. Only SHA-256 sums of secrets come in here.
Must not import the API.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, insert, or_, select, update

from orchestrator.roles import Role
from orchestrator.store import audit
from orchestrator.store.audit import Actor
from orchestrator.store.tables import login_codes, sessions, tokens

TOUCH_EVERY = timedelta(minutes=1)


class NoSuchToken(Exception):
    """No token that still counts has this id or name."""


class NameTaken(Exception):
    """A token that still counts has this name."""


@dataclass(frozen=True)
class Token:
    """A token without its secret."""

    id: str
    name: str
    owner: str
    role: Role
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


@dataclass(frozen=True)
class Holder:
    """Whom a secret stands for; `token` is the id of the token that it is or came from."""

    owner: str
    role: Role
    token: str
    touch: bool = False


@dataclass(frozen=True)
class OpenSession:
    """A browser's session; `csrf` must come back with each change."""

    holder: Holder
    csrf: str


# ---- tokens ------------------------------------------------------------------------------------


def create(
    connection: Connection,
    now: datetime,
    who: Actor,
    *,
    sha256: str,
    name: str,
    owner: str,
    role: Role,
    expires_at: datetime | None,
) -> Token:
    """Raises `NameTaken`; the name of a revoked or expired token is free again."""
    if connection.execute(select(tokens.c.id).where(_named(name), _counts(now))).first():
        raise NameTaken(name)
    made = Token(
        id=f"{secrets.randbelow(10)}{secrets.token_hex(5)}",  # names begin with a letter
        name=name,
        owner=owner,
        role=role,
        created_at=now,
        created_by=who.name,
        expires_at=expires_at,
        revoked_at=None,
        last_used_at=None,
    )
    connection.execute(insert(tokens).values(sha256=sha256, **vars(made)))
    facts = {"name": name, "owner": owner, "role": role, "expires_at": expires_at}
    audit.note(connection, now, who, "token.create", made.id, None, facts)
    return made


def revoke(connection: Connection, now: datetime, who: Actor, id_or_name: str) -> None:
    """Ends the token, its links and its sessions at once; raises `NoSuchToken`."""
    row = connection.execute(select(tokens).where(_named(id_or_name), _counts(now))).first()
    if row is None:
        raise NoSuchToken(id_or_name)
    connection.execute(update(tokens).where(tokens.c.id == row.id).values(revoked_at=now))
    connection.execute(delete(sessions).where(sessions.c.token_id == row.id))
    connection.execute(delete(login_codes).where(login_codes.c.token_id == row.id))
    facts = {"name": row.name, "owner": row.owner, "role": row.role}
    audit.note(connection, now, who, "token.revoke", row.id, facts)


def all_tokens(connection: Connection) -> list[Token]:
    """Newest first, with those that no longer count."""
    query = select(tokens).order_by(tokens.c.created_at.desc(), tokens.c.id)
    return [_token(row) for row in connection.execute(query)]


def holder(connection: Connection, sha256: str, now: datetime) -> Holder | None:
    """Whom the token stands for; None where it is unknown, revoked or expired."""
    query = select(tokens).where(tokens.c.sha256 == sha256, _counts(now))
    row = connection.execute(query).first()
    if row is None or not secrets.compare_digest(row.sha256, sha256):
        return None
    touch = row.last_used_at is None or now - row.last_used_at >= TOUCH_EVERY
    return Holder(row.owner, Role(row.role), row.id, touch)


def touch(connection: Connection, now: datetime, token: str) -> None:
    """The token was used: at most one write a minute."""
    t = tokens.c
    stale = or_(t.last_used_at.is_(None), t.last_used_at <= now - TOUCH_EVERY)
    connection.execute(update(tokens).where(t.id == token, stale).values(last_used_at=now))


def _named(id_or_name: str) -> Any:
    return or_(tokens.c.id == id_or_name, tokens.c.name == id_or_name)


def _counts(now: datetime) -> Any:
    unexpired = or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now)
    return and_(tokens.c.revoked_at.is_(None), unexpired)


def _token(row: Row[*tuple[Any, ...]]) -> Token:
    return Token(
        id=row.id,
        name=row.name,
        owner=row.owner,
        role=Role(row.role),
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )


# ---- links and sessions ------------------------------------------------------------------------


def keep_code(
    connection: Connection, now: datetime, who: Actor, sha256: str, expires_at: datetime
) -> None:
    """Keeps a code of the caller; codes and sessions that are over go on the way."""
    connection.execute(delete(login_codes).where(login_codes.c.expires_at < now))
    connection.execute(delete(sessions).where(sessions.c.expires_at < now))
    values = {"owner": who.name, "role": who.role, "token_id": who.token}
    connection.execute(
        insert(login_codes).values(code_sha256=sha256, expires_at=expires_at, **values)
    )
    audit.note(connection, now, who, "link.create", None)


def open_session(
    connection: Connection,
    now: datetime,
    *,
    code_sha256: str,
    session_sha256: str,
    csrf: str,
    expires_at: datetime,
    file_token: str,
    remote: str | None,
) -> bool:
    """Trades a code for a session of the same holder; False where the code is no longer good.

    One statement marks the code as used, so that of two calls one succeeds.
    """
    c = login_codes.c
    unused = (c.code_sha256 == code_sha256, c.used_at.is_(None), c.expires_at > now)
    done = connection.execute(update(login_codes).where(*unused).values(used_at=now))
    if done.rowcount != 1:
        return False
    code = connection.execute(select(login_codes).where(c.code_sha256 == code_sha256)).one()
    if not _stands(connection, code.token_id, file_token, now):
        return False
    connection.execute(
        insert(sessions).values(
            session_sha256=session_sha256,
            csrf=csrf,
            role=code.role,
            owner=code.owner,
            token_id=code.token_id,
            created_at=now,
            expires_at=expires_at,
        )
    )
    who = Actor(code.owner, Role(code.role), remote, code.token_id)
    audit.note(connection, now, who, "session.open", None)
    return True


def session(
    connection: Connection, session_sha256: str, file_token: str, now: datetime
) -> OpenSession | None:
    """None where it is unknown or over, or where the token behind it no longer counts."""
    s = sessions.c
    query = select(sessions).where(s.session_sha256 == session_sha256, s.expires_at > now)
    row = connection.execute(query).first()
    if row is None or not _stands(connection, row.token_id, file_token, now):
        return None
    return OpenSession(Holder(row.owner, Role(row.role), row.token_id), row.csrf)


def close_session(connection: Connection, now: datetime, who: Actor, session_sha256: str) -> None:
    connection.execute(delete(sessions).where(sessions.c.session_sha256 == session_sha256))
    audit.note(connection, now, who, "session.close", None)


def _stands(connection: Connection, token: str | None, file_token: str, now: datetime) -> bool:
    """Whether the token with this id still counts; the one in the token file has no row."""
    if token == file_token:
        return True
    query = select(tokens.c.id).where(tokens.c.id == token, _counts(now))
    return connection.execute(query).first() is not None
