"""What each state of a queued resource and of a TPU node means for a host group. Total tables.

Pure data: imports no client library, so that the tables can be read and tested without one. A state
that the cloud may add later reads as unspecified.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Self

from worker.protocol import Notice


class _CloudState(StrEnum):
    @classmethod
    def named(cls, name: str) -> Self:
        """The state that the cloud's API calls so."""
        try:
            return cls[name]
        except KeyError:
            return cls["STATE_UNSPECIFIED"]


class RequestState(_CloudState):
    """Of a queued resource."""

    STATE_UNSPECIFIED = "unspecified"
    CREATING = "creating"
    ACCEPTED = "accepted"
    WAITING_FOR_RESOURCES = "waiting for resources"
    PROVISIONING = "provisioning"
    ACTIVE = "active"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    FAILED = "failed"
    DELETING = "deleting"


class NodeState(_CloudState):
    STATE_UNSPECIFIED = "unspecified"
    CREATING = "creating"
    READY = "ready"
    RESTARTING = "restarting"
    REIMAGING = "reimaging"
    DELETING = "deleting"
    REPAIRING = "repairing"
    STOPPED = "stopped"
    STOPPING = "stopping"
    STARTING = "starting"
    PREEMPTED = "preempted"
    TERMINATED = "terminated"
    HIDING = "hiding"
    HIDDEN = "hidden"
    UNHIDING = "unhiding"
    UNKNOWN = "unknown"


class Request(StrEnum):
    """What a queued resource is good for.

    `WAITS` is in the queue and `COMES` is being made; `HOLDS` has its node. `GOES` is being taken
    away and must not be deleted by force yet. `SPENT` will never be filled again and holds quota
    until it is deleted: `TAKEN` had its node, `FAILED` never got it. `LEAVES` is being deleted.
    """

    WAITS = "waits"
    COMES = "comes"
    HOLDS = "holds"
    GOES = "goes"
    TAKEN = "taken"
    FAILED = "failed"
    LEAVES = "leaves"


REQUESTS: Mapping[RequestState, Request] = MappingProxyType(
    {
        RequestState.STATE_UNSPECIFIED: Request.WAITS,
        RequestState.CREATING: Request.WAITS,
        RequestState.ACCEPTED: Request.WAITS,
        RequestState.WAITING_FOR_RESOURCES: Request.WAITS,
        RequestState.PROVISIONING: Request.COMES,
        RequestState.ACTIVE: Request.HOLDS,
        RequestState.SUSPENDING: Request.GOES,
        RequestState.SUSPENDED: Request.TAKEN,
        RequestState.FAILED: Request.FAILED,
        RequestState.DELETING: Request.LEAVES,
    }
)
LIVE = frozenset({Request.WAITS, Request.COMES, Request.HOLDS})
SPENT = frozenset({Request.TAKEN, Request.FAILED})


class Node(StrEnum):
    """Whether the VMs of a node can be worked with."""

    COMES = "comes"
    SERVES = "serves"
    LOST = "lost"


# A node that is repaired keeps its VMs; after every other state there is no way back to them.
NODES: Mapping[NodeState, Node] = MappingProxyType(
    {
        NodeState.STATE_UNSPECIFIED: Node.COMES,
        NodeState.CREATING: Node.COMES,
        NodeState.READY: Node.SERVES,
        NodeState.REPAIRING: Node.SERVES,
        NodeState.RESTARTING: Node.LOST,
        NodeState.REIMAGING: Node.LOST,
        NodeState.DELETING: Node.LOST,
        NodeState.STOPPED: Node.LOST,
        NodeState.STOPPING: Node.LOST,
        NodeState.STARTING: Node.LOST,
        NodeState.PREEMPTED: Node.LOST,
        NodeState.TERMINATED: Node.LOST,
        NodeState.HIDING: Node.LOST,
        NodeState.HIDDEN: Node.LOST,
        NodeState.UNHIDING: Node.LOST,
        NodeState.UNKNOWN: Node.LOST,
    }
)

# Where the VMs are lost, as what; the rest were stopped by whoever stopped them.
_NOTICES: Mapping[NodeState, Notice] = MappingProxyType(
    {
        NodeState.PREEMPTED: Notice.PREEMPTED,
        NodeState.RESTARTING: Notice.MAINTENANCE,
        NodeState.REIMAGING: Notice.MAINTENANCE,
        NodeState.TERMINATED: Notice.MAINTENANCE,
    }
)


def notice_of(state: NodeState) -> Notice:
    return _NOTICES.get(state, Notice.SHUTDOWN)
