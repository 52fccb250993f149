"""A small service that speaks the REST API from canned schemas, over a real socket."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import BaseModel, ValidationError

from orchestrator.api.history_schemas import (
    EventPage,
    EventView,
    LogLine,
    LogPage,
    MetricPoint,
    Metrics,
)
from orchestrator.api.schemas import (
    AttemptView,
    CheckpointView,
    FieldError,
    Health,
    IncidentView,
    Problem,
    RunDetail,
    RunPage,
)
from orchestrator.state import Desired, RunState
from tests.fakes.answers import (
    START,
    after,
    attempt,
    checkpoint,
    crashed,
    deed,
    done,
    facts,
    incident,
    ledger,
    log_lines,
    problem,
    recovered,
    run,
    token,
)
from worker.protocol import JobSpec

# With what a test of the client needs to say what is answered.
__all__ = [
    "START",
    "TOKEN",
    "FakeService",
    "after",
    "attempt",
    "checkpoint",
    "crashed",
    "deed",
    "done",
    "facts",
    "incident",
    "ledger",
    "log_lines",
    "problem",
    "recovered",
    "run",
    "served",
    "token",
]

TOKEN = "a-token-of-the-fake"


@dataclass
class FakeService:
    """What it answers, and what it was asked. `script` holds the run's looks still to come."""

    url: str = ""
    runs: dict[str, RunDetail] = field(default_factory=dict)
    script: deque[tuple[RunDetail, Sequence[AttemptView]]] = field(default_factory=deque)
    attempts: Sequence[AttemptView] = ()
    checkpoints: Sequence[CheckpointView] = ()
    incidents: Sequence[IncidentView] = ()
    events: Sequence[EventView] = ()
    points: Sequence[MetricPoint] = ()
    logs: list[LogLine] = field(default_factory=list)
    page_size: int = 2
    refuse: Problem | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    submitted: list[dict[str, Any]] = field(default_factory=list)
    asked_for: list[dict[str, Any]] = field(default_factory=list)
    drilled: dict[str, Any] = field(default_factory=dict)
    drains: deque[dict[str, Any]] = field(default_factory=deque)

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        self.asked.append((method, path))
        if path in {"/readyz", "/healthz"}:
            return 200, Health(status="ok", version="0.1.0", protocol=1, installation="i1")
        if self.refuse is not None:
            return self.refuse.status, self.refuse
        parts = [unquote(part) for part in path.removeprefix("/api/v1/").split("/")]
        match method, parts:
            case "POST", ["runs"]:
                return self._submit(body)
            case "POST", ["runs:preflight"]:
                spec = JobSpec.model_validate(body)
                if spec.name in self.runs:
                    return 409, problem(409, title="The name is taken", errors=())
                return 200, facts(spec)
            case "POST", ["login-codes"]:
                return 200, {"url": f"{self.url}/login?code=c", "expires_at": after(300)}
            case "GET", ["runs"]:
                return 200, self._page(query)
            case "POST", ["tokens"]:
                return 201, token(body["name"], token="lh_secret", **_life(body))
            case "GET", ["tokens"]:
                return 200, [
                    token("ci"),
                    token("brief", expires_at=datetime.now(UTC) + timedelta(hours=1)),
                    token("old", revoked_at=after(9), expires_at=None),
                ]
            case "DELETE", ["tokens", "ci"]:
                return 204, None
            case "GET", ["audit"]:
                return 200, {"items": [deed()], "next_cursor": None}
            case (("POST" | "GET"), ["hosts", _, "drain"]):
                return 200, self.drains.popleft()
            case "DELETE", ["hosts", _, "drain"]:
                return 204, None
            case _, ["runs", name, *rest] if (found := self._find(name)) is not None:
                return self._of_run(method, rest, found, query, body)
            case _:
                kind = "urn:longhaul:problem:no-such-run"
                return 404, problem(404, type=kind, title="No such run", detail=path, errors=())

    def _find(self, name: str) -> RunDetail | None:
        return next((r for r in self.runs.values() if name in {r.id, r.name}), None)

    def _page(self, query: dict[str, str]) -> RunPage:
        runs = [r for r in self.runs.values() if query.get("state") in {None, str(r.state)}]
        begin = int(query.get("cursor", 0))
        end = begin + int(query["limit"])
        return RunPage(
            items=tuple(runs[begin:end]), next_cursor=str(end) if end < len(runs) else None
        )

    def _log_page(self, query: dict[str, str]) -> LogPage:
        kept = [x for x in self.logs if query.get("attempt") in {None, str(x.attempt)}]
        if "tail" in query:
            last = kept[-1].id if kept else None
            return LogPage(items=tuple(kept[-int(query["tail"]) :]), through=last)
        left = [line for line in kept if line.id > int(query["after"])]
        page = tuple(left[: self.page_size])
        last = page[-1].id if page else None
        more = len(left) > len(page)
        return LogPage(items=page, next_cursor=last if more else None, through=last)

    def _event_page(self, query: dict[str, str]) -> EventPage:
        after = int(query["cursor"])
        left = [event for event in self.events if event.id > after]
        page = tuple(left[: self.page_size])
        more = len(left) > len(page)
        return EventPage(items=page, next_cursor=str(page[-1].id) if more else None)

    def _submit(self, body: Any) -> tuple[int, Any]:
        self.submitted.append(body)
        try:
            spec = JobSpec.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            pointer = "/" + "/".join(str(part) for part in first["loc"])
            fault = FieldError(pointer=pointer, detail=first["msg"])
            return 422, problem(errors=(fault,))
        if spec.name in self.runs:
            return 409, problem(409, title="The name is taken", detail=spec.name, errors=())
        made = run(spec.name, 0, spec=spec, state=RunState.QUEUED, attempt=None, attempts=0)
        self.runs[spec.name] = made
        return 201, made

    def _of_run(
        self, method: str, rest: list[str], found: RunDetail, query: dict[str, str], body: Any
    ) -> tuple[int, Any]:
        match method, rest:
            case "GET", []:
                if self.script:
                    found, self.attempts = self.script.popleft()
                    self.runs[found.name] = found
                return 200, found
            case "POST", ["pause"]:
                return 202, found.model_copy(update={"desired": Desired.PAUSE})
            case "POST", ["resume"]:
                self.asked_for.append(body)
                return 202, found.model_copy(update={"reason": body.get("reason")})
            case "POST", ["rollback" | "checkpoint"] | ["checkpoints", _, "quarantine"]:
                self.asked_for.append(body)
                return 202, found.model_copy(update={"branch": 2})
            case "POST", ["fork"]:
                self.asked_for.append(body)
                return 201, found.model_copy(update={"name": body["name"], "id": "9f"})
            case "POST", ["drill"]:
                self.asked_for.append(body)
                return 202, self.drilled
            case "POST", ["cancel"]:
                return 202, found.model_copy(update={"desired": Desired.CANCEL})
            case "GET", ["attempts"]:
                return 200, {"items": list(self.attempts)}
            case "GET", ["checkpoints"]:
                return 200, {"items": list(self.checkpoints)}
            case "GET", ["incidents"]:
                return 200, {"items": list(self.incidents)}
            case "GET", ["goodput"]:
                return 200, ledger()
            case "GET", ["events"]:
                return 200, self._event_page(query)
            case "GET", ["metrics"]:
                first, last = int(query["from_step"]), int(query["to_step"])
                points = [p for p in self.points if first <= p.step <= last]
                return 200, Metrics(points=tuple(points), evals=())
            case "GET", ["logs"]:
                return 200, self._log_page(query)
            case _:
                return 404, problem(404, title="Not here", detail="/".join(rest), errors=())


def _life(body: dict[str, Any]) -> dict[str, Any]:
    life = body["expires_seconds"]
    told = {name: body[name] for name in ("owner", "role")}
    return told | {"expires_at": None if life is None else after(life)}


def _plain(answer: Any) -> Any:
    if isinstance(answer, BaseModel):
        return answer.model_dump(mode="json")
    if isinstance(answer, list):
        return [_plain(item) for item in answer]
    if isinstance(answer, dict):
        return {name: _plain(value) for name, value in answer.items()}
    return answer.isoformat() if isinstance(answer, datetime) else answer


@contextmanager
def served(fake: FakeService) -> Iterator[FakeService]:
    """Serves `fake` on a free loopback port; its address is `fake.url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            split = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(split.query).items()}
            if key := self.headers.get("Idempotency-Key"):
                fake.keys.append(key)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, answer = 401, problem(401, title="Who are you?", errors=())
            else:
                status, answer = fake.answer(
                    self.command, split.path, query, json.loads(raw) if raw else None
                )
            content = json.dumps(_plain(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
