"""An agent of protocol 2, recorded as it really talked, is served by today's control plane.

The recordings are the bodies of a real agent's calls and of the answers that it got, one call a
line; only 1 in 60 of the steps and log lines is kept.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, select, update

from orchestrator.reconcile.plan import (
    MakeAttempt,
    MakeGroup,
    MoveAttempt,
    MoveGroup,
    MoveRun,
    PlanLaunch,
)
from orchestrator.reconcile.rules import reconcile
from orchestrator.reconcile.versions import understood
from orchestrator.records import HostRequest
from orchestrator.state import AttemptCause, GroupCause, RunCause
from orchestrator.store import tables, upcasters
from tests.contract.conftest import SECRET, House
from tests.contract.test_loop_runs import Plane, plane, run
from tests.fakes.tiny import attempt, tiny_job
from worker.protocol import (
    PROTOCOL_VERSION,
    DeleteCheckpoints,
    DrainTrainer,
    KillTrainer,
    Retire,
    SaveNow,
    StartTrainer,
)

RECORDINGS = Path(__file__).parent / "recordings"
WISHES = {"drain": "pause", "kill": "cancel"}


def recorded(name: str) -> list[dict[str, Any]]:
    """With the run's id of the tests in place of the recorded one.

    Lines are in the order of the answers: a poll that was held back until the trainer had ended was
    asked before, and is left out.
    """
    text = (RECORDINGS / "v2" / f"{name}.jsonl").read_text()
    run_id = json.loads(text.partition("\n")[0])["request"]["group"].split("-")[2]
    lines = [json.loads(line) for line in text.replace(run_id, "r1").splitlines()]
    ended = next(n for n, line in enumerate(lines) if "trainer_exited" in json.dumps(line))
    return [
        line
        for n, line in enumerate(lines)
        if n < ended or line["request"].get("running_attempt") is None
    ]


def kinds(answer: Any) -> list[str]:
    return [command["kind"] for command in (answer or {}).get("commands", ())]


class Replay:
    """Plays the agent's side again. The control plane's decisions come when they came then."""

    def __init__(self, made: Plane, house: House, attempt: int) -> None:
        self.house, self.attempt = house, attempt
        self.known: dict[str, set[str]] = {}
        self.told: list[tuple[str, int, list[str]]] = []
        self.starts = 0
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(made.app),
            base_url="http://plane",
            headers={"Authorization": f"Bearer {SECRET}"},
        )

    async def play(self, conversation: list[dict[str, Any]]) -> None:
        for line in [*recorded("drained"), *recorded("cancelled")]:
            for command in (line["answer"] or {}).get("commands", ()):
                self.known.setdefault(command["kind"], set()).update(command)
        for line in conversation:
            self._decide(kinds(line["answer"]))
            await self._call(line)
        await self._client.aclose()

    def _decide(self, answered: list[str]) -> None:
        for kind in answered:
            if kind in WISHES and not self.house.rows("attempts")[0]["stop_asked_at"]:
                self._wish(WISHES[kind])
                self.house.commit(MoveAttempt(self.attempt, AttemptCause.STOP_ASKED))
            if kind == "save" and not self.house.rows("runs")[0]["save_request"]:
                with self.house.engine.begin() as connection:
                    connection.execute(update(tables.runs).values(save_request=1))
            if kind == "retire" and self.house.rows("host_groups")[0]["state"] == "ready":
                self.house.commit(MoveGroup(self.house.group, GroupCause.NOT_WANTED))

    def _wish(self, desired: str) -> None:
        with self.house.engine.begin() as connection:
            connection.execute(update(tables.runs).values(desired=desired, desired_generation=2))

    async def _call(self, line: dict[str, Any]) -> None:
        body = line["request"] | {"group": self.house.group}
        if line["call"] == "report":
            body["wait_seconds"] = 0.0
        if line["call"] == "checkpoints":
            body["run_id"] = self.house.run_id
        answer = await self._client.post(f"/api/v1/agents/{line['call']}", json=body)
        assert answer.status_code == line["status"], (line["call"], answer.text)
        for command in answer.json().get("commands", ()):
            assert set(command) == self.known[command["kind"]]
        # A start depends on the moment: an answer that was overtaken may still have held one.
        then = [kind for kind in kinds(line["answer"]) if kind != "start"]
        assert [kind for kind in kinds(answer.json()) if kind != "start"] == then, line
        self.starts += kinds(answer.json()).count("start")
        self.told.append((line["call"], answer.status_code, then))
        if line["call"] == "register":
            made = MakeAttempt(self.attempt, 1, 1, self.house.group, 1, 1, None, 0, None)
            self.house.now = self.house.tick(10**9)  # after the registration
            self.house.commit(made, MoveRun(RunCause.ATTEMPT_MADE))


def begin(house: House) -> None:
    """As the control plane of then left it: hosts that are up, and an agent launched there."""
    house.lead()
    house.submit()
    house.commit(
        MakeGroup(house.group, 1, "local", HostRequest(1, 1)),
        MoveRun(RunCause.ADMITTED),
        MoveGroup(house.group, GroupCause.ASKED),
        MoveGroup(house.group, GroupCause.HOSTS_UP),
    )
    house.launch(0)


@pytest.mark.parametrize(
    ("name", "attempt", "checkpoints", "exit_code"),
    [("drained", 1, 7, 75), ("cancelled", 1, 0, None)],
)
def test_an_agent_of_protocol_2_is_served_to_its_end(
    house: House,
    engine: Engine,
    tmp_path: Path,
    name: str,
    attempt: int,
    checkpoints: int,
    exit_code: int | None,
) -> None:
    async def scenario() -> None:
        begin(house)
        async with plane(engine, tmp_path) as made:
            replay = Replay(made, house, attempt)
            await replay.play(recorded(name))
        assert [kind for _, _, told in replay.told for kind in told][-1] == "retire"
        assert replay.starts > 0

    run(scenario())
    assert house.rows("hosts")[0]["protocol"] == 2
    accepted = [row for row in house.rows("checkpoints") if row["state"] == "accepted"]
    assert len(accepted) == checkpoints
    [trainer] = house.rows("trainers")
    assert trainer["exit_code"] == exit_code
    assert trainer["exited_at"] is not None
    sent = [e for line in recorded(name) for e in line["request"].get("events", ())]
    steps = {e["event"]["step"] for e in sent if e["event"]["kind"] == "step"}
    assert {row["step"] for row in house.rows("metric_points")} == steps
    assert house.rows("hosts")[0]["acked_seq"] == max(e["seq"] for e in sent)


def test_an_agent_of_a_protocol_that_is_not_served_is_refused_with_words(
    house: House, engine: Engine, tmp_path: Path
) -> None:
    async def scenario() -> None:
        begin(house)
        call = recorded("drained")[0]["request"]
        async with plane(engine, tmp_path) as made:
            transport = httpx.ASGITransport(made.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://p") as client:
                for protocol in (1, PROTOCOL_VERSION + 1):
                    answer = await client.post(
                        "/api/v1/agents/register",
                        json=call | {"group": house.group, "protocol": protocol},
                        headers={"Authorization": f"Bearer {SECRET}"},
                    )
                    assert answer.status_code == 426
                    problem = answer.json()
                    assert problem["type"].endswith(":protocol-not-served")
                    assert f"protocol {protocol} is not served" in problem["detail"]
                    assert problem["hint"]

    asyncio.run(scenario())


def test_an_event_of_a_newer_agent_is_stored_untouched(house: House) -> None:
    house.ready()
    house.attempt()
    event = {"kind": "from-tomorrow", "deep": {"list": [1, "two"]}}
    house.tell(event)
    [kept] = [row for row in house.rows("events") if row["kind"] == "from-tomorrow"]
    assert json.loads(str(kept["body"]))["deep"] == event["deep"]


# ---- stored specs ------------------------------------------------------------------------------


def test_a_spec_that_version_1_stored_is_read(house: House) -> None:
    job = upcasters.job_spec(1, (RECORDINGS / "v1" / "spec.json").read_text())
    assert (job.name, job.steps, job.priority) == ("old", 400, 0)


def test_upcasters_are_a_chain_and_the_future_is_refused() -> None:
    def renamed(spec: dict[str, Any]) -> dict[str, Any]:
        return {"length" if key == "steps" else key: value for key, value in spec.items()}

    steps = {1: renamed, 2: lambda spec: spec | {"length": spec["length"] * 2}}
    assert upcasters.upcast({"steps": 5}, 1, 3, steps) == {"length": 10}
    assert upcasters.upcast({"length": 5}, 2, 3, steps) == {"length": 10}
    assert upcasters.upcast({"length": 5}, 3, 3, steps) == {"length": 5}
    with pytest.raises(upcasters.SpecTooNew, match="version 4, this Longhaul reads up to 3"):
        upcasters.upcast({}, 4, 3, steps)


def test_there_is_a_step_from_every_version() -> None:
    assert set(upcasters.UPCASTERS) == set(range(1, upcasters.SPEC_VERSION))


# ---- before another attempt --------------------------------------------------------------------


def old_agent(house: House) -> None:
    """The registered agent is one of protocol 2, and the spec asks for more than it knows."""
    newer = {"every_steps": None, "every_seconds": 60.0}
    with house.engine.begin() as connection:
        connection.execute(update(tables.hosts).values(protocol=2))
        text = connection.scalar(select(tables.revisions.c.spec))
        spec = json.dumps(json.loads(text) | {"checkpoint": newer})
        connection.execute(update(tables.revisions).values(spec=spec))


def planned(house: House) -> list[str]:
    plan = reconcile(house.snapshot())
    return [type(change).__name__ for change in plan.changes]


def test_an_agent_of_yesterday_goes_on_serving_a_spec_that_it_knows(house: House) -> None:
    house.ready()
    with house.engine.begin() as connection:
        connection.execute(update(tables.hosts).values(protocol=2))
    house.tick(100)
    assert planned(house) == ["MakeAttempt", "MoveRun"]


def test_an_agent_of_yesterday_is_replaced_before_it_would_start_a_trainer(house: House) -> None:
    house.ready()
    house.tick(1)
    assert planned(house) == ["MakeAttempt", "MoveRun"]
    old_agent(house)
    house.commit(PlanLaunch(house.group, 0))
    house.register(0, "i2")
    old_agent(house)
    assert planned(house) == []  # one that was just launched is given time
    house.tick(16)
    assert planned(house) == ["PlanLaunch"]


def test_an_agent_that_stays_old_is_told_of_at_last(house: House) -> None:
    house.ready()
    old_agent(house)
    house.tick(601)
    house.send(running=None)
    assert planned(house) == ["OpenIncident", "MoveRun"]


def test_a_trainer_that_an_old_agent_runs_is_left_alone(house: House) -> None:
    house.ready()
    house.attempt()
    old_agent(house)
    house.tick(100)
    house.tell({"kind": "trainer_started", "pid": 7}, running=1)
    assert "PlanLaunch" not in planned(house)


def test_an_old_agent_that_was_never_told_to_start_is_replaced(house: House) -> None:
    """The attempt was made before the upgrade; its trainer can not begin there any more."""
    house.ready()
    house.commit(PlanLaunch(house.group, 0))
    house.register(0, "i2")
    house.attempt()
    old_agent(house)
    house.tick(100)
    house.send(running=None, instance="i2")
    assert "PlanLaunch" in planned(house)


def test_only_what_protocol_2_knows_is_sent_to_it(tmp_path: Path) -> None:
    drain, kill = DrainTrainer(attempt=1, grace_seconds=1), KillTrainer(attempt=1, reason="r")
    old = tiny_job(tmp_path)
    start = StartTrainer(spec=attempt(old, tmp_path), rank=0)
    known = (drain, kill, Retire(), SaveNow(attempt=1, request=1), start)
    newer = [
        tiny_job(tmp_path, checkpoint={"every_seconds": 5}),
        tiny_job(tmp_path, checkpoint={"keep": {"newest": 1}}),
        tiny_job(tmp_path, checkpoint={"save_seconds": 60}),
        tiny_job(tmp_path, policy={"max_failed_saves": 9}),
        tiny_job(tmp_path, policy={"max_unsaved_seconds": 9}),
    ]
    starts = tuple(StartTrainer(spec=attempt(job, tmp_path), rank=0) for job in newer)
    delete = DeleteCheckpoints(run_id="r1", attempt=1, uris=("/runs/r1/a1/checkpoints/5",))
    everything = (*known, *starts, delete)
    assert understood(2, everything) == known
    assert understood(PROTOCOL_VERSION, everything) == everything


def test_a_spec_at_its_defaults_is_spelled_as_protocol_2_knows_it(tmp_path: Path) -> None:
    told = attempt(tiny_job(tmp_path), tmp_path).model_dump(mode="json")
    recording = recorded("drained")[1]["answer"]["commands"][0]["spec"]
    assert set(told) == set(recording)
    assert set(told["job"]) == set(recording["job"])
    assert set(told["job"]["checkpoint"]) == set(recording["job"]["checkpoint"])
    assert set(told["job"]["policy"]) == set(recording["job"]["policy"])
