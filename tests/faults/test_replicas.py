"""Several `longhaul up` on one PostgreSQL: one leads, and whoever led before changes nothing."""

from __future__ import annotations

import os
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from tests.faults.harness import HTTP, Plane, plane, processes, tiny_job, until

pytestmark = pytest.mark.postgres
TTL_SECONDS = 2.0
MOVED = "SELECT body FROM events WHERE kind IN ('run_moved', 'attempt_moved') ORDER BY id"


@dataclass
class Pair:
    """Two replicas on this machine with one database, and a connection to look into it."""

    first: Plane
    second: Plane
    database: psycopg.Connection[Any]
    server: str
    folder: Path

    def one(self, query: LiteralString, *values: Any) -> Any:
        row = self.database.execute(query, values or None).fetchone()
        return row[0] if row else None

    def token(self) -> int:
        return self.one("SELECT token FROM leases")

    def leads(self, replica: Plane) -> bool:
        assert replica.process is not None
        return f":{replica.process.pid}:" in self.one("SELECT owner FROM leases")

    def wish(self, desired: str) -> None:
        """As the API writes it, without any wake-up."""
        query = "UPDATE runs SET desired = %s, desired_generation = desired_generation + 1"
        self.database.execute(query, (desired,))

    def followed(self, token: int, since: float) -> None:
        """Somebody else takes the lease within twice its lifetime."""
        until(lambda: self.token() != token, "a takeover", 30.0, 0.05)
        assert time.monotonic() - since <= 2 * TTL_SECONDS


@pytest.fixture
def pair(postgres_server: str) -> Iterator[Pair]:
    server, name = postgres_server.replace("+psycopg", ""), f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lh-")))
        env = {
            "LONGHAUL_DATABASE_URL": f"{postgres_server}/{name}",
            "LONGHAUL_HOSTS": str(folder / "h"),
            "LONGHAUL_STORAGE": str(folder / "s"),
            "LONGHAUL_LEASE_TTL_SECONDS": str(TTL_SECONDS),
        }
        first = stack.enter_context(plane(folder / "a", **env))
        second = stack.enter_context(plane(folder / "b", **env))
        database = psycopg.connect(f"{server}/{name}", autocommit=True)
        stack.enter_context(database)
        made = Pair(first, second, database, f"{server}/{name}", folder)
        until(lambda: made.leads(first), "the first replica to lead")
        yield made
        first.resume()
        for pid in processes(folder):
            os.kill(pid, signal.SIGKILL)


def stopped_while_it_reads(pair: Pair) -> tuple[int, float]:
    """Stops the leader between the first and the last row of a look at a run to be paused.

    Answers its token, and when it was stopped. The wish is taken back at once, so the decision that
    it will make is wrong. A look that began before the wish was there would decide nothing: it is
    let go, and waited out.
    """
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND query ILIKE '%%branches.parent%%' AND xact_start > %s"
    )
    for _ in range(20):
        with psycopg.connect(pair.server) as locking:
            locking.execute("LOCK TABLE branches IN ACCESS EXCLUSIVE MODE")
            pair.wish("pause")
            wished_at = pair.one("SELECT clock_timestamp()")
            deadline = time.monotonic() + 5.0
            while time.monotonic() < deadline:
                if pair.one(waiting, wished_at):
                    token, since = pair.token(), time.monotonic()
                    pair.first.stand_still()
                    pair.wish("run")
                    return token, since
                time.sleep(0.02)
            pair.wish("run")
    raise AssertionError("no look of the leader began after the wish to pause")


def fenced(replica: Plane) -> bool:
    text = HTTP.get(f"{replica.url}/metrics", timeout=5).text
    return 'longhaul_decisions_total{outcome="fenced"} ' in text


def test_a_leader_that_stood_still_or_died_is_followed_and_the_run_goes_on(
    pair: Pair, text: Path
) -> None:
    """Stopped for three lifetimes of its lease, then continued; then its follower is killed."""
    run = pair.second.submit(tiny_job("replicas", text, steps=900, checkpoint={"every_steps": 150}))
    until(lambda: pair.second.step(run) >= 20, "some steps", 200.0, 0.3)
    trainers = processes(pair.folder, "worker.trainer")

    token, since = stopped_while_it_reads(pair)
    pair.followed(token, since)
    assert pair.leads(pair.second)
    step = pair.second.step(run)
    until(lambda: pair.second.step(run) > step, "the agent to find the other replica", every=0.3)
    time.sleep(max(0.0, since + 3 * TTL_SECONDS - time.monotonic()))
    moves = pair.database.execute(MOVED).fetchall()
    assert not fenced(pair.second)
    pair.first.resume()
    until(lambda: fenced(pair.first), "the late decision to be refused")
    assert pair.database.execute(MOVED).fetchall() == moves
    assert pair.leads(pair.second)

    since, token = time.monotonic(), pair.token()
    pair.second.kill()
    pair.followed(token, since)
    assert pair.leads(pair.first)
    step = pair.first.step(run)
    until(lambda: pair.first.step(run) > step, "the agent to come back", every=0.3)
    assert processes(pair.folder, "worker.trainer") == trainers

    assert pair.first.finish(run, 600.0)["state"] == "succeeded"  # most of its steps are left
    [attempt] = pair.first.get(f"runs/{run}/attempts")["items"]
    assert attempt["verdict"] == "completed"
    assert [point[0] for point in pair.first.history(run)] == list(range(1, 901))
    until(lambda: not processes(pair.folder, "worker.agent"), "the hosts to be given back")
