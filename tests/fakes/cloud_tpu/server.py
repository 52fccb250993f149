"""The fake cloud's API over gRPC, in the messages of `google-cloud-tpu` themselves.

Requests are checked more strictly than the cloud may do it: a field that the API's version does not
know, one that only the cloud may set, or one that is known to break a queued resource is refused.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from google.cloud import tpu_v2
from google.longrunning import operations_pb2
from google.protobuf.unknown_fields import UnknownFieldSet

from tests.fakes.cloud_tpu.cloud import FakeCloud, Refusal
from worker.protocol import SHAPES

ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
LABEL = re.compile(r"[a-z0-9_-]{0,63}")
IMAGES = frozenset(shape.runtime for shape in SHAPES.values())
SERVICE = "google.cloud.tpu.v2.Tpu"
NODE_OUTPUT = ("state", "health_description", "network_endpoints", "create_time", "id", "symptoms")
REQUEST_OUTPUT = ("state", "create_time", "name")
PAGE = 50


class CloudServer:
    """Serves one fake cloud on a free port of loopback. Use as a context manager."""

    def __init__(self, cloud: FakeCloud, port: int = 0, threads: int = 16) -> None:
        self.cloud = cloud
        self._server = grpc.server(futures.ThreadPoolExecutor(threads))
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, self._handlers()),
                grpc.method_handlers_generic_handler(
                    "google.longrunning.Operations",
                    {"GetOperation": self._handler("GetOperation", _RAW, self._operation)},
                ),
            )
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        if not self.port:
            raise OSError(f"port {port} of 127.0.0.1 is taken")

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> CloudServer:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.stop(None).wait()

    # ---- methods ---------------------------------------------------------------------------------

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        methods: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "GetNode": (tpu_v2.GetNodeRequest, self._get_node),
            "ListNodes": (tpu_v2.ListNodesRequest, self._list_nodes),
            "DeleteNode": (tpu_v2.DeleteNodeRequest, self._delete_node),
            "GetQueuedResource": (tpu_v2.GetQueuedResourceRequest, self._get),
            "ListQueuedResources": (tpu_v2.ListQueuedResourcesRequest, self._list),
            "CreateQueuedResource": (tpu_v2.CreateQueuedResourceRequest, self._create),
            "DeleteQueuedResource": (tpu_v2.DeleteQueuedResourceRequest, self._delete),
        }
        return {name: self._handler(name, *both) for name, both in methods.items()}

    def _handler(self, method: str, kind: Any, answer: Callable[[Any], Any]) -> Any:
        def serve(data: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                request = _parsed(kind, data)
                while method in self.cloud.faults.hang and context.is_active():
                    time.sleep(0.01)
                with self.cloud.lock:
                    self.cloud.enter(method, getattr(request, "name", "") or request.parent)
                    answered = answer(request)
                return _serialized(answered)
            except Refusal as refusal:
                context.abort(grpc.StatusCode[refusal.status], refusal.words)
                raise AssertionError("abort raises") from refusal

        return grpc.unary_unary_rpc_method_handler(serve)

    def _get(self, request: tpu_v2.GetQueuedResourceRequest) -> tpu_v2.QueuedResource:
        return self.cloud.get(*self._place(request.name, "queuedResources"))

    def _get_node(self, request: tpu_v2.GetNodeRequest) -> tpu_v2.Node:
        return self.cloud.get_node(*self._place(request.name, "nodes"))

    def _list(
        self, request: tpu_v2.ListQueuedResourcesRequest
    ) -> tpu_v2.ListQueuedResourcesResponse:
        found, _ = self.cloud.listed(self._zone(request.parent))
        page, token = _page(found, request.page_token)
        return tpu_v2.ListQueuedResourcesResponse(queued_resources=page, next_page_token=token)

    def _list_nodes(self, request: tpu_v2.ListNodesRequest) -> tpu_v2.ListNodesResponse:
        _, found = self.cloud.listed(self._zone(request.parent))
        page, token = _page(found, request.page_token)
        return tpu_v2.ListNodesResponse(nodes=page, next_page_token=token)

    def _create(self, request: tpu_v2.CreateQueuedResourceRequest) -> Any:
        zone = self._zone(request.parent)
        if not ID.fullmatch(request.queued_resource_id):
            raise _bad(f"queued_resource_id {request.queued_resource_id!r} is invalid")
        self._check(zone, request)
        self.cloud.create(zone, request.queued_resource_id, request.queued_resource)
        return self._started("create")

    def _check(self, zone: str, request: tpu_v2.CreateQueuedResourceRequest) -> None:
        wanted = request.queued_resource
        specs = list(wanted.tpu.node_spec)
        if len(specs) != 1 or specs[0].parent != request.parent or not specs[0].node_id:
            raise _bad("exactly one node_spec with its parent and node_id is wanted")
        node = specs[0].node
        if node.accelerator_type not in self.cloud.faults.offers.get(zone, set(SHAPES)):
            raise _bad(f"Accelerator type {node.accelerator_type} is not available in {zone}")
        if node.runtime_version not in IMAGES:
            raise _bad(f"Runtime version {node.runtime_version!r} not found")
        if "scheduling_config" in node:
            raise _bad("scheduling_config can not be used in a queued resource")
        given = [name for name in NODE_OUTPUT if name in node]
        given += [name for name in REQUEST_OUTPUT if name in wanted]
        if given:
            raise _bad(f"{given[0]} is output only")
        for key, value in node.labels.items():
            if not LABEL.fullmatch(key) or not LABEL.fullmatch(value):
                raise _bad(f"label {key}={value} is invalid")

    def _delete(self, request: tpu_v2.DeleteQueuedResourceRequest) -> Any:
        place = self._place(request.name, "queuedResources")
        self.cloud.delete(*place, force=request.force)
        return self._started("delete")

    def _delete_node(self, request: tpu_v2.DeleteNodeRequest) -> Any:
        self.cloud.delete_node(*self._place(request.name, "nodes"))
        return self._started("delete-node")

    def _operation(self, request: Any) -> Any:
        return operations_pb2.Operation(name=request.name, done=False)

    def _started(self, what: str) -> Any:
        number = len(self.cloud.calls)
        name = f"projects/{self.cloud.project}/locations/-/operations/{what}-{number}"
        return operations_pb2.Operation(name=name, done=False)

    # ---- names -----------------------------------------------------------------------------------

    def _zone(self, parent: str) -> str:
        found = re.fullmatch(r"projects/([^/]+)/locations/([^/]+)", parent)
        if found is None:
            raise _bad(f"parent {parent!r} is invalid")
        if found[1] != self.cloud.project:
            words = f"Permission 'tpu.nodes.list' denied on resource project '{found[1]}'"
            raise Refusal("PERMISSION_DENIED", words)
        if found[2] not in self.cloud.zones:
            raise Refusal("INVALID_ARGUMENT", f"Location {found[2]} is not found")
        return found[2]

    def _place(self, name: str, kind: str) -> tuple[str, str]:
        parent, _, last = name.rpartition(f"/{kind}/")
        return self._zone(parent), last


def _bad(words: str) -> Refusal:
    return Refusal("INVALID_ARGUMENT", f"Cloud TPU received a bad request. {words}")


class _RAW:
    """Stands for a message that is not one of the package's own wrappers."""

    @staticmethod
    def pb() -> Any:
        return operations_pb2.GetOperationRequest

    @staticmethod
    def wrap(raw: Any) -> Any:
        return raw


def _parsed(kind: Any, data: bytes) -> Any:
    raw = kind.pb().FromString(data)
    unknown = _unknown(raw)
    if unknown is not None:
        raise Refusal("INVALID_ARGUMENT", f"Invalid JSON payload: unknown field {unknown}")
    return kind.wrap(raw)


def _unknown(message: Any) -> str | None:
    """Where a message has a field that this version of the API does not know."""
    name = message.DESCRIPTOR.name
    if len(UnknownFieldSet(message)):
        return f"in {name}"
    for of, value in message.ListFields():
        if of.type != of.TYPE_MESSAGE or of.message_type.GetOptions().map_entry:
            continue
        several = hasattr(value, "__len__") and not hasattr(value, "DESCRIPTOR")
        for one in value if several else (value,):
            if (found := _unknown(one)) is not None:
                return f"{found} of {name}"
    return None


def _serialized(answer: Any) -> bytes:
    raw = type(answer).pb(answer) if hasattr(type(answer), "pb") else answer
    return raw.SerializeToString()


def _page(found: list[Any], token: str) -> tuple[list[Any], str]:
    first = int(token or 0)
    more = first + PAGE < len(found)
    return found[first : first + PAGE], str(first + PAGE) if more else ""
