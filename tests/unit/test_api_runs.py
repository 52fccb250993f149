"""Submitting, reading, wishing and deleting runs over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import func, select

from orchestrator.state import RunState, Verdict
from orchestrator.store import tables
from tests.unit.api_world import (
    Client,
    World,
    at,
    move_event,
    seed_attempt,
    seed_checkpoint,
    seed_crashed,
    seed_group,
    seed_points,
    tiny_spec,
    world,
)

RUNS = "/api/v1/runs"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def client(here: World) -> Iterator[Client]:
    with here.client() as made:
        yield made


def submitted(client: Client, name: str = "tiny", **changes: Any) -> str:
    answer = client.post(RUNS, json=tiny_spec(name, **changes))
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


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


def test_a_crashed_run_tells_each_step_once(client: Client, here: World) -> None:
    run = submitted(client)
    seed_crashed(here, run)
    whole = client.get(f"{RUNS}/tiny/metrics").json()
    told = [(point["step"], point["attempt"]) for point in whole["points"]]
    assert told == [(s, 1) for s in range(1, 11)] + [(s, 2) for s in range(11, 21)]
    assert whole["next_step"] is None
    page = client.get(f"{RUNS}/tiny/metrics?from_step=9&limit=3").json()
    assert [point["step"] for point in page["points"]] == [9, 10, 11]
    assert page["next_step"] == 12
    detail = client.get(f"{RUNS}/tiny").json()
    assert detail["progress"]["step"] == 20
    assert detail["progress"]["step_seconds"] == 1.0
    assert detail["progress"]["eta_seconds"] == 80.0
    assert detail["newest_checkpoint"]["id"] == "a1-s10"


def test_the_attempts_of_a_crashed_run(client: Client, here: World) -> None:
    run = submitted(client)
    seed_crashed(here, run)
    first, second = client.get(f"{RUNS}/tiny/attempts").json()["items"]
    assert (first["verdict"], first["last_step"], first["replayed_steps"]) == ("crashed", 16, 0)
    assert first["replayed_bit_identical"] is None
    assert first["evidence"][0]["text"] == "was killed", "control characters are stripped"
    assert (second["replayed_steps"], second["replayed_bit_identical"]) == (6, True)
    assert second["recovery_seconds"] == 26 - 22
    began, ended = (
        datetime.fromisoformat(second[at]) for at in ("first_step_at", "replayed_until")
    )
    assert (ended - began).total_seconds() == 5.0, (
        "six steps, a second each; the first one began it"
    )
    assert first["replayed_until"] is None


def test_a_replay_that_differs_is_seen(client: Client, here: World) -> None:
    run = submitted(client)
    seed_crashed(here, run)
    with here.engine.begin() as connection:
        m = tables.metric_points
        connection.execute(
            m.update().where(m.c.attempt == 2, m.c.step >= 13).values(loss=m.c.loss + 2**-50)
        )
    second = client.get(f"{RUNS}/tiny/attempts").json()["items"][1]
    assert second["replayed_bit_identical"] is False
    assert second["first_difference_step"] == 13


def test_nan_equals_nan_in_a_replay(client: Client, here: World) -> None:
    run = submitted(client)
    seed_crashed(here, run)
    with here.engine.begin() as connection:
        m = tables.metric_points
        connection.execute(m.update().where(m.c.step == 12).values(loss=None))
    second = client.get(f"{RUNS}/tiny/attempts").json()["items"][1]
    assert second["replayed_bit_identical"] is True


def test_the_story_of_an_incident(client: Client, here: World) -> None:
    run = submitted(client)
    seed_crashed(here, run)
    [story] = client.get(f"{RUNS}/tiny/incidents").json()["items"]
    assert "SIGKILL" in story["concluded"]
    assert story["closed_by_attempt"] == 2
    assert (story["lost_steps"], story["lost_seconds"]) == (6, 26 - 20)
    assert story["command"] is None
    with here.engine.begin() as connection:
        connection.execute(tables.incidents.update().values(closed_at=None, needs_person=True))
    here.change(run, state="paused", settled_generation=1)
    [story] = client.get(f"{RUNS}/tiny/incidents").json()["items"]
    assert story["command"] == "longhaul resume tiny"
    assert story["left"]
    here.change(run, desired_generation=2)
    [story] = client.get(f"{RUNS}/tiny/incidents").json()["items"]
    assert (story["needs_person"], story["asked_person"]) == (False, True), "it was answered"


def test_no_second_is_lost_to_two_stops_or_to_a_pause(client: Client, here: World) -> None:
    """The attempt that was paused ended at 22 s; at 30 s and 34 s a limit kept it from going on."""
    run = submitted(client)
    seed_crashed(here, run)
    with here.engine.begin() as connection:
        connection.execute(tables.attempts.update().values(verdict="paused"))
        found = connection.execute(tables.incidents.select()).mappings().one()
        connection.execute(tables.incidents.delete())
    stop = dict(found) | {"verdict": "over_limit", "needs_person": True}
    first = {"opened_at": at(30), "closed_at": at(34), "closed_by_attempt": None}
    here.put(tables.incidents, stop | first)
    here.put(tables.incidents, stop | {"number": 2, "opened_at": at(34), "closed_at": at(39)})
    told = client.get(f"{RUNS}/tiny/incidents").json()["items"]
    assert [story["lost_seconds"] for story in told] == [5, 4]
    with here.engine.begin() as connection:
        connection.execute(tables.attempts.update().values(verdict="over_limit"))
    told = client.get(f"{RUNS}/tiny/incidents?limit=1").json()["items"]
    assert [story["lost_seconds"] for story in told] == [5], "the one before is on the next page"


def test_a_chart_has_every_step_in_few_columns(client: Client, here: World) -> None:
    run = submitted(client)
    seed_crashed(here, run)
    drawn = client.get(f"{RUNS}/tiny/chart?points=5").json()
    assert drawn["width"] == 4
    spans = [(c["first"], c["last"], c["attempt"]) for c in drawn["columns"]]
    assert spans == [(1, 4, 1), (5, 8, 1), (9, 10, 1), (11, 12, 2), (13, 16, 2), (17, 20, 2)]
    assert drawn["columns"][0]["loss_max"] == 2.5
    assert drawn["columns"][0]["tokens_per_second"] == 128.0
    every = client.get(f"{RUNS}/tiny/chart?points=100&from_step=5&to_step=8").json()
    assert [c["first"] for c in every["columns"]] == [5, 6, 7, 8]


def test_the_goodput_of_a_crashed_run(client: Client, here: World) -> None:
    run = submitted(client)
    seed_crashed(here, run)
    view = client.get(f"{RUNS}/tiny/goodput").json()
    parts = {part["category"]: part["seconds"] for part in view["parts"]}
    assert view["wall_seconds"] == 40.0
    assert sum(parts.values()) == pytest.approx(40.0, abs=1e-9)
    assert parts["queued"] == 1.0
    assert parts["starting"] == (4 - 1) + (25 - 23)
    assert parts["checkpoint"] == 0.25
    assert parts["replayed"] == 6.0
    assert parts["productive"] == 16 - 0.25 + 4 + 1, "with the step under way"
    assert parts["stopping"] == 2.0
    assert parts["recovering"] == 1.0
    assert view["goodput"] == pytest.approx(parts["productive"] / 39)


def test_time_in_a_pause_is_paused(client: Client, here: World) -> None:
    run = submitted(client)
    group = seed_group(here, run)
    seed_attempt(here, run, group, 1, created_at=at(2), ended_at=at(20), verdict=Verdict.PAUSED)
    seed_points(here, run, 1, 1, 16, began=4)
    here.put(
        tables.events,
        move_event(run, 20, "stopping", "paused"),
        move_event(run, 50, "paused", "queued"),
    )
    seed_attempt(here, run, group, 2, created_at=at(53), resumed_from_step=16)
    here.change(run, state=RunState.STARTING)
    here.clock.at = at(60)
    view = client.get(f"{RUNS}/tiny/goodput").json()
    parts = {part["category"]: part["seconds"] for part in view["parts"]}
    assert parts["paused"] == 30.0
    assert parts["starting"] == 3 + 3 + 7
    assert parts["recovering"] == parts["unaccounted"] == 0.0


def test_logs_page_forward_and_lose_control_characters(client: Client, here: World) -> None:
    run = submitted(client)
    line = {"run_id": run, "attempt": 1, "rank": 0, "at": at(1)}
    words = ["one", "\x1b[1mtwo\x1b[0m", "thr\x07ee", "\x1b]0;title\x07four"]
    here.put(tables.log_lines, *(line | {"line": word} for word in words))
    tail = client.get(f"{RUNS}/tiny/logs?tail=2").json()
    assert [item["line"] for item in tail["items"]] == ["three", "four"]
    first = client.get(f"{RUNS}/tiny/logs?limit=3").json()
    assert [item["line"] for item in first["items"]] == ["one", "two", "three"]
    rest = client.get(f"{RUNS}/tiny/logs?after={first['next_cursor']}").json()
    assert [item["line"] for item in rest["items"]] == ["four"]
    assert rest["next_cursor"] is None
    after = rest["items"][-1]["id"]
    none = client.get(f"{RUNS}/tiny/logs?after={after}").json()
    assert (none["items"], none["next_cursor"]) == ([], None)
    assert client.get(f"{RUNS}/tiny/logs?attempt=2").json()["items"] == []


def test_checkpoints_come_newest_first(client: Client, here: World) -> None:
    run = submitted(client)
    for step in (10, 20):
        seed_checkpoint(here, run, 1, step)
    assert [c["step"] for c in client.get(f"{RUNS}/tiny/checkpoints").json()["items"]] == [20, 10]


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


def test_hours_are_measured_on_an_earlier_run_of_the_same_shape(
    client: Client, here: World
) -> None:
    first = client.post(f"{RUNS}:preflight", json=tiny_spec("fresh")).json()
    assert first["speed_source"] == "assumed"
    run = submitted(client, "older")
    seed_crashed(here, run)
    facts = client.post(f"{RUNS}:preflight", json=tiny_spec("fresh", seed=5)).json()
    assert (facts["speed_source"], facts["tokens_per_second"]) == ("measured", 128.0)
    assert facts["hours"] == pytest.approx(100 * 4 * 32 / 128 / 3600)
    assert "older on such devices, its last 8 steps" in facts["hours_arithmetic"]
    other = client.post(f"{RUNS}:preflight", json=tiny_spec("fresh", batch={"sequences": 8}))
    assert other.json()["speed_source"] == "assumed"
    assert client.get(f"{RUNS}/older").json()["facts"]["speed_source"] == "measured"


def test_the_kind_of_devices_is_what_a_trainer_found_last(client: Client, here: World) -> None:
    run = submitted(client)
    seed_attempt(here, run, seed_group(here, run), 1)
    key = "NVIDIA H200 x2, 1 processes, mesh data=2, jax 0.10"
    here.put(
        tables.trainers,
        {"run_id": run, "attempt": 1, "rank": 0, "numerics_key": key, "drained": False}
        | {"killed_by_agent": False},
    )
    facts = client.get(f"{RUNS}/tiny").json()["facts"]
    assert "the published peak of NVIDIA H200" in facts["hours_arithmetic"]
