"""Calls to the Cloud TPU API (`tpu_v2`): what is asked, what is seen, how long, how often.

Owns the client library: nothing else imports it, and this module is imported only where the tpu
provider is on. Every call has a timeout, since the library has no default one. What only looks or
deletes is tried again a few times; a create is not, because who asks again must look first.
Operations are not waited for: what became of a request is seen in its state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import grpc
from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.auth.exceptions import GoogleAuthError
from google.cloud import tpu_v2

from orchestrator.providers.base import ProviderError
from orchestrator.providers.tpu_errors import CODES, BadRequest, NotAllowed, Unsure, error_of
from orchestrator.providers.tpu_seen import Seen, SeenNode, VmAddress
from orchestrator.providers.tpu_states import NodeState, RequestState
from worker.protocol import TpuSpec

T = TypeVar("T")
TIMEOUT_SECONDS = 30.0
TRIES = 3
FIRST_WAIT_SECONDS = 0.5
CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"


@dataclass(frozen=True)
class Order:
    """A slice to ask for, with what is written on it."""

    spec: TpuSpec
    labels: Mapping[str, str]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    tags: tuple[str, ...] = ()
    valid_seconds: int | None = None


class TpuCloud:
    """One project. `client` is the library's own; `sleep` waits between two tries."""

    def __init__(
        self,
        client: tpu_v2.TpuClient,
        project: str,
        timeout_seconds: float = TIMEOUT_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client: Any = client  # the types of its methods are only known in part
        self._project = project
        self._timeout = timeout_seconds
        self._sleep = sleep

    # ---- looking -----------------------------------------------------------------------------

    def request(self, zone: str, name: str) -> Seen | None:
        path = f"{self._zone(zone)}/queuedResources/{name}"
        found = self._look(
            f"look at queued resource {name} in {zone}",
            lambda: self._client.get_queued_resource(name=path, timeout=self._timeout),
        )
        return None if found is None else _seen(zone, found)

    def node(self, zone: str, name: str) -> SeenNode | None:
        path = f"{self._zone(zone)}/nodes/{name}"
        found = self._look(
            f"look at TPU node {name} in {zone}",
            lambda: self._client.get_node(name=path, timeout=self._timeout),
        )
        return None if found is None else _seen_node(zone, found)

    def requests(self, zone: str) -> Sequence[Seen]:
        """All of the project in the zone. A list may be older than what was just done."""
        found = self._look(
            f"list the queued resources in {zone}",
            lambda: list(
                self._client.list_queued_resources(parent=self._zone(zone), timeout=self._timeout)
            ),
        )
        return [_seen(zone, one) for one in found or ()]

    def nodes(self, zone: str) -> Sequence[SeenNode]:
        found = self._look(
            f"list the TPU nodes in {zone}",
            lambda: list(self._client.list_nodes(parent=self._zone(zone), timeout=self._timeout)),
        )
        return [_seen_node(zone, one) for one in found or ()]

    # ---- changing ----------------------------------------------------------------------------

    def create(self, zone: str, name: str, order: Order) -> None:
        """Tried once. After `Unsure` or `AlreadyThere`, look before asking again."""
        parent = self._zone(zone)
        wanted = _queued_resource(parent, name, order)
        doing = f"ask for {order.spec.type} ({order.spec.tier}) in {zone}"
        try:
            self._once(
                doing,
                lambda: self._client.create_queued_resource(
                    parent=parent,
                    queued_resource_id=name,
                    queued_resource=wanted,
                    timeout=self._timeout,
                ),
            )
        except _Absent as absent:  # the type, the image or the network is what is not there
            raise BadRequest(doing, str(absent)) from absent

    def delete_request(self, zone: str, name: str) -> None:
        """With force: its node goes with it. That nothing is there is success."""
        asked = tpu_v2.DeleteQueuedResourceRequest(
            name=f"{self._zone(zone)}/queuedResources/{name}", force=True
        )
        self._look(
            f"delete queued resource {name} in {zone}",
            lambda: self._client.delete_queued_resource(request=asked, timeout=self._timeout),
        )

    def delete_node(self, zone: str, name: str) -> None:
        path = f"{self._zone(zone)}/nodes/{name}"
        self._look(
            f"delete TPU node {name} in {zone}",
            lambda: self._client.delete_node(name=path, timeout=self._timeout),
        )

    # ---- how ---------------------------------------------------------------------------------

    def _zone(self, zone: str) -> str:
        return f"projects/{self._project}/locations/{zone}"

    def _look(self, doing: str, call: Callable[[], T]) -> T | None:
        """For calls that may be made twice; None when there is no such thing."""
        for left in range(TRIES - 1, -1, -1):
            try:
                return self._once(doing, call)
            except _Absent:
                return None
            except Unsure:
                if not left:
                    raise
                self._sleep(FIRST_WAIT_SECONDS * 2 ** (TRIES - 1 - left))
        raise AssertionError("the last try returns or raises")

    def _once(self, doing: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except RetryError as error:
            raise Unsure(doing, str(error)) from error
        except GoogleAPICallError as error:
            raise _mapped(error, doing) from error
        except GoogleAuthError as error:
            raise _auth(error, doing) from error


class _Absent(ProviderError):
    """There is no such resource."""


def _mapped(error: GoogleAPICallError, doing: str) -> ProviderError:
    given: Any = error
    status = getattr(given.grpc_status_code, "name", "UNKNOWN")
    words = str(given.message or error)
    return _Absent(words) if status == "NOT_FOUND" else error_of(status, words, doing)


def _auth(error: GoogleAuthError, doing: str) -> ProviderError:
    kind = Unsure if getattr(error, "retryable", False) else NotAllowed
    return kind(doing, str(error))


# ---- the library's messages --------------------------------------------------------------------


def open_client(endpoint: str | None) -> tpu_v2.TpuClient:
    """A client with Application Default Credentials; `endpoint` is a fake's, without TLS.

    Raises `NotAllowed` where there are no credentials.
    """
    if endpoint is None:
        try:
            return tpu_v2.TpuClient()
        except GoogleAuthError as error:
            raise NotAllowed("use Cloud TPU", str(error)) from error
    transport = tpu_v2.TpuClient.get_transport_class("grpc")
    return tpu_v2.TpuClient(transport=transport(channel=grpc.insecure_channel(endpoint)))


def _queued_resource(parent: str, name: str, order: Order) -> tpu_v2.QueuedResource:
    """`scheduling_config` stays unset: inside a queued resource it breaks the request."""
    spec = order.spec
    node = tpu_v2.Node(
        accelerator_type=spec.type,
        runtime_version=spec.image,
        network_config=tpu_v2.NetworkConfig(
            network=spec.network or "",
            subnetwork=spec.subnetwork or "",
            enable_external_ips=spec.external_ips,
        ),
        labels=dict(order.labels),
        metadata=dict(order.metadata),
        tags=list(order.tags),
    )
    if spec.service_account is not None:
        node.service_account = tpu_v2.ServiceAccount(
            email=spec.service_account, scope=[CLOUD_PLATFORM]
        )
    wanted = tpu_v2.QueuedResource(
        tpu=tpu_v2.QueuedResource.Tpu(
            node_spec=[
                tpu_v2.QueuedResource.Tpu.NodeSpec(parent=parent, node_id=name, node=node),
            ]
        )
    )
    match spec.tier:
        case "spot":
            wanted.spot = tpu_v2.QueuedResource.Spot()
        case "reserved":
            wanted.guaranteed = tpu_v2.QueuedResource.Guaranteed()
            wanted.reservation_name = spec.reservation or ""
        case "on-demand":
            pass
    if order.valid_seconds is not None:
        wanted.queueing_policy = tpu_v2.QueuedResource.QueueingPolicy(
            valid_until_duration={"seconds": order.valid_seconds}
        )
    return wanted


def _seen(zone: str, given: tpu_v2.QueuedResource) -> Seen:
    specs = list(given.tpu.node_spec)
    node = specs[0].node if specs else tpu_v2.Node()
    failure: Any = given.state.failed_data.error
    return Seen(
        zone=zone,
        name=_last(given.name),
        state=RequestState.named(given.state.state.name),
        created_at=_instant(given.create_time),
        type=node.accelerator_type,
        image=node.runtime_version,
        tier=_tier(given),
        labels=dict(node.labels),
        error=CODES.get(failure.code) if failure.code else None,
        words=str(failure.message),
    )


def _tier(given: tpu_v2.QueuedResource) -> str:
    if "spot" in given:
        return "spot"
    return "reserved" if "guaranteed" in given else "on-demand"


def _seen_node(zone: str, given: tpu_v2.Node) -> SeenNode:
    return SeenNode(
        zone=zone,
        name=_last(given.name),
        state=NodeState.named(given.state.name),
        type=given.accelerator_type,
        labels=dict(given.labels),
        addresses=tuple(
            VmAddress(point.ip_address, point.access_config.external_ip)
            for point in given.network_endpoints
        ),
        words=given.health_description,
    )


def _last(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _instant(given: Any) -> datetime:
    """The library's own kind of datetime, or none."""
    return (
        datetime.fromtimestamp(given.timestamp(), UTC) if given else datetime.fromtimestamp(0, UTC)
    )
