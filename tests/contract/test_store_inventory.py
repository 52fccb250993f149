"""Hosts of the inventory and their device slots, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest
from sqlalchemy import Engine

from orchestrator.providers.base import ProviderError, ProvisionRefused
from orchestrator.providers.inventory import CordonedBy, HostLogin, HostsTaken, NoHosts
from orchestrator.reconcile.plan import MakeGroup, MoveGroup
from orchestrator.records import HostRequest
from orchestrator.state import GroupCause
from orchestrator.store import inventory
from orchestrator.store.effects import NotWanted
from tests.contract.conftest import House

NOW = datetime(2031, 1, 1, tzinfo=UTC)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5rCr4mbFmvHmM6hVqgBWDqgJq3cEj6kFQ8fVQ0t1bK"
T = TypeVar("T")


def login(address: str = "10.0.0.1", **more: object) -> HostLogin:
    return HostLogin.model_validate({"user": "u", "address": address, "host_key": KEY} | more)


def do(engine: Engine, work: Callable[..., T], *args: object, **more: object) -> T:
    with engine.begin() as connection:
        return work(connection, *args, **more)


def two(engine: Engine, devices: int = 2) -> None:
    for name in ("a", "b"):
        do(engine, inventory.add, name, login(), "A100", devices, NOW)


def claim(engine: Engine, group: str, hosts: int = 1, devices: int = 1) -> list[tuple[str, object]]:
    places = do(engine, inventory.claim, group, HostRequest(hosts, devices), NOW)
    return [(place.host, place.slots) for place in places]


def test_groups_share_a_host_and_never_a_device(engine: Engine) -> None:
    two(engine)
    assert claim(engine, "g1") == [("a", (0,))]
    assert claim(engine, "g2") == [("a", (1,))]
    assert claim(engine, "g3", devices=2) == [("b", (0, 1))]
    with pytest.raises(HostsTaken):
        claim(engine, "g4")
    assert claim(engine, "g2") == [("a", (1,))], "asked again, it is the same"
    [place] = do(engine, inventory.places, "g1")
    do(engine, inventory.give_back, place)
    assert claim(engine, "g4") == [("a", (0,))]


def test_a_group_of_another_shape_is_refused(engine: Engine) -> None:
    two(engine)
    claim(engine, "g", 1, 1)
    [place] = do(engine, inventory.places, "g")
    do(engine, inventory.prepared, place, "/python", "/folder")
    for hosts, devices in ((1, 2), (2, 1)):
        with pytest.raises(ProvisionRefused, match="another shape"):
            claim(engine, "g", hosts, devices)
    with pytest.raises(NoHosts):
        claim(engine, "more", 3, 1)


def test_of_those_who_race_for_the_last_device_one_gets_it(engine: Engine) -> None:
    do(engine, inventory.add, "a", login(), "A100", 1, NOW)
    got: list[str] = []
    met: list[str] = []

    def race(group: str) -> None:
        try:
            claim(engine, group)
            got.append(group)
        except ProviderError as error:
            met.append(type(error).__name__)

    threads = [threading.Thread(target=race, args=(f"g{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert met == ["HostsTaken"] * 3


def test_a_call_that_comes_late_claims_nothing(house: House) -> None:
    two(house.engine)
    house.lead()
    house.submit()
    house.commit(MakeGroup(house.group, 1, "ssh", HostRequest(1, 1)))
    assert claim(house.engine, house.group) == [("a", (0,))]
    house.commit(MoveGroup(house.group, GroupCause.NOT_WANTED))
    with pytest.raises(NotWanted):
        claim(house.engine, house.group)


def test_what_was_left_stays_taken_and_is_no_group_any_more(engine: Engine) -> None:
    two(engine, 1)
    claim(engine, "g1")
    [place] = do(engine, inventory.places, "g1")
    do(engine, inventory.leave, place, NOW)
    [left] = do(engine, inventory.places, "g1")
    assert left.left_at == NOW
    do(engine, inventory.leave, left, NOW + timedelta(hours=1))
    assert do(engine, inventory.places, "g1")[0].left_at == NOW
    assert claim(engine, "g2") == [("b", (0,))]
    with pytest.raises(ProvisionRefused):
        claim(engine, "g1")


def test_a_probe_takes_back_its_own_cordon_alone(engine: Engine) -> None:
    two(engine)
    do(engine, inventory.cordon, "a", CordonedBy.PROBE, "no answer", NOW)
    do(engine, inventory.cordon, "b", CordonedBy.PERSON, "its fan is loud", NOW)
    do(engine, inventory.cordon, "b", CordonedBy.PROBE, "no answer", NOW)
    for name in ("a", "b"):
        do(engine, inventory.answered, name, NOW, "H100", 4)
    a, b = do(engine, inventory.all_hosts)
    assert (a.cordon, a.kind, a.devices) == (None, "H100", 4)
    assert b.cordon is not None
    assert b.cordon.why == "its fan is loud"
    do(engine, inventory.uncordon, "b")
    assert do(engine, inventory.host, "b").cordon is None
    with pytest.raises(inventory.NoSuchHost):
        do(engine, inventory.cordon, "c", CordonedBy.PERSON, "x", NOW)


def test_a_host_goes_once_nobody_holds_it(engine: Engine) -> None:
    two(engine)
    claim(engine, "g")
    with pytest.raises(inventory.InUse, match="g"):
        do(engine, inventory.remove, "a")
    do(engine, inventory.remove, "b")
    assert claim(engine, "g") == [("a", (0,))], "it has all that it asked for"
    [place] = do(engine, inventory.places, "g")
    do(engine, inventory.leave, place, NOW)
    do(engine, inventory.remove, "a")
    assert do(engine, inventory.places) == ()
    two(engine)
    with pytest.raises(inventory.NameTaken):
        do(engine, inventory.add, "a", login(), "A100", 1, NOW)


def test_the_file_alone_changes_its_hosts(engine: Engine) -> None:
    follow = inventory.follow_file
    do(engine, follow, {"f": login(devices=2, kind="A100"), "g": login()}, NOW)
    f, g = do(engine, inventory.all_hosts)
    assert (f.devices, f.kind, f.cordon) == (2, "A100", None)
    assert g.ill, "it waits for a probe to tell what it has"
    assert g.probed_at is None
    with pytest.raises(inventory.FromFile):
        do(engine, inventory.remove, "f")
    claim(engine, "group")
    do(engine, follow, {"g": login("10.0.0.9", devices=1)}, NOW)
    f, g = do(engine, inventory.all_hosts)
    assert f.cordon is not None, "somebody holds it still"
    assert (g.login.address, g.devices) == ("10.0.0.9", 1)
    [place] = do(engine, inventory.places, "group")
    do(engine, inventory.give_back, place)
    do(engine, follow, {}, NOW)
    assert do(engine, inventory.all_hosts) == ()
    do(engine, inventory.add, "mine", login(), "A100", 1, NOW)
    with pytest.raises(inventory.NameTaken):
        do(engine, follow, {"mine": login()}, NOW)
