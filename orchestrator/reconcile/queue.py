"""The line of runs that wait for hosts: who may go, and what everybody else waits for.

Pure: plain records in, a `Line` out, in O(n log n) of the waiting runs. The order is priority, then
the owner who holds the fewest hosts, then the time in the queue. Whoever waits for a provider's
hosts keeps them reserved: nobody behind goes first, however small. A run that waits for its own
owner's limit alone holds up no other owner.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.reconcile.snapshot import Admission, Limits

MOST_NAMES = 3


def provider_scope(provider: str) -> str:
    return f"provider:{provider}"


def owner_scope(owner: str) -> str:
    return f"owner:{owner}"


@dataclass(frozen=True)
class Waiting:
    """A run that wants hosts. `holds` are the claims that it has already, by scope.

    That is nothing for a queued run; one that goes on with the hosts it had keeps them.
    """

    run_id: str
    owner: str
    provider: str
    hosts: int
    priority: int
    queued_at: datetime
    holds: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def scopes(self) -> tuple[str, str]:
        return provider_scope(self.provider), owner_scope(self.owner)

    @property
    def provided(self) -> bool:
        """Whether it has a claim for each host: it needs nobody's leave to go on."""
        return all(self.holds.get(scope, 0) >= self.hosts for scope in self.scopes)


@dataclass(frozen=True)
class Place:
    """Why a run waits: for room in `scope`, of which others hold `held`; `ahead` go first there."""

    scope: str
    held: int
    ahead: int


@dataclass(frozen=True)
class Holder:
    """A run that holds hosts within a scope."""

    name: str
    hosts: int


@dataclass(frozen=True)
class Line:
    """`admitted` may all go at once; `places` says why the others wait, in the line's order.

    `barred` are those whose hosts nobody gets for the time being, and why: they keep no room.
    """

    limits: Limits
    waiting: Mapping[str, Waiting]
    admitted: frozenset[str]
    places: Mapping[str, Place]
    never: Mapping[str, str]
    barred: Mapping[str, str] = field(default_factory=dict[str, str])

    def admission(self, run_id: str, holders: Sequence[Holder] = ()) -> Admission:
        """What one run is told. A run that is not in the line wants nothing that it has not."""
        if run_id in self.never:
            return Admission(False, None, self.limits, self.never[run_id])
        if run_id in self.barred:
            return Admission(False, self.barred[run_id], self.limits)
        place = self.places.get(run_id)
        if place is None:
            return Admission(True, None, self.limits)
        words = _in_words(self.waiting[run_id], place, self.limits, holders)
        return Admission(False, words, self.limits)


def line_up(
    waiting: Iterable[Waiting],
    held: Mapping[str, int],
    limits: Limits,
    barred: Mapping[str, str] | None = None,
) -> Line:
    """Who may go now. `held` counts the hosts that are claimed in each scope."""
    known, barred = {run.run_id: run for run in waiting}, barred or {}
    provided = {run.run_id for run in known.values() if run.provided and run.run_id not in barred}
    asking = [run for run in known.values() if run.run_id not in provided]
    never = {run.run_id: why for run in asking if (why := too_large(run, limits))}
    desk = _Desk(limits, Counter(dict(held)))
    by_priority: defaultdict[int, list[Waiting]] = defaultdict(list)
    for run in asking:
        if run.run_id not in never and run.run_id not in barred:
            by_priority[run.priority].append(run)
    for priority in sorted(by_priority, reverse=True):
        desk.serve(by_priority[priority])
    admitted = frozenset(desk.admitted) | provided
    return Line(limits, known, admitted, desk.places, never, barred)


def too_large(run: Waiting, limits: Limits) -> str | None:
    """Why the run can never go while the limits are as they are; None when it can."""
    for scope in run.scopes:
        limit = limits.of(scope)
        if limit is not None and run.hosts > limit:
            return f"it asks for {_hosts_of(run.hosts, scope)}, and the limit is {limit}"
    return None


class _Desk:
    """Serves one priority after another; what it gives and keeps back adds up in `used`.

    `closed` are the scopes whose room is kept for somebody who waits for it.
    """

    def __init__(self, limits: Limits, held: Counter[str]) -> None:
        self.admitted: list[str] = []
        self.places: dict[str, Place] = {}
        self._limits = limits
        self._held = held
        self._used = Counter(held)
        self._closed: set[str] = set()
        self._ahead: Counter[str] = Counter()

    def serve(self, runs: Iterable[Waiting]) -> None:
        """Takes the first of each owner in turn: an owner's place changes only with his own."""
        queues: defaultdict[str, list[Waiting]] = defaultdict(list)
        for run in sorted(runs, key=lambda run: (run.queued_at, run.run_id), reverse=True):
            queues[run.owner].append(run)
        heads = [self._head(queue) for queue in queues.values()]
        heapq.heapify(heads)
        while heads:
            _, _, _, owner = heapq.heappop(heads)
            self._settle(queues[owner].pop())
            if queues[owner]:
                heapq.heappush(heads, self._head(queues[owner]))

    def _head(self, queue: list[Waiting]) -> tuple[int, datetime, str, str]:
        first = queue[-1]
        return self._held[owner_scope(first.owner)], first.queued_at, first.run_id, first.owner

    def _settle(self, run: Waiting) -> None:
        provider, owner = run.scopes
        if not self._room(run, owner):
            self._wait(run, owner)
            return
        # From here on the owner's room is the run's, whether it goes now or waits for hosts.
        self._used[owner] += run.hosts - run.holds.get(owner, 0)
        if not self._room(run, provider):
            self._wait(run, provider)
            return
        for scope in (provider, owner):
            self._held[scope] += run.hosts - run.holds.get(scope, 0)
        self._used[provider] += run.hosts - run.holds.get(provider, 0)
        self.admitted.append(run.run_id)

    def _room(self, run: Waiting, scope: str) -> bool:
        if scope in self._closed:
            return False
        limit = self._limits.of(scope)
        return limit is None or self._used[scope] - run.holds.get(scope, 0) + run.hosts <= limit

    def _wait(self, run: Waiting, scope: str) -> None:
        self._closed.add(scope)
        others = self._held[scope] - run.holds.get(scope, 0)
        self.places[run.run_id] = Place(scope, others, self._ahead[scope])
        self._ahead[scope] += 1


# ---- words -------------------------------------------------------------------------------------


def _in_words(run: Waiting, place: Place, limits: Limits, holders: Sequence[Holder]) -> str:
    limit = limits.of(place.scope)
    shown = "" if limit is None else f" of {limit}"
    by = f" by {_names(holders)}" if holders else ""
    are = "is" if place.held == 1 else "are"
    words = f"{_hosts_of(run.hosts, place.scope)}: {place.held}{shown} {are} held{by}"
    if place.ahead:
        words += f"; {place.ahead} run{' is' if place.ahead == 1 else 's are'} ahead"
    return words


def _names(holders: Sequence[Holder]) -> str:
    most = sorted(holders, key=lambda holder: (-holder.hosts, holder.name))
    words = ", ".join(f"{holder.name} ({holder.hosts})" for holder in most[:MOST_NAMES])
    more = len(most) - MOST_NAMES
    return f"{words} and {more} more" if more > 0 else words


def _hosts_of(hosts: int, scope: str) -> str:
    kind, _, name = scope.partition(":")
    whose = f"of provider {name}" if kind == "provider" else f"within the limit of owner {name}"
    return f"{hosts} host{'' if hosts == 1 else 's'} {whose}"
