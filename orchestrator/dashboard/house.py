"""The overview's last block: which hosts are held, what for, and what no run wants any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.api.fleet_schemas import FleetGroup, FleetPage
from orchestrator.api.schemas import OrphansView, OrphanView
from orchestrator.dashboard import words
from orchestrator.state import GroupState

# What hosts do, in the order in which it is told: one and several.
TRAINS, IDLE, NOTICED = "trains", "idle", "told to leave"
ASKED, LEAVES = "asked for", "being given back"
MANY = {TRAINS: "train"}
DOINGS = (TRAINS, IDLE, NOTICED, ASKED, LEAVES)


@dataclass(frozen=True)
class Pool:
    """The hosts of one provider; `doings` as '2 train, 1 idle'."""

    provider: str
    doings: str


@dataclass(frozen=True)
class House:
    """What hosts cost an hour, as far as prices are known; None where none is.

    Of the orphans those count that are sure to be some.
    """

    hosts: int
    pools: list[Pool]
    per_hour: str | None
    orphans: tuple[OrphanView, ...]
    orphans_per_hour: str | None
    orphans_so_far: str | None
    only_listed: bool


def house(held: FleetPage, found: OrphansView) -> House:
    present = tuple(one for one in found.items if one.gone_at is None)
    sure = [one for one in present if one.sure]
    return House(
        hosts=sum(len(group.hosts) for group in held.items),
        pools=_pools(held.items),
        per_hour=_sum([group.price_per_hour for group in held.items], held.currency),
        orphans=present,
        orphans_per_hour=_sum([one.price_per_hour for one in sure], found.currency),
        orphans_so_far=_sum([one.cost for one in sure], found.currency),
        only_listed=found.only_listed,
    )


def _pools(groups: Sequence[FleetGroup]) -> list[Pool]:
    doing: dict[str, Counter[str]] = {}
    for group in groups:
        doing.setdefault(group.provider, Counter()).update(_doings(group))
    return [
        Pool(provider, ", ".join(_told(what, number) for what in DOINGS if (number := all_[what])))
        for provider, all_ in sorted(doing.items())
    ]


def _doings(group: FleetGroup) -> list[str]:
    if group.state is GroupState.RELEASING:
        return [LEAVES] * len(group.hosts)
    if group.state is not GroupState.READY:
        return [ASKED] * len(group.hosts)
    return [
        NOTICED if host.notice else TRAINS if host.running_attempt is not None else IDLE
        for host in group.hosts
    ]


def _told(what: str, number: int) -> str:
    return f"{words.count(number)} {what if number == 1 else MANY.get(what, what)}"


def _sum(amounts: Sequence[float | None], currency: str) -> str | None:
    known = [amount for amount in amounts if amount is not None]
    return words.money(sum(known), currency) if known else None
