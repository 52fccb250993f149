"""What the cloud shows of one host group, zone by zone, and what follows from it. Pure.

A group is one queued resource with its node in one zone; a request that was passed on from a full
zone, or that was filled long after its time limit, can leave more than one for a while. The newest
request that may still give hosts is the group's; by the time that was written on it, so that every
control plane that looks finds the same. Which zones have been tried is read off what lies there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.providers.base import GroupProbe
from orchestrator.providers.tpu_errors import Refused, error_of
from orchestrator.providers.tpu_seen import Seen, SeenNode
from orchestrator.providers.tpu_states import (
    LIVE,
    NODES,
    REQUESTS,
    Node,
    NodeState,
    Request,
    notice_of,
)
from worker.protocol import SHAPES, Notice

BUSY = frozenset({Request.GOES, Request.LEAVES})  # a delete would be refused, or is under way


@dataclass(frozen=True)
class Place:
    """What is there of the group in one zone."""

    zone: str
    request: Seen | None
    node: SeenNode | None

    @property
    def there(self) -> bool:
        return self.request is not None or self.node is not None

    @property
    def meaning(self) -> Request:
        """A node whose request is gone is never asked for again: it was taken, or is leaving."""
        if self.request is not None:
            return REQUESTS[self.request.state]
        going = self.node is None or self.node.state is NodeState.DELETING
        return Request.LEAVES if going else Request.TAKEN

    @property
    def age_key(self) -> tuple[int, float, str]:
        """Later is newer. The cloud's own time is that of when it got round to it."""
        if self.request is None:
            return 0, 0.0, self.zone
        return self.request.asked, self.request.created_at.timestamp(), self.zone

    @property
    def serves(self) -> bool:
        """Its VMs can be worked with: all are up, and their addresses known."""
        node = self.node
        if self.meaning is not Request.HOLDS or node is None:
            return False
        if NODES[node.state] is not Node.SERVES or node.type not in SHAPES:
            return False
        known = [one for one in node.addresses if one.internal or one.external]
        return len(known) == len(node.addresses) == SHAPES[node.type].hosts

    @property
    def words(self) -> str:
        """The cloud's own, in a sentence about this place."""
        said = ""
        if self.request is not None and self.request.words:
            said = f": {self.request.words}"
        elif self.node is not None and self.node.words:
            said = f": {self.node.words}"
        states = [] if self.request is None else [f"queued resource {self.request.state}"]
        states += [] if self.node is None else [f"node {self.node.state}"]
        return f"{self.zone}: {', '.join(states)}{said}"


def newest(places: Iterable[Place]) -> Place | None:
    """The group's own; what can still give hosts goes before what can not."""
    there = [place for place in places if place.there]
    live = [place for place in there if place.meaning in LIVE]
    return max(live or there, key=lambda place: place.age_key, default=None)


# ---- as a probe ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Terms:
    """How long a request may wait in a zone's queue while there are others, and how long after one
    that failed in the last zone the first is asked again."""

    zone_wait: timedelta = timedelta(minutes=10)
    round_wait: timedelta = timedelta(minutes=1)


def probe(places: Sequence[Place], now: datetime, terms: Terms) -> GroupProbe:
    """All but the hosts, which their agents and the network tell of."""
    own = newest(places)
    if own is None:
        return GroupProbe(exists=False, ready=False, again="no queued resource has its name")
    match own.meaning:
        case Request.HOLDS | Request.COMES:
            return _with_node(own)
        case Request.WAITS:
            again = None
            if len(places) > 1 and _waited(own, now, terms):
                again = f"{own.words}, for longer than {terms.zone_wait}"
            return GroupProbe(exists=True, ready=False, words=own.words, again=again)
        case Request.FAILED:
            return GroupProbe(exists=True, ready=False, words=own.words, again=own.words)
        case Request.GOES | Request.TAKEN:
            return _taken(Notice.PREEMPTED, own)
        case Request.LEAVES:
            return _leaving(own)


def _with_node(own: Place) -> GroupProbe:
    node = own.node
    if node is None:
        gone = own.meaning is Request.HOLDS
        return _taken(Notice.SHUTDOWN, own) if gone else GroupProbe(True, False, words=own.words)
    if NODES[node.state] is Node.LOST:
        return _taken(notice_of(node.state), own)
    return GroupProbe(exists=True, ready=own.serves, words=own.words)


def _leaving(own: Place) -> GroupProbe:
    """Somebody deletes it: hosts that were up are lost, others only have to be asked for again."""
    node = own.node
    if node is not None and any(one.internal for one in node.addresses):
        return _taken(Notice.SHUTDOWN, own)
    return GroupProbe(exists=True, ready=False, words=own.words, again=own.words)


def _taken(notice: Notice, own: Place) -> GroupProbe:
    return GroupProbe(exists=True, ready=False, taken=notice, words=own.words)


def _waited(own: Place, now: datetime, terms: Terms) -> bool:
    return own.request is not None and now - own.request.created_at > terms.zone_wait


# ---- what to do ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """`keep` is good as it is. `delete` goes first, then `create` is tried, and the zones after it.

    `why` is what a person should know of it; `refused` that no zone is left, in the cloud's words.
    """

    keep: Place | None = None
    delete: tuple[Place, ...] = ()
    create: tuple[str, ...] = ()
    why: str | None = None
    refused: Refused | None = None


def next_step(places: Sequence[Place], zones: Sequence[str], now: datetime, terms: Terms) -> Step:
    """What brings the group's hosts nearer; `places` are all zones', `zones` those to try."""
    own = newest(places)
    if own is None:
        return Step(create=tuple(zones))
    others = tuple(one for one in places if one.there and one != own and one.meaning not in BUSY)
    busy = {one.zone for one in places if one.there}
    after = _after(own.zone, zones)
    free = tuple(zone for zone in after if zone not in busy)
    match own.meaning:
        case Request.WAITS if free and _waited(own, now, terms):
            return Step(delete=(own, *others), create=free, why=own.words)
        case Request.WAITS | Request.COMES | Request.HOLDS:
            return Step(keep=own, delete=others)
        case Request.GOES:
            return Step(delete=others, why=own.words)
        case Request.TAKEN | Request.FAILED:
            return _replaced(own, others, after, free, now, terms)
        case Request.LEAVES:
            round_about = (*after, *(zone for zone in zones if zone not in after))
            first = tuple(zone for zone in round_about if zone not in busy)
            return Step(delete=others, create=first, why=None if first else own.words)


def _replaced(
    own: Place,
    others: tuple[Place, ...],
    after: tuple[str, ...],
    free: tuple[str, ...],
    now: datetime,
    terms: Terms,
) -> Step:
    """Deleted first, so that it holds no quota; the zone before is the one that was deleted last.

    After the last zone a round is over: it stays for a while, and is what the wait is read off.
    """
    refused = _refusal(own)
    if after:
        return Step(delete=(own, *others), create=free, why=own.words)
    if refused is not None:
        return Step(refused=refused)
    if own.request is not None and now - own.request.created_at < terms.round_wait:
        return Step(delete=others, why=f"{own.words}; asking again in a while")
    return Step(delete=(own, *others), why=own.words)


def _after(zone: str, zones: Sequence[str]) -> tuple[str, ...]:
    """Those behind it in their order; of a zone that is not among them, all."""
    return tuple(zones[zones.index(zone) + 1 :] if zone in zones else zones)


def _refusal(own: Place) -> Refused | None:
    """Where the request failed for a reason that no other try in its zone changes."""
    request = own.request
    if request is None or request.error is None:
        return None
    error = error_of(request.error, request.words, f"get {request.type} in {own.zone}")
    return error if isinstance(error, Refused) else None
