"""A plan is committed whole, under the lease, and only while the run is as the decision saw it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Engine, insert, update
from sqlalchemy.exc import IntegrityError

from orchestrator.providers.base import GroupProbe, HostProbe
from orchestrator.reconcile.plan import (
    BuryTrainer,
    CloseIncident,
    EndAttempt,
    MakeAttempt,
    MakeGroup,
    MarkHost,
    MoveAttempt,
    MoveGroup,
    MoveRun,
    NoteSlow,
    NoteTaken,
    OpenBranch,
    OpenIncident,
    PlanLaunch,
    ReviseVerdict,
)
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import HOST_GONE, Evidence, HostRequest
from orchestrator.state import AttemptCause, GroupCause, IllegalMove, RunCause, RunState, Verdict
from orchestrator.store import lease, looks, reads, rows, tables, upcasters, writes
from tests.contract.conftest import INSTALLATION, START, House
from worker.protocol import ResumePoint, Skip, SshHosts


def kinds(house: House) -> list[object]:
    return [event["kind"] for event in house.rows("events")]


def end(number: int = 1, verdict: Verdict = Verdict.CRASHED) -> EndAttempt:
    return EndAttempt(number, verdict, "it fell", (Evidence(START, "agent of host 0", "seen"),))


def test_changes_move_the_rows_and_tell_the_timeline(house: House) -> None:
    house.ready()
    house.attempt()
    snap = house.snapshot()
    assert snap.run.state is RunState.STARTING
    assert snap.group is not None
    assert snap.attempt is not None
    assert (snap.attempt.number, snap.attempt.group) == (1, house.group)
    assert kinds(house) == [
        "group_made",
        "run_moved",
        "group_moved",
        "group_moved",
        "agent_registered",
        "attempt_made",
        "run_moved",
    ]


def test_an_illegal_move_aborts_the_whole_commit(house: House) -> None:
    house.ready()
    before = house.rows("events")
    with pytest.raises(IllegalMove):
        house.commit(MoveRun(RunCause.ATTEMPT_MADE), MoveRun(RunCause.ADMITTED))
    assert house.snapshot().run.state is RunState.PROVISIONING
    assert house.rows("events") == before


def test_a_fenced_leader_commits_nothing(house: House) -> None:
    house.ready()
    snap = house.snapshot()
    with house.engine.begin() as connection:
        lease.release(connection, lease.LEADER, "me")
        lease.acquire(connection, lease.LEADER, "another", timedelta(seconds=60))
    with pytest.raises(lease.Fenced):
        house.commit(MoveRun(RunCause.STOP_ASKED), snap=snap)
    assert house.snapshot().run.state is RunState.PROVISIONING
    with pytest.raises(lease.Fenced):
        house.launch(0)


@pytest.mark.parametrize(
    "changed",
    [{"desired": "pause", "desired_generation": 2}, {"state": "paused"}, {"revision": 2}],
)
def test_a_run_that_changed_meanwhile_is_decided_again(
    house: House, changed: dict[str, object]
) -> None:
    house.ready()
    snap = house.snapshot()
    with house.engine.begin() as connection:
        connection.execute(update(tables.runs).values(changed))
    with pytest.raises(writes.Stale):
        house.commit(MoveRun(RunCause.ATTEMPT_MADE), snap=snap)


def test_settling_answers_the_wish_that_was_seen(house: House) -> None:
    house.lead()
    house.submit()
    house.commit(MoveRun(RunCause.PAUSED, "no", settle=True))
    run = house.snapshot().run
    assert (run.settled_generation, run.reason) == (1, "no")


def test_the_end_of_a_run_is_dated_and_a_resume_takes_it_back(house: House) -> None:
    house.ready()
    house.commit(MoveRun(RunCause.INVALID, "bad data", settle=True))
    assert house.rows("runs")[0]["finished_at"] == house.now
    house.commit(MoveRun(RunCause.RESUMED))
    assert house.rows("runs")[0]["finished_at"] is None


def test_a_second_current_attempt_is_a_bug(house: House) -> None:
    house.ready()
    house.attempt()
    with pytest.raises(IllegalMove, match="while 1 is current"):
        house.commit(MakeAttempt(2, 1, 1, house.group, 1, 1, None, 0, None))


def test_the_database_itself_refuses_a_second_current_attempt(house: House) -> None:
    """Invariant 1, whatever the code above the table believes."""
    house.ready()
    house.attempt()
    values = {
        "run_id": house.run_id,
        "number": 2,
        "revision": 1,
        "branch": 1,
        "group": house.group,
        "processes": 1,
        "state": "requested",
        "desired_generation": 1,
        "created_at": house.now,
    }
    with pytest.raises(IntegrityError), house.engine.begin() as connection:
        connection.execute(insert(tables.attempts).values(values))
    house.commit(end())
    with house.engine.begin() as connection:
        connection.execute(insert(tables.attempts).values(values))
    with pytest.raises(IntegrityError), house.engine.begin() as connection:
        connection.execute(insert(tables.attempts).values(values | {"state": "ended"}))


def test_an_attempt_lives_and_ends_with_its_evidence(house: House) -> None:
    house.ready()
    house.attempt()
    house.commit(
        MoveAttempt(1, AttemptCause.SPAWNED),
        MoveAttempt(1, AttemptCause.STOP_ASKED),
        end(verdict=Verdict.PAUSED),
    )
    row = house.rows("attempts")[0]
    assert (row["state"], row["verdict"], row["stop_asked_at"]) == ("ended", "paused", house.now)
    assert rows.EVIDENCE.validate_json(str(row["evidence"]))[0].text == "seen"


def test_incidents_are_numbered_and_closed(house: House) -> None:
    house.ready()
    opened = OpenIncident(0, Verdict.PROVISION_FAILED, "no hosts", (), ("Asked.",), True)
    house.commit(opened)
    house.commit(replace(opened, attempt=1))
    snap = house.snapshot()
    assert snap.incident is not None
    assert (snap.incident.number, snap.incident.done) == (2, ("Asked.",))
    house.commit(CloseIncident(2, 7))
    assert house.snapshot().incident is not None
    house.commit(CloseIncident(1, None))
    assert house.snapshot().incident is None
    assert kinds(house).count("incident_closed") == 2


def test_an_incident_that_needs_a_person_asks_for_one_page(house: House) -> None:
    house.ready()
    opened = OpenIncident(1, Verdict.CRASHED, "it crashed", (), (), False)
    house.commit(opened)
    assert house.rows("pages") == []
    house.commit(replace(opened, needs_person=True))
    [page] = house.rows("pages")
    assert (page["incident"], page["tries"], page["sent_at"]) == (2, 0, None)
    assert page["next_try_at"] == page["created_at"] == house.now


def test_a_launch_voids_the_agent_before_it(house: House) -> None:
    house.ready()
    house.commit(PlanLaunch(house.group, 0))
    host = house.snapshot().hosts[0]
    assert (host.instance, host.registered_at, host.launches) == (None, None, 1)
    assert house.rows("hosts")[0]["secret_sha256"] is None


def test_a_launch_is_decided_again_when_an_agent_has_just_registered(house: House) -> None:
    house.ready()
    snap = house.snapshot()
    house.register(0, "i2")
    with pytest.raises(writes.Stale):
        house.commit(PlanLaunch(house.group, 0), snap=snap)


def test_no_agent_is_let_in_to_a_group_that_is_given_back(house: House) -> None:
    house.ready()
    assert house.launch(0) is True
    house.commit(MoveGroup(house.group, GroupCause.NOT_WANTED))
    assert house.launch(0) is False


def test_a_buried_trainer_keeps_an_exit_that_was_told(gang: House) -> None:
    gang.ready()
    gang.attempt()
    gang.tell({"kind": "trainer_exited", "exit_code": 3}, host=0)
    gang.commit(BuryTrainer(1, 0, "gone"), BuryTrainer(1, 1, "gone"))
    first, second = gang.snapshot().trainers
    assert (first.exit_code, first.why_killed) == (3, None)
    assert (second.exit_code, second.why_killed, second.exited_at) == (None, "gone", gang.now)


# ---- what a decision sees ----------------------------------------------------------------------


def probe(house: House, alive: bool) -> GroupProbe:
    return GroupProbe(True, True, (HostProbe(0, "10.0.0.9", alive, alive),))


def sight(house: House, began: float, alive: bool = False) -> Snapshot:
    """A probe that began so long from now, as it is seen in two seconds."""
    sighting = looks.Sighting(house.now + timedelta(seconds=began), probe(house, alive))
    looked_at = house.now + timedelta(seconds=2)
    with house.engine.connect() as connection:
        snap = looks.snapshot(
            connection, house.run_id, looked_at, INSTALLATION, START, {house.group: sighting}
        )
    assert snap is not None
    return snap


def test_a_probe_is_joined_to_its_hosts(house: House) -> None:
    house.ready()
    snap = sight(house, began=1)
    assert snap.group is not None
    assert (snap.group.exists, snap.group.up) == (True, True)
    assert snap.hosts[0].agent_alive is False
    assert house.snapshot().hosts[0].agent_alive is None


def test_a_probe_that_began_before_the_agent_says_nothing_of_it(house: House) -> None:
    """Else an agent that has just registered would be taken for dead, and replaced."""
    house.ready()
    assert sight(house, began=-1).hosts[0].agent_alive is None
    assert sight(house, began=0).hosts[0].agent_alive is None


def test_a_probe_that_began_before_the_last_report_says_nothing_of_its_end(house: House) -> None:
    house.ready()
    house.tick(10)
    house.send()
    assert sight(house, began=-1).hosts[0].agent_alive is None
    assert sight(house, began=-1, alive=True).hosts[0].agent_alive is True
    assert sight(house, began=1).hosts[0].agent_alive is False


def test_a_clock_that_is_set_back_makes_no_probe_older_than_the_agent(house: House) -> None:
    """Else a host that died would be seen only once the clock has caught up."""
    house.ready()
    old = sight(house, began=1).hosts[0].registered_at
    house.tick(-3600)
    snap = sight(house, began=1)
    assert snap.hosts[0].agent_alive is False
    assert snap.hosts[0].registered_at == old, "attempts are told apart by it"
    assert sight(house, began=3601).hosts[0].agent_alive is None, "from before the step"
    assert sight(house, began=3).hosts[0].agent_alive is None, "from before a small one"


def checkpoint(house: House, step: int, branch: int = 1, state: str = "accepted") -> None:
    values = {
        "run_id": house.run_id,
        "id": f"b{branch}-s{step}",
        "attempt": 1,
        "branch": branch,
        "step": step,
        "uri": f"/x/{step}",
        "state": state,
        "bytes": 1,
        "files": 1,
        "manifest_sha256": "m" * 64,
        "state_digest": "d" * 64,
        "stall_seconds": 0,
        "write_seconds": 0,
        "written_at": house.now,
    }
    with house.engine.begin() as connection:
        connection.execute(insert(tables.checkpoints).values(values))


def usable(house: House) -> list[str]:
    return [checkpoint.id for checkpoint in house.snapshot().checkpoints]


def test_only_accepted_and_verified_checkpoints_are_usable_newest_first(house: House) -> None:
    house.ready()
    for step, state in enumerate(["accepted", "written", "verified", "quarantined", "deleted"]):
        checkpoint(house, step, state=state)
    assert usable(house) == ["b1-s2", "b1-s0"]


def test_a_branch_sees_its_ancestors_up_to_each_fork(house: House) -> None:
    house.ready()
    with house.engine.begin() as connection:
        for number, parent, step in ((2, 1, 30), (3, 2, 40)):
            connection.execute(
                insert(tables.branches).values(
                    run_id=house.run_id,
                    number=number,
                    parent=parent,
                    from_step=step,
                    data_plan='{"seed":1}',
                    created_at=house.now,
                )
            )
        connection.execute(update(tables.runs).values(branch=3))
    for branch in (1, 2, 3):
        for step in (20, 30, 35, 40, 50):
            checkpoint(house, step, branch)
    found = usable(house)
    own = [f"b3-s{step}" for step in (20, 30, 35, 40, 50)]
    parents = [f"b2-s{step}" for step in (20, 30, 35, 40)]
    assert sorted(found) == sorted([*own, *parents, "b1-s20", "b1-s30"])
    assert found[0] == "b3-s50"


def test_a_checkpoint_quarantined_meanwhile_starts_nothing(house: House) -> None:
    house.ready()
    checkpoint(house, 5)
    snap = house.snapshot()
    with house.engine.begin() as connection:
        connection.execute(update(tables.checkpoints).values(state="quarantined"))
    made = MakeAttempt(1, 1, 1, house.group, 1, 1, "b1-s5", 5, None)
    with pytest.raises(writes.Stale):
        house.commit(made, snap=snap)


def test_an_attempts_spec_holds_its_place_and_where_it_starts_from(house: House) -> None:
    house.ready()
    checkpoint(house, 5)
    house.attempt(resume="b1-s5", step=5)
    with house.engine.connect() as connection:
        spec = reads.attempt_spec(connection, house.run_id, 1, "/data/storage/")
        again = reads.attempt_spec(connection, house.run_id, 1, "/data/storage/")
        with pytest.raises(reads.NotFound):
            reads.attempt_spec(connection, house.run_id, 2, "/data/storage/")
    assert spec.storage == "/data/storage/runs/r1/a1"
    assert spec.resume == ResumePoint(
        checkpoint_id="b1-s5", step=5, uri="/x/5", manifest_sha256="m" * 64
    )
    assert spec.data_plan.seed == spec.job.seed == 17
    assert spec.model_dump_json() == again.model_dump_json()


def test_a_spec_of_a_newer_version_is_refused_with_what_to_do(house: House) -> None:
    house.submit()
    with house.engine.begin() as connection:
        connection.execute(update(tables.revisions).values(spec_version=99))
        with pytest.raises(upcasters.SpecTooNew, match="install the version that wrote it"):
            reads.job_spec(connection, house.run_id, 1)


@pytest.mark.parametrize(
    ("state", "desired", "generation", "settled", "active"),
    [
        ("queued", "run", 1, 0, True),
        ("stopping", "pause", 2, 1, True),
        ("paused", "run", 1, 1, False),
        ("paused", "pause", 2, 2, False),
        ("paused", "run", 2, 1, True),
        ("paused", "cancel", 2, 2, True),
        ("failed", "run", 1, 1, False),
        ("failed", "run", 2, 1, True),
        ("succeeded", "pause", 2, 1, False),
        ("cancelled", "run", 2, 1, False),
    ],
)
def test_which_runs_need_the_loop(
    house: House, state: str, desired: str, generation: int, settled: int, active: bool
) -> None:
    house.submit()
    with house.engine.begin() as connection:
        connection.execute(
            update(tables.runs).values(
                state=state,
                desired=desired,
                desired_generation=generation,
                settled_generation=settled,
            )
        )
        assert reads.active_runs(connection) == (["r1"] if active else [])


@pytest.mark.parametrize("state", ["paused", "failed", "succeeded", "cancelled"])
def test_a_resting_run_needs_the_loop_while_it_holds_hosts(house: House, state: str) -> None:
    house.ready()
    with house.engine.begin() as connection:
        connection.execute(update(tables.runs).values(state=state, settled_generation=1))
        assert reads.active_runs(connection) == ["r1"]
    house.commit(MoveGroup(house.group, GroupCause.NOT_WANTED))
    house.commit(MoveGroup(house.group, GroupCause.RELEASED))
    with house.engine.connect() as connection:
        assert reads.active_runs(connection) == []


# ---- evidence, branches, limits ----------------------------------------------------------------


def opened(verdict: Verdict = Verdict.CRASHED) -> OpenIncident:
    return OpenIncident(1, verdict, "it fell", (), ("Restarting.",), False)


def test_a_revised_verdict_keeps_the_first_one_and_tells_its_incident(house: House) -> None:
    house.ready()
    house.attempt()
    house.commit(end(), opened())
    seen = (Evidence(START, "agent of host 0", "spot"),)
    house.commit(ReviseVerdict(1, Verdict.PREEMPTED, "the cloud took it", seen))
    row, incident = house.rows("attempts")[0], house.snapshot().incident
    assert (row["verdict"], row["revised_from"], row["revised_at"]) == (
        "preempted",
        "crashed",
        house.now,
    )
    assert incident is not None
    assert (incident.verdict, incident.summary) == (Verdict.PREEMPTED, "the cloud took it")
    assert "verdict_revised" in kinds(house)
    house.commit(ReviseVerdict(1, Verdict.DIVERGED, "it was not finite", seen, bad_step=7))
    last = house.snapshot().attempts[-1]
    assert (last.revised_from, last.verdict, last.bad_step) == ("crashed", "diverged", 7)


def test_a_branch_carries_its_parents_plan_and_the_new_skips(house: House) -> None:
    house.ready()
    for step in (5, 9):
        checkpoint(house, step)
    house.commit(OpenBranch("b1-s5", 5, (Skip(first=5, last=8, reason="bad"),), "it diverged"))
    house.commit(OpenBranch("b1-s5", 5, (Skip(first=9, last=9, reason="bad"),), "again"))
    snap = house.snapshot()
    assert snap.run.branch == 3
    assert snap.data_plan is not None
    assert [(skip.first, skip.last) for skip in snap.data_plan.skips] == [(5, 8), (9, 9)]
    assert snap.data_plan.seed == 17
    assert usable(house) == ["b1-s5"]


def test_a_checkpoint_accepted_since_the_look_is_not_passed_over(house: House) -> None:
    """It may be the last one, and then nothing was lost."""
    house.ready()
    house.attempt()
    snap = house.snapshot()
    with house.engine.begin() as connection:
        connection.execute(update(tables.attempts).values(accepted_step=200))
    with pytest.raises(writes.Stale, match="just been accepted"):
        house.commit(end(), snap=snap)
    house.commit(end())


def test_silence_and_the_clouds_word_are_kept(house: House) -> None:
    house.ready()
    house.commit(MarkHost(house.group, 0, True, "silent"), NoteTaken(house.group, "preempted", "x"))
    snap = house.snapshot()
    assert snap.hosts[0].unreachable_at == house.now
    assert snap.group is not None
    assert (snap.group.taken, snap.group.taken_at) == ("preempted", house.now)
    house.commit(MarkHost(house.group, 0, False, "back"))
    assert house.snapshot().hosts[0].unreachable_at is None
    assert kinds(house)[-3:] == ["host_unreachable", "group_taken", "host_heard_again"]


def test_what_is_slow_is_kept_and_told_until_it_keeps_up_again(house: House) -> None:
    house.ready()
    house.attempt()
    house.tell({"kind": "trainer_started", "pid": 7})
    house.commit(NoteSlow(1, 0, "host 0 keeps the others waiting"), NoteSlow(1, None, "slower"))
    snap = house.snapshot()
    assert snap.trainers[0].slow_why == "host 0 keeps the others waiting"
    assert snap.attempts[-1].slow_why == "slower"
    house.commit(NoteSlow(1, 0, None), NoteSlow(1, None, None))
    snap = house.snapshot()
    assert (snap.trainers[0].slow_why, snap.attempts[-1].slow_why) == (None, None)
    assert kinds(house)[-4:] == ["host_slow", "run_slow", "host_keeps_up", "run_keeps_up"]


def test_a_lost_group_remembers_the_wish_that_it_was_lost_under(house: House) -> None:
    house.ready()
    house.commit(MoveGroup(house.group, GroupCause.HOSTS_LOST, "gone"))
    group = house.snapshot().groups[-1]
    assert group.lost_in_wish == 1


def test_a_trainer_is_buried_with_its_host(house: House) -> None:
    house.ready()
    house.attempt()
    house.commit(BuryTrainer(1, 0, "silent", host_gone=True))
    assert house.snapshot().trainers[0].killed_for == HOST_GONE


def test_what_a_provider_was_asked_for_is_kept_with_the_group(house: House) -> None:
    house.lead()
    house.submit()
    asked = HostRequest(2, 4, SshHosts(labels={"room": "b"}, kind="A100"))
    house.commit(MakeGroup(house.group, 1, "ssh", asked))
    assert house.snapshot().group.request == asked
    [told] = [row for row in house.rows("events") if row["kind"] == "group_made"]
    assert json.loads(str(told["body"]))["request"] == {"labels": {"room": "b"}, "kind": "A100"}


def test_hours_and_cost_are_summed_over_every_group(house: House) -> None:
    house.ready()
    with house.engine.begin() as connection:
        connection.execute(update(tables.host_groups).values(price_per_hour=3.0))
    house.tick(3600)
    house.commit(MoveGroup(house.group, GroupCause.NOT_WANTED))
    house.commit(MoveGroup(house.group, GroupCause.RELEASED))
    house.tick(3600)
    house.commit(MakeGroup("second", 2, "local", HostRequest(1, 1), 6.0))
    house.commit(MoveGroup("second", GroupCause.ASKED), MoveGroup("second", GroupCause.HOSTS_UP))
    house.tick(1800)
    snap = house.snapshot()
    assert (round(snap.hours_held, 3), round(snap.cost, 3)) == (1.5, 6.0)


def test_an_old_probe_says_nothing_of_who_lives(house: House) -> None:
    house.ready()
    assert sight(house, began=1, alive=True).hosts[0].agent_alive is True
    house.tick(60)
    assert sight(house, began=-27, alive=True).hosts[0].agent_alive is True
    assert sight(house, began=-29, alive=True).hosts[0].agent_alive is None


def test_a_paused_run_is_looked_at_while_its_verdict_may_be_revised(house: House) -> None:
    house.ready()
    house.attempt()
    house.commit(end(), MoveRun(RunCause.GAVE_UP, "x", settle=True))
    house.commit(MoveGroup(house.group, GroupCause.NOT_WANTED))
    house.commit(MoveGroup(house.group, GroupCause.RELEASED))
    with house.engine.connect() as connection:
        assert reads.active(connection) == []
        assert [run.id for run in reads.active(connection, house.now)] == ["r1"]
        assert reads.active(connection, house.now + timedelta(minutes=6)) == []


def test_late_exits_of_ended_attempts_are_seen(gang: House) -> None:
    gang.ready()
    gang.attempt()
    gang.commit(BuryTrainer(1, 0, "x"), BuryTrainer(1, 1, "x"), end())
    gang.commit(MoveRun(RunCause.ATTEMPT_LOST))
    gang.attempt(2)
    gang.tell({"kind": "trainer_exited", "exit_code": 69}, attempt=1, host=1)
    told = {(t.attempt, t.rank): t.exit_code for t in gang.snapshot().trainers}
    assert told == {(1, 0): None, (1, 1): 69}
    gang.tick(301)
    assert gang.snapshot().trainers == ()


def test_runs_that_are_looked_at_together_are_seen_as_each_by_itself(engine: Engine) -> None:
    failed, trains, waits = (House(engine, run_id=name) for name in ("r1", "r2", "r3"))
    for house in (failed, trains):
        house.ready()
        house.attempt()
        house.tell({"kind": "trainer_started", "pid": 7}, running=1)
    failed.commit(end(), OpenIncident(1, Verdict.CRASHED, "it fell", (), (), False))
    waits.submit()
    names = ["r3", "r2", "r1", "nobody"]
    seen = (failed.tick(60), INSTALLATION, START, {})
    with engine.connect() as connection:
        found = looks.snapshots(connection, names, *seen)
        alone = [looks.snapshot(connection, name, *seen) for name in names]
    assert [found.get(name) for name in names] == alone
    assert [snap.run.id for snap in alone if snap is not None] == ["r3", "r2", "r1"]
    assert [len(found[name].trainers) for name in ("r1", "r2", "r3")] == [1, 1, 0]
    assert [found[name].incident is not None for name in ("r1", "r2", "r3")] == [True, False, False]


def test_runs_are_silent_whose_hosts_stand_and_are_not_heard_of(engine: Engine) -> None:
    heard, silent, leaving = (House(engine, run_id=name) for name in ("r1", "r2", "r3"))
    for house in (heard, silent, leaving):
        house.ready()
    leaving.commit(MoveGroup(leaving.group, GroupCause.NOT_WANTED))
    now = heard.tick()
    heard.send()
    with engine.connect() as connection:
        assert reads.silent_runs(connection, now) == {"r2"}
