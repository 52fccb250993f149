"""What holds for every page of the dashboard, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.judge import focus_faults, poor_contrast, unnamed
from tests.browser.site import Open, Site, serve
from tests.fakes.dashboard import CSRF, Served, make_app
from tests.unit.test_dashboard_places import installation

pytestmark = pytest.mark.browser

BOTH = "/compare?a=demo-1m&b=whimbrel-1m"
PAGES = ["/", "/runs/demo-1m", "/hosts", "/orphans", "/audit", "/tokens", BOTH, "/submit"]
PHONE = 390


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Nothing here changes it."""
    served = Served(installation())
    with serve(make_app(served)) as url:
        yield Site(url, served)
        served.down = True


def settled(page: Page, path: str) -> None:
    if path.startswith("/runs/"):
        expect(page.locator("#chart-loss path.curve")).to_be_attached()
    if path == BOTH:
        expect(page.locator("#chart-both path.curve.second")).to_be_attached()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_reads_well_has_names_and_asks_nobody_else(
    site: Site, open_page: Open, scheme: str
) -> None:
    watched = open_page(scheme=scheme)
    for path in PAGES:
        page = watched.go(site, path)
        settled(page, path)
        assert poor_contrast(page) == [], path
        if scheme == "light":
            assert unnamed(page) == [], path
            assert focus_faults(page) == [], path
    said = [words for words in watched.said if "404" not in words]  # the fake has no preflight
    assert said == []
    assert all(url.startswith(site.url + "/") for url in watched.asked)


def test_no_page_scrolls_sideways_on_a_phone(site: Site, open_page: Open) -> None:
    watched = open_page(PHONE)
    for path in PAGES:
        page = watched.go(site, path)
        settled(page, path)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE, path


def test_two_curves_lie_over_each_other_and_are_read_together(site: Site, open_page: Open) -> None:
    page = open_page().go(site, BOTH)
    settled(page, BOTH)
    page.locator("#chart-both").focus()
    page.keyboard.press("Home")
    expect(page.locator("#read")).to_contain_text("step 1: demo-1m ")
    expect(page.locator("#read")).to_contain_text("0 apart")
    page.locator("#metric").get_by_role("button", name="gradient norm").click()
    expect(page.locator("#h-curves")).to_have_text("Gradient norm")
    page.locator("#chart-both").focus()
    page.keyboard.press("End")
    expect(page.locator("#read")).to_contain_text("step 200: demo-1m has none, whimbrel-1m ")


def test_a_checkpoint_can_be_gone_back_to_and_set_apart(site: Site, open_page: Open) -> None:
    page = open_page().go(site, "/runs/demo-1m")
    settled(page, "/runs/demo-1m")
    page.get_by_role("button", name="Resume from step 75").click()
    dialog = page.get_by_role("dialog", name="Go back with demo-1m from step 75?")
    expect(dialog).to_contain_text("up to 45 steps trained again")
    dialog.get_by_role("spinbutton").fill("3")
    dialog.get_by_role("button", name="Go back").click()
    expect(dialog).not_to_be_visible()
    assert site.served.posts[-1] == ("rollback", CSRF)
    assert site.served.bodies[-1] == {"to": "a1-s75", "skip_batches": 3}
    page.get_by_role("button", name="Quarantine the checkpoint of step 50").click()
    dialog = page.get_by_role("dialog", name="Quarantine the checkpoint of step 50?")
    dialog.get_by_role("textbox").fill("looks odd")
    dialog.get_by_role("button", name="Quarantine").click()
    expect(dialog).not_to_be_visible()
    assert site.served.posts[-1] == ("quarantine", CSRF)
    assert site.served.bodies[-1] == {"reason": "looks odd"}


def test_the_log_is_searched_in_place(site: Site, open_page: Open) -> None:
    page = open_page().go(site, "/runs/demo-1m")
    settled(page, "/runs/demo-1m")
    page.get_by_role("searchbox").fill("STEP 99")
    expect(page.locator("#log-lines > span")).to_have_count(1)
    assert page.url.endswith("?log=STEP+99#log")
    expect(page.locator("#log")).to_contain_text("the last 1 line with “STEP 99”")
    page.get_by_role("searchbox").fill("")
    expect(page.locator("#log-lines > span")).to_have_count(41)


def test_a_line_of_the_timeline_opens_its_evidence(site: Site, open_page: Open) -> None:
    page = open_page().go(site, "/runs/demo-1m")
    settled(page, "/runs/demo-1m")
    page.locator("#incident-1-story").evaluate("story => story.open = false")
    page.get_by_role("link", name="evidence: A trainer of attempt 1 crashed").click()
    expect(page.locator("#incident-1-story")).to_have_attribute("open", "")
    expect(page.get_by_role("link", name="Runbook: crashed")).to_be_visible()
