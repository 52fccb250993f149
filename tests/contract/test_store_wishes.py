"""Wishes on both databases: branches, forks and saves as rows, and wishes that meet each other."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from orchestrator.reconcile.keeping import given_up as keeping_rule
from orchestrator.reconcile.plan import DeleteCheckpoint, MoveGroup
from orchestrator.reconcile.rules import reconcile
from orchestrator.roles import Role
from orchestrator.state import Desired, GroupCause
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
from orchestrator.store.committing import Stale
from orchestrator.store.forks import Fork
from orchestrator.store.resuming import Resume, Revised
from orchestrator.store.views import revisions_of
from tests.contract.conftest import SECRET, House
from tests.contract.test_store_commands import STARTED, STEP, told
from worker.protocol import (
    CheckpointOffer,
    CheckpointWritten,
    DeleteCheckpoints,
    JobSpec,
    Retire,
    SaveNow,
)

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


# ---- checkpoints that are given up -------------------------------------------------------------


def verify(house: House, step: int) -> None:
    event = {"kind": "checkpoint_verified", "checkpoint_id": f"a1-s{step}", "seconds": 0.1}
    house.tell(event, running=1)


def keeping(house: House, **keep: object) -> None:
    """The spec lets some be deleted, and the loop decides about it."""
    spec = job(house).model_dump(mode="json") | {"checkpoint": {"keep": keep}}
    with house.engine.begin() as connection:
        text = JobSpec.model_validate(spec).model_dump_json()
        connection.execute(update(tables.revisions).values(spec=text))


def states(house: House) -> dict[object, object]:
    return {row["id"]: row["state"] for row in house.rows("checkpoints")}


def gave_up(house: House) -> list[str]:
    """Decides until nothing is left to decide; the names of what was given up."""
    given: list[str] = []
    for _ in range(5):
        snap = house.snapshot()
        plan = reconcile(snap)
        given += [one.checkpoint for one in plan.changes if isinstance(one, DeleteCheckpoint)]
        house.commit(*plan.changes, snap=snap)
    return given


def test_what_is_verified_lets_older_ones_go_and_host_0_is_told_until_it_has(saved: House) -> None:
    keeping(saved, newest=1)
    assert gave_up(saved) == []
    verify(saved, 30)
    assert states(saved)["a1-s30"] == "verified"
    assert gave_up(saved) == ["a1-s10", "a1-s20"]
    uris = tuple(written(step).uri for step in (10, 20))
    assert told(saved, 0) == (DeleteCheckpoints(run_id="r1", attempt=1, uris=uris),)
    assert told(saved, 1) == ()
    saved.tell({"kind": "files_deleted", "uri": uris[0]}, running=1)
    assert told(saved, 0) == (DeleteCheckpoints(run_id="r1", attempt=1, uris=uris[1:]),)
    saved.tell({"kind": "files_deleted", "uri": uris[1]}, running=1)
    assert told(saved, 0) == ()
    kinds = [row["kind"] for row in saved.rows("events")]
    assert kinds.count("checkpoint_deleted") == 2


def test_a_restore_verifies_what_it_began_from_and_nothing_else(saved: House) -> None:
    event = {"kind": "resumed", "checkpoint_id": "a1-s20", "step": 20, "state_digest": "d"}
    saved.tell(event, running=1)
    assert states(saved)["a1-s20"] == "verified", "its own, too"
    saved.tell(event | {"checkpoint_id": "a9-s9"}, running=1)
    saved.tell({"kind": "checkpoint_rejected", "checkpoint_id": "a1-s30", "reason": "r"})
    verify(saved, 30)
    assert states(saved)["a1-s30"] == "quarantined"


def test_a_deleted_one_is_told_of_until_its_files_are_gone_and_only_where_it_was_deleted(
    saved: House,
) -> None:
    saved.tell({"kind": "files_deleted", "uri": written(20).uri}, running=1)
    assert [row["files_gone_at"] for row in saved.rows("checkpoints")] == [None] * 3


def test_what_has_come_to_be_needed_since_the_look_is_not_given_up(saved: House) -> None:
    keeping(saved, newest=1)
    verify(saved, 30)
    snap = saved.snapshot()
    change = next(one for one in keeping_rule(snap) if one.checkpoint == "a1-s20")
    twin = job(saved).model_copy(update={"name": "twin"})
    with saved.engine.begin() as connection:
        asked = Fork(Revised(twin, 1), "a1-s20", "why not", "key", "digest")
        forks.fork(connection, saved.tick(), "r1", asked, ADA)
    with pytest.raises(Stale, match="a1-s20 is accepted, or needed"):
        saved.commit(change, snap=snap)
    assert gave_up(saved) == ["a1-s10"]
    with saved.engine.begin() as connection:
        branching.rollback(connection, saved.tick(), "r1", Rollback(30), ADA)
    assert states(saved)["a1-s30"] == "verified"


def test_nothing_begins_at_one_that_was_given_up(saved: House) -> None:
    keeping(saved, newest=1)
    verify(saved, 30)
    gave_up(saved)
    with saved.engine.begin() as connection, pytest.raises(wishes.NotAccepted):
        branching.rollback(connection, saved.tick(), "r1", Rollback("a1-s20"), ADA)


def test_the_best_are_found_by_the_losses_of_their_steps(saved: House) -> None:
    keeping(saved, newest=1, best={"metric": "eval_loss", "n": 1})
    for step, loss in ((10, 3.0), (20, 1.0)):
        told_eval = {"kind": "eval", "step": step, "loss": loss, "batches": 1, "seconds": 0.1}
        saved.tell(told_eval, running=1)
    verify(saved, 30)
    assert gave_up(saved) == ["a1-s10"]


def test_hosts_that_are_given_back_delete_first(saved: House) -> None:
    keeping(saved, newest=1)
    verify(saved, 30)
    gave_up(saved)
    saved.commit(MoveGroup(saved.group, GroupCause.NOT_WANTED))
    assert [type(one) for one in told(saved, 0)] == [DeleteCheckpoints, Retire]
    assert told(saved, 1) == (Retire(),)
