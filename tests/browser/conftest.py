"""One Chromium for all browser tests, and a real web server for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

from tests.browser.site import Open, Site, Watched, serve, watch
from tests.fakes.dashboard import FakeReader, Served, make_app
from tests.fakes.stories import finished, recovered, waiting

CHROMIUM = "/usr/bin/chromium"
expect.set_options(timeout=30_000)  # ms; other tests may have the CPU meanwhile
ARGUMENTS = [
    "--no-sandbox",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not for the whole session: while it lives, this thread can run no event loop of its own."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def site() -> Iterator[Site]:
    served = Served(FakeReader(waiting(), recovered(), finished()))
    with serve(make_app(served)) as url:
        yield Site(url, served)
        served.down = True  # ends the streams


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    contexts: list[BrowserContext] = []

    def make(width: int = 1440, scheme: str = "light") -> Watched:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # pyright: ignore[reportArgumentType]
        )
        contexts.append(context)
        return watch(context.new_page())

    yield make
    for context in contexts:
        context.close()
