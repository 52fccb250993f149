"""Wishes on both databases: branches, forks and saves as rows, and wishes that meet each other."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from orchestrator.roles import Role
from orchestrator.state import Desired
from orchestrator.store import (
    branching,
    checkpoint_wishes,
    forks,
    looks,
    reads,
    resuming,
    tables,
    wishes,
)
from orchestrator.store.audit import Actor
from orchestrator.store.branching import Rollback
from orchestrator.store.checkpoint_wishes import Quarantine
from orchestrator.store.forks import Fork
from orchestrator.store.resuming import Resume, Revised
from orchestrator.store.views import revisions_of
from tests.contract.conftest import SECRET, House
from tests.contract.test_store_commands import STARTED, STEP, told
from worker.protocol import CheckpointOffer, CheckpointWritten, JobSpec, SaveNow

ADA = Actor("ada", Role.OPERATOR, None)


def written(step: int, attempt: int = 1, request: int = 0) -> CheckpointWritten:
    return CheckpointWritten(
        checkpoint_id=f"a{attempt}-s{step}",
        step=step,
        uri=f"/data/runs/r1/a{attempt}/checkpoints/{step}",
        bytes=10,
        files=1,
        manifest_sha256="m" * 64,
        state_digest="d" * 64,
        stall_seconds=0.1,
        write_seconds=0.2,
        save_request=request,
    )


def accept(house: House, step: int, attempt: int = 1, request: int = 0) -> None:
    from orchestrator.store import ledger_events

    call = CheckpointOffer(
        group=house.group,
        host=0,
        instance="i1",
        run_id="r1",
        attempt=attempt,
        checkpoint=written(step, attempt, request),
    )
    with house.engine.begin() as connection:
        ledger_events.offer(connection, call, SECRET, house.tick())


@pytest.fixture
def saved(gang: House) -> House:
    """A gang of two that runs and has saved steps 10, 20 and 30."""
    gang.ready()
    gang.attempt()
    for host in (0, 1):
        gang.tell(STARTED, STEP, host=host, running=1)
    for step in (10, 20, 30):
        accept(gang, step)
    return gang


def job(house: House) -> JobSpec:
    with house.engine.connect() as connection:
        return reads.job_spec(connection, "r1", 1)


def speak(house: House, protocol: int) -> None:
    with house.engine.begin() as connection:
        connection.execute(update(tables.hosts).values(protocol=protocol))


def save_now(house: House) -> bool:
    with house.engine.begin() as connection:
        return checkpoint_wishes.save_now(connection, house.tick(), "r1", None, ADA).changed


def test_one_host_of_new_agents_is_told_to_save_until_a_checkpoint_answers(saved: House) -> None:
    speak(saved, 2)
    assert told(saved, 0) == told(saved, 1) == ()
    assert save_now(saved)
    assert told(saved, 0) == (SaveNow(attempt=1, request=1),)
    assert told(saved, 1) == (), "the wish goes round the gang by itself"
    accept(saved, 35)
    assert told(saved, 0) == (SaveNow(attempt=1, request=1),), "this save was begun before"
    accept(saved, 36, request=1)
    assert told(saved, 0) == ()
    assert save_now(saved)
    assert told(saved, 0) == (SaveNow(attempt=1, request=2),)


def test_older_agents_are_never_told_what_they_do_not_know(saved: House) -> None:
    speak(saved, 2)
    save_now(saved)
    speak(saved, 1)
    assert told(saved, 0) == ()


def test_a_save_that_nobody_asked_for_answers_nothing(saved: House) -> None:
    accept(saved, 40, request=7)
    assert saved.rows("runs")[0]["save_served"] == 0


def test_a_rollback_leaves_the_newer_checkpoints_behind_and_keeps_them(saved: House) -> None:
    with saved.engine.begin() as connection:
        branching.rollback(connection, saved.tick(), "r1", Rollback(20, 3, "a spike"), ADA)
    snap = saved.snapshot()
    assert (snap.run.branch, snap.run.desired_generation) == (2, 2)
    assert [checkpoint.id for checkpoint in snap.checkpoints] == ["a1-s20", "a1-s10"]
    assert len(saved.rows("checkpoints")) == 3
    # What the attempt of the old branch still saves stays there too.
    accept(saved, 40)
    assert [checkpoint.step for checkpoint in saved.snapshot().checkpoints] == [20, 10]
    with saved.engine.begin() as connection:
        asked = Quarantine("a1-s20", "a flipped bit")
        checkpoint_wishes.quarantine(connection, saved.tick(), "r1", asked, ADA)
    assert [checkpoint.step for checkpoint in saved.snapshot().checkpoints] == [10]


def test_a_fork_shares_the_files_and_nothing_else(saved: House) -> None:
    twin = job(saved).model_copy(update={"name": "twin"})
    asked = Fork(Revised(twin, 1), "a1-s20", "why not", "key", "digest")
    made = []
    for _ in range(2):
        with saved.engine.begin() as connection:
            made.append(forks.fork(connection, saved.tick(), "r1", asked, ADA))
    assert [one.made for one in made] == [True, False]
    assert made[0].run_id == made[1].run_id
    with saved.engine.connect() as connection:
        snap = looks.snapshot(connection, made[0].run_id, saved.now, "i", saved.now, {})
    assert snap is not None
    [inherited] = snap.checkpoints
    source = next(one for one in saved.rows("checkpoints") if one["id"] == "a1-s20")
    assert (inherited.id, inherited.attempt, inherited.step) == ("fork-s20", 0, 20)
    same = ("uri", "manifest_sha256", "state_digest", "bytes")
    assert [getattr(inherited, name) for name in same] == [source[name] for name in same]


def test_a_change_made_to_an_older_revision_is_refused(saved: House) -> None:
    asked = Resume(revised=Revised(job(saved).model_copy(update={"priority": 1}), based_on=1))
    with saved.engine.begin() as connection:
        assert resuming.resume(connection, saved.tick(), "r1", asked, ADA).changed
    with saved.engine.begin() as connection, pytest.raises(wishes.NotAccepted) as refusal:
        resuming.resume(connection, saved.tick(), "r1", asked, ADA)
    assert refusal.value.slug == "revision-changed"
    with saved.engine.connect() as connection:
        assert [one.number for one in revisions_of(connection, "r1")] == [1, 2]


def test_wishes_that_meet_are_kept_one_after_the_other(saved: House) -> None:
    """Each is a generation of its own, whichever came first; none is lost."""
    failed: list[BaseException] = []

    def ask(to: int) -> None:
        try:
            with saved.engine.begin() as connection:
                branching.rollback(connection, saved.now, "r1", Rollback(to), ADA)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(step,)) for step in (10, 20, 30, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    run = saved.rows("runs")[0]
    assert (run["branch"], run["desired_generation"]) == (7, 7)
    assert sorted(row["number"] for row in saved.rows("branches")) == list(range(1, 8))


def test_a_pause_of_a_paused_run_leaves_nothing_to_decide(saved: House) -> None:
    with saved.engine.begin() as connection:
        connection.execute(update(tables.host_groups).values(state="gone"))
        values = {"state": "paused", "desired": "run", "settled_generation": 1}
        connection.execute(update(tables.runs).values(values))
        wishes.wish(connection, saved.tick(), "r1", Desired.PAUSE, ADA)
    with saved.engine.connect() as connection:
        assert reads.active_runs(connection) == []
        assert connection.scalar(select(tables.runs.c.desired)) == "pause"


def test_every_wish_leaves_its_row_in_the_audit_log(saved: House) -> None:
    speak(saved, 2)
    later = job(saved).model_copy(update={"priority": 4})
    twin = Fork(Revised(later.model_copy(update={"name": "t"}), 1), 10, None, None, "d")
    with saved.engine.begin() as connection:
        at = saved.tick()
        branching.rollback(connection, at, "r1", Rollback(20), ADA)
        checkpoint_wishes.save_now(connection, at, "r1", "now", ADA)
        checkpoint_wishes.quarantine(connection, at, "r1", Quarantine("a1-s30", "bad"), ADA)
        forks.fork(connection, at + timedelta(seconds=1), "r1", twin, ADA)
        resuming.resume(connection, at, "r1", Resume("why", Revised(later, 1)), ADA)
    found = [(row["actor"], row["action"], row["target"]) for row in saved.rows("audit")]
    actions = ["rollback", "checkpoint", "quarantine", "fork", "revise", "resume"]
    assert found == [("ada", f"run.{action}", "r1") for action in actions]
