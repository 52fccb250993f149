"""The same walk with a real service, a real agent and a real trainer that is really killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.site import Open
from tests.faults.harness import TRAINER, Plane, plane, tiny_job, until, write_text

pytestmark = [pytest.mark.browser, pytest.mark.soak]
LONG = 120_000  # ms


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Plane]:
    with plane(tmp_path / "data") as service:
        yield service
        service.clear()


def fill_in(page: Page, job: dict[str, object]) -> None:
    """By the form: first with a field that is wrong, then right."""
    page.get_by_role("link", name="Submit a run").click()
    send = page.get_by_role("button", name="Submit the run")
    expect(send).to_be_enabled()
    page.locator("#f-name").fill(str(job["name"]))
    page.locator("#f-steps").fill("none")
    expect(page.locator("#f-steps-wrong")).to_be_visible()
    expect(send).to_be_disabled()
    page.locator("#f-steps").fill(str(job["steps"]))
    page.locator("#f-checkpoint-every_steps").fill("10")
    expect(page.locator("#preflight")).to_contain_text("every check passed")
    send.click()
    expect(page.locator("#run h1")).to_contain_text(str(job["name"]))


def test_a_person_walks_through_a_run_that_is_really_killed(
    service: Plane, open_page: Open, tmp_path: Path
) -> None:
    watched = open_page()
    page = watched.page
    text = write_text(tmp_path / "words.txt")
    service.submit(tiny_job("calm", text, steps=24))
    page.goto(service.call("POST", "login-codes").json()["url"])
    fill_in(page, {"name": "walk", "steps": 5000})
    page.evaluate("window.sameDocument = true")
    expect(page.locator("#run h1")).to_contain_text("running", timeout=LONG)
    until(lambda: service.step("walk") > 25, "25 steps", LONG / 1000)
    expect(page.locator("#chart-loss path.curve")).to_be_attached()

    service.call("POST", "runs/calm/cancel")
    until(lambda: service.get("runs/calm")["state"] in ("succeeded", "cancelled"), "calm to end")
    service.kill_one(TRAINER)
    story = page.locator("#incident-1-story")
    expect(story).to_be_visible(timeout=LONG)
    if story.get_attribute("open") is None:
        story.locator("summary").click()
    expect(story).to_contain_text("SIGKILL")
    assert page.evaluate("window.sameDocument")
    expect(page.locator("#run h1")).to_contain_text("running", timeout=LONG)

    page.locator("#b-pause").click()
    page.locator("#d-pause").get_by_role("button", name="Pause").click()
    expect(page.locator("#run h1")).to_contain_text("paused", timeout=LONG)
    page.locator("#b-resume").click()
    page.get_by_role("dialog").get_by_role("button", name="Resume", exact=True).click()
    expect(page.locator("#run h1")).to_contain_text("running", timeout=LONG)
    before = service.get("runs/walk")["branch"]
    page.get_by_role("button", name="Resume from step 10", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Go back").click()
    expect(page.locator("#branches tbody tr")).to_have_count(before + 1, timeout=LONG)
    attempt = service.get("runs/walk")["attempt"]
    until(lambda: service.get("runs/walk")["attempt"] > attempt - 1, "the next attempt")

    page.goto(f"{service.url}/compare?a=walk&b=calm")
    expect(page.locator("#chart-both path.curve.second")).to_be_attached()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("You are not signed in")
    assert [w for w in watched.said if "422" not in w and "401" not in w] == []
