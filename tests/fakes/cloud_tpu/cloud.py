"""What happens in the fake cloud: queued resources, their nodes, and the VMs of those.

Time is handed in. Everything that is due happens when somebody looks, in the order of its time, so
that a test with a clock of its own needs no threads.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from google.cloud import tpu_v2
from google.rpc import status_pb2

from tests.fakes.cloud_tpu.bill import Bill
from tests.fakes.cloud_tpu.faults import Faults, Full
from worker.protocol import SHAPES

RS = tpu_v2.QueuedResourceState.State
NS = tpu_v2.Node.State
CHIP_PRICE = 3.2  # of one chip for an hour
NO_CAPACITY = 'There is no more capacity in the zone "{zone}"; you can try in another zone'
SPENT = frozenset({RS.SUSPENDED, RS.FAILED})
BUSY = frozenset({RS.SUSPENDING, RS.DELETING})


class Refusal(Exception):
    """The call is answered with this status."""

    def __init__(self, status: str, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class Vms(Protocol):
    """Makes the machines of a node: each has an address inside and one outside, or none."""

    def start(self, node: str, hosts: int) -> Sequence[tuple[str, str]]: ...

    def stop(self, node: str) -> None:
        """They are off, whatever ran on them."""
        ...


class NoVms:
    """Addresses, and nothing behind them."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def start(self, node: str, hosts: int) -> Sequence[tuple[str, str]]:
        made = itertools.islice(self._numbers, hosts)
        return [(f"10.9.{n // 250}.{n % 250}", f"203.0.{n // 250}.{n % 250}") for n in made]

    def stop(self, node: str) -> None:
        pass


@dataclass(frozen=True)
class Pace:
    """Seconds from one state to the next, where nothing goes wrong."""

    queue: float = 0.0
    provision: float = 0.0
    suspend: float = 0.0
    delete: float = 0.0
    fail: float = 0.0


@dataclass
class Made:
    """One queued resource with its node, if it has one. `left`: it is gone for good."""

    zone: str
    name: str
    message: tpu_v2.QueuedResource
    node: tpu_v2.Node | None = None
    left: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def state(self) -> RS:
        return self.message.state.state

    @property
    def spec(self) -> tpu_v2.Node:
        return self.message.tpu.node_spec[0].node

    @property
    def tier(self) -> str:
        if "spot" in self.message:
            return "spot"
        return "reserved" if "guaranteed" in self.message else "on-demand"


class FakeCloud:
    """`now` tells the time in seconds. `vms` makes the machines. `log` is the bill as a file."""

    def __init__(
        self,
        project: str = "p1",
        zones: Sequence[str] = ("us-central2-b",),
        pace: Pace | None = None,
        now: Callable[[], float] = time.time,
        vms: Vms | None = None,
        log: Path | None = None,
    ) -> None:
        self.project = project
        self.zones = tuple(zones)
        self.pace = pace or Pace()
        self.faults = Faults()
        self.bill = Bill(log)
        self.now = now
        self.calls: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self._vms = vms or NoVms()
        self._made: dict[tuple[str, str], Made] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._moment: float | None = None
        self._past: list[tuple[float, list[tpu_v2.QueuedResource], list[tpu_v2.Node]]] = []
        self._tokens, self._tokens_at = self.faults.burst, now()

    # ---- what tests ask and do -------------------------------------------------------------------

    @property
    def left(self) -> list[str]:
        """What is there now, requests and nodes alike, with its zone and state."""
        with self.lock:
            self.advance()
            requests = [f"{m.zone}/{m.name} {m.state.name}" for m in self._made.values()]
            nodes = [
                f"{m.zone}/{m.name} node {m.node.state.name}" for m in self._made.values() if m.node
            ]
            return requests + nodes

    def find(self, name: str, zone: str | None = None) -> Made | None:
        with self.lock:
            self.advance()
            found = [m for m in self._made.values() if m.name == name and zone in (None, m.zone)]
            return found[-1] if found else None

    def preempt(self, name: str, zone: str | None = None) -> None:
        """Takes the node, ready or still being made; the request is suspended after it."""
        with self.lock:
            made = self.find(name, zone)
            assert made is not None
            assert made.node is not None, f"{name} has no node"
            self._vms.stop(self._key(made))
            self._node(made, NS.PREEMPTED)
            self._suspend(made)

    def suspend(self, name: str, zone: str | None = None) -> None:
        """The request is suspended, without a word in the node's state."""
        with self.lock:
            made = self.find(name, zone)
            assert made is not None
            self._suspend(made)

    def set_node(self, name: str, state: str) -> None:
        """Somebody, or the cloud, does something to the node."""
        with self.lock:
            made = self.find(name)
            assert made is not None
            assert made.node is not None
            self._node(made, NS[state])

    def advance(self) -> None:
        """Lets everything happen that is due by now."""
        while self._due and self._due[0][0] <= self.now():
            self._moment, _, what = heapq.heappop(self._due)
            try:
                what()
            finally:
                self._moment = None

    def _time(self) -> float:
        """Now, or when that was due which happens only now, because nobody looked before."""
        return self.now() if self._moment is None else self._moment

    # ---- the API ---------------------------------------------------------------------------------

    def create(self, zone: str, name: str, wanted: tpu_v2.QueuedResource) -> None:
        faults = self.faults
        if faults.conflicts:
            faults.conflicts -= 1
            raise Refusal("ALREADY_EXISTS", f"Requested entity already exists: {name}")
        if faults.late_fills:
            after = faults.late_fills.pop(0)
            if after is not None:
                self._at(after, lambda: self._late(zone, name, wanted))
            raise Refusal("DEADLINE_EXCEEDED", "Deadline Exceeded")
        self._make(zone, name, wanted)
        if faults.conflicts_after:
            faults.conflicts_after -= 1
            raise Refusal("ALREADY_EXISTS", f"Requested entity already exists: {name}")

    def _late(self, zone: str, name: str, wanted: tpu_v2.QueuedResource) -> None:
        if (zone, name) not in self._made:
            self._make(zone, name, wanted)

    def _make(self, zone: str, name: str, wanted: tpu_v2.QueuedResource) -> None:
        if (zone, name) in self._made:
            raise Refusal("ALREADY_EXISTS", f"Resource '{name}' already exists")
        full = self.faults.full.get(zone)
        if full is Full.AT_ONCE:
            raise Refusal("RESOURCE_EXHAUSTED", NO_CAPACITY.format(zone=zone))
        message = tpu_v2.QueuedResource(wanted)
        message.name = f"projects/{self.project}/locations/{zone}/queuedResources/{name}"
        message.create_time = datetime.fromtimestamp(self._time(), UTC)
        made = Made(zone, name, message)
        self._hold_to_quota(made)
        self._made[zone, name] = made
        self._move(made, RS.ACCEPTED)
        self._move(made, RS.WAITING_FOR_RESOURCES)
        if self.faults.fail_with:
            code, words = self.faults.fail_with.pop(0)
            self._at(self.pace.fail, lambda: self._fail(made, code, words))
        elif full is Full.LATER:
            words = NO_CAPACITY.format(zone=zone)
            self._at(self.pace.fail, lambda: self._fail(made, 8, words))
        elif full is not Full.NEVER:
            self._at(self.pace.queue, lambda: self._provision(made))

    def _hold_to_quota(self, made: Made) -> None:
        """What failed or was suspended holds quota until it is deleted."""
        shape = SHAPES[made.spec.accelerator_type]
        key = f"{made.zone}/{shape.generation}/{made.tier}"
        allowed = self.faults.quota.get(key)
        if allowed is None:
            return
        held = 0
        for one in self._made.values():
            other = SHAPES[one.spec.accelerator_type]
            if (one.zone, other.generation, one.tier) == (made.zone, shape.generation, made.tier):
                held += other.hosts * other.chips
        if held + shape.hosts * shape.chips > allowed:
            raise Refusal(
                "RESOURCE_EXHAUSTED",
                f"Quota limit 'TPU{shape.generation.upper()}PerProjectPerZone' has been exceeded."
                f" Limit: {allowed} in zone {made.zone}.",
            )

    def delete(self, zone: str, name: str, *, force: bool) -> None:
        made = self._of(zone, name)
        if made.state in BUSY:
            state = made.state.name
            raise Refusal("FAILED_PRECONDITION", f"'{name}' can not be deleted while {state}")
        if made.node is not None and not force:
            raise Refusal("FAILED_PRECONDITION", f"'{name}' has nodes; delete them or use force")
        before = made.state
        self._move(made, RS.DELETING)
        if self.faults.lost_deletes:
            self.faults.lost_deletes -= 1
            self._at(self.pace.delete, lambda: self._move(made, before))
            return
        self._vms.stop(self._key(made))
        if made.node is not None:
            self._node(made, NS.DELETING)
        self._at(self.pace.delete + self.faults.slow_deletes, lambda: self._leave(made))

    def delete_node(self, zone: str, name: str) -> None:
        made = self._of(zone, name, node=True)
        if made.state is not RS.DELETING:
            self._move(made, RS.SUSPENDING)
            self._at(self.pace.delete, lambda: self._suspended(made))
        self._vms.stop(self._key(made))
        self._node(made, NS.DELETING)

    def get(self, zone: str, name: str) -> tpu_v2.QueuedResource:
        return tpu_v2.QueuedResource(self._of(zone, name).message)

    def get_node(self, zone: str, name: str) -> tpu_v2.Node:
        made = self._of(zone, name, node=True)
        assert made.node is not None
        return tpu_v2.Node(made.node)

    def listed(self, zone: str) -> tuple[list[tpu_v2.QueuedResource], list[tpu_v2.Node]]:
        """As it was `stale_seconds` ago."""
        self._remember()
        until = self._time() - self.faults.stale_seconds
        past = [one for one in self._past if one[0] <= until]
        _, requests, nodes = past[-1] if past else (0.0, [], [])
        here = f"/locations/{zone}/"
        return [r for r in requests if here in r.name], [n for n in nodes if here in n.name]

    def enter(self, method: str, what: str) -> None:
        """Before every call: who may, how often, and is anybody there."""
        self.calls.append((method, what))
        self.advance()
        faults = self.faults
        if method in faults.denied:
            raise Refusal("PERMISSION_DENIED", faults.denied[method])
        if faults.unavailable.get(method, 0):
            faults.unavailable[method] -= 1
            raise Refusal("UNAVAILABLE", "The service is currently unavailable.")
        if faults.reads_a_second is not None and method.startswith(("Get", "List")):
            self._take_token(faults.reads_a_second)

    def _take_token(self, rate: float) -> None:
        now = self._time()
        gained = (now - self._tokens_at) * rate
        self._tokens, self._tokens_at = min(self.faults.burst, self._tokens + gained), now
        if self._tokens < 1:
            raise Refusal(
                "RESOURCE_EXHAUSTED",
                "Quota exceeded for quota metric 'Read requests' and limit 'Read requests per"
                " minute per user' of service 'tpu.googleapis.com'",
            )
        self._tokens -= 1

    # ---- from state to state ---------------------------------------------------------------------

    def _at(self, after: float, what: Callable[[], None]) -> None:
        if after <= 0:
            what()
        else:
            heapq.heappush(self._due, (self._time() + after, next(self._order), what))

    def _provision(self, made: Made) -> None:
        if made.state is not RS.WAITING_FOR_RESOURCES:
            return
        self._move(made, RS.PROVISIONING)
        node = tpu_v2.Node(made.spec)
        node.name = f"projects/{self.project}/locations/{made.zone}/nodes/{made.name}"
        node.queued_resource = made.message.name
        made.node = node
        self._node(made, NS.CREATING)
        self._at(self.pace.provision, lambda: self._boot(made))

    def _boot(self, made: Made) -> None:
        if made.state is not RS.PROVISIONING or made.node is None:
            return
        hosts = SHAPES[made.spec.accelerator_type].hosts
        found = self._vms.start(self._key(made), hosts)
        outside = made.spec.network_config.enable_external_ips
        points = [
            tpu_v2.NetworkEndpoint(
                ip_address=inner,
                access_config=tpu_v2.AccessConfig(external_ip=outer if outside else ""),
            )
            for inner, outer in found
        ]
        made.node.network_endpoints = [tpu_v2.NetworkEndpoint() for _ in points]
        self._node(made, NS.READY)
        self._move(made, RS.ACTIVE)
        self._at(self.faults.late_addresses, lambda: self._tell_addresses(made, points))

    def _tell_addresses(self, made: Made, points: list[tpu_v2.NetworkEndpoint]) -> None:
        if made.node is not None:
            made.node.network_endpoints = points
            self._remember()

    def _fail(self, made: Made, code: int, words: str) -> None:
        if made.state is RS.WAITING_FOR_RESOURCES:
            data = tpu_v2.QueuedResourceState.FailedData(
                error=status_pb2.Status(code=code, message=words)
            )
            self._move(made, RS.FAILED)
            made.message.state.failed_data = data

    def _suspend(self, made: Made) -> None:
        self._move(made, RS.SUSPENDING)
        self._at(self.pace.suspend, lambda: self._suspended(made))

    def _suspended(self, made: Made) -> None:
        if made.state is RS.SUSPENDING:
            self._vms.stop(self._key(made))
            self._no_node(made)
            self._move(made, RS.SUSPENDED)

    def _leave(self, made: Made) -> None:
        self._no_node(made)
        made.left = True
        del self._made[made.zone, made.name]
        self.bill.note("queued resource", made.zone, made.name, None, self._time())
        self._remember()

    def _move(self, made: Made, state: RS) -> None:
        made.message.state = tpu_v2.QueuedResourceState(state=state)
        kind = made.spec.accelerator_type
        self.bill.note(
            "queued resource", made.zone, made.name, state.name, self._time(), type=kind, price=0
        )
        self._remember()

    def _node(self, made: Made, state: NS) -> None:
        assert made.node is not None
        made.node.state = state
        shape = SHAPES[made.node.accelerator_type]
        price = CHIP_PRICE * shape.hosts * shape.chips
        self.bill.note(
            "node", made.zone, made.name, state.name, self._time(), type=shape.type, price=price
        )
        self._remember()

    def _no_node(self, made: Made) -> None:
        if made.node is not None:
            made.node = None
            self.bill.note("node", made.zone, made.name, None, self._time())

    def _remember(self) -> None:
        requests = [tpu_v2.QueuedResource(m.message) for m in self._made.values()]
        nodes = [tpu_v2.Node(m.node) for m in self._made.values() if m.node is not None]
        now = self._time()
        self._past = [one for one in self._past if one[0] > now - 600][-500:]
        self._past.append((now, requests, nodes))

    def _of(self, zone: str, name: str, *, node: bool = False) -> Made:
        made = self._made.get((zone, name))
        if made is None or (node and made.node is None):
            raise Refusal("NOT_FOUND", f"Resource '{name}' was not found in {zone}")
        return made

    def _key(self, made: Made) -> str:
        return f"{made.zone}/{made.name}"
