"""The provider of Cloud TPU against the fake cloud, through the real client and a clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise

import grpc
import pytest
from google.cloud import tpu_v2

from orchestrator.providers.base import ProviderError, ProvisionRefused
from orchestrator.providers.tpu import DeviceBusy, NotOurs, TpuProvider, TpuTerms
from orchestrator.providers.tpu_cloud import Order, TpuCloud, open_client
from orchestrator.providers.tpu_errors import (
    BadRequest,
    NotAllowed,
    QuotaExceeded,
    SlowDown,
    Unsure,
    ZoneFull,
)
from orchestrator.providers.tpu_places import Terms
from orchestrator.providers.tpu_seen import VmAddress
from orchestrator.records import HostRequest
from tests.fakes.cloud_tpu import CloudServer, FakeCloud, Pace
from tests.fakes.cloud_tpu.faults import Full
from tests.fakes.tpu_stage import slice_of
from worker.protocol import Notice, TpuSpec

A, B, C = ZONES = ("us-central2-b", "us-east5-a", "europe-west4-b")
G = "lh-inst0001-r1-g1"
V4 = slice_of("v4-32", *ZONES)
KEYS = {"ssh-keys": "longhaul:ssh-ed25519 AAAA"}


class Launcher:
    """VMs that do as they are told, until the test says otherwise."""

    def __init__(self) -> None:
        self.live: set[tuple[str, int]] = set()
        self.vms: list[VmAddress] = []
        self.busy = False
        self.dark = False

    def launch(self, vm: VmAddress, group: str, host: int, secret: str) -> None:
        if self.busy:
            raise DeviceBusy("/dev/vfio/0 is held by process 17, which does not end")
        self.vms.append(vm)
        self.live.add((group, host))

    def alive(self, vm: VmAddress, group: str, host: int) -> tuple[bool | None, bool | None]:
        if self.dark:
            raise ProviderError("no route to host")
        return (group, host) in self.live, False

    def end(self, vm: VmAddress, group: str, host: int) -> None:
        if self.dark:
            raise ProviderError("no route to host")
        self.live.discard((group, host))

    def announce(self, vm: VmAddress, group: str, host: int, control_url: str) -> None:
        self.vms.append(vm)


class House:
    """One installation in the fake cloud, under a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = 2_000_000_000.0
        pace = Pace(queue=5, provision=60, suspend=10, delete=20, fail=5)
        self.cloud = FakeCloud("p1", ZONES, pace, lambda: self.clock)
        self.server = CloudServer(self.cloud)
        self.launcher = Launcher()
        self.calls = TpuCloud(
            open_client(self.server.endpoint), "p1", timeout_seconds=5.0, sleep=self.tick
        )
        self.provider = self.another()

    def another(self, installation: str = "inst0001") -> TpuProvider:
        terms = TpuTerms(ZONES, {"startup-script": "true"}, KEYS, Terms(), poll_seconds=2.0)
        return TpuProvider(
            self.calls,
            installation,
            self.launcher,
            terms,
            lambda: datetime.fromtimestamp(self.clock, UTC),
            lambda: self.clock,
        )

    def tick(self, seconds: float) -> None:
        self.clock += seconds

    def ask(self, request: HostRequest = V4) -> str | None:
        """As the loop does while hosts are wanted; the words of what did not work out."""
        try:
            self.provider.acquire(G, request)
        except ProvisionRefused:
            raise
        except ProviderError as error:
            return str(error)
        return None

    def until_up(self, seconds: float = 900.0, request: HostRequest = V4) -> None:
        """The loop's own steps, a second each."""
        end = self.clock + seconds
        self.ask(request)
        while not (seen := self.provider.probe(G)).ready:
            assert self.clock < end, (seen, self.cloud.left)
            if seen.again is not None:
                self.ask(request)
            self.tick(1)

    def until_gone(self, seconds: float = 300.0) -> None:
        end = self.clock + seconds
        while self.provider.probe(G).exists:
            assert self.clock < end, self.cloud.left
            self.provider.release(G)
            self.tick(1)
        assert self.cloud.left == []
        assert self.cloud.bill.running == []


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    with made.server:
        yield made


# ---- the straight way ----------------------------------------------------------------------------


def test_a_slice_comes_up_serves_and_goes(house: House) -> None:
    house.until_up()
    seen = house.provider.probe(G)
    assert [host.index for host in seen.hosts] == [0, 1, 2, 3]
    house.provider.launch(G, 2, "s")
    assert house.provider.probe(G).hosts[2].agent_alive is True
    assert [(one.name, one.hosts, one.devices) for one in house.provider.owned()] == [(G, 4, 4)]
    house.until_gone()
    assert house.launcher.live == set()
    assert house.provider.owned() == []


def test_what_is_asked_for_is_what_the_spec_says(house: House) -> None:
    spec = TpuSpec(
        type="v5litepod-16",
        tier="reserved",
        reservation="projects/p1/locations/us-east5-a/reservations/r",
        zones=(B,),
        network="n",
        subnetwork="s",
        service_account="a@b.iam",
        external_ips=False,
    )
    house.ask(HostRequest(4, 4, spec))
    made = house.cloud.find(G, B)
    assert made is not None
    node = made.spec
    assert (node.accelerator_type, node.runtime_version) == ("v5litepod-16", "v2-alpha-tpuv5-lite")
    assert (node.network_config.network, node.network_config.subnetwork) == ("n", "s")
    assert node.network_config.enable_external_ips is False
    assert node.service_account.email == "a@b.iam"
    assert dict(node.metadata) == {"startup-script": "true", "enable-oslogin": "FALSE"} | KEYS
    assert made.tier == "reserved"
    assert made.message.reservation_name.endswith("/r")
    assert "scheduling_config" not in node
    house.tick(100)
    assert house.provider.probe(G).hosts[0].address.startswith("10.")
    house.provider.launch(G, 0, "s")
    assert house.launcher.vms[0].external == ""


def test_os_login_is_said_in_any_case_and_takes_the_place_of_keys(house: House) -> None:
    house.ask(HostRequest(1, 4, TpuSpec(type="v4-8", os_login=True)))
    made = house.cloud.find(G, A)
    assert made is not None
    assert made.spec.metadata["enable-oslogin"] == "TRUE"
    assert "ssh-keys" not in made.spec.metadata


def test_a_control_plane_that_starts_again_adopts_what_was_asked_for(house: House) -> None:
    """Dead between the call and the commit: the name is all that is known."""
    house.ask()
    house.provider = house.another()
    assert house.ask() is None
    assert len([call for call in house.cloud.calls if call[0] == "CreateQueuedResource"]) == 1
    house.until_up()
    house.until_gone()


def test_another_shape_or_another_owner_is_not_adopted(house: House) -> None:
    house.ask()
    for request in (slice_of("v4-8"), slice_of("v4-32", tier="on-demand")):
        with pytest.raises(NotOurs, match="another shape"):
            house.provider.acquire(G, request)
    with pytest.raises(NotOurs, match="somebody else"):
        house.another("other").acquire(G, V4)
    assert house.another("other").owned() == []


def test_zones_of_the_spec_must_be_among_the_services(house: House) -> None:
    with pytest.raises(ProvisionRefused, match="may not use zone asia-east1-c"):
        house.provider.acquire(G, slice_of("v4-8", "asia-east1-c"))


# ---- zones ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", list(Full))
def test_a_full_zone_is_left_for_the_next_and_nothing_stays_there(house: House, full: Full) -> None:
    house.cloud.faults.full = {A: full}
    words = house.ask()
    house.until_up()
    own = house.cloud.find(G)
    assert own is not None
    assert own.zone == B
    house.tick(30)
    assert house.cloud.find(G, A) is None
    if full is Full.AT_ONCE:
        assert words is not None
        assert "no more capacity" in words
        assert B in words
    house.until_gone()


def test_zones_that_are_all_full_are_asked_again_later_without_haste(house: House) -> None:
    house.cloud.faults.full = dict.fromkeys(ZONES, Full.AT_ONCE)
    for _ in range(60):
        assert house.ask() is not None
        house.tick(1)
    creates = [call for call in house.cloud.calls if call[0] == "CreateQueuedResource"]
    assert len(creates) <= 15
    house.cloud.faults.full = {}
    house.tick(60)
    house.until_up()
    house.until_gone()


def test_after_the_last_zone_a_new_round_begins(house: House) -> None:
    house.cloud.faults.full = dict.fromkeys(ZONES, Full.LATER)
    house.ask()
    for _ in range(200):
        if house.provider.probe(G).again:
            house.ask()
        house.tick(1)
    asked = [what.split("/")[3] for call, what in house.cloud.calls if call.startswith("Create")]
    assert asked[:4] == [A, B, C, A]
    house.cloud.faults.full = {}
    house.until_up()
    house.until_gone()


def test_a_single_full_zone_is_asked_again_when_the_old_request_is_gone(house: House) -> None:
    request = slice_of("v4-32", A)
    house.cloud.faults.full = {A: Full.LATER}
    house.ask(request)
    house.tick(10)
    house.cloud.faults.full = {}
    house.until_up(request=request)
    house.until_gone()


def test_no_quota_anywhere_is_refused_in_the_clouds_words(house: House) -> None:
    house.cloud.faults.quota = {f"{zone}/v4/spot": 8 for zone in ZONES}
    with pytest.raises(QuotaExceeded, match=r"Quota limit 'TPUV4.*Limit: 8.*Ask Google for more"):
        house.provider.acquire(G, V4)
    assert house.cloud.left == []


def test_a_suspended_request_holds_quota_until_it_is_deleted(house: House) -> None:
    house.cloud.faults.quota = {f"{A}/v4/spot": 16}
    request = slice_of("v4-32", A)
    house.until_up(request=request)
    house.cloud.preempt(G)
    house.tick(30)
    with pytest.raises(QuotaExceeded):
        house.provider.acquire("lh-inst0001-r1-g2", request)
    house.until_gone()
    house.provider.acquire("lh-inst0001-r1-g2", request)


def test_no_permission_is_refused_with_what_to_do(house: House) -> None:
    house.cloud.faults.denied["CreateQueuedResource"] = "Permission 'tpu.nodes.create' denied"
    with pytest.raises(NotAllowed, match=r"tpu\.nodes\.create.*roles/tpu\.admin"):
        house.provider.acquire(G, V4)


def test_a_type_that_no_zone_offers_is_refused(house: House) -> None:
    house.cloud.faults.offers = {zone: {"v6e-8"} for zone in ZONES}
    with pytest.raises(BadRequest, match="v4-32 is not available"):
        house.provider.acquire(G, V4)
    house.cloud.faults.offers[B] = {"v4-32"}
    assert house.ask() is not None
    assert house.cloud.find(G, B) is not None


# ---- taken away ----------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [10, 90])
def test_a_preempted_slice_is_taken_whether_it_was_up_or_not(house: House, after: int) -> None:
    house.ask()
    house.tick(after)
    house.cloud.preempt(G)
    seen = house.provider.probe(G)
    assert seen.taken is Notice.PREEMPTED
    assert "preempted" in str(seen.words)
    house.until_gone()


def test_nothing_is_forced_while_the_cloud_suspends(house: House) -> None:
    house.until_up()
    house.tick(5)
    house.cloud.preempt(G)
    house.provider.release(G)
    assert ("DeleteQueuedResource", f"projects/p1/locations/{A}/queuedResources/{G}") not in (
        house.cloud.calls
    )
    house.until_gone()


def test_a_request_that_is_suspended_without_a_word_is_taken_and_deleted(house: House) -> None:
    house.until_up()
    house.cloud.suspend(G)
    house.tick(15)
    assert house.provider.probe(G).taken is Notice.PREEMPTED
    house.until_gone()


@pytest.mark.parametrize("state", ["STOPPED", "TERMINATED", "REIMAGING", "UNKNOWN", "HIDDEN"])
def test_a_node_in_another_state_is_lost(house: House, state: str) -> None:
    house.until_up()
    house.cloud.set_node(G, state)
    house.tick(3)
    assert house.provider.probe(G).taken is not None
    house.until_gone()


def test_a_node_that_is_repaired_is_not_lost(house: House) -> None:
    house.until_up()
    house.cloud.set_node(G, "REPAIRING")
    house.tick(3)
    assert house.provider.probe(G).ready


# ---- a cloud that answers otherwise ------------------------------------------------------------


def test_a_late_address_keeps_the_group_waiting(house: House) -> None:
    house.cloud.faults.late_addresses = 50
    house.ask()
    house.tick(70)
    assert not house.provider.probe(G).ready
    house.tick(60)
    assert house.provider.probe(G).ready


def test_a_spurious_conflict_is_asked_again(house: House) -> None:
    house.cloud.faults.conflicts = 1
    assert "already exists" in str(house.ask())
    assert house.cloud.left == []
    assert house.ask() is None
    house.until_up()
    house.until_gone()


def test_a_conflict_after_a_create_is_an_adoption(house: House) -> None:
    house.cloud.faults.conflicts_after = 1
    assert house.ask() is None
    house.until_up()
    house.until_gone()


def test_a_create_that_was_done_though_its_answer_never_came_is_an_adoption(house: House) -> None:
    house.cloud.faults.late_fills = [0.0]
    assert house.ask() is None
    assert len(house.cloud.left) == 1
    house.until_gone()


def test_a_request_that_is_filled_after_its_time_limit_is_found_and_given_back(
    house: House,
) -> None:
    """In the first zone, an hour later, while the run trains in another."""
    house.cloud.faults.late_fills = [3600.0]
    assert house.ask() is not None
    house.cloud.faults.full = {A: Full.AT_ONCE}
    house.tick(2)
    house.until_up()
    own = house.cloud.find(G, B)
    assert own is not None
    house.cloud.faults.full = {}
    house.tick(3600)
    house.provider.launch(G, 0, "s")
    house.tick(100)
    beside = f"{G}@{A}"
    assert [one.name for one in house.provider.owned()] == [G, beside]
    assert house.provider.probe(beside).exists
    house.provider.release(beside)
    house.tick(30)
    assert house.cloud.find(G, A) is None
    assert house.provider.probe(G).ready
    assert house.launcher.live == {(G, 0)}
    house.until_gone()


def test_only_what_lies_beside_the_groups_own_is_given_back_by_its_zone(house: House) -> None:
    house.until_up()
    house.provider.release(f"{G}@{A}")
    house.tick(60)
    assert house.provider.probe(G).ready


def test_a_delete_that_comes_to_nothing_is_asked_again(house: House) -> None:
    house.until_up()
    house.cloud.faults.lost_deletes = 2
    house.until_gone()


def test_a_delete_that_takes_long_is_waited_for(house: House) -> None:
    house.until_up()
    house.cloud.faults.slow_deletes = 200
    house.until_gone()
    deletes = [call for call in house.cloud.calls if call[0] == "DeleteQueuedResource"]
    assert len(deletes) == 1


def test_a_list_of_a_while_ago_names_what_was_there_then(house: House) -> None:
    house.until_up()
    house.cloud.faults.stale_seconds = 30
    house.until_gone()
    assert [one.name for one in house.provider.owned()] == [G]
    house.provider.release(G)  # what the sweep does with it: absent is success
    house.tick(31)
    assert house.provider.owned() == []


def test_a_cloud_that_is_asked_too_often_is_asked_less(house: House) -> None:
    house.until_up()
    house.cloud.faults.reads_a_second = 0.1
    for _ in range(100):
        assert house.provider.probe(G).ready
        house.tick(0.25)
    house.cloud.faults.burst = 0
    house.tick(600)
    house.cloud._tokens = 0
    with pytest.raises(SlowDown):
        house.another().probe(G)


def test_looks_are_few_while_hosts_serve(house: House) -> None:
    house.until_up()
    house.cloud.calls.clear()
    for _ in range(240):
        house.provider.probe(G)
        house.tick(0.25)
    assert len(house.cloud.calls) <= 30 * 2 + 2 * len(ZONES)


def test_what_only_looks_is_tried_again_and_a_create_is_not(house: House) -> None:
    house.cloud.faults.unavailable = {"GetQueuedResource": 2, "CreateQueuedResource": 1}
    assert "unavailable" in str(house.ask())
    assert house.cloud.left == []
    assert house.ask() is None
    house.cloud.faults.unavailable = {"DeleteQueuedResource": 2}
    house.until_gone()
    house.cloud.faults.unavailable = {"GetQueuedResource": 3}
    house.tick(60)
    with pytest.raises(Unsure):
        house.provider.probe(G)


def test_a_call_that_is_never_answered_ends_by_its_own_time_limit(house: House) -> None:
    house.cloud.faults.hang = {"CreateQueuedResource"}
    calls = TpuCloud(open_client(house.server.endpoint), "p1", timeout_seconds=0.2)
    with pytest.raises(Unsure):
        calls.create(A, G, Order(TpuSpec(type="v4-8"), {}))
    house.cloud.faults.hang = {"GetNode", "ListNodes", "ListQueuedResources", "GetQueuedResource"}
    for call in (
        lambda: calls.node(A, G),
        lambda: calls.request(A, G),
        lambda: calls.nodes(A),
        lambda: calls.requests(A),
    ):
        with pytest.raises(Unsure):
            call()
    house.cloud.faults.hang = set()


# ---- VMs -----------------------------------------------------------------------------------------


def test_a_vm_whose_device_stays_busy_is_of_no_use(house: House) -> None:
    house.until_up()
    house.launcher.busy = True
    with pytest.raises(DeviceBusy):
        house.provider.launch(G, 1, "s")
    seen = house.provider.probe(G)
    assert seen.taken is Notice.MAINTENANCE
    assert "process 17" in str(seen.words)
    house.until_gone()


def test_vms_that_do_not_answer_are_not_dead_and_keep_no_release_waiting(house: House) -> None:
    house.until_up()
    house.launcher.dark = True
    seen = house.provider.probe(G)
    assert {(host.agent_alive, host.trainer_alive) for host in seen.hosts} == {(None, None)}
    house.until_gone()


def test_vms_that_serve_are_told_where_the_service_is(house: House) -> None:
    house.until_up()
    house.provider.announce("https://elsewhere")
    assert len(house.launcher.vms) == 4


def test_a_vms_host_key_is_what_it_told_the_cloud(house: House) -> None:
    house.until_up()
    with pytest.raises(ProviderError, match="not enabled"):
        house.calls.host_key(A, G, 2)
    made = house.cloud.find(G)
    assert made is not None
    assert made.node is not None
    made.node.metadata["enable-guest-attributes"] = "TRUE"
    assert house.calls.host_key(A, G, 2) == "ssh-ed25519 AAAA2"
    assert house.calls.host_key(B, G, 2) is None


# ---- the fake itself -----------------------------------------------------------------------------


def raw(house: House, request: bytes) -> grpc.RpcError:
    with grpc.insecure_channel(house.server.endpoint) as channel:
        call = channel.unary_unary("/google.cloud.tpu.v2.Tpu/CreateQueuedResource")
        with pytest.raises(grpc.RpcError) as raised:
            call(request, timeout=5)
    return raised.value


def wanted(**node: object) -> tpu_v2.CreateQueuedResourceRequest:
    parent = f"projects/p1/locations/{A}"
    made = tpu_v2.Node(accelerator_type="v4-8", runtime_version="tpu-ubuntu2204-base", **node)
    spec = tpu_v2.QueuedResource.Tpu.NodeSpec(parent=parent, node_id="n", node=made)
    return tpu_v2.CreateQueuedResourceRequest(
        parent=parent,
        queued_resource_id="q",
        queued_resource=tpu_v2.QueuedResource(tpu=tpu_v2.QueuedResource.Tpu(node_spec=[spec])),
    )


def test_the_fake_refuses_a_field_that_it_does_not_know(house: House) -> None:
    message = tpu_v2.CreateQueuedResourceRequest.serialize(wanted())
    error = raw(house, message + b"\xf8\x07\x01")  # field 127, a number
    assert "unknown field" in str(error)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"scheduling_config": {"spot": True}}, "scheduling_config"),
        ({"state": 2}, "state is output only"),
        ({"labels": {"A B": "x"}}, "label"),
        ({"runtime_version": "windows"}, "Runtime version"),
    ],
)
def test_the_fake_refuses_what_breaks_a_queued_resource(
    house: House, node: dict[str, object], words: str
) -> None:
    request = wanted(**{key: value for key, value in node.items() if key != "runtime_version"})
    if "runtime_version" in node:
        request.queued_resource.tpu.node_spec[0].node.runtime_version = node["runtime_version"]
    assert words in str(raw(house, tpu_v2.CreateQueuedResourceRequest.serialize(request)))


def test_the_bill_has_every_second_of_every_resource(house: House) -> None:
    house.until_up()
    began = house.clock
    house.tick(3600)
    house.until_gone()
    lines = list(house.cloud.bill.of(G))
    for kind in ("queued resource", "node"):
        of_kind = [line for line in lines if line.kind == kind]
        for before, after in pairwise(of_kind):
            assert before.until == after.since
    hours = (house.clock - began) / 3600
    cost = house.cloud.bill.cost(G, house.clock)
    assert cost == pytest.approx(hours * 16 * 3.2, rel=0.02)


def test_all_zones_full_says_so_in_one_error(house: House) -> None:
    house.cloud.faults.full = dict.fromkeys(ZONES, Full.AT_ONCE)
    with pytest.raises(ZoneFull) as raised:
        house.provider.acquire(G, V4)
    assert all(zone in str(raised.value) for zone in ZONES)
