"""A real web server on a free port, and a browser page that is listened to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI
from playwright.sync_api import ConsoleMessage, Page, Request

from tests.fakes.dashboard import Served


@dataclass
class Site:
    url: str
    served: Served


@dataclass
class Watched:
    """A page, and everything that it said or asked for."""

    page: Page
    said: list[str]
    asked: list[str]

    def go(self, site: Site, path: str) -> Page:
        self.page.goto(site.url + path)
        return self.page


Open = Callable[..., Watched]


@contextlib.contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """Its address. What streams must have been told to end before this is left."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def watch(page: Page) -> Watched:
    watched = Watched(page, [], [])
    page.on("console", lambda message: _note(watched.said, message))
    page.on("pageerror", lambda error: watched.said.append(str(error)))
    page.on("request", lambda request: _ask(watched.asked, request))
    return watched


def _note(said: list[str], message: ConsoleMessage) -> None:
    if message.type in ("error", "warning"):
        said.append(message.text)


def _ask(asked: list[str], request: Request) -> None:
    if not request.url.startswith("data:"):
        asked.append(request.url)
