"""The sweep of orphans: what counts as one, when it is given back, and what is never touched."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from sqlalchemy import Engine, update

from orchestrator.providers.base import Owned, ProviderError
from orchestrator.reconcile.plan import MoveGroup
from orchestrator.state import GroupCause
from orchestrator.store import lease, orphans, tables
from orchestrator.sweep import SWEEP, Sweeper, Terms
from tests.contract.conftest import INSTALLATION, House
from tests.contract.test_loop_runs import looping, plane, run, submit
from tests.fakes.provider import FakeGroup, FakeProvider

GRACE = timedelta(seconds=60)
STRAY = f"lh-{INSTALLATION}-r9-g1"


def sweep(house: House, *names: str, token: int | None = None, hosts: int = 2) -> list[str]:
    listing = orphans.Listing("local", [Owned(name, hosts) for name in names], {STRAY: 3.0})
    with house.engine.begin() as connection:
        return orphans.sweep(
            connection,
            listing,
            INSTALLATION,
            GRACE,
            house.token if token is None else token,
            house.now,
        )


def listed(house: House, **more: bool) -> list[orphans.Orphan]:
    with house.engine.connect() as connection:
        return orphans.listed(connection, GRACE, **more)


def allowed(house: House, name: str = STRAY) -> timedelta:
    with house.engine.begin() as connection:
        return orphans.allow(connection, "local", name, house.token)


def confirm(house: House) -> list[orphans.Orphan]:
    with house.engine.begin() as connection:
        return orphans.confirm(connection, GRACE, house.now)


def restored(house: House) -> None:
    with house.engine.begin() as connection:
        connection.execute(
            tables.installation.insert().values(
                id=INSTALLATION, created_at=house.now, restored_at=house.now
            )
        )


# ---- what is one -------------------------------------------------------------------------------


def test_hosts_of_a_run_that_wants_them_are_no_orphans(house: House) -> None:
    house.ready()
    for _ in range(3):
        house.tick(100)
        assert sweep(house, house.group) == []
    assert listed(house) == []


@pytest.mark.parametrize(
    "name",
    ["lh-another00-r1-g1", "somebody-elses", f"lh-{INSTALLATION}x-r1-g1", INSTALLATION, ""],
)
def test_what_is_not_in_this_installations_name_is_never_touched(house: House, name: str) -> None:
    house.lead()
    for _ in range(3):
        house.tick(100)
        assert sweep(house, name) == []
    assert listed(house, gone=True) == []


@pytest.mark.parametrize("causes", [[GroupCause.NOT_WANTED], ["gone"]])
def test_hosts_that_were_given_back_and_are_still_there_are_orphans(
    house: House, causes: list[str]
) -> None:
    """A late call of a leader that no longer led leaves such."""
    house.ready()
    house.commit(MoveGroup(house.group, GroupCause.NOT_WANTED))
    if causes == ["gone"]:
        house.commit(MoveGroup(house.group, GroupCause.RELEASED))
    sweep(house, house.group)
    house.tick(61)
    assert sweep(house, house.group) == [house.group]
    assert "run r1" in listed(house)[0].why


def test_an_orphan_is_sure_after_two_sweeps_over_its_grace(house: House) -> None:
    house.lead()
    assert sweep(house, STRAY) == []
    house.tick(59)
    assert sweep(house, STRAY) == []
    assert [orphan.sure for orphan in listed(house)] == [False]
    house.tick(1)
    assert sweep(house, STRAY) == [STRAY]
    assert sweep(house, STRAY) == [STRAY]  # asked again until it is gone
    first = listed(house)[0]
    assert (first.sure, first.hosts, first.price_per_hour) == (True, 2, 3.0)
    assert first.reap_asked_at == first.last_seen_at
    assert first.cost == pytest.approx(3.0 / 60)


def test_one_old_sighting_is_not_enough_however_old(house: House) -> None:
    house.lead()
    sweep(house, STRAY)
    house.tick(1000)
    assert [orphan.sure for orphan in listed(house)] == [False]


def test_what_disappears_is_kept_for_the_bill_and_begins_anew_when_it_is_back(
    house: House,
) -> None:
    house.lead()
    sweep(house, STRAY)
    house.tick(1800)
    sweep(house, STRAY)
    house.tick(1800)
    sweep(house)
    assert listed(house) == []
    assert listed(house, gone=True)[0].cost == pytest.approx(3.0)
    house.tick(1)
    assert sweep(house, STRAY) == []
    assert len(listed(house, gone=True)) == 2


def test_what_goes_before_it_is_sure_was_none(house: House) -> None:
    """A release that was under way."""
    house.ready()
    house.commit(MoveGroup(house.group, GroupCause.NOT_WANTED))
    sweep(house, house.group)
    house.tick(100)
    sweep(house)
    assert listed(house, gone=True) == []


def test_the_price_of_the_groups_row_goes_first(house: House) -> None:
    house.ready()
    house.commit(MoveGroup(house.group, GroupCause.NOT_WANTED))
    with house.engine.begin() as connection:
        connection.execute(update(tables.host_groups).values(price_per_hour=7.5))
    sweep(house, house.group)
    assert listed(house)[0].price_per_hour == 7.5


def test_a_fenced_leader_decides_nothing(house: House) -> None:
    house.lead()
    with pytest.raises(lease.Fenced):
        sweep(house, STRAY, token=house.token + 1)
    assert listed(house) == []


# ---- giving back -------------------------------------------------------------------------------


def sure(house: House) -> None:
    house.lead()
    sweep(house, STRAY)
    house.tick(61)
    sweep(house, STRAY)


def test_nothing_is_given_back_that_was_not_decided(house: House) -> None:
    house.lead()
    sweep(house, STRAY)
    with pytest.raises(orphans.NotAnOrphan):
        allowed(house)
    house.tick(61)
    sweep(house, STRAY)
    assert allowed(house) > timedelta()


def test_a_stale_leader_gives_nothing_back(house: House) -> None:
    sure(house)
    with house.engine.begin() as connection:
        lease.release(connection, lease.LEADER, "me")
        lease.acquire(connection, lease.LEADER, "another", timedelta(seconds=60))
    with pytest.raises(lease.Fenced):
        allowed(house)


def test_what_a_run_wants_by_then_is_left_alone(house: House) -> None:
    """A run asks for hosts by a name that was an orphan's: it adopts them."""
    sure(house)
    wanted = House(house.engine, house.now, "r9", token=house.token)
    wanted.ready()
    with pytest.raises(orphans.NotAnOrphan):
        allowed(wanted)
    assert sweep(wanted, STRAY) == []
    assert listed(wanted) == []


def test_after_a_restore_it_only_lists_until_a_person_confirms(house: House) -> None:
    restored(house)
    sure(house)
    assert sweep(house, STRAY) == []
    assert [orphan.reap_asked_at for orphan in listed(house)] == [None]
    with pytest.raises(orphans.NotAnOrphan):
        allowed(house)
    house.tick(10)
    assert [orphan.name for orphan in confirm(house)] == [STRAY]
    assert allowed(house) > timedelta()
    assert sweep(house, STRAY) == [STRAY]


def test_a_decision_from_before_a_restore_needs_a_confirmation_too(house: House) -> None:
    sure(house)
    restored(house)
    assert sweep(house, STRAY) == []
    with pytest.raises(orphans.NotAnOrphan):
        allowed(house)


def test_a_person_can_not_ask_for_what_is_not_sure(house: House) -> None:
    house.lead()
    sweep(house, STRAY)
    assert confirm(house) == []
    assert [orphan.reap_asked_at for orphan in listed(house)] == [None]


# ---- the leader's task -------------------------------------------------------------------------


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGHAUL_SWEEP_SECONDS", "0.02")
    monkeypatch.setenv("LONGHAUL_ORPHAN_GRACE_SECONDS", "0.05")
    monkeypatch.setenv("LONGHAUL_PRICES", '{"local": 2.5}')


def test_the_leader_gives_back_what_no_run_wants_and_only_that(
    engine: Engine, tmp_path: Path, eager: None
) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            made.provider.groups[STRAY] = FakeGroup(2, devices=4)
            made.provider.groups["lh-another00-r1-g1"] = FakeGroup(1)
            submit(engine)
            async with looping(made):
                await made.until(lambda: made.run()["state"] == "running")
                await made.until(lambda: any(row["gone_at"] for row in made.rows("orphans")))
                await made.until(lambda: made.run()["state"] == "succeeded")
            assert ("release", STRAY) in made.provider.calls
            assert set(made.provider.groups) == {"lh-another00-r1-g1"}
            found = [row for row in made.rows("orphans") if row["name"] == STRAY]
            assert [row["price_per_hour"] for row in found] == [20.0]

    run(scenario())


def test_after_a_restore_the_leader_lists_and_counts_but_keeps_its_hands_off(
    engine: Engine, house: House, tmp_path: Path, eager: None
) -> None:
    house.now = datetime.now(UTC)
    restored(house)

    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            made.provider.groups[STRAY] = FakeGroup(2)

            def seen_long() -> bool:
                found = made.rows("orphans")
                return bool(found) and found[0]["last_seen_at"] - found[0]["first_seen_at"] > (
                    timedelta(seconds=0.1)
                )

            async with looping(made):
                await made.until(seen_long)
                assert ("release", STRAY) not in made.provider.calls
                text = generate_latest(made.service.telemetry.registry).decode()
                assert 'longhaul_orphans{provider="local"} 1.0' in text
                assert 'longhaul_orphan_cost_per_hour{provider="local"} 5.0' in text
                await made.service.writer.run(
                    lambda c: orphans.confirm(c, timedelta(), made.service.clock.now())
                )
                made.service.wakes.notify(SWEEP)
                await made.until(lambda: STRAY not in made.provider.groups)

    run(scenario())


@pytest.mark.parametrize("trouble", ["fail", "hang"])
def test_a_provider_in_trouble_keeps_no_other_from_being_swept(
    engine: Engine, tmp_path: Path, eager: None, trouble: str
) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            bad = FakeProvider()
            if trouble == "fail":
                bad.fail["owned"] = ProviderError("the cloud is down")
            else:
                bad.hang["owned"] = made.provider.hang["never"] = threading.Event()
            made.provider.groups[STRAY] = FakeGroup(1)
            object.__setattr__(made.service, "providers", {"bad": bad, "local": made.provider})
            async with looping(made):
                await made.until(lambda: STRAY not in made.provider.groups)
                if trouble == "hang":
                    bad.hang["owned"].set()

    run(scenario())


def test_a_release_that_fails_is_asked_for_again(
    engine: Engine, tmp_path: Path, eager: None
) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            made.provider.groups[STRAY] = FakeGroup(1)
            made.provider.fail["release"] = ProviderError("not now")
            async with looping(made):
                await made.until(lambda: made.provider.calls.count(("release", STRAY)) >= 2)
                del made.provider.fail["release"]
                await made.until(lambda: STRAY not in made.provider.groups)

    run(scenario())


def test_a_release_that_comes_late_to_its_thread_is_left_out(
    engine: Engine, house: House, tmp_path: Path
) -> None:
    """Between the look and the call the lease may have run out."""

    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            sure(house)
            made.provider.groups[STRAY] = FakeGroup(1)
            late = _Late(made.service.clock)
            object.__setattr__(made.service, "clock", late)
            calls: Any = _Calls(before_release=lambda: late.jump(100.0))
            terms = Terms(1.0, GRACE, lambda _: None)
            sweeper = Sweeper(made.service, calls, lambda: house.token, terms)
            late.offset = (house.now - late.now()).total_seconds()
            with pytest.raises(lease.Fenced, match="may have run out"):
                await sweeper.sweep(made.provider, house.token)
            assert STRAY in made.provider.groups

    run(scenario())


class _Late:
    """A clock that jumps."""

    def __init__(self, real: Any) -> None:
        self._real, self.offset, self._ahead = real, 0.0, 0.0

    def now(self) -> Any:
        return self._real.now() + timedelta(seconds=self.offset)

    def monotonic(self) -> float:
        return self._real.monotonic() + self._ahead

    def jump(self, seconds: float) -> None:
        self._ahead += seconds


class _Calls:
    def __init__(self, before_release: Callable[[], None]) -> None:
        self._before_release = before_release
        self._listed = False

    async def run(self, call: Callable[[], Any]) -> Any:
        if self._listed:
            self._before_release()
        self._listed = True
        return call()
