"""A metadata server like Compute Engine's, on a port of its own, for the two values that we follow.

Answers a hanging GET when the value is another than the one that the caller knows by its ETag.
"""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ROOT = "/computeMetadata/v1/"


class Metadata:
    """Use as a context manager. `set` changes a value; `failing` answers 503 to everybody."""

    def __init__(self, flavor: str = "Google") -> None:
        self.flavor = flavor
        self.failing = False
        self.asked = 0
        self._values = {"instance/preempted": "FALSE", "instance/maintenance-event": "NONE"}
        self._changed = threading.Condition()
        self._closed = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Metadata:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def set(self, path: str, value: str) -> None:
        with self._changed:
            self._values[path] = value
            self._changed.notify_all()

    def answer(self, path: str, query: dict[str, list[str]]) -> str | None:
        """The value, once it is not the one whose ETag the caller has sent."""
        known, seconds = query["last_etag"][0], float(query["timeout_sec"][0])
        with self._changed:
            self.asked += 1
            if path not in self._values:
                return None
            self._changed.wait_for(
                lambda: self._closed or etag(self._values[path]) != known, timeout=seconds
            )
            return self._values[path]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                if self.headers.get("Metadata-Flavor") != "Google":
                    self.send_error(403)
                    return
                if fake.failing:
                    self.send_error(503)
                    return
                value = fake.answer(parts.path.removeprefix(ROOT), parse_qs(parts.query))
                if value is None:
                    self.send_error(404)
                    return
                body = value.encode()
                self.send_response(200)
                self.send_header("Metadata-Flavor", fake.flavor)
                self.send_header("ETag", etag(value))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # whoever waited has left
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def etag(value: str) -> str:
    return f"e{value.lower()}"
