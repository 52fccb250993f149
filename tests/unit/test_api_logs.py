"""Log lines over HTTP: pages in both directions, filters, searches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.store import tables
from tests.unit.api_world import Client, World, at, tiny_spec

LOGS = "/api/v1/runs/tiny/logs"


@pytest.fixture
def client(here: World) -> Iterator[Client]:
    with here.client() as made:
        made.post("/api/v1/runs", json=tiny_spec())
        yield made


def put(here: World, *words: str, **changes: Any) -> None:
    with here.engine.connect() as connection:
        run = connection.execute(tables.runs.select()).one().id
    row = {"run_id": run, "attempt": 1, "rank": 0, "at": at(1)} | changes
    here.put(tables.log_lines, *(row | {"line": word} for word in words))


def page(client: Client, **query: Any) -> Any:
    answer = client.get(LOGS, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def words(found: Any) -> list[str]:
    return [item["line"] for item in found["items"]]


def test_pages_go_both_ways_and_hold_each_line_once(client: Client, here: World) -> None:
    put(here, *(str(number) for number in range(10)))
    first = page(client, limit=4)
    assert (words(first), first["previous_cursor"]) == (["0", "1", "2", "3"], None)
    second = page(client, limit=4, after=first["next_cursor"])
    assert words(second) == ["4", "5", "6", "7"]
    assert words(page(client, limit=9, before=second["previous_cursor"])) == words(first)
    last = page(client, tail=3)
    assert (words(last), last["next_cursor"]) == (["7", "8", "9"], None)
    earlier = page(client, before=last["previous_cursor"], limit=5)
    assert words(earlier) == ["2", "3", "4", "5", "6"]
    assert words(page(client, after=earlier["next_cursor"])) == ["7", "8", "9"]
    begin = page(client, before=earlier["previous_cursor"], limit=5)
    assert (words(begin), begin["previous_cursor"]) == (["0", "1"], None)


def test_lines_of_one_attempt_trainer_and_time(client: Client, here: World) -> None:
    put(here, "a", at=at(1))
    put(here, "b", rank=1, at=at(2))
    put(here, "c", attempt=2, at=at(3))
    assert words(page(client, rank=1)) == ["b"]
    assert words(page(client, attempt=2)) == ["c"]
    assert words(page(client, since=at(2).isoformat())) == ["b", "c"]
    assert words(page(client, until=at(2).isoformat())) == ["a"]


def test_a_search_is_plain_and_in_any_case(client: Client, here: World) -> None:
    put(here, "Loss 1.0", "a [bracket] .*", "\x1b[31mLO\x1b[0mSS again", "MÄRZ")
    assert words(page(client, search="loss")) == ["Loss 1.0", "LOSS again"]
    assert words(page(client, search="[bracket] .*")) == ["a [bracket] .*"]
    assert words(page(client, search="märz")) == ["MÄRZ"]
    assert words(page(client, search="loss", tail=1)) == ["LOSS again"]
    assert words(page(client, search="loss", regex="[0-9]")) == ["Loss 1.0"]
    assert words(page(client, search="nowhere")) == []


def test_a_search_goes_on_where_it_stopped_looking(
    client: Client, here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.api.logs.LOOKED_AT", 3)
    put(here, "x", "hit 1", "x", "x", "x", "x", "x", "hit 2", "x")
    for query in ({}, {"tail": 10}):
        found, cursor = [], None
        for _ in range(9):
            side = "before" if query else "after"
            more = page(client, search="hit", **(query if cursor is None else {side: cursor}))
            found += words(more)
            cursor = more["previous_cursor" if query else "next_cursor"]
            if cursor is None:
                break
        assert sorted(found) == ["hit 1", "hit 2"]
        assert cursor is None
    assert page(client, search="hit", after=8)["through"] == 9


def test_a_regex_is_re2s(client: Client, here: World) -> None:
    put(here, "step 12 loss 3.5", "step x loss nan")
    assert words(page(client, regex=r"step \d+ loss")) == ["step 12 loss 3.5"]
    assert words(page(client, regex=r"(?i)NAN$")) == ["step x loss nan"]


@pytest.mark.parametrize("regex", ["(", "(?=a)b", r"(a)\1", "a{9999}"])
def test_what_re2_does_not_take_is_refused_with_its_words(client: Client, regex: str) -> None:
    answer = client.get(LOGS, params={"regex": regex})
    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:longhaul:problem:invalid-regex"


def test_an_evil_regex_takes_no_time(client: Client, here: World) -> None:
    put(here, "a" * 5000 + "b")
    began = time.process_time()
    assert words(page(client, regex="^(a+)+$")) == []
    assert time.process_time() - began < 2, "Python's own engine needs 2**5000 steps for this line"


def test_lines_are_shown_without_what_steers_a_terminal(client: Client, here: World) -> None:
    put(here, "a\x1b]0;title\x07b\x00c\x9bd\u202ee\tf")
    assert words(page(client)) == ["abcde\tf"]
