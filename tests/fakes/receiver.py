"""A real HTTP server on loopback that takes pages and answers as it is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Got:
    path: str
    headers: Message
    body: bytes


@dataclass
class Receiver:
    """`status` and `headers` are its answer; `got` is what came."""

    server: ThreadingHTTPServer
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    got: list[Got] = field(default_factory=list)
    closed: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook"

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.server.shutdown()
            self.server.server_close()


@contextmanager
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            made.got.append(Got(self.path, self.headers, self.rfile.read(length)))
            self.send_response(made.status)
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    made = Receiver(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
    serve = {"poll_interval": 0.01}
    thread = threading.Thread(target=made.server.serve_forever, kwargs=serve)
    thread.start()
    try:
        yield made
    finally:
        made.close()
        thread.join()
