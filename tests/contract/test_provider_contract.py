"""What every provider of hosts must do. A new provider joins by a stage of its own.

A stage gives the provider, the agent's secret book, and a way to see and end what runs on a host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.providers.base import Provider, ProviderError, ProvisionRefused
from orchestrator.records import HostRequest
from tests.fakes.ssh_stage import SshStage
from tests.fakes.stage import GROUP, Stage, start_trainer, until
from tests.fakes.tpu_stage import TpuStage

STAGES: dict[str, Callable[[Path], Stage]] = {"local": Stage, "ssh": SshStage, "tpu": TpuStage}
ON_SSHD = pytest.param("ssh", marks=pytest.mark.sshd)


@pytest.fixture(params=["local", ON_SSHD, "tpu"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    made = STAGES[request.param](tmp_path / "hosts")
    yield made
    made.close()


@pytest.fixture
def provider(stage: Stage) -> Provider:
    return stage.provider


def test_a_group_is_there_once_it_is_acquired(stage: Stage, provider: Provider):
    assert not provider.probe("lh-new").exists
    provider.acquire("lh-new", stage.several)
    probe = provider.probe("lh-new")
    assert probe.exists
    assert probe.ready
    assert [host.index for host in probe.hosts] == list(range(stage.several.hosts))
    assert all((host.agent_alive, host.trainer_alive) == (False, False) for host in probe.hosts)
    owned = {one.name: (one.hosts, one.devices) for one in provider.owned()}
    several = (stage.several.hosts, stage.several.devices)
    assert owned == {"lh-new": several, GROUP: (1, 1)}
    provider.release("lh-new")


def test_acquiring_again_adopts(stage: Stage, provider: Provider):
    provider.acquire(GROUP, stage.one)
    assert len(provider.probe(GROUP).hosts) == 1
    with pytest.raises(ProvisionRefused):
        provider.acquire(GROUP, HostRequest(2, 1))


def test_releasing_what_is_absent_succeeds(provider: Provider):
    provider.release("lh-never")
    provider.release(GROUP)
    provider.release(GROUP)
    assert not provider.probe(GROUP).exists
    assert list(provider.owned()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "A", "a" * 81, "a\n", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused(provider: Provider, name: str):
    for call in (
        lambda: provider.acquire(name, HostRequest(1, 1)),
        lambda: provider.probe(name),
        lambda: provider.launch(name, 0, "s"),
        lambda: provider.release(name),
    ):
        with pytest.raises(ProvisionRefused):
            call()


def test_a_host_that_the_group_does_not_have_can_not_be_launched(provider: Provider):
    for host in (-1, 1):
        with pytest.raises(ProviderError):
            provider.launch(GROUP, host, "s")
    with pytest.raises(ProviderError):
        provider.launch("lh-never", 0, "s")


def test_an_agent_counts_as_alive_from_its_launch_to_its_death(stage: Stage):
    stage.launch("--linger")
    assert alive(stage) == (True, False)
    stage.book.wait(lambda book: book.registered)
    assert alive(stage) == (True, False)
    stage.kill("agent")
    until(lambda: alive(stage) == (False, False), 1.0)


def test_a_trainer_is_seen_to_live_and_to_die(stage: Stage):
    stage.run("--linger")
    assert alive(stage) == (True, True)
    stage.kill("trainer")
    until(lambda: alive(stage) == (True, False), 1.0)


def test_a_launch_ends_the_agent_and_the_trainer_that_were_there(stage: Stage):
    stage.run("--linger")
    agent, trainer = stage.process("agent"), stage.process("trainer")
    assert agent is not None
    assert trainer is not None
    stage.book.command()
    stage.launch("--linger")
    assert not agent.alive
    assert not trainer.alive
    stage.book.wait(lambda book: len(book.registered) == 2)
    assert alive(stage) == (True, False)


def test_two_launches_in_a_row_leave_the_second_agent(stage: Stage):
    stage.launch("--linger")
    stage.book.secret = "another"
    stage.launch("--linger")
    stage.book.wait(lambda book: book.registered)
    assert alive(stage) == (True, False)


def test_release_ends_every_process_and_leaves_nothing(stage: Stage):
    stage.run("--linger", "--ignore-drain")
    agent, trainer = stage.process("agent"), stage.process("trainer")
    assert agent is not None
    assert trainer is not None
    stage.provider.release(GROUP)
    assert not agent.alive
    assert not trainer.alive
    assert not stage.provider.probe(GROUP).exists
    assert stage.book.of("trainer_exited")  # its last words were delivered first


def test_a_new_provider_finds_what_an_earlier_one_left(stage: Stage):
    stage.run("--linger")
    again = stage.made_provider()
    probe = again.probe(GROUP)
    assert (probe.hosts[0].agent_alive, probe.hosts[0].trainer_alive) == (True, True)
    again.release(GROUP)
    assert not stage.provider.probe(GROUP).exists


def test_an_announcement_reaches_running_agents(stage: Stage):
    stage.run("--linger")
    stage.plane.stop()
    stage.move_control_plane()
    stage.book.command(start_trainer(2))
    stage.book.wait(lambda book: len(book.of("trainer_started")) == 2)


def alive(stage: Stage) -> tuple[bool | None, bool | None]:
    host = stage.provider.probe(GROUP).hosts[0]
    return host.agent_alive, host.trainer_alive
