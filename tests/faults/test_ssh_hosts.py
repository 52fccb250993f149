"""Runs on hosts that are entered by SSH: each has a network and processes of its own, and dies or
is cut off as a whole. Their checkpoints lie on a disk that all of them have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.providers.processes import is_locked
from tests.fakes.injected import Fault, inject, interpreter
from tests.fakes.ssh_hosts import Network, network, write_python
from tests.faults.harness import Plane, plane, tiny_job, until
from tests.faults.outcome import Told, attempts, check_outcome, checkpoints, verdicts

pytestmark = [pytest.mark.root, pytest.mark.sshd, pytest.mark.soak, pytest.mark.timeout(600)]
NAMES = ("ada", "ben", "cyd", "dan")
LOST_SECONDS = 0.5  # ten times as long where the provider can not tell either
SLOW_FROM = 20
LEFT = "INFO left\n"  # the last line of an agent's log


@dataclass
class Site:
    """A service, and hosts of its inventory on one switch."""

    service: Plane
    net: Network
    python: Path

    def holders(self) -> dict[str, list[dict[str, Any]]]:
        """Who holds which host, by its name; of those whom nobody holds there is nothing."""
        items = self.service.get("inventory")["items"]
        return {host["name"]: host["holders"] for host in items if host["holders"]}

    def gang(self) -> dict[int, str]:
        """The hosts that serve now, by their number in the gang."""
        return {
            holder["index"]: name
            for name, holders in self.holders().items()
            for holder in holders
            if not holder["left"]
        }

    def host(self, name: str) -> dict[str, Any]:
        items = self.service.get("inventory")["items"]
        return next(host for host in items if host["name"] == name)

    def folder(self, name: str) -> Path:
        """Of the one group that the host was last given to."""
        [found] = (self.net.hosts[name].home / ".longhaul" / "hosts").glob("*/[0-9]")
        return found


@pytest.fixture
def site(data_dir: Path, shared_compile_cache: None) -> Iterator[Site]:
    python = interpreter(data_dir / "python")
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    there = write_python(data_dir / "there", str(python), JAX_COMPILATION_CACHE_DIR=cache)
    with network(data_dir / "net", NAMES) as net:
        env = {
            "LONGHAUL_HOST": net.address,
            "LONGHAUL_SSH_PYTHON": str(there),
            "LONGHAUL_HOST_LOST_SECONDS": str(LOST_SECONDS),
            "LONGHAUL_PROBE_SECONDS": "1",
            "LONGHAUL_ORPHAN_GRACE_SECONDS": "3600",
        }
        with plane(data_dir / "data", **env) as service:
            for name, host in net.hosts.items():
                added = service.call("POST", "inventory", json=login(net, name, host.address))
                assert added.status_code == 201, added.text
            yield Site(service, net, python)


def login(net: Network, name: str, address: str) -> dict[str, Any]:
    known = {"trust_on_first_use": True, "key_file": str(net.key)}
    return {"name": name, "user": "root", "address": address} | known


def on_hosts(count: int) -> dict[str, Any]:
    return {"provider": "ssh", "count": count}


def moved_on(site: Site, run: str, number: int) -> None:
    def trains() -> bool:
        tried = attempts(site.service, run)
        return len(tried) == number and tried[-1]["first_step_at"] is not None

    until(trains, f"attempt {number} to train", 240.0, 0.2)


def test_a_crashed_host_is_replaced_and_one_that_was_cut_off_comes_back_too_late(
    site: Site, text: Path, undisturbed: Callable[[int], Told]
) -> None:
    expected = undisturbed(2)
    run = site.service.submit(tiny_job("gang", text, hosts=on_hosts(2)))
    until(lambda: site.service.step(run) >= 14, "the first checkpoint", 240.0)
    crashed, stays = site.gang()[1], site.gang()[0]
    site.net.hosts[crashed].crash()
    inject(site.python, "gang", Fault(2, 40, "slow"), Fault(2, 40, "slow", rank=1))
    moved_on(site, run, 2)
    second = site.gang()
    assert crashed not in second.values()
    assert stays in second.values(), "the one that is well serves on"
    until(lambda: site.service.step(run) >= 40, "the next steps", 240.0)
    cut = second[1]
    site.net.hosts[cut].cut()
    moved_on(site, run, 3)
    site.net.hosts[cut].join()
    agent = site.folder(cut) / "logs" / "agent.log"
    until(lambda: LEFT in agent.read_text(), "the agent to be told, and to leave", 60.0)
    assert "retired by the control plane" in agent.read_text()
    assert not is_locked(site.folder(cut) / "trainer.lock")
    check_outcome(site.service, run, expected, 3, seconds=400)
    assert verdicts(site.service, run) == ["host_lost", "host_lost", "completed"]
    well_again(site, crashed, cut)


def well_again(site: Site, crashed: str, cut: str) -> None:
    """Each is cordoned in words, and free once a probe has seen that nothing lives there."""
    until(lambda: not site.gang(), "the hosts to be given back", 60.0)
    assert set(site.holders()) == {crashed, cut}
    site.net.hosts[crashed].start()
    for name in (crashed, cut):
        assert "was to be ended there" in site.host(name)["cordon"]["reason"]
        probed = site.service.call("POST", f"inventory/{name}/probe").json()
        assert (probed["cordon"], probed["free"]) == (None, 1)
        assert not list((site.net.hosts[name].home / ".longhaul" / "hosts").glob("*"))
    assert site.holders() == {}
    site.net.hosts[crashed].crash()


def test_a_trainer_that_was_cut_off_trains_for_nothing_and_is_killed_once_it_is_told(
    site: Site, text: Path, undisturbed: Callable[[int], Told]
) -> None:
    expected = undisturbed(1)
    inject(site.python, "cut", Fault(1, SLOW_FROM, "slow"))
    run = site.service.submit(tiny_job("cut", text, hosts=on_hosts(1)))
    until(lambda: site.service.step(run) >= SLOW_FROM, f"step {SLOW_FROM}", 240.0)
    cut = site.gang()[0]
    site.net.hosts[cut].cut()
    moved_on(site, run, 2)
    folder = site.folder(cut)
    assert is_locked(folder / "trainer.lock"), "it knows of nothing, and trains on"
    told = attempts(site.service, run)[0]["last_step"]
    site.net.hosts[cut].join()
    until(lambda: not is_locked(folder / "trainer.lock"), "the trainer to be killed", 60.0)
    agent = folder / "logs" / "agent.log"
    until(lambda: LEFT in agent.read_text(), "the agent to leave", 60.0)
    assert "killing the trainer: attempt 1 is superseded by attempt 2" in agent.read_text()
    kept = site.service.data / "storage" / "runs" / run / "a1" / "logs" / "agent0-0001.log"
    assert "superseded by attempt 2" in kept.read_text()
    check_outcome(site.service, run, expected, 2, seconds=400)
    assert verdicts(site.service, run) == ["host_lost", "completed"]
    counted = [one for one in checkpoints(site.service, run) if one["attempt"] == 1]
    assert {one["step"] for one in counted} == {12}, "what it saved in the dark does not count"
    assert attempts(site.service, run)[0]["last_step"] > told, "what it told is kept as evidence"
