"""An API over a database in memory of this process's own folder, a clock that stands, and seeds."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from sqlalchemy import Engine, insert, update

from orchestrator.api.assemble import attach, bare_app
from orchestrator.api.auth import make_gate
from orchestrator.service import Service
from orchestrator.settings import Settings
from orchestrator.ssh_house import ssh_house
from orchestrator.state import AttemptState, CheckpointState, RunState, Verdict
from orchestrator.store import tables
from orchestrator.store.engine import open_engine, reading
from orchestrator.store.writer import Writer
from orchestrator.wakes import Wakes
from tests.fakes.provider import FakeProvider

TOKEN = "t" * 43
HOST = "127.0.0.1:8700"
RUNS = "/api/v1/runs"
BEGAN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
EVIDENCE = json.dumps([{"at": BEGAN.isoformat(), "source": "agent", "text": "was \x1b[31mkilled"}])


def tiny_spec(name: str = "tiny", **changes: Any) -> dict[str, Any]:
    """A spec with its numbers spelled out, which every machine can run."""
    return {
        "name": name,
        "model": {
            "vocab_size": 257,
            "context": 32,
            "layers": 1,
            "hidden": 16,
            "heads": 2,
            "ffn": 32,
        },
        "steps": 100,
        "batch": {"sequences": 4},
        "checkpoint": {"every_steps": 10},
    } | changes


@dataclass
class Clock:
    at: datetime = BEGAN

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return (self.at - BEGAN).total_seconds()


@dataclass
class Client:
    """Calls the app in the event loop that it runs in; one cookie jar, no redirects followed."""

    portal: BlockingPortal
    app: FastAPI
    headers: dict[str, str]
    cookies: httpx.Cookies = field(default_factory=httpx.Cookies)

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        return self.portal.call(lambda: self._request(method, path, **kwargs))

    async def _request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport,
            base_url=f"http://{HOST}",
            headers=self.headers,
            cookies=self.cookies,
        ) as client:
            answer = await client.request(method, path, **kwargs)
            self.cookies.update(client.cookies)
            return answer

    async def listen(self, path: str) -> httpx.Response:
        """For a task of its own in the portal: all that a stream tells, once it has ended."""
        return await self._request("GET", path, timeout=None)

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.request("GET", path, **kwargs)

    def post(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.request("POST", path, **kwargs)

    def delete(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.request("DELETE", path, **kwargs)


@dataclass
class World:
    engine: Engine
    settings: Settings
    clock: Clock = field(default_factory=Clock)
    free: int = 10**12
    trouble: str | None = None
    with_ssh: bool = False
    app: FastAPI = field(init=False)

    def __post_init__(self) -> None:
        self.app = bare_app(self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        writer = Writer(self.engine)
        read = reading(self.engine)
        ssh = ssh_house(self.settings, read, writer, self.clock) if self.with_ssh else None
        service = Service(
            settings=self.settings,
            installation="inst0001",
            read=read,
            writer=writer,
            wakes=Wakes(),
            clock=self.clock,
            providers={"local": FakeProvider()},
            listening_since=self.clock.now(),
            ssh=ssh,
        )
        attach(
            app,
            service,
            make_gate(TOKEN, "inst0001"),
            stopping=asyncio.Event(),
            loop_trouble=lambda: self.trouble,
            free=lambda path: self.free,
        )
        try:
            yield
        finally:
            if ssh is not None:
                ssh.close()
            writer.close()

    @property
    def service(self) -> Service:
        return self.app.state.service

    @contextlib.contextmanager
    def client(self, token: str | None = TOKEN) -> Iterator[Client]:
        """A client of a running app; without a token it is nobody."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with start_blocking_portal() as portal:
            running = portal.wrap_async_context_manager(self.app.router.lifespan_context(self.app))
            with running:
                yield Client(portal, self.app, headers)

    def put(self, table: Any, *rows: dict[str, Any]) -> None:
        with self.engine.begin() as connection:
            connection.execute(insert(table), list(rows))

    def change(self, run: str, **values: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(tables.runs).where(tables.runs.c.id == run).values(**values))


@contextlib.contextmanager
def world(folder: Path, **settings: Any) -> Iterator[World]:
    engine = open_engine(f"sqlite:///{folder / 'world.db'}")
    tables.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(
            insert(tables.installation).values(id="inst0001", created_at=BEGAN),
        )
    try:
        yield World(engine, Settings(data_dir=folder, **settings))
    finally:
        engine.dispose()


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def seed_group(world: World, run: str, generation: int = 1, **changes: Any) -> str:
    name = f"lh-inst0001-{run}-g{generation}"
    row = {
        "name": name,
        "run_id": run,
        "generation": generation,
        "provider": "local",
        "hosts": 1,
        "devices": 1,
        "state": "ready",
        "created_at": at(1),
    }
    world.put(tables.host_groups, row | changes)
    host = {"group": name, "index": 0, "address": "127.0.0.1", "launches": 1, "acked_seq": 0}
    world.put(tables.hosts, host)
    return name


def seed_attempt(world: World, run: str, group: str, number: int, **changes: Any) -> None:
    row: dict[str, Any] = {
        "run_id": run,
        "number": number,
        "revision": 1,
        "branch": 1,
        "group": group,
        "processes": 1,
        "state": AttemptState.RUNNING,
        "desired_generation": 1,
        "resumed_from_step": 0,
        "created_at": at(2),
        "first_step_at": None,
        "ended_at": None,
        "verdict": None,
        "summary": None,
        "evidence": None,
    }
    row |= changes
    if row["ended_at"] is not None:
        row["state"] = AttemptState.ENDED
    if row["verdict"] is not None:
        row |= {"summary": row["summary"] or "it ended", "evidence": EVIDENCE}
    world.put(tables.attempts, row)


def submitted(client: Client, name: str = "tiny", **changes: Any) -> str:
    """The id of a run that was submitted over HTTP."""
    answer = client.post(RUNS, json=tiny_spec(name, **changes))
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def loss_at(step: int) -> float:
    return 5.0 / (1 + step)


def seed_points(
    world: World, run: str, attempt: int, first: int, last: int, began: float, **changes: Any
) -> None:
    """Steps `first..last`, one a second; the first is complete at `began` + 1 s."""
    rows = [
        {
            "run_id": run,
            "attempt": attempt,
            "step": step,
            "at": at(began + 1 + step - first),
            "loss": loss_at(step),
            "grad_norm": 1.0,
            "learning_rate": 1e-3,
            "tokens": 128,
            "seconds": 1.0,
            "data_wait": 0.0,
            "batch_hash": f"h{step}",
        }
        | changes
        for step in range(first, last + 1)
    ]
    world.put(tables.metric_points, *rows)


def seed_checkpoint(world: World, run: str, attempt: int, step: int, **changes: Any) -> None:
    row = {
        "run_id": run,
        "id": f"a{attempt}-s{step}",
        "attempt": attempt,
        "branch": 1,
        "step": step,
        "uri": f"/s/runs/{run}/a{attempt}/checkpoints/{step}",
        "state": CheckpointState.ACCEPTED,
        "bytes": 100,
        "files": 3,
        "manifest_sha256": "m" * 64,
        "state_digest": "d" * 64,
        "stall_seconds": 0.25,
        "write_seconds": 1.0,
        "written_at": at(step),
        "accepted_at": at(step),
    }
    world.put(tables.checkpoints, row | changes)


def seed_crashed(world: World, run: str) -> None:
    """Attempt 1 told steps 1..16 and crashed; attempt 2 resumed from 10 and told 11..20."""
    group = seed_group(world, run)
    seed_attempt(
        world,
        run,
        group,
        1,
        created_at=at(2),
        ended_at=at(22),
        verdict=Verdict.CRASHED,
        summary="the trainer on host 0 was killed by SIGKILL after step 16",
        accepted_step=10,
    )
    seed_points(world, run, 1, 1, 16, began=4)
    seed_checkpoint(world, run, 1, 10)
    seed_attempt(
        world, run, group, 2, created_at=at(23), resumed_from_step=10, resume_checkpoint="a1-s10"
    )
    seed_points(world, run, 2, 11, 20, began=25)
    world.put(
        tables.incidents,
        {
            "run_id": run,
            "number": 1,
            "attempt": 1,
            "verdict": Verdict.CRASHED,
            "opened_at": at(22),
            "summary": "the trainer on host 0 was killed by SIGKILL after step 16",
            "evidence": EVIDENCE,
            "done": json.dumps(["started attempt 2 from a1-s10"]),
            "needs_person": False,
            "closed_at": at(26),
            "closed_by_attempt": 2,
        },
    )
    world.change(run, state=RunState.RUNNING, state_since=at(26))
    world.clock.at = at(40)


def move_event(run: str, seconds: float, old: str, new: str) -> dict[str, Any]:
    return {
        "run_id": run,
        "kind": "run_moved",
        "at": at(seconds),
        "received_at": at(seconds),
        "body": json.dumps({"from": old, "to": new, "cause": "c", "reason": None}),
    }
