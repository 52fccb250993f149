"""The API on both databases: two replicas that get one request, and values that none can hold."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import Engine, text

from orchestrator.roles import Role
from orchestrator.store import wishes
from orchestrator.store.audit import Actor
from orchestrator.store.engine import open_engine
from tests.contract.conftest import wait_until
from tests.unit.api_world import BEGAN, World, tiny_spec
from worker.protocol import JobSpec

ADMIN = Actor("admin", Role.ADMIN, None)


def waits(engine: Engine) -> bool:
    """Whether a write waits for a lock; SQLite has one lock for all, and does not tell of it."""
    if engine.dialect.name == "sqlite":
        return True
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with engine.connect() as connection:
        return bool(connection.scalar(text(query)))


@pytest.mark.parametrize(("key", "status"), [("k1", 200), (None, 409)])
def test_a_run_that_another_replica_is_just_making(
    here: World, database_url: str, key: str | None, status: int
) -> None:
    job = JobSpec.model_validate(tiny_spec())
    headers = {} if key is None else {"Idempotency-Key": key}
    answers = []
    with here.client() as client:
        other = open_engine(database_url)
        with other.begin() as connection:
            made = wishes.submit(connection, BEGAN, job, key, ADMIN)

            def post() -> None:
                answers.append(client.post("/api/v1/runs", json=tiny_spec(), headers=headers))

            caller = threading.Thread(target=post)
            caller.start()
            wait_until(lambda: waits(here.engine))
        caller.join(20)
        other.dispose()
        assert [answer.status_code for answer in answers] == [status]
        assert key is None or answers[0].json()["id"] == made.run_id


@pytest.mark.parametrize(("path", "name"), [("", "owner"), ("/tiny/events", "kind")])
def test_a_filter_that_no_database_can_hold_is_refused(here: World, path: str, name: str) -> None:
    with here.client() as client:
        client.post("/api/v1/runs", json=tiny_spec())
        answer = client.get(f"/api/v1/runs{path}", params={name: "a\0b"})
        assert answer.status_code == 422
