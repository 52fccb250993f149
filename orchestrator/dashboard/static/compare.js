// Two runs' curves on one axis of steps, with one cursor that reads both.
import { controls } from "./controls.js";
import { get, Live } from "./live.js";
import { add, exact, onAxis, ticks, whole } from "./svg.js";

const LEFT = 48, RIGHT = 90, TOP = 8, BOTTOM = 20, HEIGHT = 380;
const section = document.getElementById("curves"), host = document.getElementById("chart-both");
const drawn = { metric: "loss", runs: [], cursor: null };

async function fetchBoth() {
  const names = [section.dataset.a, section.dataset.b];
  const found = await Promise.all(names.map(async (name) => (await get(`/runs/${encodeURIComponent(name)}/figures.json`)).json()));
  drawn.runs = found.map((figures, index) => ({ name: names[index], figures }));
  draw();
}

const mean = (run) => run.figures.series[drawn.metric].mean;
const points = (run) => run.figures.step.map((step, i) => [step, mean(run)[i]]).filter(([, value]) => value !== null);

// A steep start would flatten what follows: the highest twentieth is cut off where it is far above.
function range(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const [least, most, usual] = [sorted[0], sorted.at(-1), sorted[Math.floor(sorted.length * 0.95)]];
  const high = most - usual > 0.6 * (usual - least) && usual > least ? usual + 0.15 * (usual - least) : most;
  const room = (high - least || Math.abs(high) || 1) * 0.06;
  return [least - room, high + room];
}

function scale(width) {
  const all = drawn.runs.map(points);
  const last = Math.max(1, ...all.flat().map(([step]) => step));
  const [low, high] = range(all.flat().map(([, value]) => value));
  return {
    all, last, low, high,
    x: (step) => LEFT + (step / last) * (width - LEFT - RIGHT),
    y: (value) => TOP + (1 - (Math.min(value, high) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM),
  };
}

function draw() {
  const width = host.clientWidth;
  host.replaceChildren();
  const svg = add(host, "svg", { width, height: HEIGHT, "aria-hidden": "true" });
  if (!drawn.runs.some((run) => points(run).length)) {
    add(svg, "text", { x: LEFT, y: HEIGHT / 2 }, "Neither has completed a step yet.");
    return;
  }
  const on = (drawn.scale = scale(width));
  axes(svg, on, width);
  const ends = [];
  on.all.forEach((run, index) => {
    if (!run.length) return;
    const path = run.map(([step, value]) => `${on.x(step).toFixed(1)} ${on.y(value).toFixed(1)}`).join("L");
    add(svg, "path", { class: index ? "curve second" : "curve", d: `M${path}` });
    const [step, value] = run.at(-1);
    ends.push({ x: on.x(step) + 6, y: on.y(value) + 4, words: drawn.runs[index].name, index });
  });
  if (ends.length === 2 && Math.abs(ends[0].y - ends[1].y) < 14 && Math.abs(ends[0].x - ends[1].x) < 80) {
    const [upper, lower] = [...ends].sort((p, q) => p.y - q.y);
    upper.y -= 7;
    lower.y += 7;
  }
  for (const end of ends) add(svg, "text", { class: `strong halo${end.index ? " second" : ""}`, x: end.x, y: end.y }, end.words.slice(0, 13));
  drawn.layer = add(svg, "g", {});
  cursor();
}

function axes(svg, on, width) {
  const floor = HEIGHT - BOTTOM;
  const [rows, apart] = ticks(on.low, on.high, 6);
  for (const value of rows) {
    const y = Math.round(on.y(value)) + 0.5;
    add(svg, "line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y });
    add(svg, "text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, onAxis(value, apart));
  }
  add(svg, "line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: floor + 0.5, y2: floor + 0.5 });
  const [steps] = ticks(0, on.last, width < 500 ? 3 : 6);
  for (const step of steps) if (step % 1 === 0) add(svg, "text", { x: on.x(step), y: floor + 15, "text-anchor": "middle" }, whole(step));
}

// The values of both at the nearest step that each has, and how far they are apart.
function cursor() {
  const read = document.getElementById("read");
  drawn.layer?.replaceChildren();
  if (drawn.cursor === null || !drawn.scale) return;
  const on = drawn.scale, at = drawn.cursor, values = [];
  const line = Math.round(on.x(at)) + 0.5;
  add(drawn.layer, "line", { class: "cursor", x1: line, x2: line, y1: TOP, y2: HEIGHT - BOTTOM });
  on.all.forEach((run, index) => {
    const near = run.reduce((best, one) => (best && Math.abs(best[0] - at) <= Math.abs(one[0] - at) ? best : one), null);
    const width = drawn.runs[index].figures.width;
    if (!near || Math.abs(near[0] - at) > width) return values.push(null);
    values.push(near[1]);
    add(drawn.layer, "circle", { class: "cursor-dot", cx: on.x(near[0]), cy: on.y(near[1]), r: 3 });
  });
  const told = values.map((value, index) => `${drawn.runs[index].name} ${value === null ? "has none" : exact(value)}`);
  const apart = values.every((value) => value !== null) ? `, ${exact(Math.abs(values[0] - values[1]))} apart` : "";
  read.textContent = `step ${whole(at)}: ${told.join(", ")}${apart}`;
}

function listen() {
  const point = (step) => {
    drawn.cursor = Math.max(1, Math.min(drawn.scale?.last ?? 1, Math.round(step)));
    cursor();
  };
  host.addEventListener("pointermove", (event) => {
    if (!drawn.scale) return;
    const share = (event.clientX - host.getBoundingClientRect().left - LEFT) / (host.clientWidth - LEFT - RIGHT);
    point(share * drawn.scale.last);
  });
  host.addEventListener("keydown", (event) => {
    const last = drawn.scale?.last ?? 1, here = drawn.cursor ?? last;
    const stride = Math.max(1, Math.round(last / (event.shiftKey ? 20 : 200)));
    const next = { ArrowLeft: here - stride, ArrowRight: here + stride, Home: 1, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    point(next);
  });
  document.getElementById("metric").addEventListener("click", (event) => {
    const chosen = event.target.closest("button");
    if (!chosen) return;
    drawn.metric = chosen.dataset.metric;
    for (const button of document.querySelectorAll("#metric button")) button.setAttribute("aria-pressed", String(button === chosen));
    document.getElementById("h-curves").textContent = chosen.textContent[0].toUpperCase() + chosen.textContent.slice(1);
    draw();
  });
  new ResizeObserver(() => drawn.runs.length && draw()).observe(host);
}

const live = new Live({ alsoFetch: section ? fetchBoth : undefined });
controls(live);
if (section) {
  listen();
  fetchBoth().catch(() => live.soon());
}
