"""The client's end of the wire: one connection, what is sent twice, how failures are told apart.

Must not import the service's own parts: no FastAPI, no database.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError
from tenacity import RetryCallState, Retrying, stop_after_delay, wait_exponential, wait_random

from orchestrator.api.schemas import Problem
from orchestrator.endpoint import ClientError, Endpoint, Unreachable
from orchestrator.settings import leads_to_loopback

PREFIX = "/api/v1"
TIMEOUT = httpx.Timeout(30.0, connect=3.0)
T = TypeVar("T")
Sent = str | int | list[str]
Param = Sent | None


class Refused(ClientError):
    """The service answered with a problem document."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem


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
    content: bytes | None = None


def _call(
    method: str,
    path: str,
    params: Mapping[str, Param] | None = None,
    json: object = None,
    headers: Mapping[str, str] | None = None,
) -> _Call:
    given = {name: value for name, value in (params or {}).items() if value is not None}
    return _Call(method, PREFIX + path, given, json, headers or {})


def of_run(run: str, part: str = "") -> str:
    """The path of a run, or of a part of it."""
    return f"/runs/{plain(run)}" + (f"/{part}" if part else "")


def plain(name: str) -> str:
    """A name as one part of a path, whatever is in it."""
    return quote(name, safe="")


class Wire:
    """Calls of one service, from one thread.

    The endpoint is looked up again after each lost connection, since a service that was started
    anew may listen elsewhere. A first refused connection is told at once; a connection that was
    lost on the way is retried for `patience` seconds where sending twice is safe.
    """

    def __init__(
        self,
        find: Callable[[], Endpoint],
        data_dir: Path,
        transport: httpx.BaseTransport | None,
        patience: float,
        sleep: Callable[[float], None],
    ) -> None:
        self._find = find
        self._data_dir = data_dir
        self._transport = transport
        self._patience = patience
        self._sleep = sleep
        self._http: tuple[Endpoint, httpx.Client] | None = None

    @property
    def url(self) -> str:
        """The service's address; raises `Unreachable` where none is known."""
        return self._connection()[0].url

    def read(
        self,
        method: str,
        path: str,
        kind: type[T] | TypeAdapter[T],
        *,
        params: Mapping[str, Param] | None = None,
        json: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        answer = self._send(_call(method, path, params, json, headers))
        return _parse(_good(answer), kind)

    def read_once(self, method: str, path: str, kind: type[T], *, json: object = None) -> T:
        """The same for a call that would do another thing if it were sent again."""
        return _parse(_good(self._send_once(_call(method, path, json=json))), kind)

    def put(self, path: str, content: bytes, kind: type[T]) -> T:
        """Sends bytes as they are to their place."""
        return _parse(_good(self._send(_Call("PUT", PREFIX + path, content=content))), kind)

    def delete(self, path: str) -> None:
        _good(self._send(_call("DELETE", path)))

    def answer_to(self, path: str, kind: type[T]) -> T:
        """What is answered outside of the API and at once, also where the answer is no success."""
        return _parse(self._send_once(_Call("GET", path)), kind)

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
                call.method,
                call.path,
                params=call.params,
                json=call.json,
                content=call.content,
                headers=call.headers,
            )
        except (httpx.TransportError, httpx.InvalidURL) as error:
            self.close()
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
                    trust_env=not leads_to_loopback(endpoint.url),
                    verify=_trusted(),
                )
            except httpx.InvalidURL as error:
                raise Unreachable(endpoint.url, self._data_dir, _words(error)) from error
            self._http = endpoint, http
        return self._http

    def close(self) -> None:
        if self._http is not None:
            self._http[1].close()
            self._http = None


def _trusted() -> ssl.SSLContext | bool:
    """The authorities of `SSL_CERT_FILE`, for loopback names too."""
    file = os.environ.get("SSL_CERT_FILE")
    return ssl.create_default_context(cafile=file) if file else True


def _worth_another_try(call: RetryCallState) -> bool:
    assert call.outcome is not None
    error = call.outcome.exception()
    if isinstance(error, Unreachable):
        on_the_way = isinstance(error.__cause__, httpx.TransportError) and not isinstance(
            error.__cause__, (httpx.ConnectError, httpx.ConnectTimeout)
        )
        return on_the_way or call.attempt_number > 1
    return isinstance(error, _Busy)


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
