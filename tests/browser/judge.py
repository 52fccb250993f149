"""What a page owes to whoever cannot see it well: contrast, labels, and an order of focus."""

from __future__ import annotations

from playwright.sync_api import Page

# Each colour goes through a canvas: style sheets may name it in any notation.
CONTRAST = """() => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const below = (element) => {
    for (let here = element; here; here = here.parentElement) {
      const found = rgba(getComputedStyle(here).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || element.closest("[disabled], .vh, progress, dialog:not([open])")) continue;
    if (!element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) continue;
    const style = getComputedStyle(element), svg = element instanceof SVGElement;
    const [a, b] = [light(rgba(svg ? style.fill : style.color)), light(below(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${element.textContent.trim().slice(0, 40)}`);
  }
  return poor;
}"""

UNNAMED = """() => {
  const wanted = "button, a, input:not([type=hidden]), select, textarea, progress, summary, "
    + "[role=img], [role=region], dialog, table";
  const name = (e) => e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim()
    || document.getElementById(e.getAttribute("aria-labelledby"))?.textContent;
  const nameless = [...document.querySelectorAll(wanted)]
    .filter((e) => (e.matches("input, select, textarea") ? !(e.labels?.length
      || e.getAttribute("aria-label")) : !name(e)));
  const tables = [...document.querySelectorAll("table:not(:has(caption))")];
  const dialogs = [...document.querySelectorAll("dialog:not([aria-labelledby])")];
  return [...nameless, ...tables, ...dialogs].map((e) => e.outerHTML.slice(0, 160));
}"""

# Where the focus is, and whether one could see that it is there.
FOCUSED = """() => {
  const at = document.activeElement;
  if (!at || at === document.body) return null;
  const all = [...document.querySelectorAll("*")], style = getComputedStyle(at);
  const { top, left, width, height } = at.getBoundingClientRect();
  return {
    place: all.indexOf(at),
    seen: width > 0 && height > 0 && (style.outlineStyle !== "none" || at.matches(".skip")),
    what: at.outerHTML.slice(0, 120),
    top: top + scrollY,
    left,
  };
}"""

MOST_STOPS = 60


def poor_contrast(page: Page) -> list[str]:
    """Texts of less than 4.5:1 against what lies below them."""
    return page.evaluate(CONTRAST)


def unnamed(page: Page) -> list[str]:
    """What a screen reader could not tell."""
    return page.evaluate(UNNAMED)


def focus_faults(page: Page) -> list[str]:
    """Tabs through the page: stops out of the document's order, or where no focus is seen."""
    page.evaluate("document.activeElement?.blur?.()")
    faults: list[str] = []
    before = -1
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUSED)
        if stop is None or stop["place"] < before:
            break  # once around
        before = stop["place"]
        if not stop["seen"]:
            faults.append(stop["what"])
    return faults if before >= 0 else ["nothing takes the focus"]
