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

from orchestrator.api.schemas import (
    AttemptView,
    CheckpointView,
    EventPage,
    EventView,
    EvidenceView,
    Facts,
    FieldError,
    GoodputPart,
    GoodputView,
    Health,
    IncidentView,
    LogLine,
    LogPage,
    MetricPoint,
    Metrics,
    Problem,
    Progress,
    RunDetail,
    RunPage,
)
from orchestrator.presets import PRESETS
from orchestrator.state import AttemptState, CheckpointState, Desired, RunState, Verdict
from worker.protocol import JobSpec

START = datetime(2026, 3, 4, 10, 0, 0, tzinfo=UTC)
TOKEN = "a-token-of-the-fake"


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def facts(spec: JobSpec) -> Facts:
    tokens = spec.tokens_per_step
    size = spec.checkpoint_bytes
    saves = spec.steps // spec.checkpoint.every_steps
    return Facts(
        parameters=spec.model.parameters,
        flops_per_token=spec.model.flops_per_token,
        tokens_per_step=tokens,
        total_tokens=tokens * spec.steps,
        checkpoint_bytes=size,
        checkpoints=saves,
        storage_bytes=size * saves,
        memory_per_device_bytes=4 * size,
        memory_arithmetic="weights 4 MB + moments 8 MB + gradients 4 MB + activations 30 MB",
        devices=1,
        tokens_per_second=8000.0,
        speed_source="measured",
        hours=tokens * spec.steps / 8000 / 3600,
        hours_arithmetic="409,600 tokens / 8,000 tokens/s (measured: demo-1m on such devices)",
        price_per_hour=0.5,
        currency="USD",
        cost=0.5 * tokens * spec.steps / 8000 / 3600,
        cost_arithmetic="0.01422 h x 1 device x 0.5 USD a device hour",
    )


def checkpoint(attempt: int = 1, step: int = 75, **changes: Any) -> CheckpointView:
    given: dict[str, Any] = {
        "id": f"a{attempt}-s{step}",
        "attempt": attempt,
        "branch": 1,
        "step": step,
        "uri": f"/storage/runs/r1/a{attempt}/checkpoints/{step}",
        "state": CheckpointState.ACCEPTED,
        "bytes": 12_600_000,
        "files": 14,
        "state_digest": "5f" * 32,
        "stall_seconds": 0.04,
        "write_seconds": 0.31,
        "written_at": after(step / 5),
        "accepted_at": after(step / 5 + 0.1),
        "verified_at": None,
        "reason": None,
    }
    return CheckpointView.model_validate(given | changes)


def attempt(number: int = 1, **changes: Any) -> AttemptView:
    given: dict[str, Any] = {
        "number": number,
        "state": AttemptState.RUNNING,
        "revision": 1,
        "branch": 1,
        "group": "lh-r1-g1",
        "processes": 1,
        "created_at": after(1),
        "first_step_at": after(5),
        "ended_at": None,
        "resume_checkpoint": None,
        "resumed_from_step": 0,
        "last_step": 20,
        "accepted_step": None,
        "verdict": None,
        "summary": None,
        "evidence": (),
        "replayed_steps": 0,
        "replayed_until": None,
        "replayed_bit_identical": None,
        "first_difference_step": None,
        "recovery_seconds": None,
    }
    return AttemptView.model_validate(given | changes)


def crashed() -> AttemptView:
    return attempt(
        1,
        state=AttemptState.ENDED,
        ended_at=after(25),
        last_step=91,
        accepted_step=75,
        verdict=Verdict.CRASHED,
        summary="Trainer 0 was ended by signal 9 (SIGKILL) at step 91.",
    )


def recovered(**changes: Any) -> AttemptView:
    return attempt(
        2,
        created_at=after(26),
        first_step_at=after(28),
        resume_checkpoint="a1-s75",
        resumed_from_step=75,
        last_step=95,
        replayed_steps=16,
        replayed_until=after(33),
        replayed_bit_identical=True,
        recovery_seconds=2.9,
        **changes,
    )


def run(name: str = "demo-1m", step: int = 20, **changes: Any) -> RunDetail:
    spec = changes.pop("spec", PRESETS["demo-1m"].spec.model_copy(update={"name": name}))
    progress: dict[str, Any] = {
        "step": step,
        "steps": spec.steps,
        "loss": 5.6 - step / 60 if step else None,
        "learning_rate": 0.003,
        "tokens_per_second": 13_900.0,
        "step_seconds": 0.15,
        "eta_seconds": (spec.steps - step) * 0.15,
        "eval_loss": None,
        "updated_at": after(30),
    }
    given: dict[str, Any] = {
        "id": "r" + format(abs(hash(name)) % 16**11, "011x"),
        "name": name,
        "state": RunState.RUNNING,
        "desired": Desired.RUN,
        "reason": None,
        "needs_person": False,
        "owner": "admin",
        "state_since": after(5),
        "created_at": START,
        "finished_at": None,
        "attempt": 1,
        "attempt_state": AttemptState.RUNNING,
        "attempts": 1,
        "revision": 1,
        "branch": 1,
        "parameters": spec.model.parameters,
        "hosts": spec.hosts.count,
        "provider": "local",
        "progress": Progress.model_validate(progress),
        "goodput": 0.913,
        "spec": spec,
        "facts": facts(spec),
        "waits_for": None,
        "newest_checkpoint": None,
        "groups": (),
    }
    return RunDetail.model_validate(given | changes)


def done(name: str = "demo-1m", **changes: Any) -> RunDetail:
    given: dict[str, Any] = {
        "state": RunState.SUCCEEDED,
        "finished_at": after(60),
        "attempt": 2,
        "attempts": 2,
        "attempt_state": AttemptState.ENDED,
        "state_since": after(60),
    }
    return run(name, 200, **(given | changes))


def incident(**changes: Any) -> IncidentView:
    given: dict[str, Any] = {
        "number": 1,
        "attempt": 1,
        "verdict": Verdict.CRASHED,
        "opened_at": after(25),
        "closed_at": after(28),
        "closed_by_attempt": 2,
        "needs_person": False,
        "headline": "The trainer of attempt 1 was ended by SIGKILL at step 91.",
        "seen": (
            EvidenceView(at=after(25), source="agent 0", text="trainer exited, signal 9"),
            EvidenceView(at=after(24), source="trainer 0", text="last step 91"),
        ),
        "concluded": "crashed: nobody had asked it to stop, and no kernel line speaks of memory",
        "done": ("started attempt 2 on the same host from checkpoint a1-s75",),
        "left": (),
        "command": None,
        "how_to_tell": "Attempt 2 trained past step 91 with the same losses.",
        "lost_seconds": 2.9,
        "lost_steps": 16,
    }
    return IncidentView.model_validate(given | changes)


def ledger() -> GoodputView:
    parts = {"training": 50.0, "replay": 3.2, "startup": 4.0, "recovery": 2.9, "unaccounted": 0.1}
    wall = sum(parts.values())
    return GoodputView(
        wall_seconds=wall,
        goodput=parts["training"] / wall,
        parts=tuple(
            GoodputPart(category=name, seconds=s, share=s / wall) for name, s in parts.items()
        ),
    )


def log_lines(number: int = 3) -> list[LogLine]:
    return [
        LogLine(id=10 + i, attempt=1, rank=0, at=after(i), line=f"line {i}") for i in range(number)
    ]


def problem(status: int = 422, **changes: Any) -> Problem:
    given: dict[str, Any] = {
        "type": "/problems/invalid-spec",
        "title": "The spec cannot be run",
        "status": status,
        "detail": "1 field is at fault; nothing was started.",
        "hint": None,
        "errors": (
            FieldError(
                pointer="/batch/sequences",
                detail="must be greater than 0, but is -4",
                hint="Give a positive number, for example 16.",
            ),
        ),
    }
    return Problem.model_validate(given | changes)


def token(name: str, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "id": "1abc",
        "name": name,
        "owner": "ada",
        "role": "operator",
        "created_at": after(0),
        "created_by": "admin",
        "expires_at": after(90 * 86_400),
        "revoked_at": None,
        "last_used_at": after(5),
    }
    return given | changes


def _life(body: dict[str, Any]) -> dict[str, Any]:
    life = body["expires_seconds"]
    told = {name: body[name] for name in ("owner", "role")}
    return told | {"expires_at": None if life is None else after(life)}


def deed() -> dict[str, Any]:
    return {
        "id": 7,
        "at": after(3),
        "actor": "ada",
        "role": "operator",
        "remote": "198.51.100.7",
        "token_id": "1abc",
        "action": "run.pause",
        "target": "5r",
        "before": {"desired": "run", "state": "running"},
        "after": {"desired": "pause", "reason": "\x1b[31mred"},
    }


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
                return 200, [token("ci"), token("old", revoked_at=after(9), expires_at=None)]
            case "DELETE", ["tokens", "ci"]:
                return 204, None
            case "GET", ["audit"]:
                return 200, {"items": [deed()], "next_cursor": None}
            case _, ["runs", name, *rest] if (found := self._find(name)) is not None:
                return self._of_run(method, rest, found, query, body)
            case _:
                return 404, problem(404, title="No such run", detail=f"{path}", errors=())

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
