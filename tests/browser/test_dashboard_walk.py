"""A person's way through the dashboard, over the real API and a real database.

The trainer's tellings are written beside it; the soak test walks the same way with a real one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import update

from orchestrator.dashboard import router as dashboard
from orchestrator.state import AttemptState, RunState, Verdict
from orchestrator.store import tables
from tests.browser.site import Open, serve
from tests.unit.api_world import (
    EVIDENCE,
    TOKEN,
    World,
    at,
    seed_attempt,
    seed_checkpoint,
    seed_group,
    seed_points,
    world,
)

pytestmark = pytest.mark.browser


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        dashboard.mount(made.app)
        yield made


def client(url: str, token: str = TOKEN) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"})


def sign_in(page: Page, api: httpx.Client) -> None:
    page.goto(api.post("/api/v1/login-codes").json()["url"])
    expect(page.get_by_role("heading", level=1)).to_have_text("Nothing needs you")


def submit(page: Page, name: str) -> None:
    """By the form: first with a field that is wrong, then right."""
    page.get_by_role("link", name="Submit a run").click()
    send = page.get_by_role("button", name="Submit the run")
    expect(send).to_be_enabled()
    page.get_by_label("name", exact=False).first.fill(name)
    wrong = page.get_by_label("sequences")
    wrong.fill("-4")
    beside = page.locator("#f-batch-sequences-wrong")
    expect(beside).to_contain_text("greater than 0")
    expect(wrong).to_have_attribute("aria-invalid", "true")
    expect(send).to_be_disabled()
    wrong.fill("4")
    expect(beside).to_be_hidden()
    expect(page.locator("#preflight")).to_contain_text("every check passed")
    send.click()
    expect(page.locator("#run h1")).to_contain_text(name)


def train(made: World, run: str) -> None:
    group = seed_group(made, run)
    seed_attempt(made, run, group, 1, first_step_at=at(4))
    seed_points(made, run, 1, 1, 16, began=4)
    seed_checkpoint(made, run, 1, 5, state="verified", verified_at=at(6))
    seed_checkpoint(made, run, 1, 10, state="verified", verified_at=at(12))
    made.change(run, state=RunState.RUNNING, state_since=at(4))
    made.clock.at = at(21)


def die(made: World, run: str) -> None:
    """It was killed, and Longhaul gave it up: it waits for a person."""
    ended = {"state": AttemptState.ENDED, "ended_at": at(22), "verdict": Verdict.CRASHED}
    with made.engine.begin() as connection:
        connection.execute(
            update(tables.attempts)
            .where(tables.attempts.c.run_id == run)
            .values(**ended, summary="killed by SIGKILL after step 16", evidence=EVIDENCE)
        )
    incident = {
        "run_id": run,
        "number": 1,
        "attempt": 1,
        "verdict": Verdict.CRASHED,
        "opened_at": at(22),
        "summary": "the trainer on host 0 was killed by SIGKILL after step 16",
        "evidence": EVIDENCE,
        "done": "[]",
        "needs_person": True,
    }
    made.put(tables.incidents, incident)
    made.change(
        run,
        state=RunState.PAUSED,
        settled_generation=1,
        state_since=at(22),
        reason="it crashed too often",
    )
    made.clock.at = at(30)


def test_a_person_walks_through_all_of_it(made: World, open_page: Open) -> None:
    watched = open_page()
    page = watched.page
    with serve(made.app) as url, client(url) as api:
        sign_in(page, api)
        submit(page, "first-run")
        run = api.get("/api/v1/runs/first-run").json()["id"]
        train(made, run)
        expect(page.locator("[data-last=loss]")).to_contain_text("step 16")
        page.evaluate("window.sameDocument = true")
        die(made, run)
        expect(page.locator("#run .answer")).to_contain_text("It waits for you.")
        page.locator("#incident-1 summary").focus()
        if page.locator("#incident-1-story").get_attribute("open") is None:
            page.keyboard.press("Enter")
        expect(page.locator("#incident-1")).to_contain_text("was killed")
        assert page.evaluate("window.sameDocument")

        page.get_by_role("button", name="Resume from step 5").click()
        dialog = page.get_by_role("dialog", name="Resume first-run from step 5?")
        dialog.get_by_label("Why").fill("the newer one looks odd")
        dialog.get_by_role("button", name="Resume from there").click()
        expect(page.get_by_role("heading", name="Branches")).to_be_visible()
        assert api.get("/api/v1/runs/first-run").json()["branch"] == 2
        expect(page.locator("#timeline")).to_contain_text("Branch 2 opened at step 5")

        made.change(run, state=RunState.RUNNING, state_since=at(31))
        expect(page.locator("#run h1")).to_contain_text("running")
        page.get_by_role("button", name="Resume from step 5").click()
        page.get_by_role("dialog").get_by_role("button", name="Go back").click()
        expect(page.locator("#branches tbody tr")).to_have_count(3)

        made.change(run, state=RunState.SUCCEEDED, finished_at=at(40), state_since=at(40))
        page.get_by_role("link", name="Runs", exact=True).first.click()
        submit(page, "second-run")
        page.goto(f"{url}/compare?a=first-run&b=second-run")
        expect(page.locator("#chart-both")).to_be_visible()
        expect(page.get_by_role("table", name="The two runs beside each other")).to_be_visible()
        page.goto(f"{url}/audit")
        expect(page.get_by_role("table")).to_contain_text("run.rollback")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("You are not signed in")
        page.goto("about:blank")
    # Refusals are what the walk is about: the wrong field, and the page after signing out.
    assert [w for w in watched.said if "422" not in w and "401" not in w] == []


def test_a_viewer_looks_and_is_refused_whatever_is_more(made: World, open_page: Open) -> None:
    page = open_page().page
    with serve(made.app) as url, client(url) as api:
        asked = {"name": "vic", "owner": "vic", "role": "viewer"}
        secret = api.post("/api/v1/tokens", json=asked).json()["token"]
        with client(url, secret) as viewer:
            sign_in(page, viewer)
        expect(page.get_by_role("link", name="Submit a run")).to_have_count(0)
        assert page.locator("[data-open], dialog").count() == 0
        status = page.evaluate(
            """async () => {
              const csrf = document.querySelector('meta[name="longhaul-csrf"]').content;
              const headers = { "X-CSRF-Token": csrf, "Content-Type": "application/json" };
              const sent = { method: "POST", headers, body: "{}" };
              return (await fetch("/api/v1/runs/any/pause", sent)).status;
            }"""
        )
        assert status == 403
        page.goto(f"{url}/submit")
        expect(page.locator("main")).to_contain_text("needs the role operator")
        page.goto("about:blank")
