"""The contract of providers on a real Google Cloud project: `make live PROVIDER=tpu`.

Without agents: what is asked for, adopted, seen and given back. One slice is held for the whole of
it, a second one for a while, and no longer than the cap allows; what an earlier try left is given
back first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.providers.base import GroupProbe, Owned, ProviderError
from orchestrator.providers.tpu import TpuProvider, TpuTerms
from orchestrator.providers.tpu_cloud import TpuCloud, open_client
from orchestrator.providers.tpu_seen import VmAddress
from orchestrator.records import HostRequest
from tests.contract import test_provider_contract as contract
from tests.fakes.stage import GROUP
from tests.fakes.tpu_stage import slice_of
from tests.live.asked import asked, number, told
from tests.live.cap import capped, seconds_for

pytestmark = [pytest.mark.live, pytest.mark.timeout(0)]
INSTALLATION = "live0001"  # the same each time, so that a later try finds what an earlier one left
GIVE_BACK_SECONDS = 900.0
MOST_COST, PRICE_PER_HOUR = 5.0, 5.0
POLL_SECONDS = 5.0


class NoAgents:
    """VMs that are left alone."""

    def launch(self, vm: VmAddress, group: str, host: int, secret: str) -> None:
        raise AssertionError("no agent is to be started")

    def alive(self, vm: VmAddress, group: str, host: int) -> tuple[bool | None, bool | None]:
        return False, False

    def end(self, vm: VmAddress, group: str, host: int) -> None:
        """Nobody is there."""

    def announce(self, vm: VmAddress, group: str, host: int, control_url: str) -> None:
        """Nobody listens."""


@dataclass
class Patient:
    """A cloud takes minutes; the contract's tests do not wait."""

    provider: TpuProvider
    within: float
    poll: float

    def acquire(self, group: str, request: HostRequest) -> None:
        deadline = time.monotonic() + self.within
        while True:
            self.provider.acquire(group, request)
            probe = self.provider.probe(group)
            if probe.exists and probe.ready:
                return
            assert time.monotonic() < deadline, f"{group} did not come up: {probe}"
            time.sleep(self.poll)

    def probe(self, group: str) -> GroupProbe:
        return self.provider.probe(group)

    def launch(self, group: str, host: int, secret: str) -> None:
        self.provider.launch(group, host, secret)

    def release(self, group: str) -> None:
        """Until nothing of it is left."""
        deadline = time.monotonic() + GIVE_BACK_SECONDS
        self.provider.release(group)
        while self.provider.probe(group).exists:
            assert time.monotonic() < deadline, f"{group} is still there: look in the console"
            time.sleep(self.poll)
            self.provider.release(group)

    def owned(self) -> tuple[Owned, ...]:
        return tuple(self.provider.owned())

    def give_all_back(self) -> None:
        for one in self.owned():
            self.release(one.name)


@pytest.fixture(scope="module")
def live() -> Iterator[Patient]:
    project = asked("LIVE_TPU_PROJECT", "the Google Cloud project that pays")
    zone = asked("LIVE_TPU_ZONE", "where, as us-central2-b")
    most, price = number("LIVE_MAX_COST", MOST_COST), number("LIVE_PRICE", PRICE_PER_HOUR)
    try:
        seconds = seconds_for(most, price)
    except ValueError as error:
        pytest.fail(f"LIVE_MAX_COST and LIVE_PRICE: {error}", pytrace=False)
    # Two slices are held at once for a while, so each has half of the time.
    poll = number("LIVE_POLL_SECONDS", POLL_SECONDS)
    cloud = TpuCloud(open_client(told("LIVE_TPU_ENDPOINT", "") or None), project)
    terms = TpuTerms((zone,), {}, poll_seconds=poll, valid_seconds=int(seconds / 2) + 1)
    provider = TpuProvider(cloud, INSTALLATION, NoAgents(), terms)
    patient = Patient(provider, seconds / 2, poll)
    try:
        patient.give_all_back()
    except ProviderError as error:
        pytest.fail(f"The project can not be used: {error} {error.hint}", pytrace=False)
    with capped(seconds / 2, patient.give_all_back):
        yield patient
    assert patient.owned() == ()


@pytest.fixture(scope="module")
def stage(live: Patient) -> Any:
    kind, tier = told("LIVE_TPU_TYPE", "v5litepod-1"), told("LIVE_TPU_TIER", "spot")
    one = slice_of(kind, tier=tier)
    live.acquire(GROUP, one)
    return SimpleNamespace(one=one, several=one, provider=live)


@pytest.fixture(scope="module")
def provider(stage: Any) -> Patient:
    return stage.provider


test_a_host_that_the_group_does_not_have = (
    contract.test_a_host_that_the_group_does_not_have_can_not_be_launched
)
test_a_name_that_leads_elsewhere = contract.test_a_name_that_leads_elsewhere_is_refused


def test_acquiring_again_adopts(stage: Any, provider: Patient) -> None:
    before = provider.owned()
    provider.acquire(GROUP, stage.one)
    assert provider.owned() == before


def test_a_group_is_there_once_it_is_acquired(stage: Any, provider: Patient) -> None:
    contract.test_a_group_is_there_once_it_is_acquired(stage, provider)  # pyright: ignore


def test_releasing_what_is_absent_succeeds(provider: Patient) -> None:
    """The last one: the group is given back with it."""
    contract.test_releasing_what_is_absent_succeeds(provider)  # pyright: ignore
