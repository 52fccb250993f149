"""A control plane for agents under test: it keeps what it is told and says what it is told to say.

The `Book` outlives a server, so that a test can take the server away and bring it back elsewhere.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from worker.protocol import (
    AgentReport,
    CheckpointAccepted,
    CheckpointOffer,
    Command,
    Envelope,
    Register,
    Registered,
    ReportAnswer,
)


@dataclass
class Book:
    """What a control plane would have in its database. Guarded by `changed`."""

    secret: str = "s3cret"
    stored: list[Envelope] = field(default_factory=list)
    acked: int = 0
    commands: tuple[Command, ...] = ()
    registered: list[Register] = field(default_factory=list)
    reports: list[AgentReport] = field(default_factory=list)
    answered: list[datetime] = field(default_factory=list)
    offers: list[CheckpointOffer] = field(default_factory=list)
    events_at_offer: list[int] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)
    problem_type: str = "application/problem+json"
    refuse_event: Callable[[Envelope], bool] = lambda envelope: False
    lose_answers: int = 0
    on_the_way: threading.Event | None = None  # answers to deliveries arrive once it is set
    changed: threading.Condition = field(default_factory=threading.Condition)

    def command(self, *commands: Command) -> None:
        with self.changed:
            self.commands = commands
            self.changed.notify_all()

    def wait(self, what: Callable[[Book], Any], seconds: float = 10.0) -> Any:
        """Until `what` gives something true, which is returned."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while not (found := what(self)):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"not seen within {seconds} s; kinds: {self.kinds()}")
                self.changed.wait(left)
            return found

    def kinds(self) -> list[str]:
        return [envelope.event.kind for envelope in self.stored]

    def of(self, kind: str) -> list[Envelope]:
        return [envelope for envelope in self.stored if envelope.event.kind == kind]

    def steps(self) -> list[int]:
        return [envelope.event.step for envelope in self.of("step")]  # pyright: ignore

    @property
    def digest(self) -> str:
        return str(hash(self.commands)) if self.commands else ""


class Problem(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


class ControlPlane:
    """Serves one book on a free loopback port until `stop`, which cuts every connection."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self._stopping = False
        self._sockets: set[socket.socket] = set()
        handler = type("Handler", (_Handler,), {"plane": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._stopping = True
        with self.book.changed:
            self.book.changed.notify_all()
        self._server.shutdown()
        self._thread.join()
        for connection in tuple(self._sockets):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self._server.server_close()

    def answer(self, call: str, body: bytes) -> Any:
        book = self.book
        with book.changed:
            if status := book.refuse.get(call):
                raise Problem(status)
            match call:
                case "register":
                    register = Register.model_validate_json(body)
                    book.registered.append(register)
                    answer = Registered(protocol=1, acked_seq=book.acked, commands=book.commands)
                case "report":
                    answer = self._report(AgentReport.model_validate_json(body))
                case "checkpoints":
                    answer = self._accept(CheckpointOffer.model_validate_json(body))
                case _:
                    raise Problem(404)
            book.changed.notify_all()
        if book.on_the_way and call == "report" and AgentReport.model_validate_json(body).events:
            book.on_the_way.wait()
        if self._stopping:
            raise ConnectionAbortedError
        return answer

    def _report(self, report: AgentReport) -> ReportAnswer:
        book = self.book
        if any(book.refuse_event(envelope) for envelope in report.events):
            raise Problem(422)
        book.reports.append(report)
        for envelope in report.events:
            if envelope.seq > book.acked:
                book.stored.append(envelope)
                book.acked = envelope.seq
        book.changed.notify_all()
        if report.events and book.lose_answers:
            book.lose_answers -= 1
            raise ConnectionAbortedError
        deadline = time.monotonic() + report.wait_seconds
        while not self._stopping and book.digest == report.known_commands:
            left = deadline - time.monotonic()
            if left <= 0 or not book.changed.wait(left):
                break
            if status := book.refuse.get("report"):
                raise Problem(status)
        book.answered.append(datetime.now(UTC))
        return ReportAnswer(
            acked_seq=book.acked,
            commands=book.commands,
            commands_digest=book.digest,
            at=book.answered[-1],
        )

    def _accept(self, offer: CheckpointOffer) -> CheckpointAccepted:
        self.book.offers.append(offer)
        self.book.events_at_offer.append(self.book.acked)
        return CheckpointAccepted(
            run_id=offer.run_id,
            checkpoint_id=offer.checkpoint.checkpoint_id,
            step=offer.checkpoint.step,
            accepted_at=datetime.now(UTC),
            manifest_sha256=offer.checkpoint.manifest_sha256,
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    plane: ControlPlane

    def setup(self) -> None:
        super().setup()
        self.plane._sockets.add(self.connection)

    def finish(self) -> None:
        self.plane._sockets.discard(self.connection)
        try:
            super().finish()
        except OSError:
            return

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            if self.headers["Authorization"] != f"Bearer {self.plane.book.secret}":
                raise Problem(401)
            call = self.path.removeprefix("/api/v1/agents/")
            self._send(200, "application/json", self.plane.answer(call, body).model_dump_json())
        except Problem as problem:
            text = json.dumps({"type": "about:blank", "status": problem.status})
            self._send(problem.status, self.plane.book.problem_type, text)
        except ConnectionAbortedError:
            self.close_connection = True

    def _send(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the book tells all."""
