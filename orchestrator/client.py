"""A typed client of the REST API, for the command line and for scripts.

Owns the calls, of which those that have something done to a run are in `wish_calls`. Answers are
the schemas of the API. How a call is sent and how it fails is `wire`'s matter. Must not import the
service's own parts: no FastAPI, no database.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import httpx
from pydantic import AwareDatetime, BaseModel, TypeAdapter

from orchestrator.api.access_schemas import AuditPage, TokenMade, TokenRequest, TokenView
from orchestrator.api.drain_schemas import DrainRequest, DrainView
from orchestrator.api.drill_schemas import DrillRequest, DrillView
from orchestrator.api.fleet_schemas import FleetPage
from orchestrator.api.history_schemas import EventPage, EventView, LogPage, Metrics
from orchestrator.api.inventory_schemas import (
    FindingsView,
    HostAdded,
    InventoryHostView,
    InventoryView,
)
from orchestrator.api.schemas import (
    AttemptPage,
    AttemptView,
    BundleView,
    CheckpointPage,
    CheckpointView,
    Facts,
    GoodputView,
    Health,
    IncidentPage,
    IncidentView,
    OrphansView,
    RunDetail,
    RunPage,
    RunSummary,
)
from orchestrator.endpoint import (
    BadTokenFile,
    ClientError,
    Endpoint,
    Unreachable,
    data_folder,
    find_endpoint,
)
from orchestrator.wire import NotUnderstood, Param, Refused, Wire, of_run, plain
from orchestrator.wish_calls import WishCalls

__all__ = [
    "BadTokenFile",
    "Client",
    "ClientError",
    "Endpoint",
    "LoginLink",
    "NotUnderstood",
    "Refused",
    "Unreachable",
    "find_endpoint",
]

PATIENCE_SECONDS = 15.0

Item_co = TypeVar("Item_co", covariant=True)
Item = TypeVar("Item")
PAGE = 200
_TOKENS = TypeAdapter(tuple[TokenView, ...])


class Page(Protocol[Item_co]):
    """What every paged list answers."""

    @property
    def items(self) -> tuple[Item_co, ...]: ...

    @property
    def next_cursor(self) -> str | None: ...


class LoginLink(BaseModel):
    """A link that opens the dashboard once."""

    url: str
    expires_at: AwareDatetime


class Client:
    """Calls of the REST API, one method each; used from one thread.

    A connection that was lost on the way is retried for `patience` seconds where sending twice is
    safe.
    """

    def __init__(
        self,
        find: Callable[[], Endpoint] = find_endpoint,
        *,
        data_dir: Path | None = None,
        transport: httpx.BaseTransport | None = None,
        patience: float = PATIENCE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._wire = Wire(find, data_folder(data_dir), transport, patience, sleep)
        self.wishes = WishCalls(self._wire.read)

    @classmethod
    def of(cls, data_dir: Path | None, token_file: Path | None = None, **options: Any) -> Self:
        """The client of the service that the data folder or the environment names."""
        return cls(
            lambda: find_endpoint(data_dir, token_file=token_file), data_dir=data_dir, **options
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._wire.close()

    @property
    def url(self) -> str:
        """The service's address; raises `Unreachable` where none is known."""
        return self._wire.url

    # ---- runs --------------------------------------------------------------------------------

    def submit(self, spec: Mapping[str, object], key: str | None = None) -> RunDetail:
        """Submits a spec. One `key` makes one run, however often it is sent."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return self._wire.read("POST", "/runs", RunDetail, json=spec, headers=headers)

    def preflight(self, spec: Mapping[str, object]) -> Facts:
        return self._wire.read("POST", "/runs:preflight", Facts, json=spec)

    def runs(self, *, limit: int = 100, **filters: Param) -> RunPage:
        """`filters` are those of the API: state, owner, name, order, cursor and so on."""
        return self._wire.read("GET", "/runs", RunPage, params={"limit": limit, **filters})

    def all_runs(self, *, limit: int = 1000, **filters: Param) -> Iterator[RunSummary]:
        """Page after page, at most `limit` runs."""
        cursor, left = None, limit
        while left > 0:
            page = self.runs(limit=min(left, 100), **filters, cursor=cursor)
            yield from page.items[:left]
            left -= len(page.items)
            cursor = page.next_cursor
            if cursor is None:
                return

    def run(self, run: str) -> RunDetail:
        return self._wire.read("GET", of_run(run), RunDetail)

    def attempts(self, run: str) -> tuple[AttemptView, ...]:
        """Oldest first."""
        found = self._pages(of_run(run, "attempts"), AttemptPage)
        return tuple(sorted(found, key=lambda attempt: attempt.number))

    def checkpoints(self, run: str) -> tuple[CheckpointView, ...]:
        """Newest first."""
        return tuple(self._pages(of_run(run, "checkpoints"), CheckpointPage))

    def incidents(self, run: str) -> tuple[IncidentView, ...]:
        """Newest first."""
        return tuple(self._pages(of_run(run, "incidents"), IncidentPage))

    def goodput(self, run: str) -> GoodputView:
        return self._wire.read("GET", of_run(run, "goodput"), GoodputView)

    def metrics(
        self, run: str, *, from_step: int | None = None, to_step: int | None = None
    ) -> Metrics:
        params = {"from_step": from_step, "to_step": to_step}
        return self._wire.read("GET", of_run(run, "metrics"), Metrics, params=params)

    def events(self, run: str, *, after: int = 0, kinds: Sequence[str] = ()) -> Iterator[EventView]:
        """All events after the one with id `after`, oldest first."""
        params = {"cursor": str(after), "kind": list(kinds)}
        yield from self._pages(of_run(run, "events"), EventPage, params)

    def logs(
        self,
        run: str,
        *,
        after: int | None = None,
        tail: int | None = None,
        limit: int = 1000,
        filters: Mapping[str, Param] | None = None,
    ) -> LogPage:
        """Lines after the one with id `after`, or the last `tail` ones; oldest first.

        `filters` are those of the API: attempt, rank, before, since, until, search, regex.
        """
        params = {"after": after, "tail": tail, "limit": limit, **(filters or {})}
        return self._wire.read("GET", of_run(run, "logs"), LogPage, params=params)

    def keep_bundle(self, sha256: str, data: bytes) -> None:
        """Has the service keep a packed folder, unless it does already."""
        try:
            self._wire.read("GET", f"/bundles/{plain(sha256)}", BundleView)
        except Refused as refused:
            if refused.problem.status != 404:
                raise
            self._wire.put(f"/bundles/{plain(sha256)}", data, BundleView)

    def drill(self, run: str, asked: DrillRequest) -> DrillView:
        """Not sent again by itself: it might kill twice."""
        body = asked.model_dump(mode="json", exclude_none=True)
        return self._wire.read_once("POST", of_run(run, "drill"), DrillView, json=body)

    # ---- who may do what ------------------------------------------------------------------------

    def create_token(self, asked: TokenRequest) -> TokenMade:
        """A new token with its secret; not sent again by itself, for it would make another."""
        return self._wire.read_once("POST", "/tokens", TokenMade, json=asked.model_dump())

    def tokens(self) -> tuple[TokenView, ...]:
        return self._wire.read("GET", "/tokens", _TOKENS)

    def revoke_token(self, token: str) -> None:
        self._wire.delete(f"/tokens/{plain(token)}")

    def audit(self, **query: str | int | None) -> AuditPage:
        """Newest first; `actor`, `target`, `action`, `cursor` and `limit` narrow it."""
        return self._wire.read("GET", "/audit", AuditPage, params=query)

    # ---- what is held --------------------------------------------------------------------------

    def hosts(self, *, gone: bool = False) -> FleetPage:
        """All host groups, on one page."""
        path = "/hosts"
        items = tuple(self._pages(path, FleetPage, {"gone": str(gone).lower()}))
        currency = self._wire.read("GET", path, FleetPage, params={"limit": 1}).currency
        return FleetPage(items=items, currency=currency)

    def inventory(self) -> InventoryView:
        """The hosts of provider `ssh`."""
        return self._wire.read("GET", "/inventory", InventoryView)

    def add_host(self, asked: HostAdded) -> InventoryHostView:
        body = asked.model_dump(exclude_none=True)
        return self._wire.read_once("POST", "/inventory", InventoryHostView, json=body)

    def remove_host(self, host: str) -> None:
        self._wire.delete(f"/inventory/{plain(host)}")

    def probe_host(self, host: str) -> InventoryHostView:
        return self._wire.read("POST", f"/inventory/{plain(host)}/probe", InventoryHostView)

    def examine_host(self, host: str) -> FindingsView:
        return self._wire.read("POST", f"/inventory/{plain(host)}/doctor", FindingsView)

    def cordon_host(self, host: str, reason: str) -> InventoryHostView:
        body = {"reason": reason}
        return self._wire.read(
            "POST", f"/inventory/{plain(host)}/cordon", InventoryHostView, json=body
        )

    def uncordon_host(self, host: str) -> InventoryHostView:
        return self._wire.read("POST", f"/inventory/{plain(host)}/uncordon", InventoryHostView)

    def drain_host(self, host: str, reason: str | None = None) -> DrainView:
        body = DrainRequest(reason=reason).model_dump(exclude_none=True)
        return self._wire.read("POST", f"/hosts/{plain(host)}/drain", DrainView, json=body)

    def drain_state(self, host: str) -> DrainView:
        return self._wire.read("GET", f"/hosts/{plain(host)}/drain", DrainView)

    def undrain_host(self, host: str) -> None:
        self._wire.delete(f"/hosts/{plain(host)}/drain")

    def orphans(self) -> OrphansView:
        return self._wire.read("GET", "/orphans", OrphansView)

    def reap_orphans(self) -> OrphansView:
        return self._wire.read("POST", "/orphans:reap", OrphansView)

    # ---- the service ---------------------------------------------------------------------------

    def login_link(self) -> LoginLink:
        return self._wire.read("POST", "/login-codes", LoginLink)

    def health(self, path: str = "/readyz") -> Health:
        """What `/readyz` (or `/healthz`) says, also where it says "not yet"."""
        return self._wire.answer_to(path, Health)

    # ---- page after page ----------------------------------------------------------------------

    def _pages(
        self, path: str, kind: type[Page[Item]], params: Mapping[str, Param] | None = None
    ) -> Iterator[Item]:
        """The items of page after page."""
        given = {"limit": PAGE, **(params or {})}
        while True:
            page = self._wire.read("GET", path, kind, params=given)
            yield from page.items
            if page.next_cursor is None:
                return
            given["cursor"] = page.next_cursor
