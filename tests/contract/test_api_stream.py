"""A reader of a run's stream goes on after a restart, and on another replica, as if nothing was."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, update

from orchestrator.api.stream import Cursor, read_cursor, tell
from orchestrator.settings import Settings
from orchestrator.state import AttemptState, RunState
from orchestrator.store import tables
from orchestrator.store.engine import open_engine
from tests.unit.api_world import (
    BEGAN,
    Client,
    World,
    at,
    seed_attempt,
    seed_crashed,
    seed_points,
    tiny_spec,
)

STREAM = "/api/v1/runs/tiny/stream"
Event = tuple[str, str, Any]


@contextlib.contextmanager
def replica(url: str, folder: Path) -> Iterator[tuple[World, Client]]:
    """An app with an engine of its own on the database, as another process would have it."""
    engine = open_engine(url)
    try:
        made = World(engine, Settings(data_dir=folder))
        made.clock.at = at(40)
        with made.client() as client:
            yield made, client
    finally:
        engine.dispose()


@pytest.fixture
def run(engine: Engine, database_url: str, tmp_path: Path) -> str:
    """A run that crashed at step 16 and was trained on from 10 to 20, with three log lines."""
    with engine.begin() as connection:
        connection.execute(insert(tables.installation).values(id="inst0001", created_at=BEGAN))
    with replica(database_url, tmp_path) as (world, client):
        made: str = client.post("/api/v1/runs", json=tiny_spec()).json()["id"]
        seed_crashed(world, made)
        log(world, made, "one", "two", "three")
    return made


def log(world: World, run: str, *lines: str) -> None:
    row = {"run_id": run, "attempt": 2, "rank": 0, "at": at(30)}
    world.put(tables.log_lines, *(row | {"line": line} for line in lines))


def goes_on_and_ends(world: World, run: str) -> None:
    """What happens while the reader is away: a third attempt from step 20, lines, the end."""
    seed_points(world, run, 2, 21, 23, began=36)
    world.put(tables.log_lines, {"run_id": run, "attempt": 2, "rank": 0, "at": at(41), "line": "x"})
    with world.engine.begin() as connection:
        a = tables.attempts.c
        second = update(tables.attempts).where(a.run_id == run, a.number == 2)
        connection.execute(second.values(state=AttemptState.ENDED, ended_at=at(42)))
    group = f"lh-inst0001-{run}-g1"
    seed_attempt(world, run, group, 3, resumed_from_step=20, resume_checkpoint="a2-s20")
    seed_points(world, run, 3, 21, 30, began=50)
    log(world, run, "last")
    world.change(run, state=RunState.SUCCEEDED)


def parsed(body: str) -> list[Event]:
    found: list[Event] = []
    for block in body.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if "event" in fields:
            found.append((fields["event"], fields["id"], json.loads(fields["data"])))
    return found


def heard(world: World, client: Client, run: str, events: int, after: Cursor) -> list[Event]:
    """The first `events` of the stream, or all until it waits; then the connection is lost."""

    async def listen() -> list[Event]:
        made = tell(world.service, run, after, asyncio.Event())
        found: list[Event] = []
        async for block in made:
            found += parsed(block.decode())
            if len(found) >= events or block.startswith(b":"):
                break
        await made.aclose()  # type: ignore[attr-defined]
        return found

    return client.portal.call(listen)


def resumed(client: Client, last: str) -> list[Event]:
    answer = client.get(STREAM, headers={"Last-Event-ID": last})
    assert answer.status_code == 200
    return parsed(answer.text)


def steps(events: list[Event]) -> list[tuple[int, int]]:
    points = [point for name, _, data in events if name == "steps" for point in data]
    return [(point["attempt"], point["step"]) for point in points]


def lines(events: list[Event]) -> list[str]:
    return [line["line"] for name, _, data in events if name == "log" for line in data]


# From step 16 of attempt 1, the replayed steps are told again; each later attempt goes on.
AFTER = Cursor(attempt=1, step=16)
ALL_LINES = ["one", "two", "three", "x", "last"]


def expected_steps(told: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Who heard of attempt 2 hears the rest of what counts of it, and then of attempt 3."""
    second = [(2, step) for step in range(11, 21)]
    assert told in ([], second)
    return second + [(3, step) for step in range(21, 31)]


@pytest.mark.parametrize("told", [1, 2, 3, 4, 5])
def test_a_reader_goes_on_after_a_restart(
    run: str, database_url: str, tmp_path: Path, told: int
) -> None:
    with replica(database_url, tmp_path) as (world, client):
        first = heard(world, client, run, told, AFTER)
        goes_on_and_ends(world, run)
    with replica(database_url, tmp_path) as (_, client):
        rest = resumed(client, first[-1][1])
        assert client.get(STREAM, headers={"Last-Event-ID": rest[-1][1]}).status_code == 204
    assert len(first) == told
    assert steps(first) + steps(rest) == expected_steps(steps(first))
    assert lines(first) + lines(rest) == ALL_LINES
    assert rest[-1][0] == "end"


def test_a_reader_goes_from_replica_to_replica(run: str, database_url: str, tmp_path: Path) -> None:
    """Each event is heard at the other replica than the one before, while both are running."""
    with (
        replica(database_url, tmp_path) as (left, left_client),
        replica(database_url, tmp_path) as (_, right_client),
    ):
        all_heard = heard(left, left_client, run, 4, AFTER)
        goes_on_and_ends(left, run)
        seen: list[str] = []
        for client in (right_client, left_client):
            rest = resumed(client, all_heard[-1][1])
            all_heard.append(next(one for one in rest if one[0] in ("steps", "log")))
            seen.append(all_heard[-1][0])
        over = right_client.get(STREAM, headers={"Last-Event-ID": all_heard[-1][1]})
    assert seen == ["steps", "log"]
    assert over.status_code == 204
    assert steps(all_heard) == expected_steps([])
    assert lines(all_heard) == ALL_LINES


# SQLite has one writer at a time.
@pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
def test_a_stream_does_not_end_before_lines_that_another_writer_holds_back(
    run: str,
    database_url: str,
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lower id may still be committed elsewhere: the later line waits, and so does the end."""
    monkeypatch.setattr("orchestrator.api.stream.LOOK_SECONDS", 0.01)
    late = {"run_id": run, "attempt": 2, "rank": 1, "at": at(30), "line": "late"}
    with (
        replica(database_url, tmp_path) as (left, _),
        replica(database_url, tmp_path) as (right, client),
    ):
        last = heard(right, client, run, 5, AFTER)[-1][1]
        with engine.connect() as other:
            other.execute(insert(tables.log_lines).values(late))
            log(left, run, "after")
            left.change(run, state=RunState.SUCCEEDED)
            now = heard(right, client, run, 9, read_cursor(last))
            assert [name for name, _, _ in now] == ["run", "attempts", "incidents"]
            other.commit()
        rest = resumed(client, now[-1][1])
    assert lines(rest) == ["late", "after"]
    assert rest[-1][0] == "end"
