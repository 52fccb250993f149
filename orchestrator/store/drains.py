"""Hosts that runs are to leave: who asked for it, who is still there, and who waits because of it.

Owns the table `drains`. A drain is a wish that stays until it is taken back: whoever holds such a
host saves and leaves it, and nobody gets it. That a run has left follows from the places that are
held, so nothing here can be out of date.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select

from orchestrator.providers.inventory import InventoryHost
from orchestrator.records import HostGroup, HostRequest
from orchestrator.store import audit, inventory
from orchestrator.store.audit import Actor
from orchestrator.store.conditions import HELD
from orchestrator.store.rows import AnyRow
from orchestrator.store.tables import drains, host_groups, runs, ssh_places

LOCAL, SSH = "local", "ssh"  # providers whose hosts can be drained
THIS_MACHINE = "local"  # what the host of provider `local` is called
NO_REASON = "no reason was given"
_ALL = select(drains).order_by(drains.c.provider, drains.c.host)


class NotDrained(Exception):
    """Nobody asked that runs leave this host."""


@dataclass(frozen=True)
class Drain:
    provider: str
    host: str
    reason: str
    asked_by: str
    asked_at: datetime

    @property
    def words(self) -> str:
        name = "this machine" if self.provider == LOCAL else self.host
        return f"{name} is drained ({self.reason})"


@dataclass(frozen=True)
class Leaving:
    """Why which groups are to leave where they are."""

    local: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict[str, str])

    def why(self, group: HostGroup) -> str | None:
        return self.local if group.provider == LOCAL else self.groups.get(group.name)


NOBODY = Leaving()


def all_drains(connection: Connection) -> tuple[Drain, ...]:
    return tuple(Drain(**row) for row in connection.execute(_ALL).mappings())


def find(connection: Connection, provider: str, host: str) -> Drain:
    """Raises `NotDrained`."""
    for found in all_drains(connection):
        if (found.provider, found.host) == (provider, host):
            return found
    raise NotDrained(host)


def provider_of(connection: Connection, host: str) -> str:
    """Whose host it is. Raises `inventory.NoSuchHost`."""
    if any(found.name == host for found in inventory.all_hosts(connection)):
        return SSH
    if host == THIS_MACHINE:
        return LOCAL
    raise inventory.NoSuchHost(host)


def ask(
    connection: Connection, now: datetime, host: str, reason: str | None, who: Actor
) -> tuple[Drain, bool]:
    """The drain as it stands now, and whether it is new. One that is there keeps its reason.

    Raises `inventory.NoSuchHost`.
    """
    provider = provider_of(connection, host)
    try:
        return find(connection, provider, host), False
    except NotDrained:
        made = Drain(provider, host, reason or NO_REASON, who.name, now)
    connection.execute(insert(drains).values(vars(made)))
    if provider == SSH:
        words = f"drained: {made.reason}"
        inventory.cordon(connection, host, inventory.CordonedBy.PERSON, words, now)
    audit.note(connection, now, who, "host.drain", host, None, {"reason": made.reason})
    return made, True


def undo(connection: Connection, now: datetime, host: str, who: Actor) -> bool:
    """Whether there was something to undo. Raises `inventory.NoSuchHost`."""
    provider = provider_of(connection, host)
    here = (drains.c.provider == provider, drains.c.host == host)
    known = connection.scalar(select(drains.c.reason).where(*here))
    if known is None:
        return False
    connection.execute(delete(drains).where(*here))
    if provider == SSH:
        inventory.uncordon(connection, host)
    audit.note(connection, now, who, "host.undrain", host, {"reason": known}, None)
    return True


def leaving(connection: Connection) -> Leaving:
    found = all_drains(connection)
    if not found:
        return NOBODY
    local = next((one.words for one in found if one.provider == LOCAL), None)
    words = {one.host: one.words for one in found if one.provider == SSH}
    places = select(ssh_places.c.group, ssh_places.c.host).where(ssh_places.c.host.in_(words))
    groups = {row.group: words[row.host] for row in connection.execute(places)}
    return Leaving(local, groups)


def held_by(connection: Connection, drain: Drain) -> Sequence[AnyRow]:
    """The groups that hold a part of the host, each with its run: id, name and state."""
    g, p = host_groups.c, ssh_places.c
    query = (
        select(g.name.label("group"), runs.c.id, runs.c.name, runs.c.state)
        .join(runs, runs.c.id == g.run_id)
        .where(HELD, g.provider == drain.provider)
        .order_by(runs.c.name)
    )
    if drain.provider == SSH:
        there = select(p.group).where(p.host == drain.host, p.left_at.is_(None))
        query = query.where(g.name.in_(there))
    return connection.execute(query).all()


def barred(
    connection: Connection, asks: Iterable[tuple[str, str, HostRequest]]
) -> Mapping[str, str]:
    """Why which runs can not have hosts while hosts are drained. `asks`: run, provider, request."""
    drained = all_drains(connection)
    if not drained:
        return {}
    hosts = inventory.all_hosts(connection)
    found = {run: _why(provider, request, drained, hosts) for run, provider, request in asks}
    return {run: why for run, why in found.items() if why is not None}


def _why(
    provider: str, request: HostRequest, drained: Sequence[Drain], hosts: Sequence[InventoryHost]
) -> str | None:
    if provider == LOCAL:
        here = next((one for one in drained if one.provider == LOCAL), None)
        return here and f"this machine, which is drained ({here.reason})"
    words = {one.host: one.words for one in drained if one.provider == SSH}
    fitting = [host for host in hosts if host.fits(request)]
    # What a probe cordoned, a probe may give back: the provider looks again when it is asked.
    usable = [
        host
        for host in fitting
        if (host.cordon is None or host.ill) and len(host.free) >= request.devices
    ]
    mine = [words[host.name] for host in fitting if host.name in words]
    if provider != SSH or not mine or len(usable) >= request.hosts:
        return None
    number = f"{request.hosts} host{'' if request.hosts == 1 else 's'}"
    return f"{number} of provider ssh, of which {len(usable)} can be had: {'; '.join(mine)}"
