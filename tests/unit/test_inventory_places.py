"""Which hosts of an inventory serve a request, and in which words none do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.providers.base import ProvisionRefused
from orchestrator.providers.inventory import (
    BadInventory,
    Cordon,
    CordonedBy,
    HostLogin,
    HostsTaken,
    InventoryHost,
    NoHosts,
    choose,
    read_file,
)
from orchestrator.providers.ssh import login_of
from orchestrator.records import HostRequest
from worker.protocol import SshHosts

NOW = datetime(2031, 1, 1, tzinfo=UTC)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5rCr4mbFmvHmM6hVqgBWDqgJq3cEj6kFQ8fVQ0t1bK"


def host(
    name: str, devices: int = 8, taken: tuple[int, ...] = (), **login: object
) -> InventoryHost:
    written = HostLogin.model_validate({"user": "u", "address": name, "host_key": KEY} | login)
    return InventoryHost(
        name, written, "NVIDIA A100-SXM4-80GB", devices, NOW, taken=frozenset(taken)
    )


def chosen(hosts: list[InventoryHost], request: HostRequest, **there: str) -> dict[int, object]:
    found = choose(hosts, request, {int(i.removeprefix("i")): name for i, name in there.items()})
    return {index: (one.name, slots) for index, (one, slots) in found.items()}


def test_the_fullest_host_that_has_room_goes_first() -> None:
    hosts = [host("a"), host("b", taken=(0, 1, 2, 3)), host("c", taken=(1, 2, 3, 4, 5, 6))]
    assert chosen(hosts, HostRequest(1, 4)) == {0: ("b", (4, 5, 6, 7))}
    assert chosen(hosts, HostRequest(1, 2)) == {0: ("c", (0, 7))}
    assert chosen(hosts, HostRequest(1, 8)) == {0: ("a", (0, 1, 2, 3, 4, 5, 6, 7))}


def test_a_gang_has_each_of_its_hosts_once() -> None:
    hosts = [host("a"), host("b")]
    assert chosen(hosts, HostRequest(2, 2)) == {0: ("a", (0, 1)), 1: ("b", (0, 1))}
    assert chosen(hosts, HostRequest(2, 2), i1="a") == {0: ("b", (0, 1))}
    with pytest.raises(NoHosts, match=r"3 hosts with 2 devices .* only 2 fit: a, b"):
        chosen(hosts, HostRequest(3, 2))


def test_labels_and_kinds_are_held_to() -> None:
    hosts = [host("a", labels={"room": "1"}), host("b", labels={"room": "2", "rack": "x"})]
    asked = SshHosts(labels={"room": "2"}, kind="a100")
    assert chosen(hosts, HostRequest(1, 1, asked)) == {0: ("b", (0,))}
    with pytest.raises(NoHosts, match=r"of kind H100 with room=2.*fit: none"):
        chosen(hosts, HostRequest(1, 1, SshHosts(labels={"room": "2"}, kind="H100")))
    with pytest.raises(NoHosts, match="longhaul hosts add"):
        chosen([], HostRequest(1, 1))


def test_hosts_that_are_held_or_ill_are_to_be_waited_for() -> None:
    ill = replace(host("b"), cordon=Cordon(CordonedBy.PROBE, "it is on fire", NOW))
    with pytest.raises(HostsTaken) as told:
        chosen([host("a", 2, (0, 1)), ill], HostRequest(1, 1))
    assert told.value.retryable
    assert "a has 0 of 2 devices free" in str(told.value)
    assert "b is cordoned (it is on fire)" in str(told.value)


def test_a_host_is_entered_through_the_hosts_that_it_names() -> None:
    hosts = {"in": host("in", jump="gate"), "gate": host("gate", port=2222)}
    login = login_of(hosts["in"], hosts)
    assert login.jump is not None
    assert (login.jump.where, login.jump.jump) == ("u@gate:2222", None)
    with pytest.raises(ProvisionRefused, match="the inventory does not have"):
        login_of(host("lost", jump="nowhere"), hosts)
    around = {"x": host("x", jump="x")}
    with pytest.raises(ProvisionRefused):
        login_of(around["x"], around)


def test_the_file_names_hosts_as_a_person_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "hosts.toml"
    file.write_text(
        f'[hosts.gpu1]\nuser = "ada"\naddress = "10.0.0.5"\nhost_key = "{KEY} root@gpu1"\n'
        'labels = {room = "b"}\ndevices = 8\n'
    )
    found = read_file(file)["gpu1"]
    assert (found.host_key, found.devices, dict(found.labels)) == (KEY, 8, {"room": "b"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[hosts", "not valid TOML"),
        ("[hosts.GPU]\n", "hosts.GPU"),
        ('[hosts.a]\nuser = "ada"\naddress = "x"\n', "hosts.a.host_key"),
        ('[hosts.a]\nuser = "-o"\naddress = "x"\nhost_key = "k"\n', "hosts.a.user"),
        ("[host.a]\n", "hosts"),
    ],
)
def test_a_file_that_does_not_fit_says_where(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "hosts.toml").write_text(text)
    with pytest.raises(BadInventory, match=words):
        read_file(tmp_path / "hosts.toml")
    with pytest.raises(BadInventory, match="can not be read"):
        read_file(tmp_path / "nowhere.toml")
