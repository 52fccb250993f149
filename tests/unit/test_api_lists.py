"""Lists over HTTP: filters, orders, and pages that hold each item once."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.state import RunState, Verdict
from orchestrator.store import tables
from tests.unit.api_world import (
    EVIDENCE,
    RUNS,
    Client,
    World,
    at,
    move_event,
    seed_attempt,
    seed_checkpoint,
    seed_group,
    submitted,
)


def walk(client: Client, path: str, limit: int = 2, **query: Any) -> list[Any]:
    """Every item, page by page."""
    found: list[Any] = []
    while True:
        answer = client.get(path, params={"limit": limit, **query})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["items"]) <= limit
        found += page["items"]
        if page["next_cursor"] is None:
            return found
        query["cursor"] = page["next_cursor"]


def names(found: list[Any]) -> list[str]:
    return [run["name"] for run in found]


@pytest.fixture
def five(client: Client, here: World) -> list[str]:
    """Made in two instants: e and d, then b, a and c."""
    for number, name in enumerate("edbac"):
        here.clock.at = at(10 * (number // 2))
        submitted(client, name)
    return ["e", "d", "b", "a", "c"]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_orders(client: Client, five: list[str], limit: int) -> None:
    newest = names(walk(client, RUNS, limit))
    oldest = names(walk(client, RUNS, limit, order="oldest"))
    assert newest == oldest[::-1]
    assert {*oldest[:2]} == {"e", "d"}
    assert oldest[-1] == "c"
    assert names(walk(client, RUNS, limit, order="name")) == ["a", "b", "c", "d", "e"]


def test_a_page_stays_where_it_was_when_a_newer_run_comes(
    client: Client, five: list[str], here: World
) -> None:
    first = client.get(RUNS, params={"limit": 2}).json()
    here.clock.at = at(99)
    submitted(client, "z")
    rest = walk(client, RUNS, cursor=first["next_cursor"])
    assert sorted(names(first["items"] + rest)) == sorted(five)


def test_a_cursor_of_another_order_is_refused(client: Client, five: list[str]) -> None:
    cursor = client.get(RUNS, params={"limit": 2}).json()["next_cursor"]
    answer = client.get(RUNS, params={"cursor": cursor, "order": "name"})
    assert answer.status_code == 422


def test_filters_work_together(client: Client, five: list[str], here: World) -> None:
    ids = {run["name"]: run["id"] for run in walk(client, RUNS)}
    here.change(ids["a"], state=RunState.PAUSED, owner="ada")
    here.change(ids["b"], state=RunState.RUNNING, owner="ada")
    here.change(ids["c"], state=RunState.FAILED)
    by_state = walk(client, RUNS, state=["paused", "failed"], order="name")
    assert names(by_state) == ["a", "c"]
    assert names(walk(client, RUNS, owner="ada", order="name")) == ["a", "b"]
    assert names(walk(client, RUNS, owner="ada", state="paused")) == ["a"]
    assert names(walk(client, RUNS, owner="nobody")) == []
    later = walk(client, RUNS, created_after=at(10).isoformat(), order="name")
    assert names(later) == ["a", "b", "c"]
    assert names(walk(client, RUNS, created_before=at(10).isoformat(), order="name")) == ["d", "e"]
    assert names(walk(client, RUNS, created_after="0001-01-01T00:00:00Z", order="oldest"))[4] == "c"


@pytest.mark.parametrize(
    "query",
    [
        {"created_after": "yesterday"},
        {"created_after": "2026-01-01T00:00:00"},
        {"created_after": "9999-12-31T23:59:59-14:00"},
        {"order": "odd"},
        {"cursor": "newest.x.1"},
        {"cursor": "newest.1"},
        {"owner": ""},
    ],
)
def test_a_question_that_is_none(client: Client, query: dict[str, str]) -> None:
    assert client.get(RUNS, params=query).status_code == 422


@pytest.fixture
def busy(client: Client, here: World) -> str:
    """Five attempts, each with two checkpoints of one instant, an incident and two events."""
    run = submitted(client, "busy")
    group = seed_group(here, run)
    for number in range(1, 6):
        ended = {"ended_at": at(20 * number), "verdict": Verdict.CRASHED}
        begun = {"created_at": at(20 * number - 15), "first_step_at": at(20 * number - 10)}
        seed_attempt(here, run, group, number, **begun, **ended)
        for step in (1, 2):
            saved = number * 10 + step
            seed_checkpoint(here, run, number, saved, written_at=at(number))
        here.put(
            tables.incidents,
            {
                "run_id": run,
                "number": number,
                "attempt": number,
                "verdict": Verdict.CRASHED,
                "opened_at": at(20 * number),
                "summary": "it crashed",
                "evidence": EVIDENCE,
                "done": "[]",
                "needs_person": False,
            },
        )
        here.put(tables.events, move_event(run, number, "running", "recovering"))
    return run


@pytest.mark.parametrize(
    ("part", "key", "expected"),
    [
        ("attempts", "number", [1, 2, 3, 4, 5]),
        ("incidents", "number", [5, 4, 3, 2, 1]),
        ("checkpoints", "step", [52, 51, 42, 41, 32, 31, 22, 21, 12, 11]),
        ("revisions", "number", [1]),
    ],
)
@pytest.mark.parametrize("limit", [1, 3, 200])
def test_lists_of_a_run(
    client: Client, busy: str, part: str, key: str, expected: list[int], limit: int
) -> None:
    found = walk(client, f"{RUNS}/busy/{part}", limit)
    assert [item[key] for item in found] == expected
    assert client.get(f"{RUNS}/busy/{part}?cursor=odd!").status_code == 422


def test_a_page_of_attempts_knows_the_end_before_it(client: Client, busy: str) -> None:
    found = walk(client, f"{RUNS}/busy/attempts", 1)
    assert [item["recovery_seconds"] for item in found] == [None, 10, 10, 10, 10]


def test_events_of_some_kinds(client: Client, busy: str) -> None:
    everything = walk(client, f"{RUNS}/busy/events", 3)
    assert [event["id"] for event in everything] == sorted(event["id"] for event in everything)
    moves = walk(client, f"{RUNS}/busy/events", 2, kind="run_moved")
    assert len(moves) == 5
    both = walk(client, f"{RUNS}/busy/events", 2, kind=["run_moved", "submitted"])
    assert {event["kind"] for event in both} == {"run_moved", "submitted"}
    assert len(both) == 6
