"""The dashboard in a real browser, over a real web server with made-up runs."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.site import Open, Site
from tests.fakes.dashboard import CSRF
from tests.fakes.stories import loss_at, recovered, waiting

pytestmark = pytest.mark.browser

PAGES = ["/", "/runs/demo-1m", "/runs/plover-1m", "/runs/whimbrel-1m"]
PHONE = 390


def wait_for_chart(page: Page) -> None:
    expect(page.locator("#chart-loss path.curve")).to_be_attached()


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_says_nothing_to_the_console_and_asks_nobody_else(
    site: Site, open_page: Open, path: str, scheme: str
) -> None:
    watched = open_page(scheme=scheme)
    page = watched.go(site, path)
    if path != "/":
        wait_for_chart(page)
    assert watched.said == []  # a breach of the content policy would be said here
    assert all(url.startswith(site.url + "/") for url in watched.asked)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 19, 21)"
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("path", PAGES)
def test_a_phone_never_scrolls_sideways(site: Site, open_page: Open, path: str) -> None:
    page = open_page(PHONE).go(site, path)
    if path != "/":
        wait_for_chart(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE


def test_the_first_paint_needs_less_than_300_kib(site: Site, open_page: Open) -> None:
    watched = open_page()
    sizes: list[int] = []
    watched.page.on("requestfinished", lambda r: sizes.append(r.sizes()["responseBodySize"]))
    page = watched.page
    page.route("**/stream", lambda route: route.abort())
    watched.go(site, "/runs/demo-1m")
    wait_for_chart(page)
    assert 20_000 < sum(sizes) < 300 * 1024


def test_the_chart_shows_attempts_the_replay_and_the_last_value(
    site: Site, open_page: Open
) -> None:
    page = open_page().go(site, "/runs/demo-1m")
    wait_for_chart(page)
    chart = page.locator("#chart-loss")
    expect(chart).to_contain_text("attempt 2")
    expect(chart).to_contain_text("from 75, bit-identical")
    expect(page.locator("[data-last=loss]")).to_have_text(f"{loss_at(120):.3f} at step 120")
    # Both in one look: the chart is drawn anew whenever something is told.
    hatched, plot = page.evaluate(
        "['#chart-loss rect.again', '#chart-loss'].map("
        "(at) => document.querySelector(at).getBoundingClientRect().width)"
    )
    # 15 of 120 steps, on an axis that is narrower than the chart by its margins.
    assert hatched == pytest.approx((plot - 60) * 15 / 120, rel=0.02)
    expect(chart.locator("path.eval")).to_have_count(2)
    for name in ("grad_norm", "learning_rate", "throughput"):
        expect(page.locator(f"#chart-{name} path.line-thin")).to_be_attached()


AXIS = """async ([module, low, high]) => {
  const { ticks, onAxis } = await import(module);
  const [values, step] = ticks(low, high, 3);
  return values.map((value) => onAxis(value, step)).join(" ");
}"""


@pytest.mark.parametrize(
    ("low", "high", "names"),
    [
        (2.64e-4, 3.36e-4, "3e−4"),
        (1.85e-3, 2.35e-3, "2e−3 2.2e−3"),
        (0, 2.1e-4, "0 1e−4 2e−4"),
        (0, 2.1e-3, "0 0.001 0.002"),
        (2.2, 2.6, "2.2 2.4 2.6"),
    ],
)
def test_an_axis_tells_small_numbers_apart(
    site: Site, open_page: Open, low: float, high: float, names: str
) -> None:
    """A rate that stays at 0.0003 has one mark on its axis, which once was "0"."""
    page = open_page().go(site, "/runs/demo-1m")
    script = page.locator("script[src$='run.js']").get_attribute("src") or ""
    assert page.evaluate(AXIS, [script.replace("run.js", "svg.js"), low, high]) == names


def test_the_cursor_reads_a_step_with_pointer_and_keys(site: Site, open_page: Open) -> None:
    page = open_page().go(site, "/runs/demo-1m")
    wait_for_chart(page)
    chart, read = page.locator("#chart-loss"), page.locator("#read")
    usual = read.text_content()
    chart.hover(position={"x": 300, "y": 100})
    expect(read).to_contain_text("attempt 1")
    page.mouse.move(5, 5)
    expect(read).to_have_text(usual or "")
    chart.focus()
    page.keyboard.press("End")
    expect(read).to_contain_text("step 120:")
    page.keyboard.press("ArrowLeft")
    expect(read).to_contain_text("step 119:")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowLeft")
    expect(read).to_contain_text("step 79: ")
    expect(read).to_contain_text("trained twice, bit-identical")


def test_a_drag_zooms_and_escape_shows_everything_again(site: Site, open_page: Open) -> None:
    page = open_page().go(site, "/runs/demo-1m")
    wait_for_chart(page)
    every = page.locator("#zoom button").first
    expect(every).to_have_attribute("aria-pressed", "true")
    box = page.locator("#chart-loss").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 150)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 150, steps=4)
    page.mouse.up()
    expect(every).to_have_attribute("aria-pressed", "false")
    page.locator("#chart-loss").focus()
    page.keyboard.press("Escape")
    expect(every).to_have_attribute("aria-pressed", "true")


def advance(site: Site, step: int) -> None:
    site.served.reader.stories[1] = recovered(step=step)


@pytest.mark.parametrize("streams", [True, False], ids=["stream", "poll"])
def test_new_steps_appear_without_a_reload(site: Site, open_page: Open, streams: bool) -> None:
    site.served.streams = streams
    watched = open_page()
    page = watched.go(site, "/runs/demo-1m")
    wait_for_chart(page)
    page.evaluate("window.sameDocument = true")
    page.locator("#incident-1-story").evaluate("story => story.open = false")
    advance(site, 131)
    site.served.touch()
    expect(page.locator("[data-last=loss]")).to_contain_text("step 131")
    expect(page.locator("#run .figs")).to_contain_text("131 of 200")
    expect(page.locator("#log-lines")).to_contain_text("131")
    assert page.evaluate("window.sameDocument")
    assert page.locator("#incident-1-story").get_attribute("open") is None
    appended = [url for url in watched.asked if "figures.json?" in url and "after=120" in url]
    assert appended  # only the new steps were asked for


def test_the_overview_follows_without_a_reload(site: Site, open_page: Open) -> None:
    page = open_page().go(site, "/")
    expect(page.locator("h1")).to_have_text("1 needs you")
    site.served.reader.stories.append(waiting("tern-1m"))
    expect(page.locator("h1")).to_have_text("2 need you")
    expect(page.locator(".need-item")).to_have_count(2)


def test_a_lost_connection_is_said_in_words_and_stops_actions(site: Site, open_page: Open) -> None:
    page = open_page().go(site, "/runs/demo-1m")
    wait_for_chart(page)
    site.served.down = True
    lost = page.locator("#lost")
    expect(lost).to_contain_text("Connection lost", timeout=15_000)
    expect(lost).to_be_visible()
    expect(lost).to_contain_text("Training goes on")
    page.locator("#b-cancel").click()
    expect(page.locator("#d-cancel")).not_to_be_visible()
    site.served.down = False
    expect(lost).to_be_hidden(timeout=15_000)


def test_cancel_asks_for_the_runs_name(site: Site, open_page: Open) -> None:
    page = open_page().go(site, "/runs/demo-1m")
    wait_for_chart(page)
    page.locator("#b-cancel").click()
    dialog = page.locator("#d-cancel")
    button = dialog.get_by_role("button", name="Cancel the run")
    expect(button).to_be_disabled()
    dialog.get_by_role("textbox").fill("demo-1")
    expect(button).to_be_disabled()
    page.keyboard.press("Enter")
    assert site.served.posts == []
    dialog.get_by_role("textbox").fill("demo-1m")
    button.click()
    expect(dialog).not_to_be_visible()
    assert site.served.posts == [("cancel", CSRF)]


def test_a_refused_wish_says_why_and_what_to_do(site: Site, open_page: Open) -> None:
    page = open_page().go(site, "/runs/demo-1m")
    wait_for_chart(page)
    page.locator("#b-pause").click()
    dialog = page.locator("#d-pause")
    dialog.get_by_role("button", name="Pause").click()
    expect(dialog).to_contain_text("The run is already pausing. Wait for it to save.")
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()


def test_resume_from_the_overview_takes_a_button_and_a_yes(site: Site, open_page: Open) -> None:
    page = open_page(PHONE).go(site, "/")
    page.get_by_role("button", name="Resume…").click()
    dialog = page.get_by_role("dialog", name="Resume plover-1m?")
    expect(dialog).to_contain_text("attempt 2 on 1 host (local)")
    dialog.get_by_role("button", name="Not now").click()
    assert site.served.posts == []
    page.get_by_role("button", name="Resume…").click()
    dialog.get_by_role("button", name="Resume", exact=True).click()
    expect(dialog).not_to_be_visible()
    assert site.served.posts == [("resume", CSRF)]


def test_the_theme_button_outlives_a_reload(site: Site, open_page: Open) -> None:
    page = open_page().go(site, "/")
    page.locator("#theme").click()
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.locator("#theme").click()
    assert page.locator("html").get_attribute("data-theme") == "light"


def test_times_turn_absolute(site: Site, open_page: Open) -> None:
    page = open_page().go(site, "/")
    expect(page.locator(".day td.when").first).to_contain_text("ago")
    page.locator("#times").click()
    expect(page.locator(".day .when .abs").first).to_be_visible()
    expect(page.locator(".day .when .rel").first).not_to_be_visible()


def test_the_keyboard_reaches_the_content_first(site: Site, open_page: Open) -> None:
    page = open_page().go(site, "/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    names = page.evaluate(
        "[...document.querySelectorAll("
        "'button, a, input:not([type=hidden]), progress, [role=img]')]"
        ".filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))"
        ".map(e => e.outerHTML)"
    )
    assert names == []
