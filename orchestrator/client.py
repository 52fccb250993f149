"""A typed client of the REST API, for the command line and for scripts.

Owns where the service is found (its address and token, from the data folder or the environment),
what is safe to send twice, and how failures are told apart. Answers are the schemas of the API.
Must not import the service's own parts: no FastAPI, no database.
"""

from __future__ import annotations

import json
import os
import ssl
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import AwareDatetime, BaseModel, TypeAdapter, ValidationError
from tenacity import RetryCallState, Retrying, stop_after_delay, wait_exponential, wait_random

from orchestrator.api.access_schemas import AuditPage, TokenMade, TokenRequest, TokenView
from orchestrator.api.fleet_schemas import FleetPage
from orchestrator.api.schemas import (
    AttemptPage,
    AttemptView,
    CheckpointPage,
    CheckpointView,
    EventPage,
    EventView,
    Facts,
    GoodputView,
    Health,
    IncidentPage,
    IncidentView,
    LogPage,
    Metrics,
    OrphansView,
    Problem,
    RunDetail,
    RunPage,
    RunSummary,
)
from orchestrator.settings import default_data_dir
from orchestrator.wish_calls import WishCalls

PREFIX = "/api/v1"
TIMEOUT = httpx.Timeout(30.0, connect=3.0)
PATIENCE_SECONDS = 15.0

T = TypeVar("T")
Item_co = TypeVar("Item_co", covariant=True)
Item = TypeVar("Item")
Sent = str | int | list[str]
Param = Sent | None
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


class ClientError(Exception):
    """A call did not lead to an answer that can be used."""


class Unreachable(ClientError):
    """No service answers: it was never found, or the connection failed.

    `url` is None where no address is known; `data_dir` is where one was looked for.
    """

    def __init__(self, url: str | None, data_dir: Path, why: str) -> None:
        super().__init__(why)
        self.url = url
        self.data_dir = data_dir
        self.why = why


class Refused(ClientError):
    """The service answered with a problem document."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem


class BadTokenFile(ClientError):
    """The file that should hold the token can not be read, or holds none."""


class NotUnderstood(ClientError):
    """The service answered in a form that this version does not know."""


class _Busy(Exception):
    """A gateway or a starting service said: not now."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(answer.status_code)
        self.answer = answer


@dataclass(frozen=True)
class _Call:
    method: str
    path: str
    params: Mapping[str, Sent] = field(default_factory=dict[str, Sent])
    json: object = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Endpoint:
    url: str
    token: str | None = field(repr=False)


def find_endpoint(
    data_dir: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    token_file: Path | None = None,
) -> Endpoint:
    """Where the service is: `LONGHAUL_URL`, else what a service wrote into its data folder.

    The token is in `token_file`, else in `LONGHAUL_TOKEN`, else in the file that
    `LONGHAUL_TOKEN_FILE` names, else in the data folder. That last one is offered to its own
    service and to loopback alone, so that a foreign address in the environment never learns it.
    Raises `Unreachable` where no address is known, and `BadTokenFile`.
    """
    folder = data_folder(data_dir, environ)
    written = _service_url(folder)
    given = None if data_dir is not None else environ.get("LONGHAUL_URL")
    url = (given or written or "").rstrip("/")
    if not url:
        raise Unreachable(None, folder, f"no service has left its address in {folder}")
    token = _given_token(token_file, environ)
    if not token and (url == written or _is_loopback(url)):
        token = _read(folder / "token")
    return Endpoint(url, token or None)


def _given_token(token_file: Path | None, environ: Mapping[str, str]) -> str | None:
    named = environ.get("LONGHAUL_TOKEN_FILE")
    if token_file is None and environ.get("LONGHAUL_TOKEN"):
        return environ["LONGHAUL_TOKEN"]
    path = token_file or (Path(named) if named else None)
    if path is None:
        return None
    token = _read(path)
    if not token:
        raise BadTokenFile(f"{path} can not be read, or holds no token")
    return token


def data_folder(data_dir: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The data folder meant: the one given, else `LONGHAUL_DATA_DIR`, else the default."""
    if data_dir is not None:
        return data_dir
    return (
        Path(environ["LONGHAUL_DATA_DIR"])
        if environ.get("LONGHAUL_DATA_DIR")
        else default_data_dir()
    )


def _service_url(folder: Path) -> str | None:
    try:
        url = json.loads((folder / "service.json").read_text())["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url.rstrip("/") if isinstance(url, str) else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _trusted() -> ssl.SSLContext | bool:
    """The authorities of `SSL_CERT_FILE`, for loopback names too."""
    file = os.environ.get("SSL_CERT_FILE")
    return ssl.create_default_context(cafile=file) if file else True


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in {"127.0.0.1", "::1", "localhost"}


class Client:
    """Calls of the REST API, one method each; used from one thread.

    The endpoint is looked up again after each lost connection, since a service that was started
    anew may listen elsewhere. A first refused connection is told at once; a connection that was
    lost on the way is retried for `patience` seconds where sending twice is safe.
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
        self._find = find
        self._data_dir = data_folder(data_dir)
        self._transport = transport
        self._patience = patience
        self._sleep = sleep
        self._http: tuple[Endpoint, httpx.Client] | None = None
        self.wishes = WishCalls(self._read)

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
        self._forget()

    @property
    def url(self) -> str:
        """The service's address; raises `Unreachable` where none is known."""
        return self._connection()[0].url

    # ---- runs --------------------------------------------------------------------------------

    def submit(self, spec: Mapping[str, object], key: str | None = None) -> RunDetail:
        """Submits a spec. One `key` makes one run, however often it is sent."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return self._read("POST", "/runs", RunDetail, json=spec, headers=headers)

    def preflight(self, spec: Mapping[str, object]) -> Facts:
        return self._read("POST", "/runs:preflight", Facts, json=spec)

    def runs(self, *, limit: int = 100, **filters: Param) -> RunPage:
        """`filters` are those of the API: state, owner, name, order, cursor and so on."""
        return self._read("GET", "/runs", RunPage, params={"limit": limit, **filters})

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
        return self._read("GET", _of(run), RunDetail)

    def attempts(self, run: str) -> tuple[AttemptView, ...]:
        """Oldest first."""
        found = self._pages(_of(run, "attempts"), AttemptPage)
        return tuple(sorted(found, key=lambda attempt: attempt.number))

    def checkpoints(self, run: str) -> tuple[CheckpointView, ...]:
        """Newest first."""
        return tuple(self._pages(_of(run, "checkpoints"), CheckpointPage))

    def incidents(self, run: str) -> tuple[IncidentView, ...]:
        """Newest first."""
        return tuple(self._pages(_of(run, "incidents"), IncidentPage))

    def goodput(self, run: str) -> GoodputView:
        return self._read("GET", _of(run, "goodput"), GoodputView)

    def metrics(
        self, run: str, *, from_step: int | None = None, to_step: int | None = None
    ) -> Metrics:
        params = {"from_step": from_step, "to_step": to_step}
        return self._read("GET", _of(run, "metrics"), Metrics, params=params)

    def events(self, run: str, *, after: int = 0, kinds: Sequence[str] = ()) -> Iterator[EventView]:
        """All events after the one with id `after`, oldest first."""
        params = {"cursor": str(after), "kind": list(kinds)}
        yield from self._pages(_of(run, "events"), EventPage, params)

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
        return self._read("GET", _of(run, "logs"), LogPage, params=params)

    # ---- who may do what ------------------------------------------------------------------------

    def create_token(self, asked: TokenRequest) -> TokenMade:
        """A new token with its secret; not sent again by itself, for it would make another."""
        answer = self._send_once(_Call("POST", f"{PREFIX}/tokens", json=asked.model_dump()))
        return _parse(_good(answer), TokenMade)

    def tokens(self) -> tuple[TokenView, ...]:
        return self._read("GET", "/tokens", _TOKENS)

    def revoke_token(self, token: str) -> None:
        _good(self._send(_Call("DELETE", f"{PREFIX}/tokens/{quote(token, safe='')}")))

    def audit(self, **query: str | int | None) -> AuditPage:
        """Newest first; `actor`, `target`, `action`, `cursor` and `limit` narrow it."""
        return self._read("GET", "/audit", AuditPage, params=query)

    # ---- what is held --------------------------------------------------------------------------

    def hosts(self, *, gone: bool = False) -> FleetPage:
        """All host groups, on one page."""
        path = "/hosts"
        items = tuple(self._pages(path, FleetPage, {"gone": str(gone).lower()}))
        currency = self._read("GET", path, FleetPage, params={"limit": 1}).currency
        return FleetPage(items=items, currency=currency)

    def orphans(self) -> OrphansView:
        return self._read("GET", "/orphans", OrphansView)

    def reap_orphans(self) -> OrphansView:
        return self._read("POST", "/orphans:reap", OrphansView)

    # ---- the service ---------------------------------------------------------------------------

    def login_link(self) -> LoginLink:
        return self._read("POST", "/login-codes", LoginLink)

    def health(self, path: str = "/readyz") -> Health:
        """What `/readyz` (or `/healthz`) says, also where it says "not yet"."""
        return _parse(self._send_once(_Call("GET", path)), Health)

    # ---- the wire ------------------------------------------------------------------------------

    def _pages(
        self, path: str, kind: type[Page[Item]], params: Mapping[str, Param] | None = None
    ) -> Iterator[Item]:
        """The items of page after page."""
        given = {"limit": PAGE, **(params or {})}
        while True:
            page = self._read("GET", path, kind, params=given)
            yield from page.items
            if page.next_cursor is None:
                return
            given["cursor"] = page.next_cursor

    def _read(
        self,
        method: str,
        path: str,
        kind: type[T] | TypeAdapter[T],
        *,
        params: Mapping[str, Param] | None = None,
        json: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        given = {name: value for name, value in (params or {}).items() if value is not None}
        answer = self._send(_Call(method, PREFIX + path, given, json, headers or {}))
        return _parse(_good(answer), kind)

    def _send(self, call: _Call) -> httpx.Response:
        retrying = Retrying(
            retry=_worth_another_try,
            wait=wait_exponential(multiplier=0.1, max=2.0) + wait_random(0.0, 0.1),
            stop=stop_after_delay(self._patience),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(self._unless_busy, call)
        except _Busy as busy:
            return busy.answer

    def _unless_busy(self, call: _Call) -> httpx.Response:
        answer = self._send_once(call)
        if answer.status_code in {502, 503, 504}:
            raise _Busy(answer)
        return answer

    def _send_once(self, call: _Call) -> httpx.Response:
        endpoint, http = self._connection()
        try:
            return http.request(
                call.method, call.path, params=call.params, json=call.json, headers=call.headers
            )
        except (httpx.TransportError, httpx.InvalidURL) as error:
            self._forget()
            raise Unreachable(endpoint.url, self._data_dir, _words(error)) from error

    def _connection(self) -> tuple[Endpoint, httpx.Client]:
        if self._http is None:
            endpoint = self._find()
            headers = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
            try:
                http = httpx.Client(
                    base_url=endpoint.url,
                    headers=headers,
                    timeout=TIMEOUT,
                    transport=self._transport,
                    trust_env=not _is_loopback(endpoint.url),
                    verify=_trusted(),
                )
            except httpx.InvalidURL as error:
                raise Unreachable(endpoint.url, self._data_dir, _words(error)) from error
            self._http = endpoint, http
        return self._http

    def _forget(self) -> None:
        if self._http is not None:
            self._http[1].close()
            self._http = None


def _worth_another_try(call: RetryCallState) -> bool:
    assert call.outcome is not None
    error = call.outcome.exception()
    if isinstance(error, Unreachable):
        on_the_way = isinstance(error.__cause__, httpx.TransportError) and not isinstance(
            error.__cause__, (httpx.ConnectError, httpx.ConnectTimeout)
        )
        return on_the_way or call.attempt_number > 1
    return isinstance(error, _Busy)


def _of(run: str, part: str = "") -> str:
    return f"/runs/{quote(run, safe='')}" + (f"/{part}" if part else "")


def _words(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return str(error) or type(error).__name__


def _good(answer: httpx.Response) -> httpx.Response:
    if not answer.is_success:
        raise Refused(_problem(answer))
    return answer


def _parse(answer: httpx.Response, kind: type[T] | TypeAdapter[T]) -> T:
    adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    try:
        return adapter.validate_json(answer.content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise NotUnderstood(f"{answer.request.url.path}: {where}: {first['msg']}") from error


def _problem(answer: httpx.Response) -> Problem:
    try:
        return Problem.model_validate_json(answer.content)
    except ValidationError:
        return Problem(
            type="about:blank",
            title=f"Answered {answer.status_code} {answer.reason_phrase}".rstrip(),
            status=answer.status_code,
            detail=f"{answer.request.url} answered, but not as Longhaul does.",
            hint="Check LONGHAUL_URL: something else may listen at that address.",
        )
