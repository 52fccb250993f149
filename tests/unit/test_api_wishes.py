"""Wishes over HTTP: revisions, rollbacks, forks, saves and quarantines, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from orchestrator.state import AttemptState, CheckpointState
from orchestrator.store import looks, reads, tables
from tests.unit.api_world import (
    RUNS,
    Client,
    World,
    at,
    seed_attempt,
    seed_checkpoint,
    seed_group,
    tiny_spec,
    world,
)
from worker.protocol import DataPlan


@pytest.fixture
def run(client: Client, here: World) -> str:
    """A run that trains in attempt 1 and has saved steps 10, 20 and 30."""
    answer = client.post(RUNS, json=tiny_spec())
    assert answer.status_code == 201, answer.text
    made = answer.json()["id"]
    group = seed_group(here, made)
    seed_attempt(here, made, group, 1, first_step_at=at(3))
    for step in (10, 20, 30):
        seed_checkpoint(here, made, 1, step)
    here.change(made, state="running")
    return made


def rows(here: World, table: Any) -> list[dict[str, Any]]:
    with here.engine.connect() as connection:
        return [dict(row) for row in connection.execute(select(table)).mappings()]


def row(here: World, run: str) -> dict[str, Any]:
    [found] = [one for one in rows(here, tables.runs) if one["id"] == run]
    return found


def rest(here: World, run: str, state: str = "paused", desired: str = "pause") -> None:
    here.change(run, state=state, desired=desired, settled_generation=1)
    with here.engine.begin() as connection:
        connection.execute(
            update(tables.attempts).values(state=AttemptState.ENDED, ended_at=at(50))
        )


def slug(answer: Any) -> str:
    return answer.json()["type"].rpartition(":")[2]


# ---- revisions -----------------------------------------------------------------------------------


def test_a_change_that_keeps_the_trajectory_is_a_new_revision(
    client: Client, here: World, run: str
) -> None:
    body = {"set": {"batch.microbatches": 2}, "reason": "less memory"}
    answer = client.post(f"{RUNS}/tiny/resume", json=body)
    assert answer.status_code == 202, answer.text
    assert answer.json()["revision"] == 2
    assert answer.json()["spec"]["batch"]["microbatches"] == 2
    [first, second] = client.get(f"{RUNS}/tiny/revisions").json()["items"]
    assert (first["number"], second["number"], second["author"]) == (1, 2, "admin")
    assert second["note"] == "less memory (batch.microbatches: 1 -> 2)"
    assert first["spec"]["batch"]["microbatches"] == 1
    assert row(here, run)["desired_generation"] == 2
    [attempt] = rows(here, tables.attempts)
    assert attempt["revision"] == 1, "it runs under the old spec until it is replaced"


def test_a_change_that_no_trainer_sees_leaves_the_attempt_alone(
    client: Client, here: World, run: str
) -> None:
    body = {"set": {"priority": 7, "policy.max_hours": 100}}
    assert client.post(f"{RUNS}/tiny/resume", json=body).status_code == 202
    [attempt] = rows(here, tables.attempts)
    assert attempt["revision"] == row(here, run)["revision"] == 2
    assert row(here, run)["priority"] == 7


def test_a_failed_run_goes_on_under_a_new_revision(client: Client, here: World, run: str) -> None:
    rest(here, run, "failed", "run")
    answer = client.post(f"{RUNS}/tiny/resume", json={"set": {"hosts": 2}})
    assert answer.status_code == 202
    assert answer.json()["spec"]["hosts"]["count"] == 2
    assert (row(here, run)["desired"], row(here, run)["desired_generation"]) == ("run", 2)


LIMITS = [
    ({"max_hours": 2}, "policy.max_hours is 2: the run has held hosts for 3.00 hours", 4),
    (
        {"max_cost": 5},
        "policy.max_cost is 5: 3.00 hours of hosts in 1 host group have cost 6.00",
        7,
    ),
]


@pytest.mark.parametrize(("policy", "words", "higher"), LIMITS)
@pytest.mark.parametrize("state", ["paused", "failed"])
def test_a_run_at_rest_over_a_limit_goes_on_only_with_a_higher_one(
    client: Client, here: World, policy: dict[str, int], words: str, higher: int, state: str
) -> None:
    """Else it would be paused again at once, after a resume that seemed to count."""
    run = client.post(RUNS, json=tiny_spec(policy=policy)).json()["id"]
    held = {"state": "gone", "ready_at": at(0), "released_at": at(3 * 3600)}
    seed_group(here, run, price_per_hour=2.0, **held)
    here.change(run, state=state, settled_generation=1)
    [field] = policy
    for body in ({}, {"set": {"priority": 1}}, {"set": {f"policy.{field}": policy[field]}}):
        answer = client.post(f"{RUNS}/tiny/resume", json=body)
        assert (answer.status_code, slug(answer)) == (409, "limit-reached"), answer.text
        assert words in answer.json()["detail"]
        hint = f"longhaul resume tiny --set policy.{field}=NUMBER"
        assert hint in answer.json()["hint"]
    assert (row(here, run)["revision"], row(here, run)["desired_generation"]) == (1, 1)
    raised = client.post(f"{RUNS}/tiny/resume", json={"set": {f"policy.{field}": higher}})
    assert raised.status_code == 202, raised.text
    assert (row(here, run)["revision"], row(here, run)["desired_generation"]) == (2, 2)


@pytest.mark.parametrize(
    ("body", "status", "problem", "words"),
    [
        ({"set": {"steps": 500}}, 409, "changes-the-trajectory", "longhaul fork tiny --at"),
        ({"set": {"optimizer.learning_rate": 1}}, 409, "changes-the-trajectory", "optimizer"),
        ({"set": {"model.layers": 2}}, 409, "can-not-change", "model.layers"),
        ({"set": {"name": "other"}}, 409, "can-not-change", "name"),
        ({"set": {"batch.microbatches": 3}}, 422, "invalid-spec", "/batch/microbatches"),
        ({"set": {"policy.luck": 3}}, 422, "invalid-spec", "/policy/luck"),
        ({"set": {"steps.more": 3}}, 422, "invalid-spec", "not a group of fields"),
        ({"set": {"hosts.count": 4, "priority": 1}}, 422, "preflight-failed", "/hosts/count"),
        ({"set": {"priority": 1}, "expected_revision": 4}, 409, "revision-changed", "revision 1"),
        ({"expected_revision": 4}, 409, "revision-changed", "revision 1"),
        ({"sett": {}}, 422, "invalid-spec", "Did you mean 'set'?"),
        ({"reason": "x" * 501}, 422, "invalid-spec", "/reason"),
        ({"reason": "a\u0000b"}, 422, "invalid-spec", "/reason"),
        ({"from": -1}, 422, "invalid-spec", "/from"),
        ({"skip_batches": 10**9}, 422, "invalid-spec", "/skip_batches"),
        ({"set": {str(n): 1 for n in range(51)}}, 422, "invalid-spec", "/set"),
    ],
)
def test_what_a_resume_can_not_do_changes_nothing(
    tmp_path: Path, body: dict[str, Any], status: int, problem: str, words: str
) -> None:
    with world(tmp_path, max_local_hosts=2) as here, here.client() as client:
        client.post(RUNS, json=tiny_spec())
        here.change(client.get(f"{RUNS}/tiny").json()["id"], state="running")
        answer = client.post(f"{RUNS}/tiny/resume", json=body)
        assert (answer.status_code, slug(answer)) == (status, problem), answer.text
        assert words in answer.text
        assert len(rows(here, tables.revisions)) == len(rows(here, tables.branches)) == 1
        assert rows(here, tables.runs)[0]["desired_generation"] == 1


def test_what_is_set_as_it_is_changes_nothing(client: Client, here: World, run: str) -> None:
    answer = client.post(f"{RUNS}/tiny/resume", json={"set": {"hosts": 1, "steps": 100}})
    assert answer.status_code == 200
    assert answer.json()["revision"] == 1


# ---- rollbacks -----------------------------------------------------------------------------------


def usable(here: World, run: str) -> list[str]:
    """What the next attempt may resume from, best first."""
    with here.engine.connect() as connection:
        snap = looks.snapshot(connection, run, at(60), "inst0001", at(0), {})
    assert snap is not None
    return [checkpoint.id for checkpoint in snap.checkpoints]


def test_a_rollback_of_a_running_run_opens_a_branch(client: Client, here: World, run: str) -> None:
    body = {"to": 20, "skip_batches": 5, "reason": "a spike"}
    answer = client.post(f"{RUNS}/tiny/rollback", json=body)
    assert answer.status_code == 202, answer.text
    assert answer.json()["branch"] == 2
    assert (row(here, run)["desired"], row(here, run)["desired_generation"]) == ("run", 2)
    [_, branch] = rows(here, tables.branches)
    assert (branch["parent"], branch["from_checkpoint"], branch["from_step"]) == (1, "a1-s20", 20)
    assert branch["reason"] == "a spike"
    plan = DataPlan.model_validate_json(branch["data_plan"])
    assert [plan.batch_index(step) for step in (19, 20, 21)] == [19, 25, 26]
    assert [skip.reason for skip in plan.skips] == ["a spike"]
    assert usable(here, run) == ["a1-s20", "a1-s10"], "nothing newer comes back"
    kept = client.get(f"{RUNS}/tiny/checkpoints").json()["items"]
    assert [c["id"] for c in kept] == ["a1-s30", "a1-s20", "a1-s10"], "and nothing is lost"
    assert client.get(f"{RUNS}/tiny").json()["newest_checkpoint"]["id"] == "a1-s20"
    told = client.get(f"{RUNS}/tiny/events").json()["items"][-1]
    assert (told["kind"], told["body"]["by"]) == ("branch_opened", "admin")
    client.post(f"{RUNS}/tiny/checkpoints/a1-s20/quarantine", json={"reason": "bad"})
    assert client.get(f"{RUNS}/tiny").json()["newest_checkpoint"]["id"] == "a1-s10"


@pytest.mark.parametrize(("state", "desired"), [("paused", "pause"), ("paused", "run")])
def test_a_run_at_rest_stays_so_after_a_rollback(
    client: Client, here: World, run: str, state: str, desired: str
) -> None:
    rest(here, run, state, desired)
    answer = client.post(f"{RUNS}/tiny/rollback", json={"to": "a1-s10"})
    assert (answer.status_code, answer.json()["branch"]) == (202, 2)
    assert row(here, run)["desired_generation"] == row(here, run)["settled_generation"] == 1
    assert row(here, run)["desired"] == desired
    assert usable(here, run) == ["a1-s10"]


def test_a_resume_from_an_earlier_checkpoint_is_both(client: Client, here: World, run: str) -> None:
    rest(here, run)
    body = {"from": "a1-s10", "skip_batches": 3, "set": {"priority": 2}, "reason": "bad shard"}
    answer = client.post(f"{RUNS}/tiny/resume", json=body)
    assert answer.status_code == 202, answer.text
    now = row(here, run)
    assert (now["branch"], now["revision"], now["desired"]) == (2, 2, "run")
    assert now["desired_generation"] == 2


def test_batches_are_skipped_from_where_the_run_stands(
    client: Client, here: World, run: str
) -> None:
    assert client.post(f"{RUNS}/tiny/resume", json={"skip_batches": 2}).status_code == 202
    branch = rows(here, tables.branches)[1]
    assert branch["from_checkpoint"] == "a1-s30"
    assert DataPlan.model_validate_json(branch["data_plan"]).batch_index(30) == 32


def test_a_run_can_go_back_to_its_beginning(client: Client, here: World, run: str) -> None:
    assert client.post(f"{RUNS}/tiny/rollback", json={"to": 0}).status_code == 202
    assert usable(here, run) == []


def test_a_run_can_return_to_a_branch_that_it_left(client: Client, here: World, run: str) -> None:
    client.post(f"{RUNS}/tiny/rollback", json={"to": 10, "skip_batches": 4, "reason": "one"})
    seed_checkpoint(here, run, 2, 20, branch=2)
    answer = client.post(f"{RUNS}/tiny/rollback", json={"to": 20})
    assert answer.json()["branch"] == 3
    assert rows(here, tables.branches)[2]["from_checkpoint"] == "a2-s20", "its own line goes first"
    client.post(f"{RUNS}/tiny/rollback", json={"to": "a1-s30"})
    assert usable(here, run) == ["a1-s30", "a1-s20", "a1-s10"]
    client.post(f"{RUNS}/tiny/rollback", json={"to": "a2-s20"})
    assert usable(here, run) == ["a2-s20", "a1-s10"]


@pytest.mark.parametrize(
    ("to", "problem", "words"),
    [
        (25, "no-such-checkpoint", "a1-s30 at step 30, a1-s10 at step 10"),
        ("a9-s9", "no-such-checkpoint", "longhaul checkpoints tiny"),
        ("a1-s20", "checkpoint-not-usable", "quarantined: a flipped bit"),
        (20, "no-such-checkpoint", "Near it"),
    ],
)
def test_a_place_that_can_not_be_gone_back_to(
    client: Client, here: World, run: str, to: int | str, problem: str, words: str
) -> None:
    with here.engine.begin() as connection:
        connection.execute(
            update(tables.checkpoints)
            .where(tables.checkpoints.c.id == "a1-s20")
            .values(state=CheckpointState.QUARANTINED, reason="a flipped bit")
        )
    answer = client.post(f"{RUNS}/tiny/rollback", json={"to": to})
    assert (answer.status_code, slug(answer)) == (409, problem)
    assert words in answer.text
    assert row(here, run)["branch"] == 1


# ---- forks ---------------------------------------------------------------------------------------


def fork(client: Client, key: str | None = None, **body: Any) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(f"{RUNS}/tiny/fork", json={"name": "twin", "at": 20} | body, headers=headers)


def test_a_fork_is_a_run_with_its_own_row_for_the_checkpoint(
    client: Client, here: World, run: str
) -> None:
    answer = fork(client, set={"optimizer.learning_rate": 0.002, "steps": 300}, reason="try it")
    made = answer.json()
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"] == f"{RUNS}/{made['id']}"
    assert (made["name"], made["state"], made["revision"]) == ("twin", "queued", 1)
    assert (made["spec"]["steps"], made["spec"]["optimizer"]["learning_rate"]) == (300, 0.002)
    assert made["progress"]["step"] == 20
    [kept] = client.get(f"{RUNS}/twin/checkpoints").json()["items"]
    [source] = [
        c for c in client.get(f"{RUNS}/tiny/checkpoints").json()["items"] if c["step"] == 20
    ]
    own = {"id": "fork-s20", "attempt": 0, "branch": 1}
    assert kept == source | own
    assert usable(here, made["id"]) == ["fork-s20"]
    new = row(here, made["id"])
    assert (new["forked_run"], new["forked_checkpoint"], new["owner"]) == (run, "a1-s20", "admin")
    assert row(here, run)["branch"] == 1
    kinds = [event["kind"] for event in client.get(f"{RUNS}/tiny/events").json()["items"]]
    assert kinds[-1] == "forked"
    done = [(one["action"], one["target"]) for one in rows(here, tables.audit)]
    assert done == [("run.submit", run), ("run.fork", run)]


def test_the_trainer_of_a_fork_is_told_where_the_source_saved(
    client: Client, here: World, run: str
) -> None:
    for name, changes, other in (("same", {}, False), ("new", {"seed": 5}, True)):
        made = fork(client, name=name, set=changes).json()["id"]
        group = seed_group(here, made)
        seed_attempt(here, made, group, 1, resume_checkpoint="fork-s20", resumed_from_step=20)
        with here.engine.connect() as connection:
            spec = reads.attempt_spec(connection, made, 1, "/s")
        assert spec.resume is not None
        assert spec.resume.uri == f"/s/runs/{run}/a1/checkpoints/20"
        assert spec.resume.other_data is other
        assert ("other_data" in json.loads(spec.model_dump_json())["resume"]) is other
        assert spec.storage == f"/s/runs/{made}/a1"
        assert spec.data_plan.seed == spec.job.seed


def test_a_fork_of_a_fork_of_other_data_knows_it(client: Client, here: World, run: str) -> None:
    fork(client, name="first", set={"seed": 5})
    answer = client.post(f"{RUNS}/first/fork", json={"name": "second", "at": "fork-s20"})
    assert answer.status_code == 201
    flags = {one["run_id"]: one["other_data"] for one in rows(here, tables.branches)}
    assert flags[answer.json()["id"]]
    assert not flags[run]


def test_a_repeated_fork_is_one_run(client: Client, here: World, run: str) -> None:
    first, again = fork(client, "k1"), fork(client, "k1")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    by_id = client.post(
        f"{RUNS}/{run}/fork", json={"name": "twin", "at": 20}, headers={"Idempotency-Key": "k1"}
    )
    assert (by_id.status_code, by_id.json()["id"]) == (200, first.json()["id"])
    other = fork(client, "k1", at=10)
    assert (other.status_code, slug(other)) == (409, "idempotency-key-reused")


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        ({"set": {"model.layers": 2}}, 409, "can-not-change"),
        ({"at": 0}, 409, "nothing-to-inherit"),
        ({"at": 30, "set": {"steps": 30}}, 409, "nothing-left-to-train"),
        ({"name": "tiny"}, 409, "name-taken"),
        ({"name": "No"}, 422, "invalid-spec"),
        ({"at": 11}, 409, "no-such-checkpoint"),
        ({"set": {"steps": -1}}, 422, "invalid-spec"),
        ({"expected_revision": 2}, 409, "revision-changed"),
    ],
)
def test_a_fork_that_can_not_be(
    client: Client, here: World, run: str, body: dict[str, Any], status: int, problem: str
) -> None:
    answer = fork(client, **body)
    assert (answer.status_code, slug(answer)) == (status, problem), answer.text
    assert len(rows(here, tables.runs)) == 1


def test_a_source_is_not_forgotten_while_a_fork_begins_at_its_files(
    client: Client, here: World, run: str
) -> None:
    made = fork(client).json()["id"]
    here.change(run, state="succeeded")
    with here.engine.begin() as connection:
        connection.execute(update(tables.host_groups).values(state="gone"))
    answer = client.delete(f"{RUNS}/tiny")
    assert (answer.status_code, slug(answer)) == (409, "forks-depend-on-it")
    assert "twin" in answer.json()["detail"]
    seed_checkpoint(here, made, 1, 40)
    assert client.delete(f"{RUNS}/tiny").status_code == 204


# ---- saves and quarantines -----------------------------------------------------------------------


def test_a_save_is_asked_for_once(client: Client, here: World, run: str) -> None:
    answer = client.post(f"{RUNS}/tiny/checkpoint", json={"reason": "before the demo"})
    assert answer.status_code == 202
    assert client.post(f"{RUNS}/tiny/checkpoint").status_code == 200
    assert row(here, run)["save_request"] == 1
    here.change(run, save_served=1)
    assert client.post(f"{RUNS}/tiny/checkpoint").status_code == 202
    assert row(here, run)["save_request"] == 2


def test_the_agents_that_wait_are_woken_for_a_save(client: Client, here: World, run: str) -> None:
    topic = f"group:lh-inst0001-{run}-g1"
    before = here.service.wakes.count(topic)
    client.post(f"{RUNS}/tiny/checkpoint")
    assert here.service.wakes.count(topic) == before + 1


def test_a_save_needs_something_that_runs(client: Client, here: World, run: str) -> None:
    rest(here, run)
    answer = client.post(f"{RUNS}/tiny/checkpoint")
    assert (answer.status_code, slug(answer)) == (409, "nothing-runs")
    assert "longhaul resume tiny" in answer.json()["hint"]


def test_a_checkpoint_in_quarantine_is_not_resumed_from(
    client: Client, here: World, run: str
) -> None:
    path = f"{RUNS}/tiny/checkpoints/a1-s30/quarantine"
    assert client.post(path, json={}).status_code == 422
    assert client.post(path, json={"reason": "disk errors"}).status_code == 202
    assert client.post(path, json={"reason": "again"}).status_code == 200
    assert usable(here, run) == ["a1-s20", "a1-s10"]
    newest = client.get(f"{RUNS}/tiny/checkpoints").json()["items"][0]
    assert (newest["state"], newest["reason"]) == ("quarantined", "admin: disk errors")
    unknown = client.post(f"{RUNS}/tiny/checkpoints/a1-s31/quarantine", json={"reason": "x"})
    assert (unknown.status_code, slug(unknown)) == (409, "no-such-checkpoint")


def test_what_an_attempt_is_starting_from_is_not_taken_away(
    client: Client, here: World, run: str
) -> None:
    with here.engine.begin() as connection:
        connection.execute(
            update(tables.attempts).values(resume_checkpoint="a1-s30", first_step_at=None)
        )
    path = f"{RUNS}/tiny/checkpoints/a1-s30/quarantine"
    answer = client.post(path, json={"reason": "disk errors"})
    assert (answer.status_code, slug(answer)) == (409, "checkpoint-in-use")
    with here.engine.begin() as connection:
        connection.execute(update(tables.attempts).values(first_step_at=at(9)))
    assert client.post(path, json={"reason": "disk errors"}).status_code == 202


# ---- keys ----------------------------------------------------------------------------------------


def test_a_key_belongs_to_its_owner(client: Client, here: World) -> None:
    client.post(RUNS, json=tiny_spec(), headers={"Idempotency-Key": "k1"})
    with here.engine.begin() as connection:
        connection.execute(update(tables.request_keys).values(owner="somebody-else"))
    answer = client.post(RUNS, json=tiny_spec("other"), headers={"Idempotency-Key": "k1"})
    assert answer.status_code == 201, answer.text


def test_a_submit_that_an_older_version_kept_is_known_again(client: Client, here: World) -> None:
    """Its digest was taken of the spec with the defaults of its day."""
    key = {"Idempotency-Key": "k1"}
    first = client.post(RUNS, json=tiny_spec(), headers=key)
    old = json.loads(rows(here, tables.revisions)[0]["spec"])
    del old["priority"]
    with here.engine.begin() as connection:
        connection.execute(update(tables.request_keys).values(body_sha256="f" * 64))
        connection.execute(update(tables.revisions).values(spec=json.dumps(old)))
    again = client.post(RUNS, json=tiny_spec(), headers=key)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert client.post(RUNS, json=tiny_spec(steps=101), headers=key).status_code == 409
