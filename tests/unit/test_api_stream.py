"""The stream of a run: changes, new steps, log lines, its cursor and its ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from orchestrator.api.stream import Cursor, read_cursor, tell
from orchestrator.state import RunState
from orchestrator.store import tables
from orchestrator.wakes import run_topic
from tests.unit.api_world import (
    RUNS,
    Client,
    World,
    at,
    seed_crashed,
    seed_points,
    tiny_spec,
)


@pytest.fixture
def run(here: World, client: Client) -> str:
    run: str = client.post(RUNS, json=tiny_spec()).json()["id"]
    seed_crashed(here, run)
    return run


def parsed(text: str) -> list[tuple[str, str, Any]]:
    """(event, id, data) of each event; comments and the retry line are left out."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if "event" in fields:
            found.append((fields["event"], fields["id"], json.loads(fields["data"])))
    return found


def steps(events: list[tuple[str, str, Any]]) -> list[tuple[int, int]]:
    points = [point for name, _, data in events if name == "steps" for point in data]
    return [(point["attempt"], point["step"]) for point in points]


def lines(events: list[tuple[str, str, Any]]) -> list[str]:
    return [line["line"] for name, _, data in events if name == "log" for line in data]


def log(here: World, run: str, *lines: str) -> None:
    row = {"run_id": run, "attempt": 2, "rank": 0, "at": at(30)}
    here.put(tables.log_lines, *(row | {"line": line} for line in lines))


class Listener:
    """Reads a stream in the app's own loop, as far as asked."""

    def __init__(self, client: Client, here: World, run: str, after: Cursor | None) -> None:
        self._call = client.portal.call
        self._stopping: asyncio.Event = client.app.state.stopping
        self._made = tell(here.service, run, after, self._stopping)

    def until(self, name: str) -> list[tuple[str, str, Any]]:
        return self._call(self._until, name)

    async def _until(self, name: str) -> list[tuple[str, str, Any]]:
        async def reads() -> list[tuple[str, str, Any]]:
            found: list[tuple[str, str, Any]] = []
            async for block in self._made:
                found += parsed(block.decode())
                if found and found[-1][0] == name:
                    break
            return found

        return await asyncio.wait_for(reads(), 20)

    def rest(self) -> list[tuple[str, str, Any]]:
        return self.until("nothing is named so")

    def do(self, work: Callable[[], None] | Callable[[], Awaitable[None]]) -> None:
        self._call(work)

    def stop(self) -> None:
        self._call(self._stopping.set)

    def close(self) -> None:
        async def close(made: AsyncIterator[bytes]) -> None:
            await made.aclose()  # type: ignore[attr-defined]

        self._call(close, self._made)


def test_a_stream_tells_what_is_and_then_what_comes(here: World, client: Client, run: str) -> None:
    listener = Listener(client, here, run, None)
    first = listener.until("incidents")
    assert [name for name, _, _ in first] == ["run", "attempts", "incidents"]
    assert first[0][1] == "a2.s20.l0", "it begins at the newest step"
    seed_points(here, run, 2, 21, 22, began=36)
    log(here, run, "\x1b[31mred")
    listener.do(lambda: here.service.wakes.notify(run_topic(run)))
    more = listener.until("log")
    assert [name for name, _, _ in more] == ["run", "attempts", "steps", "log"]
    assert steps(more) == [(2, 21), (2, 22)]
    assert more[-1][1] == "a2.s22.l1"
    assert more[-1][2][0]["line"] == "red"
    listener.close()


def test_a_cursor_from_before_a_crash_is_told_the_replayed_steps_again(
    here: World, client: Client, run: str
) -> None:
    listener = Listener(client, here, run, Cursor(attempt=1, step=16))
    assert steps(listener.until("steps")) == [(2, step) for step in range(11, 21)]
    listener.close()


def test_long_histories_come_whole_in_batches(
    here: World, client: Client, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.api.stream.BATCH", 7)
    here.change(run, state=RunState.SUCCEEDED)
    log(here, run, *(str(number) for number in range(20)))
    events = Listener(client, here, run, Cursor()).rest()
    assert steps(events) == [(1, s) for s in range(1, 11)] + [(2, s) for s in range(11, 21)]
    assert lines(events) == [str(number) for number in range(20)]
    assert events[-1][0] == "end"


def test_nothing_is_lost_or_told_twice_after_any_event(
    here: World, client: Client, run: str
) -> None:
    here.change(run, state=RunState.SUCCEEDED)
    log(here, run, "one", "two")
    whole = Listener(client, here, run, Cursor()).rest()
    assert [name for name, _, _ in whole][-3:] == ["steps", "log", "end"]
    for number, (_, cursor, _) in enumerate(whole, start=1):
        rest = Listener(client, here, run, read_cursor(cursor)).rest()
        assert steps(whole[:number]) + steps(rest) == steps(whole)
        assert lines(whole[:number]) + lines(rest) == ["one", "two"]


def test_a_stream_ends_when_the_service_stops(here: World, client: Client, run: str) -> None:
    listener = Listener(client, here, run, None)
    listener.until("incidents")
    listener.stop()
    assert listener.rest() == []


def test_over_http_with_a_cursor_and_the_last_event_id(
    here: World, client: Client, run: str
) -> None:
    here.change(run, state=RunState.SUCCEEDED)
    answer = client.get(f"{RUNS}/tiny/stream?cursor=a0.s0.l0")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = parsed(answer.text)
    assert len(steps(events)) == 20
    last = events[-1][1]
    again = client.get(f"{RUNS}/tiny/stream", headers={"Last-Event-ID": last})
    assert again.status_code == 204


@pytest.mark.parametrize("cursor", ["", "x", "a1.s1", "a1.s1.l1x", "a-1.s1.l1"])
def test_a_cursor_of_another_kind_is_refused(client: Client, run: str, cursor: str) -> None:
    answer = client.get(f"{RUNS}/tiny/stream", params={"cursor": cursor})
    assert answer.status_code == 422


def test_an_unknown_run_has_no_stream(client: Client) -> None:
    assert client.get(f"{RUNS}/nobody/stream").status_code == 404
