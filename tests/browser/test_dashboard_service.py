"""The dashboard over the real API and a real database: link, page, wish, stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from orchestrator.dashboard import router as dashboard
from orchestrator.state import RunState
from tests.browser.site import Open, serve
from tests.unit.api_world import TOKEN, World, at, seed_crashed, seed_points, tiny_spec, world

pytestmark = pytest.mark.browser


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        dashboard.mount(made.app)
        yield made


def test_a_link_opens_the_page_that_follows_the_run_and_takes_wishes(
    made: World, open_page: Open
) -> None:
    watched = open_page()
    page = watched.page
    with serve(made.app) as url:
        auth = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=url, headers=auth) as api:
            run = api.post("/api/v1/runs", json=tiny_spec("tiny")).json()["id"]
            seed_crashed(made, run)
            link = api.post("/api/v1/login-codes").json()["url"]
            page.goto(link)
            page.get_by_role("link", name="tiny").first.click()
            expect(page.locator("#chart-loss")).to_contain_text("from 10, bit-identical")
            seed_points(made, run, 2, 21, 24, began=40)
            expect(page.locator("[data-last=loss]")).to_contain_text("step 24")
            page.locator("#b-pause").click()
            page.locator("#d-pause").get_by_role("button", name="Pause").click()
            expect(page.locator("#d-pause")).not_to_be_visible()
            assert api.get(f"/api/v1/runs/{run}").json()["desired"] == "pause"
            made.change(run, state=RunState.SUCCEEDED, finished_at=at(45), state_since=at(45))
            expect(page.locator("#run h1")).to_contain_text("succeeded")
        page.goto("about:blank")
    assert watched.said == []
