// A run's page: follows the run's stream, draws its charts, keeps its log at the end.
import { Chart } from "./chart.js";
import { controls } from "./controls.js";
import { get, Live } from "./live.js";
import { exact, whole } from "./svg.js";
import { View } from "./view.js";

const FIND_MS = 300;
const SLOW_MS = 5000; // between two looks at a chart that is always sent whole
const run = document.getElementById("run").dataset;
const view = new View();
let lastFigures = 0;

async function fetchFigures() {
  const known = view.figures;
  if (known?.key.endsWith("whole") && Date.now() - lastFigures < SLOW_MS) return;
  const query = known ? `?key=${encodeURIComponent(known.key)}&after=${view.last}` : "";
  const path = `/runs/${encodeURIComponent(run.name)}/figures.json${query}`;
  view.take(await (await get(path)).json());
  lastFigures = Date.now();
}

function readout() {
  const line = document.getElementById("read");
  const usual = line.textContent;
  view.addEventListener("cursor", () => {
    if (view.cursor === null) return line.replaceChildren(usual);
    const { step, series } = view.figures;
    const at = step[view.cursor], attempt = view.attemptOf(at);
    const value = document.createElement("b");
    value.textContent = exact(series.loss.mean[view.cursor]);
    line.replaceChildren(`step ${whole(at)}: `, value);
    if (!attempt) return;
    line.append(`, attempt ${attempt.number}`);
    if (at <= attempt.replayed_to) line.append(again(attempt));
  });
}

function again(attempt) {
  const word = document.createElement("span");
  word.className = "again-word";
  word.textContent = attempt.identical ? ", trained twice, bit-identical" : ", trained twice";
  return word;
}

function zoomButtons() {
  const buttons = document.querySelectorAll("#zoom button");
  for (const button of buttons) button.addEventListener("click", () => view.show(Number(button.dataset.share)));
  view.addEventListener("change", () => {
    for (const button of buttons) {
      const pressed = !view.chosen && Number(button.dataset.share) === view.share;
      button.setAttribute("aria-pressed", String(pressed));
    }
  });
}

function lensButtons() {
  document.addEventListener("click", (event) => {
    const chosen = event.target.closest("button[data-lens]");
    if (!chosen) return;
    for (const button of document.querySelectorAll("button[data-lens]")) {
      button.setAttribute("aria-pressed", String(button === chosen));
    }
    for (const lens of document.querySelectorAll("[data-lens-view]")) {
      lens.hidden = lens.dataset.lensView !== chosen.dataset.lens;
    }
  });
}

// The log stays at its end while it is there; one that is not followed stays as it is.
function log(live) {
  const toEnd = () => {
    const lines = document.getElementById("log-lines");
    if (lines && !lines.hasAttribute("data-keep")) lines.scrollTop = lines.scrollHeight;
  };
  let atEnd = true;
  live.onPage = () => atEnd && toEnd();
  document.addEventListener("scroll", (event) => {
    const lines = event.target;
    if (lines.id === "log-lines") atEnd = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 24;
  }, true);
  document.getElementById("follow").addEventListener("click", (event) => {
    const followed = event.target.getAttribute("aria-pressed") !== "true";
    event.target.setAttribute("aria-pressed", String(followed));
    document.getElementById("log-lines")?.toggleAttribute("data-keep", !followed);
  });
  find(live);
  toEnd();
}

// What is looked for stands in the address, so that a look, a reload and a link show the same.
function find(live) {
  const form = document.getElementById("log-find");
  let timer = null;
  const look = () => {
    const asked = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
    history.replaceState(null, "", `${location.pathname}${asked.size ? `?${asked}` : ""}#log`);
    live.soon();
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    look();
  });
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, FIND_MS);
  });
}

// A link to evidence opens it.
function openTarget() {
  const told = location.hash && document.getElementById(location.hash.slice(1))?.querySelector("details");
  if (told) told.open = true;
}

for (const host of document.querySelectorAll("[data-chart]")) new Chart(host, view);
readout();
zoomButtons();
lensButtons();
const live = new Live({ stream: `/api/v1/runs/${encodeURIComponent(run.run)}/stream`, alsoFetch: fetchFigures });
controls(live);
log(live);
fetchFigures().catch(() => live.soon());
window.addEventListener("hashchange", openTarget);
openTarget();
