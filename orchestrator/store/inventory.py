"""Where the inventory of SSH hosts is kept, and who holds which device slot.

Owns the tables `ssh_hosts`, `ssh_places` and `ssh_slots`. The key (host, slot) is the truth about
who may use a device: of two groups that race for the last one, one fails. A group that is no longer
wanted gets no place, whoever asks and however late.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    and_,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from orchestrator.providers.base import ProvisionRefused
from orchestrator.providers.inventory import (
    Cordon,
    CordonedBy,
    HostLogin,
    HostsTaken,
    InventoryHost,
    Place,
    choose,
)
from orchestrator.records import HostRequest
from orchestrator.state import GroupState
from orchestrator.store.effects import ASKED_FOR, NotWanted
from orchestrator.store.tables import drains, host_groups, ssh_hosts, ssh_places, ssh_slots

WHY_LENGTH = 500


class NameTaken(Exception):
    """The inventory has a host of this name."""


class NoSuchHost(Exception):
    """The inventory has no host of this name."""


class InUse(Exception):
    """Groups hold places on the host; the message names them."""


class FromFile(Exception):
    """The host stands in the inventory file, which alone may change it."""


# ---- hosts -------------------------------------------------------------------------------------


def all_hosts(connection: Connection) -> tuple[InventoryHost, ...]:
    """By name."""
    taken: defaultdict[str, set[int]] = defaultdict(set)
    for row in connection.execute(select(ssh_slots.c.host, ssh_slots.c.slot)):
        taken[row.host].add(row.slot)
    rows = connection.execute(select(ssh_hosts).order_by(ssh_hosts.c.name)).mappings()
    return tuple(_host(row, frozenset(taken[row["name"]])) for row in rows)


def host(connection: Connection, name: str) -> InventoryHost:
    for found in all_hosts(connection):
        if found.name == name:
            return found
    raise NoSuchHost(name)


def _host(row: RowMapping, taken: frozenset[int]) -> InventoryHost:
    cordon = None
    if row["cordoned_at"] is not None:
        by = CordonedBy(row["cordoned_by"])
        cordon = Cordon(by, row["cordon_why"] or "", row["cordoned_at"])
    return InventoryHost(
        name=row["name"],
        login=HostLogin.model_validate_json(row["login"]),
        kind=row["kind"],
        devices=row["devices"],
        added_at=row["added_at"],
        from_file=row["from_file"],
        cordon=cordon,
        probed_at=row["probed_at"],
        taken=taken,
    )


def add(
    connection: Connection,
    name: str,
    login: HostLogin,
    kind: str,
    devices: int,
    now: datetime,
    *,
    from_file: bool = False,
) -> None:
    """Raises `NameTaken`."""
    if connection.scalar(select(ssh_hosts.c.name).where(ssh_hosts.c.name == name)) is not None:
        raise NameTaken(name)
    connection.execute(
        insert(ssh_hosts).values(
            name=name,
            login=login.model_dump_json(exclude_none=True),
            kind=kind,
            devices=devices,
            added_at=now,
            from_file=from_file,
        )
    )


def remove(connection: Connection, name: str) -> None:
    """With it what was left there. Raises `NoSuchHost`, `FromFile` or `InUse`."""
    if host(connection, name).from_file:
        raise FromFile(name)
    _remove(connection, name)


def _remove(connection: Connection, name: str) -> None:
    here = ssh_places.c.host == name
    held = select(ssh_places.c.group).where(here, ssh_places.c.left_at.is_(None))
    groups = connection.scalars(held).all()
    if groups:
        raise InUse(", ".join(sorted(set(groups))))
    connection.execute(delete(ssh_slots).where(ssh_slots.c.host == name))
    connection.execute(delete(ssh_places).where(here))
    _end_drain(connection, name)
    connection.execute(delete(ssh_hosts).where(ssh_hosts.c.name == name))


def follow_file(connection: Connection, logins: Mapping[str, HostLogin], now: datetime) -> None:
    """Makes the inventory's file hosts those of the file.

    One that the file names no more goes once nobody holds it; until then nobody new gets it. Raises
    `NameTaken` for a name that was added by hand.
    """
    there = {found.name: found for found in all_hosts(connection)}
    for name, login in logins.items():
        if name not in there:
            kind, devices = login.kind or "", login.devices or 0
            add(connection, name, login, kind, devices, now, from_file=True)
            if login.kind is None or login.devices is None:
                cordon(connection, name, CordonedBy.PROBE, "it was not probed yet", now)
                _change(connection, name, {"probed_at": None})
        elif not there[name].from_file:
            raise NameTaken(name)
        elif there[name].login != login:
            values: dict[str, object] = {"login": login.model_dump_json(exclude_none=True)}
            if login.devices is not None:
                values |= {"devices": login.devices, "kind": login.kind or there[name].kind}
            _change(connection, name, values)
    for name, found in there.items():
        if found.from_file and name not in logins:
            try:
                _remove(connection, name)
            except InUse:
                why = "the inventory file names it no more"
                cordon(connection, name, CordonedBy.PERSON, why, now)


def cordon(connection: Connection, name: str, by: CordonedBy, why: str, now: datetime) -> None:
    """A probe's word changes nothing about a cordon by a person. Raises `NoSuchHost`."""
    found = host(connection, name).cordon
    if by is CordonedBy.PROBE and found is not None and found.by is CordonedBy.PERSON:
        return
    since = found.at if found is not None and found.by is by else now
    values = {"cordoned_at": since, "cordoned_by": by, "cordon_why": why[:WHY_LENGTH]}
    probed = {"probed_at": now} if by is CordonedBy.PROBE else {}
    _change(connection, name, values | probed)


def uncordon(connection: Connection, name: str) -> None:
    """With it a drain ends. Raises `NoSuchHost`."""
    host(connection, name)
    _end_drain(connection, name)
    _change(connection, name, {"cordoned_at": None, "cordoned_by": None, "cordon_why": None})


def answered(connection: Connection, name: str, now: datetime, kind: str, devices: int) -> None:
    """A probe succeeded, and saw so many devices; it takes back a probe's cordon."""
    found = host(connection, name)
    if found.cordon is not None and found.cordon.by is CordonedBy.PROBE:
        uncordon(connection, name)
    _change(connection, name, {"probed_at": now, "kind": kind, "devices": devices})


def _end_drain(connection: Connection, name: str) -> None:
    connection.execute(delete(drains).where(drains.c.provider == "ssh", drains.c.host == name))


def _change(connection: Connection, name: str, values: Mapping[str, object]) -> None:
    connection.execute(update(ssh_hosts).where(ssh_hosts.c.name == name).values(**values))


# ---- places ------------------------------------------------------------------------------------


def places(connection: Connection, group: str | None = None) -> tuple[Place, ...]:
    """Of one group, or of all, by group and index; those that were left too."""
    p, s = ssh_places.c, ssh_slots.c
    query = select(ssh_places, p.index.label("number")).order_by(p.group, p.index)
    slots = select(s.group, s.index.label("number"), s.slot).order_by(s.slot)
    if group is not None:
        query, slots = query.where(p.group == group), slots.where(s.group == group)
    held: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for row in connection.execute(slots):
        held[row.group, row.number].append(row.slot)
    return tuple(
        Place(
            group=row.group,
            index=row.number,
            host=row.host,
            slots=tuple(held[row.group, row.number]),
            python=row.python,
            folder=row.folder,
            left_at=row.left_at,
        )
        for row in connection.execute(query)
    )


def claim(
    connection: Connection, group: str, request: HostRequest, now: datetime
) -> tuple[Place, ...]:
    """The group's places, those that it lacks taken now.

    Raises `NotWanted` where the group is no longer asked for, `ProvisionRefused` where it has
    another shape, `NoHosts` and `HostsTaken`.
    """
    _check_wanted(connection, group)
    there = places(connection, group)
    _check_shape(group, there, request)
    chosen = choose(all_hosts(connection), request, {place.index: place.host for place in there})
    try:
        for index, (found, slots) in chosen.items():
            here = {"group": group, "index": index, "host": found.name}
            connection.execute(insert(ssh_places).values(**here, claimed_at=now))
            connection.execute(insert(ssh_slots), [here | {"slot": slot} for slot in slots])
    except IntegrityError as error:
        raise HostsTaken("somebody else has just taken such hosts") from error
    return places(connection, group)


def _check_wanted(connection: Connection, group: str) -> None:
    """A call may be very late: what a run holds no more must not be made again."""
    query = select(host_groups.c.state).where(host_groups.c.name == group)
    state = connection.scalar(query.with_for_update(read=True))
    if state is not None and GroupState(state) not in ASKED_FOR:
        raise NotWanted(f"host group {group} is {state}")


def _check_shape(group: str, there: Sequence[Place], request: HostRequest) -> None:
    other = [p for p in there if p.index >= request.hosts or len(p.slots) != request.devices]
    made = bool(there) and all(place.prepared for place in there)
    left = any(place.left_at is not None for place in there)
    if other or left or (made and len(there) != request.hosts):
        held = ", ".join(f"{place.host} with {len(place.slots)} devices" for place in there)
        raise ProvisionRefused(f"host group {group} exists with another shape: {held}")


def prepared(connection: Connection, place: Place, python: str, folder: str) -> None:
    connection.execute(update(ssh_places).where(_here(place)).values(python=python, folder=folder))


def leave(connection: Connection, place: Place, now: datetime) -> None:
    """The group is done with it, and nobody knows what lives there."""
    unknown = ssh_places.c.left_at.is_(None)
    connection.execute(update(ssh_places).where(_here(place), unknown).values(left_at=now))


def give_back(connection: Connection, place: Place) -> None:
    here = (ssh_slots.c.group == place.group, ssh_slots.c.index == place.index)
    connection.execute(delete(ssh_slots).where(*here, ssh_slots.c.host == place.host))
    connection.execute(delete(ssh_places).where(_here(place)))


def _here(place: Place) -> ColumnElement[bool]:
    p = ssh_places.c
    return and_(p.group == place.group, p.index == place.index, p.host == place.host)
