"""The inventory over the API, with a host that is really entered by SSH."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.providers.inventory import fingerprint
from tests.fakes.ssh_hosts import LoopbackHost, loopback_host, make_key
from tests.unit.api_world import Client, World, world

pytestmark = pytest.mark.sshd
INVENTORY = "/api/v1/inventory"


class Site:
    """A service, a host, and how the one enters the other."""

    def __init__(self, here: World, client: Client, host: LoopbackHost, key: Path) -> None:
        self.here, self.client, self.host, self.key = here, client, host, key

    def login(self, name: str = "gpu1", **changes: Any) -> dict[str, Any]:
        host = self.host
        made = {"name": name, "user": host.user, "address": host.address, "port": host.port}
        return made | {"host_key": host.host_key, "key_file": str(self.key)} | changes

    def add(self, **changes: Any) -> Any:
        return self.client.post(INVENTORY, json=self.login(**changes))

    def refused(self, **changes: Any) -> str:
        answer = self.add(**changes)
        assert answer.status_code == 422, answer.text
        assert answer.json()["type"].endswith("host-not-usable")
        return answer.json()["detail"]

    def one(self) -> dict[str, Any]:
        [found] = self.client.get(INVENTORY).json()["items"]
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with loopback_host(tmp_path / "host") as (host, key), world(tmp_path) as here:
        here.with_ssh = True
        with here.client() as client:
            yield Site(here, client, host, key)


def test_a_host_is_entered_before_it_is_added(site: Site) -> None:
    added = site.add(labels={"room": "b"})
    assert added.status_code == 201, added.text
    found = site.one()
    assert found == added.json()
    assert (found["kind"], found["devices"], found["free"]) == ("cpu", 1, 1)
    assert found["fingerprint"] == fingerprint(site.host.host_key)
    assert "key_file" not in found
    assert site.add().json()["type"].endswith("name-taken")
    assert site.client.delete(f"{INVENTORY}/gpu1").status_code == 204
    assert site.client.get(INVENTORY).json()["items"] == []


def test_the_first_key_is_trusted_only_when_asked_for(site: Site) -> None:
    assert "No host key is known" in site.refused(host_key=None)
    added = site.add(host_key=None, trust_on_first_use=True)
    assert added.json()["fingerprint"] == fingerprint(site.host.host_key)


def test_what_is_wrong_with_a_host_is_told_in_words(site: Site, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    assert "another host key than the one that was pinned" in site.refused(host_key=other)
    stranger = site.refused(key_file=str(tmp_path / "other"))
    assert "does not let user" in stranger
    assert "can not be read" in site.refused(key_file="/nowhere/key")
    assert "no public key" in site.refused(host_key="ssh-ed25519 AAAA")
    assert "does not answer" in site.refused(port=1)
    assert "which the inventory does not have" in site.refused(jump="gate")
    assert site.client.get(INVENTORY).json()["items"] == []


def test_a_host_is_reached_through_another(site: Site) -> None:
    assert site.add(name="gate", devices=0).status_code == 201
    behind = site.add(name="behind", jump="gate", host_key=None, trust_on_first_use=True)
    assert behind.status_code == 201, behind.text
    assert behind.json()["jump"] == "gate"


def test_a_host_that_does_not_answer_is_cordoned_and_comes_back(site: Site) -> None:
    site.add()
    site.host.crash()
    ill = site.client.post(f"{INVENTORY}/gpu1/probe").json()
    assert ill["cordon"]["by"] == "probe"
    assert "does not answer" in ill["cordon"]["reason"]
    site.host.start()
    assert site.client.post(f"{INVENTORY}/gpu1/probe").json()["cordon"] is None


def test_what_a_person_cordons_no_probe_takes_back(site: Site) -> None:
    site.add()
    loud = {"reason": "the fan is loud"}
    cordoned = site.client.post(f"{INVENTORY}/gpu1/cordon", json=loud).json()
    assert (cordoned["cordon"]["by"], cordoned["cordon"]["reason"]) == ("person", loud["reason"])
    assert site.client.post(f"{INVENTORY}/gpu1/probe").json()["cordon"] == cordoned["cordon"]
    assert site.client.post(f"{INVENTORY}/gpu1/uncordon").json()["cordon"] is None
    for path in ("nowhere/probe", "nowhere/uncordon"):
        assert site.client.post(f"{INVENTORY}/{path}").status_code == 404
    deeds = [entry["action"] for entry in site.client.get("/api/v1/audit").json()["items"]]
    assert deeds == ["inventory.uncordon", "inventory.cordon", "inventory.add"]
