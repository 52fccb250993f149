"""The audit log takes rows in the transaction of the deed, and gives none of them up."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, delete, select, text, update
from sqlalchemy.exc import DatabaseError

from orchestrator.presets import PRESETS
from orchestrator.roles import Role
from orchestrator.state import Desired, RunState
from orchestrator.store import audit, migrate, wishes
from orchestrator.store.audit import Actor
from orchestrator.store.engine import open_engine
from orchestrator.store.tables import audit as table
from orchestrator.store.tables import runs

NOW = datetime(2031, 1, 1, tzinfo=UTC)
ADA = Actor("ada", Role.OPERATOR, "10.1.2.3", token="tok1")
JOB = PRESETS["demo-1m"].spec


@pytest.fixture
def migrated(empty_url: str) -> Iterator[Engine]:
    engine = open_engine(empty_url)
    migrate.upgrade(engine)
    yield engine
    engine.dispose()


def test_no_row_is_ever_changed_or_taken_away(migrated: Engine) -> None:
    with migrated.begin() as connection:
        audit.note(connection, NOW, ADA, "run.pause", "r1", {"desired": "run"})
    refused = [update(table).values(actor="eve"), delete(table)]
    if migrated.dialect.name == "postgresql":
        refused.append(text("TRUNCATE audit"))
    for statement in refused:
        with pytest.raises(DatabaseError, match="only added to"), migrated.begin() as connection:
            connection.execute(statement)
    with migrated.connect() as connection:
        [row] = connection.execute(select(table)).all()
    found = (row.actor, row.role, row.remote, row.token_id, row.action, row.target)
    assert found == ("ada", "operator", "10.1.2.3", "tok1", "run.pause", "r1")
    assert (row.at, row.before, row.after) == (NOW, '{"desired": "run"}', None)


def test_every_deed_of_a_person_on_a_run_is_noted(engine: Engine) -> None:
    with engine.begin() as connection:
        run = wishes.submit(connection, NOW, JOB, None, ADA).run_id
        for desired in (Desired.PAUSE, Desired.PAUSE, Desired.RUN, Desired.CANCEL):
            wishes.wish(connection, NOW, run, desired, ADA)
        connection.execute(update(runs).values(state=RunState.CANCELLED))
        wishes.remove(connection, NOW, run, ADA)
    with engine.connect() as connection:
        noted = connection.execute(select(table.c.action, table.c.target).order_by(table.c.id))
        assert [tuple(row) for row in noted] == [
            ("run.submit", run),
            ("run.pause", run),  # the second pause changed nothing
            ("run.resume", run),
            ("run.cancel", run),
            ("run.delete", run),
        ]
        assert connection.execute(select(runs)).first() is None


def test_what_is_refused_leaves_no_note(engine: Engine) -> None:
    with engine.begin() as connection:
        run = wishes.submit(connection, NOW, JOB, None, ADA).run_id
        with pytest.raises(wishes.NotAccepted):
            wishes.remove(connection, NOW, run, ADA)
        actions = list(connection.execute(select(table.c.action)).scalars())
    assert actions == ["run.submit"]
