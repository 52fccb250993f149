"""The pages about the installation: who runs where and at what price, and who did what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.api.access_schemas import AuditEntry, AuditPage
from orchestrator.api.fleet_schemas import FleetGroup
from orchestrator.api.inventory_schemas import InventoryHostView
from orchestrator.api.schemas import RunSummary
from orchestrator.dashboard import words
from orchestrator.dashboard.looks import Look
from orchestrator.dashboard.reader import Reader
from orchestrator.state import GroupState

GROUPS: Mapping[GroupState, Look] = {
    GroupState.REQUESTED: Look("queued", "asked for", "wait"),
    GroupState.CREATING: Look("recovering", "being made", "warn"),
    GroupState.READY: Look("running", "ready", "go"),
    GroupState.RELEASING: Look("recovering", "being given back", "warn"),
    GroupState.GONE: Look("cancelled", "gone", "past"),
}
CORDONED, FREE = Look("quarantined", "cordoned", "need"), Look("tick", "takes runs", "go")
NOT_PROBED = Look("unknown", "not probed yet", "wait")
LONGEST_FACT = 160


@dataclass(frozen=True)
class Hosts:
    """`groups` newest first; `inventory` is None where the service has no provider ssh."""

    groups: tuple[FleetGroup, ...]
    hosts: int
    per_hour: str | None
    inventory: tuple[InventoryHostView, ...] | None
    cordoned: int
    currency: str


@dataclass(frozen=True)
class Deed:
    """One row of the audit log, told for people; `target` is a run's name where it has one."""

    entry: AuditEntry
    target: str
    run: str | None
    what: str


@dataclass(frozen=True)
class Deeds:
    items: list[Deed]
    older: str | None


def hosts(reader: Reader) -> Hosts:
    fleet, known = reader.hosts(), reader.inventory()
    prices = [group.price_per_hour for group in fleet.items if group.price_per_hour is not None]
    inventory = None if known is None else known.items
    return Hosts(
        groups=fleet.items,
        hosts=sum(len(group.hosts) for group in fleet.items),
        per_hour=words.money(sum(prices), fleet.currency) if prices else None,
        inventory=inventory,
        cordoned=sum(one.cordon is not None for one in inventory or ()),
        currency=fleet.currency,
    )


def of_group(group: FleetGroup) -> Look:
    return GROUPS[group.state]


def of_host(host: InventoryHostView) -> Look:
    if host.cordon is not None:
        return CORDONED
    return FREE if host.probed_at is not None else NOT_PROBED


def deeds(page: AuditPage, runs: Sequence[RunSummary]) -> Deeds:
    names = {run.id: run.name for run in runs}
    return Deeds([_deed(entry, names) for entry in page.items], page.next_cursor)


def _deed(entry: AuditEntry, names: Mapping[str, str]) -> Deed:
    run = names.get(entry.target or "")
    return Deed(entry, run or entry.target or "", run, _what(entry))


def _what(entry: AuditEntry) -> str:
    """What it changed: 'desired: run to pause', or the facts that it left."""
    before, after = entry.before or {}, entry.after or {}
    told = [
        f"{name}: {_fact(before[name])} to {_fact(value)}"
        if name in before and before[name] != value
        else f"{name}: {_fact(value)}"
        for name, value in after.items()
        if value not in (None, 0, [], {}) and not (name in before and before[name] == value)
    ]
    if not after:
        told = [f"{name}: {_fact(value)}" for name, value in before.items()]
    return "; ".join(told)


def _fact(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST_FACT else text[:LONGEST_FACT] + "…"
