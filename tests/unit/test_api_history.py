"""What the API tells of a run's life: its steps, attempts, replays, incidents and lost time."""

from __future__ import annotations

from datetime import datetime

import pytest

from orchestrator.state import RunState, Verdict
from orchestrator.store import tables, views
from tests.unit.api_world import (
    RUNS,
    Client,
    World,
    at,
    move_event,
    seed_attempt,
    seed_checkpoint,
    seed_crashed,
    seed_group,
    seed_points,
    submitted,
    tiny_spec,
)


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


def test_an_evaluation_that_was_given_up_counts_as_the_next_attempt_told_it(
    client: Client, here: World
) -> None:
    """Attempt 1 was asked to leave in the evaluation of step 10; attempt 2 went on with it."""
    run = submitted(client)
    seed_crashed(here, run)
    with here.engine.begin() as connection:
        for step, attempt in ((5, 1), (15, 1), (10, 2), (20, 2)):
            told = {"attempt": attempt, "step": step, "at": at(30), "loss": 1.0}
            values = told | {"run_id": run, "batches": 2, "seconds": 0.1}
            connection.execute(tables.evals.insert().values(**values))

    def evals(query: str) -> list[tuple[int, int]]:
        answer = client.get(f"{RUNS}/tiny/{query}").json()
        return [(one["step"], one["attempt"]) for one in answer["evals"]]

    assert evals("metrics") == evals("chart") == [(5, 1), (10, 2), (20, 2)]
    assert evals("metrics?from_step=9&limit=2") == [(10, 2)]
    assert evals("metrics?from_step=11") == [(20, 2)]


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


def test_steps_of_which_nothing_was_told_prove_nothing(client: Client, here: World) -> None:
    run = submitted(client)
    seed_crashed(here, run)
    with here.engine.begin() as connection:
        m = tables.metric_points
        connection.execute(m.update().values(loss=None, grad_norm=None, batch_hash=""))
    second = client.get(f"{RUNS}/tiny/attempts").json()["items"][1]
    assert (second["replayed_steps"], second["replayed_bit_identical"]) == (6, None)


def test_a_replay_is_held_against_the_last_telling_of_each_step(
    client: Client, here: World
) -> None:
    run = submitted(client)
    seed_crashed(here, run)
    with here.engine.begin() as connection:
        m = tables.metric_points
        second = (m.c.attempt == 2, m.c.step.in_([12, 13]))
        connection.execute(m.update().where(*second).values(loss=7.0))
        connection.execute(m.delete().where(m.c.attempt == 2, m.c.step == 14))
    group = seed_group(here, run, 2)
    seed_attempt(here, run, group, 3, resumed_from_step=11, ended_at=at(60))
    seed_points(here, run, 3, 12, 14, began=50, loss=7.0)
    third = client.get(f"{RUNS}/tiny/attempts").json()["items"][2]
    assert (third["replayed_steps"], third["first_difference_step"]) == (3, 14)


@pytest.mark.parametrize("same", ["branch", "key"])
def test_only_what_must_be_equal_is_compared(client: Client, here: World, same: str) -> None:
    """Attempt 2 trains steps 11 to 16 again, with other losses: on another branch, or elsewhere."""
    run = submitted(client)
    seed_crashed(here, run)
    with here.engine.begin() as connection:
        m = tables.metric_points
        connection.execute(m.update().where(m.c.attempt == 2).values(loss=7.0))
        if same == "key":
            second = tables.attempts.c.number == 2
            connection.execute(tables.attempts.update().where(second).values(branch=2))
    flags = {"drained": False, "killed_by_agent": False}
    with here.engine.begin() as connection:
        connection.execute(tables.trainers.delete())
    for attempt, key in ((1, "cpu"), (2, "cpu" if same == "key" else "gpu")):
        row = {"run_id": run, "attempt": attempt, "rank": 0, "numerics_key": key}
        here.put(tables.trainers, row | flags)
    second = client.get(f"{RUNS}/tiny/attempts").json()["items"][1]
    assert second["replayed_steps"] == 6
    assert second["replayed_bit_identical"] is None
    assert second["first_difference_step"] is None


def test_what_a_stop_would_resume_from_may_lie_on_an_ancestor(client: Client, here: World) -> None:
    """Branch 2 began at step 10 of branch 1, which was set apart since; step 16 is not its own."""
    run = submitted(client)
    seed_group(here, run)
    for step, state in ((4, "accepted"), (10, "quarantined"), (16, "accepted")):
        seed_checkpoint(here, run, 1, step, state=state)
    branch = {"run_id": run, "number": 2, "parent": 1, "from_step": 10, "created_at": at(30)}
    here.put(tables.branches, branch | {"data_plan": "{}", "reason": "rolled back"})

    def newest(branch: int) -> int:
        with here.engine.connect() as connection:
            return views.newest_usable_step(connection, run, branch)

    assert (newest(1), newest(2)) == (16, 4)
    seed_checkpoint(here, run, 2, 12, branch=2)
    assert newest(2) == 12


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


def test_an_incident_that_stopped_nothing_cost_nothing_and_says_what_is_left(
    client: Client, here: World
) -> None:
    run = submitted(client)
    seed_crashed(here, run)
    with here.engine.begin() as connection:
        found = dict(connection.execute(tables.incidents.select()).mappings().one())
    told = {"number": 2, "attempt": 2, "verdict": "not_reproduced", "needs_person": True}
    here.put(tables.incidents, found | told | {"opened_at": at(40), "closed_at": at(40)})
    differs, crashed = client.get(f"{RUNS}/tiny/incidents").json()["items"]
    assert (crashed["stopped"], differs["stopped"]) == (True, False)
    assert (differs["lost_seconds"], differs["lost_steps"]) == (0, 0)
    assert (differs["needs_person"], differs["asked_person"]) == (False, True)
    assert "otherwise" in differs["headline"]
    assert differs["left"]
    assert crashed["lost_seconds"] == 6


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
    starts = ("provisioning", "bootstrapping", "init", "restore", "compile")
    assert sum(parts[name] for name in starts) == (4 - 1) + (25 - 23)
    assert parts["checkpoint"] == 0.25
    assert parts["replayed"] == 6.0
    assert parts["productive"] == 16 - 0.25 + 4 + 1, "with the step under way"
    assert parts["lost"] == 2.0
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
    assert parts["provisioning"] + parts["bootstrapping"] == 3 + 3 + 7
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
