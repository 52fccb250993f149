"""Cloud TPU slices as host groups: one queued resource, with its node, of the group's own name.

Owns what is asked of the cloud and when. What the cloud shows is all that it knows: a control plane
that starts again finds its requests by their name. Deleting goes before asking elsewhere, and is
done only when no zone shows anything any more. Agents are started on the VMs by a `Launcher`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

import structlog

from orchestrator.providers.base import (
    GroupProbe,
    HostProbe,
    Owned,
    ProviderError,
    ProvisionRefused,
)
from orchestrator.providers.tpu_cloud import Order, TpuCloud
from orchestrator.providers.tpu_errors import AlreadyThere, Refused, Unsure, ZoneFull
from orchestrator.providers.tpu_looks import Looks
from orchestrator.providers.tpu_places import BUSY, Place, Terms, newest, next_step, probe
from orchestrator.providers.tpu_seen import (
    ASKED,
    GROUP,
    INSTALLATION,
    Seen,
    SeenNode,
    VmAddress,
)
from orchestrator.providers.tpu_states import NodeState
from orchestrator.records import HostRequest
from worker.protocol import SHAPES, Notice, TpuSpec

log = structlog.get_logger(__name__)
NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
PART = "@"  # `<group>@<zone>`: what lies in one zone beside the group's own
LAUNCHER_THREADS = 16
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0


class DeviceBusy(ProviderError):
    """Something that does not end holds the TPU of a VM: the VM can not be used any more."""


class NotOurs(ProvisionRefused):
    """A resource of this name is there, and is another's or of another shape."""


class PassedOn(ProviderError):
    """A zone could not give the hosts, and another one has been asked."""


class Launcher(Protocol):
    """Starts agents on VMs. Knows them by their addresses, and keeps nothing that is not there."""

    def launch(self, vm: VmAddress, group: str, host: int, secret: str) -> None:
        """Ends what runs there first. Raises `DeviceBusy` where the TPU does not get free."""
        ...

    def alive(self, vm: VmAddress, group: str, host: int) -> tuple[bool | None, bool | None]:
        """Whether an agent and a trainer live there; None: could not tell."""
        ...

    def end(self, vm: VmAddress, group: str, host: int) -> None:
        """Lets the agent deliver its last words, then ends everything; within seconds."""
        ...

    def announce(self, vm: VmAddress, group: str, host: int, control_url: str) -> None: ...


@dataclass(frozen=True)
class TpuTerms:
    """`zones` are all that this installation may use. `metadata` is written on every VM, `keys` on
    those that let in by their own list of SSH keys.

    `valid_seconds` bounds how long the cloud keeps a request that was never filled.
    """

    zones: tuple[str, ...]
    metadata: Mapping[str, str]
    keys: Mapping[str, str] = field(default_factory=dict[str, str])
    places: Terms = field(default_factory=Terms)
    poll_seconds: float = 5.0
    valid_seconds: int | None = None


class TpuProvider:
    """`now` and `monotonic` tell the time."""

    def __init__(
        self,
        cloud: TpuCloud,
        installation: str,
        launcher: Launcher,
        terms: TpuTerms,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cloud = cloud
        self._installation = installation
        self._launcher = launcher
        self._terms = terms
        self._now = now
        self._monotonic = monotonic
        self._looks = Looks(cloud, terms.zones, terms.poll_seconds, monotonic)
        self._pauses: dict[str, tuple[float, float]] = {}
        self._useless: dict[str, str] = {}
        self._threads = ThreadPoolExecutor(LAUNCHER_THREADS, thread_name_prefix="tpu-vm")

    @property
    def name(self) -> str:
        return "tpu"

    @property
    def hold_seconds(self) -> float | None:
        return None

    # ---- asking ------------------------------------------------------------------------------

    def acquire(self, group: str, request: HostRequest) -> None:
        """One step of the way: adopts what is there, or deletes what is spent and asks."""
        _check_name(group)
        spec = self._spec(request)
        self._heed_pause(group)
        step = next_step(
            self._looks.recent(group), spec.zones or (), self._now(), self._terms.places
        )
        if step.refused is not None:
            raise step.refused
        if step.keep is not None:
            self._check_ours(step.keep.request, group, spec)
        for place in step.delete:
            self._delete(group, place)
        asked = self._ask(group, spec, step.create) if step.create else None
        if step.why is not None:
            then = "" if asked is None else f"; asked {asked}"
            raise PassedOn(f"{step.why}{then}")

    def _spec(self, request: HostRequest) -> TpuSpec:
        """With zones that this service may use, and hosts as the type has them."""
        spec = request.section
        if not isinstance(spec, TpuSpec):
            raise ProvisionRefused("provider tpu needs to know the slice: set hosts.tpu.type")
        shape = spec.shape
        if (request.hosts, request.devices) != (shape.hosts, shape.devices):
            raise ProvisionRefused(
                f"{spec.type} has {shape.hosts} hosts with {shape.devices} devices each, not"
                f" {request.hosts} with {request.devices}"
            )
        zones = spec.zones or self._terms.zones
        unknown = [zone for zone in zones if zone not in self._terms.zones]
        if unknown:
            raise ProvisionRefused(
                f"this service may not use zone {unknown[0]}; it may use"
                f" {', '.join(self._terms.zones)} (the setting tpu_zones)"
            )
        return spec.model_copy(update={"zones": zones})

    def _check_ours(self, seen: Seen | None, group: str, spec: TpuSpec) -> None:
        if seen is None:
            return
        if seen.labels.get(INSTALLATION) != self._installation:
            raise NotOurs(
                f"a queued resource {group} in {seen.zone} belongs to somebody else; delete it, or"
                f" use another project"
            )
        has, wants = (seen.type, seen.image, seen.tier), (spec.type, spec.image, spec.tier)
        if has != wants:
            raise NotOurs(f"{group} exists in {seen.zone} with another shape: {' '.join(has)}")

    def _ask(self, group: str, spec: TpuSpec, zones: Sequence[str]) -> str:
        """The zone that took the order. One that can not is passed over; an unsure one is not."""
        self._looks.forget(group)
        failed: list[ZoneFull | Refused] = []
        for zone in zones:
            try:
                self._create(group, spec, zone)
            except (ZoneFull, Refused) as error:
                failed.append(error)
                log.warning("a zone gives no TPU", group=group, zone=zone, words=error.words)
                continue
            self._pauses.pop(group, None)
            if failed:
                raise PassedOn(f"{failed[-1]}; asked {zone}")
            return zone
        full = [error for error in failed if isinstance(error, ZoneFull)]
        if not full:
            raise failed[-1]
        self._take_pause(group)
        raise ZoneFull(f"get {spec.type} in any zone", "; ".join(one.words for one in failed))

    def _create(self, group: str, spec: TpuSpec, zone: str) -> None:
        """Whatever the answer is, what is there then counts."""
        labels = {
            INSTALLATION: self._installation,
            GROUP: group,
            ASKED: str(int(self._now().timestamp() * 1000)),
        }
        order = Order(spec, labels, self._metadata(spec), valid_seconds=self._terms.valid_seconds)
        try:
            self._cloud.create(zone, group, order)
        except (AlreadyThere, Unsure):
            there = self._cloud.request(zone, group)
            if there is None:
                raise  # a spurious conflict, or one that may be filled yet: asked again later
            self._check_ours(there, group, spec)

    def _metadata(self, spec: TpuSpec) -> dict[str, str]:
        """OS Login is always said: where a project has it on, a VM's own keys count for nothing."""
        said = {"enable-oslogin": "TRUE" if spec.os_login else "FALSE"}
        if spec.os_login:
            return {**self._terms.metadata, **said}
        return {**self._terms.metadata, **self._terms.keys, **said}

    # A zone that is full at once would be asked every second.

    def _heed_pause(self, group: str) -> None:
        until, _ = self._pauses.get(group, (0.0, 0.0))
        if self._monotonic() < until:
            raise ProviderError("no zone had capacity a moment ago; asking again soon")

    def _take_pause(self, group: str) -> None:
        _, before = self._pauses.get(group, (0.0, 0.0))
        pause = min(max(before * 2, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        self._pauses[group] = (self._monotonic() + pause, pause)

    # ---- looking -----------------------------------------------------------------------------

    def probe(self, group: str) -> GroupProbe:
        name, zone = _parts(group)
        places = self._looks.recent(name)
        if zone is not None:
            places = [place for place in places if place.zone == zone]
        seen = probe(places, self._now(), self._terms.places)
        own = newest(places)
        if own is None or own.node is None or not seen.ready:
            return seen
        useless = self._useless.get(own.node.name)
        if useless is not None:
            return replace(seen, ready=False, taken=Notice.MAINTENANCE, words=useless)
        return replace(seen, hosts=self._hosts(group, own.node))

    def _hosts(self, group: str, node: SeenNode) -> tuple[HostProbe, ...]:
        def one(numbered: tuple[int, VmAddress]) -> HostProbe:
            index, vm = numbered
            try:
                agent, trainer = self._launcher.alive(vm, group, index)
            except ProviderError as error:
                log.info("a VM can not be looked at", group=group, host=index, words=str(error))
                agent, trainer = None, None
            return HostProbe(index, vm.internal or vm.external, agent, trainer)

        return tuple(self._threads.map(one, enumerate(node.addresses)))

    def owned(self) -> Sequence[Owned]:
        """As the zones' lists have it. Raises where one of them can not be had.

        What lies in another zone beside the group's own is told by that zone, to be given back by
        itself: a request that was filled after its time limit would cost for ever.
        """
        found: dict[str, list[Place]] = {}
        for zone in self._terms.zones:
            requests = {one.name: one for one in self._cloud.requests(zone) if self._ours(one)}
            nodes = {one.name: one for one in self._cloud.nodes(zone) if self._ours(one)}
            for name in requests.keys() | nodes.keys():
                place = Place(zone, requests.get(name), nodes.get(name))
                found.setdefault(name, []).append(place)
        owned: list[Owned] = []
        for name, places in found.items():
            own = newest(places)
            for place in places:
                if place == own:
                    owned.append(_owned(name, place))
                elif place.meaning not in BUSY:
                    owned.append(_owned(f"{name}{PART}{place.zone}", place))
        return sorted(owned, key=lambda one: one.name)

    def _ours(self, one: Seen | SeenNode) -> bool:
        by_name = one.name.startswith(f"lh-{self._installation}-")
        return by_name or one.labels.get(INSTALLATION) == self._installation

    # ---- starting and ending -----------------------------------------------------------------

    def launch(self, group: str, host: int, secret: str) -> None:
        _check_name(group)
        own = newest(self._looks.recent(group))
        node = None if own is None or not own.serves else own.node
        if node is None or not 0 <= host < len(node.addresses):
            raise ProviderError(f"host group {group} has no host {host}")
        try:
            self._launcher.launch(node.addresses[host], group, host, secret)
        except DeviceBusy as error:
            self._useless[node.name] = f"host {host} is of no use: {error}"
            raise

    def release(self, group: str) -> None:
        """Ends what runs, then deletes in every zone. To be asked again until nothing is there."""
        name, zone = _parts(group)
        if zone is not None:
            self._release_part(name, zone)
            return
        failed: list[ProviderError] = []
        for place in self._looks.recent(name):
            try:
                self._end(name, place)
                self._delete(name, place)
            except ProviderError as error:  # the other zones' cost no less for it
                failed.append(error)
        if failed:
            raise failed[0]
        self._useless.pop(name, None)
        self._pauses.pop(name, None)

    def _release_part(self, name: str, zone: str) -> None:
        """Only what the group has beside its own, by a look of this moment."""
        places = self._looks.everywhere(name)
        own = newest(places)
        for place in places:
            if place.zone == zone and place != own:
                self._delete(name, place)

    def _end(self, name: str, place: Place) -> None:
        """A VM that is about to go need not answer."""
        if not place.serves or place.node is None:
            return

        def one(numbered: tuple[int, VmAddress]) -> None:
            index, vm = numbered
            try:
                self._launcher.end(vm, name, index)
            except ProviderError as error:
                log.info("a VM goes unheard", group=name, host=index, words=str(error))

        list(self._threads.map(one, enumerate(place.node.addresses)))

    def _delete(self, name: str, place: Place) -> None:
        """Not what is leaving already, and not what is being suspended: it can not be forced."""
        if not place.there or place.meaning in BUSY:
            return
        self._looks.forget(name)
        if place.request is not None:
            self._cloud.delete_request(place.zone, name)
        elif place.node is not None and place.node.state is not NodeState.DELETING:
            self._cloud.delete_node(place.zone, name)

    def announce(self, control_url: str) -> None:
        """To the VMs that serve; one that can not be told now is told when its agent is started."""
        for zone in self._terms.zones:
            for node in self._cloud.nodes(zone):
                if self._ours(node) and node.state is NodeState.READY:
                    self._tell(node, control_url)

    def _tell(self, node: SeenNode, control_url: str) -> None:
        def one(numbered: tuple[int, VmAddress]) -> None:
            index, vm = numbered
            try:
                self._launcher.announce(vm, node.name, index, control_url)
            except ProviderError as error:
                log.warning("a VM was not told where the service is", vm=vm, words=str(error))

        list(self._threads.map(one, enumerate(node.addresses)))


def _owned(name: str, place: Place) -> Owned:
    kind = place.request.type if place.request is not None else ""
    if place.node is not None:
        kind = place.node.type
    shape = SHAPES.get(kind)
    return Owned(name) if shape is None else Owned(name, shape.hosts, shape.devices)


def _check_name(group: str) -> None:
    if not NAME.fullmatch(group):
        raise ProvisionRefused(f"{group!r} is no name of a host group")


def _parts(group: str) -> tuple[str, str | None]:
    """The group's name, and the zone where only a part of it is meant."""
    name, found, zone = group.partition(PART)
    _check_name(name)
    if found:
        _check_name(zone)
    return name, zone if found else None
