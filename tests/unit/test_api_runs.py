"""Submitting, reading, wishing and deleting runs over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from sqlalchemy import func, select

from orchestrator.state import RunState
from orchestrator.store import tables
from tests.unit.api_world import (
    RUNS,
    Client,
    World,
    at,
    seed_attempt,
    seed_crashed,
    seed_group,
    submitted,
    tiny_spec,
)


def count(here: World, table: Any) -> int:
    with here.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_a_submitted_run_is_queued_with_its_facts(client: Client, here: World) -> None:
    answer = client.post(RUNS, json=tiny_spec())
    run = answer.json()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{RUNS}/{run['id']}"
    assert (run["state"], run["desired"], run["attempts"]) == ("queued", "run", 0)
    assert run["facts"]["total_tokens"] == 100 * 4 * 32
    assert run["facts"]["checkpoints"] == 10
    assert run["facts"]["storage_bytes"] == 10 * 12 * run["parameters"]
    assert run["waits_for"] == "its turn"
    assert run["progress"] == {"step": 0, "steps": 100} | {
        key: None for key in run["progress"] if key not in ("step", "steps")
    }
    assert client.get(f"{RUNS}/tiny").json()["id"] == run["id"]
    assert count(here, tables.branches) == count(here, tables.revisions) == 1


def test_yaml_says_the_same_as_json(client: Client) -> None:
    text = yaml.safe_dump(tiny_spec())
    head = {"Content-Type": "application/yaml", "Idempotency-Key": "k1"}
    first = client.post(RUNS, content=text, headers=head)
    again = client.post(RUNS, json=tiny_spec(), headers={"Idempotency-Key": "k1"})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]


def test_a_repeated_submit_makes_one_run_even_on_a_full_disk(client: Client, here: World) -> None:
    key = {"Idempotency-Key": "k1"}
    first = client.post(RUNS, json=tiny_spec(), headers=key)
    here.free = 0
    again = client.post(RUNS, json=tiny_spec(), headers=key)
    assert again.status_code == 200
    assert again.json()["id"] == first.json()["id"]
    assert count(here, tables.runs) == 1


def test_a_key_with_another_spec_is_refused(client: Client) -> None:
    key = {"Idempotency-Key": "k1"}
    client.post(RUNS, json=tiny_spec(), headers=key)
    answer = client.post(RUNS, json=tiny_spec("other"), headers=key)
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:longhaul:problem:idempotency-key-reused"


def test_a_taken_name_comes_with_a_free_one(client: Client) -> None:
    submitted(client, "tiny")
    submitted(client, "tiny-2")
    answer = client.post(RUNS, json=tiny_spec("tiny-2"))
    assert answer.status_code == 409
    assert "'tiny-3' is free" in answer.json()["hint"]
    long = "n" * 40
    submitted(client, long)
    hint = client.post(RUNS, json=tiny_spec(long)).json()["hint"]
    assert f"'{'n' * 38}-2' is free" in hint


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({"step": 5}, "/step", "Did you mean 'steps'?"),
        ({"model": {"presett": "demo-1m"}}, "/model/presett", "Did you mean 'preset'?"),
        ({"model": {"preset": "demo-1m", "heads": 3}}, "/model/heads", "do not divide"),
        ({"model": "nope"}, "/model", "The presets are"),
        ({"steps": -1}, "/steps", "greater than 0, and is -1"),
        ({"steps": "many"}, "/steps", "whole number"),
        ({"batch": {"sequences": 4, "microbatches": 3}}, "/batch/microbatches", "do not divide"),
        ({"batch": {}}, "/batch/sequences", "required"),
        ({"optimizer": {"warmup_steps": 1000}}, "/optimizer/warmup_steps", "more than"),
        ({"optimizer": {"min_learning_rate": 1.0}}, "/optimizer/min_learning_rate", "above"),
        ({"hosts": 3}, "/batch/sequences", "divide over"),
        ({"data": {"source": {"kind": "text", "path": "rel"}}}, "/data/source/path", "absolute"),
        ({"data": {"source": {"kind": "text", "pth": "/x"}}}, "/data/source/pth", "'path'"),
        ({"data": {"source": {"kind": "web"}}}, "/data/source", "python-source"),
        ({"name": "Not A Name"}, "/name", "lower-case"),
        ({"deterministic": "perhaps"}, "/deterministic", "true or false"),
    ],
)
def test_a_bad_spec_names_the_field_and_the_fix(
    client: Client, here: World, changes: dict[str, Any], pointer: str, words: str
) -> None:
    answer = client.post(RUNS, json=tiny_spec() | changes)
    problem = answer.json()
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert problem["type"] == "urn:longhaul:problem:invalid-spec"
    by_pointer = {error["pointer"]: error for error in problem["errors"]}
    assert pointer in by_pointer, by_pointer
    error = by_pointer[pointer]
    assert words in error["detail"] + " " + error.get("hint", "")
    assert count(here, tables.runs) == count(here, tables.events) == 0


def test_a_sentence_does_not_change_the_name_of_a_field(client: Client) -> None:
    answer = client.post(RUNS, json=tiny_spec() | {"hosts": 3})
    [error] = answer.json()["errors"]
    assert error["detail"].startswith("batch.sequences / batch.microbatches")


def test_what_was_sent_is_not_repeated(client: Client) -> None:
    answer = client.post(RUNS, json=tiny_spec(deterministic="hunter2", steps="hunter2"))
    assert answer.status_code == 422
    assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    ("content", "kind", "status", "words"),
    [
        (b"{", "application/json", 400, "line 1, column 2"),
        (b"\xff", "application/json", 400, "not JSON"),
        (b"[" * 100_000, "application/json", 400, "not JSON"),
        (b"a: [1", "application/yaml", 400, "line 1"),
        (b"a: &x [1]\nb: *x", "application/yaml", 400, "aliases"),
        (b"!!python/object/apply:os.system ['true']", "application/yaml", 400, "constructor"),
        (b"- " * 100_000, "application/yaml", 400, "YAML"),
        (b"name=x", "text/plain", 415, "neither"),
        (b" " * (256 * 1024 + 1), "application/json", 413, "256 KiB"),
        (b"[1, 2]", "application/json", 422, "named fields"),
    ],
)
def test_a_body_that_is_no_spec(
    client: Client, content: bytes, kind: str, status: int, words: str
) -> None:
    answer = client.post(RUNS, content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert words in problem["detail"] + str(problem.get("errors", ""))


def test_preflight_makes_nothing(client: Client, here: World) -> None:
    answer = client.post("/api/v1/runs:preflight", json=tiny_spec())
    assert answer.status_code == 200
    assert answer.json()["tokens_per_step"] == 128
    assert count(here, tables.runs) == 0


def test_a_full_disk_is_refused_before_anything_is_made(client: Client, here: World) -> None:
    here.free = 1000
    answer = client.post(RUNS, json=tiny_spec())
    problem = answer.json()
    assert answer.status_code == 422
    assert problem["type"] == "urn:longhaul:problem:preflight-failed"
    assert "/checkpoint/every_steps" in {error["pointer"] for error in problem["errors"]}
    assert count(here, tables.runs) == count(here, tables.events) == 0


def test_pages_of_runs_hold_each_once_newest_first(client: Client, here: World) -> None:
    made = []
    for number in range(5):
        here.clock.at = at(number // 2)  # pairs are made in the same instant
        made.append(submitted(client, f"run-{number}"))
    seen: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = client.get(RUNS, params=query).json()
        seen += [run["id"] for run in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(seen) == sorted(made)
    assert seen[0] == made[4]


def test_filters_of_runs(client: Client, here: World) -> None:
    one, two = submitted(client, "alpha"), submitted(client, "beta")
    here.change(two, state=RunState.PAUSED)
    assert [r["id"] for r in client.get(RUNS, params={"state": "paused"}).json()["items"]] == [two]
    assert [r["id"] for r in client.get(RUNS, params={"name": "al"}).json()["items"]] == [one]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "state=odd", "cursor=x", "cursor=99999999999999999999.a", "name=%25"],
)
def test_a_bad_question_is_a_problem(client: Client, query: str) -> None:
    answer = client.get(f"{RUNS}?{query}")
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    "part",
    [
        "",
        "/attempts",
        "/checkpoints",
        "/events",
        "/metrics",
        "/chart",
        "/logs",
        "/incidents",
        "/goodput",
        "/revisions",
    ],
)
def test_an_unknown_run_is_a_problem(client: Client, part: str) -> None:
    answer = client.get(f"{RUNS}/nobody{part}")
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:longhaul:problem:no-such-run"


@pytest.mark.parametrize("name", ["%00", "%ff", "a%2Fb", "x" * 3000, "\u00e4"])
def test_an_odd_name_is_nobodys(client: Client, name: str) -> None:
    assert client.get(f"{RUNS}/{name}").status_code == 404
    assert client.post(f"{RUNS}/{name}/pause").status_code == 404


@pytest.mark.parametrize(
    ("state", "desired", "wish", "status"),
    [
        ("running", "run", "pause", 202),
        ("running", "pause", "pause", 200),
        ("running", "run", "resume", 200),
        ("running", "run", "cancel", 202),
        ("stopping", "pause", "resume", 202),
        ("stopping", "cancel", "cancel", 200),
        ("stopping", "cancel", "resume", 409),
        ("stopping", "cancel", "pause", 409),
        ("paused", "pause", "resume", 202),
        ("paused", "run", "resume", 202),
        ("paused", "pause", "cancel", 202),
        ("failed", "run", "resume", 202),
        ("failed", "run", "pause", 409),
        ("failed", "run", "cancel", 409),
        ("succeeded", "run", "pause", 409),
        ("succeeded", "run", "resume", 409),
        ("succeeded", "run", "cancel", 409),
        ("cancelled", "cancel", "cancel", 409),
        ("cancelled", "cancel", "resume", 409),
    ],
)
def test_a_wish(
    client: Client, here: World, state: str, desired: str, wish: str, status: int
) -> None:
    run = submitted(client)
    here.change(run, state=state, desired=desired, settled_generation=1)
    answer = client.post(f"{RUNS}/tiny/{wish}")
    assert answer.status_code == status, answer.text
    with here.engine.connect() as connection:
        row = connection.execute(select(tables.runs)).one()
    assert row.state == state, "a wish never changes what is observed"
    assert row.desired_generation == (2 if status == 202 else 1)
    if status == 409:
        assert row.desired == desired
        assert answer.json()["hint"]
    else:
        assert row.desired == {"resume": "run"}.get(wish, wish)


def test_a_resume_keeps_its_reason_and_wakes_the_loop(client: Client, here: World) -> None:
    run = submitted(client)
    here.change(run, state="paused", settled_generation=1)
    assert client.get(f"{RUNS}/{run}").json()["needs_person"]
    before = here.service.wakes.count("loop")
    answer = client.post(f"{RUNS}/{run}/resume", json={"reason": "more disk"})
    assert not answer.json()["needs_person"]
    assert here.service.wakes.count("loop") == before + 1
    told = client.get(f"{RUNS}/{run}/events").json()["items"]
    assert [event["kind"] for event in told] == ["submitted", "wish"]
    assert told[1]["body"]["reason"] == "more disk"


def test_a_run_tells_what_is_slow_about_it_while_it_trains(client: Client, here: World) -> None:
    run = submitted(client)
    group = seed_group(here, run)
    seed_attempt(here, run, group, 1, slow_why="a step takes 2 s; the best was 1 s")
    trainer = {"run_id": run, "attempt": 1, "drained": False, "killed_by_agent": False}
    here.put(
        tables.trainers, *({**trainer, "rank": n, "slow_why": w} for n, w in ((0, None), (1, "x")))
    )
    assert client.get(f"{RUNS}/{run}").json()["slow"] == ["a step takes 2 s; the best was 1 s", "x"]
    with here.engine.begin() as connection:
        connection.execute(tables.attempts.update().values(state="ended"))
    assert client.get(f"{RUNS}/{run}").json()["slow"] == []


def test_only_a_run_that_is_over_and_holds_nothing_is_deleted(client: Client, here: World) -> None:
    run = submitted(client)
    seed_crashed(here, run)
    assert client.delete(f"{RUNS}/tiny").json()["type"].endswith("run-is-not-over")
    here.change(run, state=RunState.CANCELLED)
    assert client.delete(f"{RUNS}/tiny").json()["type"].endswith("hosts-still-held")
    with here.engine.begin() as connection:
        connection.execute(tables.host_groups.update().values(state="gone"))
    assert client.delete(f"{RUNS}/tiny").status_code == 204
    for table in tables.metadata.sorted_tables:
        if "run_id" in table.c:
            assert count(here, table) == 0, table.name
    assert client.get(f"{RUNS}/{run}").status_code == 404


def test_an_unexpected_failure_shows_nothing_of_the_inside(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret inside")

    monkeypatch.setattr("orchestrator.api.views.run_page", fail)
    answer = client.get(RUNS)
    assert answer.status_code == 500
    assert answer.json()["type"] == "urn:longhaul:problem:internal-error"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/api/v1/nothing", 404, "not-found"),
        ("PUT", "/api/v1/runs", 405, "method-not-allowed"),
    ],
)
def test_no_such_place_is_a_problem(
    client: Client, method: str, path: str, status: int, slug: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["type"] == f"urn:longhaul:problem:{slug}"
