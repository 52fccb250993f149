"""The store on both of its databases: SQLite in a file, and a PostgreSQL of the tests' own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event, insert, select, text

from orchestrator.presets import PRESETS
from orchestrator.reconcile.plan import MakeAttempt, MakeGroup, MoveGroup, MoveRun, Plan
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import HostRequest
from orchestrator.settings import Settings
from orchestrator.state import GroupCause, RunCause
from orchestrator.store import group_writes, ingest, lease, looks, tables, writes
from orchestrator.store.callers import secret_digest
from orchestrator.store.engine import open_engine
from tests.unit.api_world import BEGAN, Client, World
from worker.protocol import (
    PROTOCOL_VERSION,
    SPEC_VERSION,
    AgentReport,
    DataPlan,
    Envelope,
    HostFacts,
    HostsSpec,
    JobSpec,
    Register,
)

START = datetime(2031, 5, 4, 12, tzinfo=UTC)
SECRET = "s" * 43
INSTALLATION = "inst0001"


# ---- databases ---------------------------------------------------------------------------------


ON_POSTGRES = pytest.param("postgresql", marks=pytest.mark.postgres)
BOTH = ["sqlite", ON_POSTGRES]


def _new_postgres_database(server: str) -> str:
    name = f"t{uuid.uuid4().hex[:12]}"
    admin = open_engine(f"{server}/postgres")
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return f"{server}/{name}"


def _make_tables(url: str) -> str:
    engine = open_engine(url)
    tables.metadata.create_all(engine)
    engine.dispose()
    return url


@pytest.fixture(params=BOTH)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without any table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'longhaul.db'}"
    return _new_postgres_database(request.getfixturevalue("postgres_server"))


@pytest.fixture(scope="session")
def _shared_postgres(postgres_server: str) -> str:
    return _make_tables(_new_postgres_database(postgres_server))


@pytest.fixture(params=BOTH)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with every table and no row."""
    if request.param == "sqlite":
        return _make_tables(f"sqlite:///{tmp_path / 'longhaul.db'}")
    url: str = request.getfixturevalue("_shared_postgres")
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers
        for table in reversed(tables.metadata.sorted_tables):
            connection.execute(table.delete())
    engine.dispose()
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous = OFF"))
    yield engine
    engine.dispose()


@pytest.fixture
def here(engine: Engine, tmp_path: Path) -> World:
    """The API over the database, as one replica of the service has it."""
    with engine.begin() as connection:
        connection.execute(insert(tables.installation).values(id="inst0001", created_at=BEGAN))
    return World(engine, Settings(data_dir=tmp_path))


@pytest.fixture
def client(here: World) -> Iterator[Client]:
    with here.client() as made:
        yield made


def wait_until(done: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


# ---- a run with rows of its own ----------------------------------------------------------------


@dataclass
class House:
    """One run in a database, moved by the same calls as the real one, under a clock of its own."""

    engine: Engine
    now: datetime = START
    run_id: str = "r1"
    hosts: int = 1
    token: int = 0
    seqs: dict[int, int] = field(default_factory=dict)

    @property
    def group(self) -> str:
        return f"lh-{INSTALLATION}-{self.run_id}-g1"

    def tick(self, seconds: float = 1.0) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now

    def submit(self) -> None:
        spec = PRESETS["demo-1m"].spec.model_dump() | {
            "name": self.run_id,
            "hosts": HostsSpec(count=self.hosts),
        }
        job = JobSpec.model_validate(spec)
        with self.engine.begin() as connection:
            connection.execute(
                insert(tables.runs).values(
                    id=self.run_id,
                    name=self.run_id,
                    owner="somebody",
                    desired="run",
                    desired_generation=1,
                    state="queued",
                    state_since=self.now,
                    revision=1,
                    branch=1,
                    created_at=self.now,
                )
            )
            connection.execute(
                insert(tables.revisions).values(
                    run_id=self.run_id,
                    number=1,
                    spec_version=SPEC_VERSION,
                    spec=job.model_dump_json(),
                    author="somebody",
                    created_at=self.now,
                )
            )
            connection.execute(
                insert(tables.branches).values(
                    run_id=self.run_id,
                    number=1,
                    data_plan=DataPlan(seed=job.seed).model_dump_json(),
                    created_at=self.now,
                )
            )

    def lead(self, owner: str = "me") -> int:
        with self.engine.begin() as connection:
            token = lease.acquire(connection, lease.LEADER, owner, timedelta(seconds=60))
        assert token is not None
        self.token = token
        return token

    def snapshot(self) -> Snapshot:
        with self.engine.connect() as connection:
            snap = looks.snapshot(connection, self.run_id, self.now, INSTALLATION, START, {})
        assert snap is not None
        return snap

    def commit(self, *changes: object, snap: Snapshot | None = None) -> None:
        plan = Plan(changes)  # type: ignore[arg-type]
        seen = snap or self.snapshot()
        with self.engine.begin() as connection:
            writes.commit_plan(connection, seen, plan, self.token, self.now)

    def ready(self) -> None:
        """Up to a group whose agents have all registered."""
        self.lead()
        self.submit()
        group = MakeGroup(self.group, 1, "local", HostRequest(self.hosts, 1))
        self.commit(
            group,
            MoveRun(RunCause.ADMITTED),
            MoveGroup(self.group, GroupCause.ASKED),
            MoveGroup(self.group, GroupCause.HOSTS_UP),
        )
        for index in range(self.hosts):
            self.register(index)

    def launch(self, host: int, secret: str = SECRET) -> bool:
        with self.engine.begin() as connection:
            return group_writes.launch_secret(
                connection, self.group, host, secret_digest(secret), self.token
            )

    def register(self, host: int, instance: str = "i1", secret: str = SECRET) -> int:
        self.launch(host, secret)
        call = Register(
            protocol=PROTOCOL_VERSION,
            group=self.group,
            host=host,
            instance=instance,
            facts=self.facts(host),
        )
        with self.engine.begin() as connection:
            return ingest.register(connection, call, secret, self.now).acked_seq

    @staticmethod
    def facts(host: int) -> HostFacts:
        return HostFacts(
            hostname=f"h{host}",
            address="127.0.0.1",
            free_port=4000 + host,
            cpus=2,
            memory_bytes=1 << 30,
            disk_free_bytes=1 << 30,
            python="3.11",
        )

    def attempt(self, number: int = 1, resume: str | None = None, step: int = 0) -> None:
        """Makes the next attempt; the first one moves the run on."""
        made = MakeAttempt(number, 1, 1, self.group, self.hosts, 1, resume, step, None)
        self.tick()
        if number == 1:
            self.commit(made, MoveRun(RunCause.ATTEMPT_MADE))
        else:
            self.commit(made)

    def envelope(
        self, event: object, *, attempt: int = 1, host: int = 0, seq: int | None = None
    ) -> Envelope:
        if seq is None:
            self.seqs[host] = seq = self.seqs.get(host, 0) + 1
        return Envelope.model_validate(
            {
                "seq": seq,
                "attempt": attempt,
                "rank": host,
                "at": self.now,
                "mono": 1.0,
                "event": event,
            }
        )

    def send(
        self,
        *envelopes: Envelope,
        host: int = 0,
        instance: str = "i1",
        secret: str = SECRET,
        running: int | None = None,
        known: str = "",
    ) -> ingest.Stored:
        call = AgentReport(
            group=self.group,
            host=host,
            instance=instance,
            events=envelopes,
            running_attempt=running,
            known_commands=known,
        )
        with self.engine.begin() as connection:
            return ingest.report(connection, call, secret, self.now)

    def tell(self, *events: object, attempt: int = 1, host: int = 0, running: int | None = None):
        """Sends new events of one host's trainer."""
        sent = [self.envelope(event, attempt=attempt, host=host) for event in events]
        return self.send(*sent, host=host, running=running)

    def rows(self, table: str) -> list[dict[str, object]]:
        with self.engine.connect() as connection:
            of = tables.metadata.tables[table]
            found = connection.execute(select(of).order_by(*of.primary_key.columns)).mappings()
            return [dict(row) for row in found]


@pytest.fixture
def house(engine: Engine) -> House:
    return House(engine)


@pytest.fixture
def gang(engine: Engine) -> House:
    """A run on two hosts."""
    return House(engine, hosts=2)


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as connection:
        yield connection
