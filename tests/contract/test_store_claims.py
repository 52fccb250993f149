"""Claims hold the limits in the database itself, and live as long as a run has hosts."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import pytest
from sqlalchemy import Engine, insert
from sqlalchemy.exc import IntegrityError

from orchestrator.queueing import Queue, limits_of, wants_hosts
from orchestrator.reconcile.plan import MakeGroup, MoveGroup, MoveRun
from orchestrator.reconcile.rules import reconcile
from orchestrator.reconcile.snapshot import Admission, Limits, Snapshot
from orchestrator.records import HostRequest
from orchestrator.roles import Role
from orchestrator.settings import Settings
from orchestrator.state import GroupCause, RunCause
from orchestrator.store import reads, tables, writes
from orchestrator.store.audit import Actor
from orchestrator.store.resuming import Resume, Revised, resume
from tests.contract.conftest import House
from tests.scenarios.clock import FakeClock
from worker.protocol import JobSpec

LOCAL2 = Limits({"local": 2})
NONE = Limits()


def scopes(house: House) -> dict[str, int]:
    return dict(Counter(str(row["scope"]) for row in house.rows("claims")))


def admitted(snap: Snapshot, limits: Limits) -> Snapshot:
    return replace(snap, admission=Admission(limits=limits))


def ask(house: House, limits: Limits = NONE, generation: int = 1) -> None:
    """What the rules plan for a run whose turn it is."""
    name = f"{house.group[:-1]}{generation}"
    group = MakeGroup(name, generation, "local", HostRequest(house.hosts, 1))
    move = (MoveRun(RunCause.ADMITTED),) if generation == 1 else ()
    house.commit(group, *move, snap=admitted(house.snapshot(), limits))


def other(house: House, run_id: str, hosts: int = 1) -> House:
    made = House(house.engine, house.now, run_id, hosts, house.token)
    made.submit()
    return made


def queue(limits: Limits) -> Queue:
    return Queue(lambda: limits, FakeClock())


def test_one_claim_for_each_host_and_scope(gang: House) -> None:
    gang.ready()
    assert scopes(gang) == {"provider:local": 2, "owner:somebody": 2}
    slots = [row["slot"] for row in gang.rows("claims") if row["scope"] == "provider:local"]
    assert sorted(slots) == [1, 2]


def test_claims_live_through_a_loss_of_hosts_and_end_with_the_rest(house: House) -> None:
    house.ready()
    house.commit(MoveGroup(house.group, GroupCause.HOSTS_LOST))
    house.commit(MoveGroup(house.group, GroupCause.RELEASED))
    held = scopes(house)
    assert held == {"provider:local": 1, "owner:somebody": 1}
    ask(house, generation=2)
    assert scopes(house) == held
    house.commit(MoveRun(RunCause.GAVE_UP, "no"))
    assert scopes(house) == held  # its hosts are not gone yet
    second = f"{house.group[:-1]}2"
    house.commit(MoveGroup(second, GroupCause.NOT_WANTED))
    house.commit(MoveGroup(second, GroupCause.RELEASED))
    assert scopes(house) == {}


def test_a_run_that_ends_without_hosts_drops_its_claims_with_the_move(house: House) -> None:
    house.ready()
    house.commit(MoveGroup(house.group, GroupCause.NOT_WANTED))
    house.commit(MoveGroup(house.group, GroupCause.RELEASED))
    house.commit(MoveRun(RunCause.INVALID, "bad"))
    assert scopes(house) == {}


def test_more_than_a_limit_is_stale_and_leaves_nothing(house: House) -> None:
    house.lead()
    house.submit()
    ask(house, LOCAL2)
    second = other(house, "r2", hosts=2)
    with pytest.raises(writes.Stale, match="1 of 2 free, 2 are asked for"):
        ask(second, LOCAL2)
    assert second.snapshot().run.state == "queued"
    assert scopes(house)["provider:local"] == 1


def test_other_hosts_in_a_new_revision_change_the_claims(gang: House) -> None:
    gang.ready()
    for cause in (GroupCause.NOT_WANTED, GroupCause.RELEASED):
        gang.commit(MoveGroup(gang.group, cause))
    gang.hosts = 3
    with pytest.raises(writes.Stale):
        ask(gang, LOCAL2, generation=2)
    gang.hosts = 1
    ask(gang, LOCAL2, generation=2)
    assert scopes(gang) == {"provider:local": 1, "owner:somebody": 1}


def test_the_database_itself_refuses_one_slot_twice(house: House) -> None:
    house.ready()
    row = house.rows("claims")[0]
    with pytest.raises(IntegrityError), house.engine.begin() as connection:
        connection.execute(insert(tables.claims).values(row))


def test_of_two_leaders_that_race_for_the_last_slot_one_is_stale(
    house: House, engine: Engine
) -> None:
    """As far as they come: here nothing but the claims keeps them apart."""
    house.lead()
    house.submit()
    limits = Limits({"local": 1})
    runs = [house, other(house, "r2")]
    outcomes: list[str] = []
    start = threading.Barrier(2)

    def commit(of: House) -> None:
        start.wait()
        try:
            ask(of, limits)
            outcomes.append("changed")
        except writes.Stale:
            outcomes.append("stale")

    threads = [threading.Thread(target=commit, args=(of,)) for of in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["changed", "stale"]
    assert scopes(house)["provider:local"] == 1


# ---- the line over the database ----------------------------------------------------------------


def see(house: House, line: Queue) -> Snapshot:
    with house.engine.connect() as connection:
        snap = house.snapshot()
        assert wants_hosts(snap)
        return replace(snap, admission=line.admission(connection, snap))


def test_a_queued_run_waits_and_is_told_for_what(house: House) -> None:
    house.lead()
    house.submit()
    line = queue(LOCAL2)
    ask(house, LOCAL2)
    second, third = other(house, "r2", hosts=2), other(house, "r3")
    snap = see(second, line)
    assert snap.admission.waits_for == "2 hosts of provider local: 1 of 2 is held"
    assert reconcile(snap).changes == ()
    with house.engine.connect() as connection:
        told = line.waits_for(connection, "r3")
    assert told == "1 host of provider local: 1 of 2 is held by r1 (1); 1 run is ahead"
    house.commit(MoveGroup(house.group, GroupCause.NOT_WANTED))
    house.commit(MoveRun(RunCause.STOP_ASKED), MoveRun(RunCause.CANCELLED))
    house.commit(MoveGroup(house.group, GroupCause.RELEASED))
    line.changed()
    assert see(second, line).admission.admitted
    assert not see(third, line).admission.admitted


def test_the_line_is_read_anew_when_the_rows_have_changed(house: House) -> None:
    house.lead()
    house.submit()
    clock = FakeClock()
    line = Queue(lambda: LOCAL2, clock)
    with house.engine.connect() as connection:
        first = line.line(connection)
        clock.advance(1.0)
        assert line.line(connection) is first
    other(house, "r2")
    clock.advance(1.0)
    with house.engine.connect() as connection:
        assert set(line.line(connection).waiting) == {"r1", "r2"}


def test_a_run_that_is_new_to_the_line_is_found_at_once(house: House) -> None:
    house.lead()
    house.submit()
    line = queue(Limits({"local": 1}))
    assert see(house, line).admission.admitted
    assert not see(other(house, "r2"), line).admission.admitted


def test_a_run_that_lost_its_hosts_is_in_the_line_with_what_it_holds(gang: House) -> None:
    gang.ready()
    for cause in (GroupCause.HOSTS_LOST, GroupCause.RELEASED):
        gang.commit(MoveGroup(gang.group, cause))
    line = queue(LOCAL2)
    snap = see(gang, line)
    assert snap.admission.admitted
    other(gang, "r2")
    assert not see(House(gang.engine, gang.now, "r2"), line).admission.admitted


def test_a_run_that_can_never_go_is_paused_with_words(gang: House) -> None:
    gang.lead()
    gang.submit()
    snap = see(gang, queue(Limits({"local": 1})))
    gang.commit(*reconcile(snap).changes, snap=snap)
    run = gang.snapshot().run
    assert run.state == "paused"
    assert "2 hosts of provider local, and the limit is 1" in str(run.reason)
    assert gang.rows("incidents")[0]["needs_person"]
    assert scopes(gang) == {}


def test_being_queued_again_counts_from_then(house: House) -> None:
    house.lead()
    house.submit()
    house.commit(MoveRun(RunCause.PAUSED, settle=True))
    house.tick(60)
    house.commit(MoveRun(RunCause.RESUMED))
    assert house.snapshot().run.queued_at == house.now


def test_the_settings_limit_this_machine_in_any_case(tmp_path) -> None:
    plain = Settings(data_dir=tmp_path)
    assert limits_of(plain) == Limits({"local": 16})
    given = Settings(data_dir=tmp_path, max_hosts={"local": 4, "tpu": 0}, max_hosts_per_owner=2)
    assert limits_of(given) == Limits({"local": 4, "tpu": 0}, 2)


def test_a_spec_is_read_once_and_the_line_once_a_change(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.lead()
    house.submit()
    run, revision = house.rows("runs")[0], house.rows("revisions")[0]
    names = [f"q{n}" for n in range(50)]
    with house.engine.begin() as connection:
        connection.execute(insert(tables.runs), [run | {"id": n, "name": n} for n in names])
        connection.execute(insert(tables.revisions), [revision | {"run_id": n} for n in names])
    read: list[str] = []
    real = reads.job_spec
    monkeypatch.setattr(reads, "job_spec", lambda c, run, n: read.append(run) or real(c, run, n))
    clock = FakeClock()
    line = Queue(lambda: LOCAL2, clock)
    with house.engine.connect() as connection:
        made = {id(line.line(connection, name)) for name in names}
        assert len(made) == 1
        line.changed()
        assert len(line.line(connection).waiting) == 51
    assert sorted(read) == sorted([*names, "r1"])


def test_runs_that_want_more_hosts_than_they_had_do_not_wait_for_each_other(house: House) -> None:
    house.ready()
    second = other(house, "r2")
    ask(second, LOCAL2)
    second.commit(MoveGroup(second.group, GroupCause.ASKED))
    for one in (house, second):
        revise(one, count=2)
        one.commit(MoveGroup(one.group, GroupCause.NOT_WANTED))
        one.commit(MoveGroup(one.group, GroupCause.RELEASED))
    with house.engine.connect() as connection:
        line = queue(LOCAL2).line(connection)
    assert len(line.admitted) == 1


def test_claims_that_a_new_revision_finds_too_few_are_given_back(house: House) -> None:
    house.ready()
    house.commit(MoveGroup(house.group, GroupCause.HOSTS_LOST))
    house.commit(MoveGroup(house.group, GroupCause.RELEASED))
    assert scopes(house) == {"provider:local": 1, "owner:somebody": 1}
    revise(house, count=2)
    assert scopes(house) == {}


def revise(house: House, **hosts: object) -> None:
    with house.engine.begin() as connection:
        job = reads.job_spec(connection, house.run_id, 1)
        spec = job.model_dump() | {"hosts": job.hosts.model_dump() | hosts}
        asked = Resume(revised=Revised(JobSpec.model_validate(spec), 1))
        resume(connection, house.now, house.run_id, asked, Actor("ann", Role.OPERATOR, None))
