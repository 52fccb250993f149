"""What the calls about hosts answer. Pure data, for the client too."""

from __future__ import annotations

from pydantic import AwareDatetime

from orchestrator.api.schemas import View
from orchestrator.state import GroupState


class FleetHost(View):
    """One host and its agent, of which nothing is known before it has spoken."""

    index: int
    address: str | None
    hostname: str | None
    protocol: int | None
    registered_at: AwareDatetime | None
    last_seen_at: AwareDatetime | None
    running_attempt: int | None
    notice: str | None
    notice_at: AwareDatetime | None


class FleetGroup(View):
    """The hosts that a provider gave to one run. `cost` counts from their being ready until now."""

    name: str
    run: str
    run_name: str
    generation: int
    provider: str
    zone: str | None
    devices: int
    state: GroupState
    detail: str | None
    created_at: AwareDatetime
    ready_at: AwareDatetime | None
    released_at: AwareDatetime | None
    price_per_hour: float | None
    cost: float | None
    hosts: tuple[FleetHost, ...]


class FleetPage(View):
    items: tuple[FleetGroup, ...]
    next_cursor: str | None = None
    currency: str
