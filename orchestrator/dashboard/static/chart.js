// One step chart: attempts shaded in turn, what was trained twice hatched, a cursor to read with.
import { add, exact, onAxis, ticks, whole } from "./svg.js";

const LEFT = 48, RIGHT = 12, BOTTOM = 20;
const LAST = {
  loss: exact,
  grad_norm: exact,
  learning_rate: (value) => value.toExponential(2).replace("e-", "e−"),
  throughput: (value) => `${whole(value)} tok/s`,
  step_time: seconds,
  data_wait: seconds,
};

function seconds(value) {
  return value < 1 ? `${(value * 1000).toPrecision(3)} ms` : `${value.toPrecision(3)} s`;
}

export class Chart {
  constructor(host, view) {
    this.host = host;
    this.view = view;
    this.name = host.dataset.chart;
    this.big = this.name === "loss";
    this.top = this.big ? 34 : 6;
    view.addEventListener("change", () => this.draw());
    view.addEventListener("cursor", () => this.drawCursor());
    new ResizeObserver(() => this.draw()).observe(host);
    this.listen();
  }

  get series() {
    return this.view.figures.series[this.name];
  }

  x(step) {
    const [first, last] = this.view.window;
    return LEFT + ((step - first) / (last - first)) * (this.width - LEFT - RIGHT);
  }

  stepAt(clientX) {
    const [first, last] = this.view.window;
    const share = (clientX - this.host.getBoundingClientRect().left - LEFT) / (this.width - LEFT - RIGHT);
    return first + Math.max(0, Math.min(1, share)) * (last - first);
  }

  y(value) {
    const [low, high] = this.range;
    const share = (Math.min(value, high) - low) / (high - low);
    return this.top + (1 - share) * (this.height - this.top - BOTTOM);
  }

  draw() {
    this.width = this.host.clientWidth;
    if (!this.width || !this.view.figures) return;
    this.height = this.big ? (this.width < 600 ? 260 : 340) : 132;
    this.svg?.remove();
    this.svg = add(this.host, "svg", { width: this.width, height: this.height, "aria-hidden": "true" });
    const shown = this.shown();
    if (!shown.length) {
      add(this.svg, "text", { x: LEFT, y: this.height / 2 }, "No step is complete yet.");
      return;
    }
    this.range = this.fit(shown);
    this.drawAxes();
    this.drawAttempts();
    this.drawCurve(shown);
    if (this.big) this.drawEvals();
    this.drawLast();
    this.layer = add(this.svg, "g", {});
    this.drawCursor();
  }

  // Indices of the columns in the window that have a value.
  shown() {
    const [first, last] = this.view.window;
    const { step } = this.view.figures;
    const found = [];
    for (let i = 0; i < step.length; i++) {
      if (step[i] >= first && step[i] <= last && this.series.mean[i] !== null) found.push(i);
    }
    return found;
  }

  // A steep start would flatten everything after it: then the window is cut and says from where.
  fit(shown) {
    const { mean, low, high } = this.series;
    const tops = shown.map((i) => high[i] ?? mean[i]);
    const least = Math.min(...shown.map((i) => low[i] ?? mean[i]));
    const most = Math.max(...tops);
    const usual = [...tops].sort((a, b) => a - b)[Math.floor(tops.length * 0.93)];
    this.cut = this.big && most - usual > 0.6 * (usual - least);
    const ceiling = this.cut ? usual + 0.15 * (usual - least) : most;
    const room = (ceiling - least || Math.abs(ceiling) || 1) * 0.06;
    if (this.big || least < 0) return [least - room, ceiling + room];
    const calm = 0.12 * most; // so that the noise of a steady value does not look like news
    return [Math.max(0, least - calm), Math.max(ceiling + room, least + calm)];
  }

  drawAxes() {
    const [low, high] = this.range;
    const floor = this.height - BOTTOM;
    const [rows, apart] = ticks(low, high, this.big ? 5 : 3);
    for (const value of rows) {
      const y = Math.round(this.y(value)) + 0.5;
      add(this.svg, "line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y });
      add(this.svg, "text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, onAxis(value, apart));
    }
    add(this.svg, "line", { class: "axis", x1: LEFT, x2: this.width - RIGHT, y1: floor + 0.5, y2: floor + 0.5 });
    const [steps] = ticks(...this.view.window, this.width < 500 ? 3 : 6);
    for (const step of steps) {
      if (step % 1 === 0) add(this.svg, "text", { x: this.x(step), y: floor + 15, "text-anchor": "middle" }, whole(step));
    }
  }

  drawAttempts() {
    const { attempts } = this.view.figures;
    const [first, last] = this.view.window;
    const floor = this.height - BOTTOM;
    let free = -Infinity;
    attempts.forEach((attempt, index) => {
      const from = Math.max(attempt.resumed_from, first);
      const next = attempts[index + 1]?.resumed_from ?? Infinity;
      if (next <= attempt.resumed_from) return; // none of its steps count: it drew nothing
      const to = Math.min(next, last);
      if (from > to || attempt.resumed_from > last) return;
      const x = this.x(from), band = Math.max(this.x(to) - x, 0);
      if (index % 2) add(this.svg, "rect", { class: "band", x, y: this.top, width: band, height: floor - this.top });
      if (index && attempt.resumed_from >= first) this.drawResume(attempt, x, floor);
      if (!this.big || x < free) return;
      const words = this.width < 600 ? `${attempt.number}` : `attempt ${attempt.number}`;
      const more = this.width < 600 ? "" : fidelity(attempt);
      const left = x + (index ? 6 : 0);
      add(this.svg, "text", { class: "strong", x: left, y: 11 }, words);
      add(this.svg, "text", { x: left, y: 25 }, more);
      free = x + 2 + Math.max(words.length, more.length) * 6.2 + 10;
    });
  }

  drawResume(attempt, x, floor) {
    const end = this.x(Math.min(attempt.replayed_to, this.view.window[1]));
    if (this.big && attempt.replayed_to > attempt.resumed_from) {
      const box = { x, y: this.top, width: Math.max(end - x, 2), height: floor - this.top };
      add(this.svg, "rect", { class: "again", ...box });
    }
    const line = Math.round(x) + 0.5;
    add(this.svg, "line", { class: "resume", x1: line, x2: line, y1: this.big ? 0 : this.top, y2: floor });
  }

  drawCurve(shown) {
    const { step } = this.view.figures;
    const { mean, low, high } = this.series;
    if (low.length) {
      const above = shown.map((i) => `${this.x(step[i]).toFixed(1)} ${this.y(high[i] ?? mean[i]).toFixed(1)}`);
      const below = shown.map((i) => `${this.x(step[i]).toFixed(1)} ${this.y(low[i] ?? mean[i]).toFixed(1)}`);
      add(this.svg, "path", { class: "spread", d: `M${above.join("L")}L${below.reverse().join("L")}Z` });
    }
    const line = shown.map((i) => `${this.x(step[i]).toFixed(1)} ${this.y(mean[i]).toFixed(1)}`);
    add(this.svg, "path", { class: this.big ? "curve" : "line-thin", d: `M${line.join("L")}` });
    if (!this.cut) return;
    const from = shown.reduce((best, i) => (mean[i] > mean[best] ? i : best), shown[0]);
    const words = `↑ from ${exact(mean[from])} at step ${whole(step[from])}`;
    add(this.svg, "text", { class: "halo", x: this.x(step[from]) + 14, y: this.top + 12 }, words);
  }

  drawEvals() {
    const [first, last] = this.view.window;
    for (const [step, loss] of this.view.figures.evals) {
      if (step < first || step > last || loss > this.range[1] || loss < this.range[0]) continue;
      const [x, y] = [this.x(step), this.y(loss)];
      const dot = add(this.svg, "path", { class: "eval", d: `M${x} ${y - 4.5}L${x + 4.5} ${y}L${x} ${y + 4.5}L${x - 4.5} ${y}Z` });
      add(dot, "title", {}, `held-out loss ${exact(loss)} at step ${whole(step)}`);
    }
  }

  drawLast() {
    const { step } = this.view.figures;
    const mean = this.series.mean;
    const i = mean.findLastIndex((value) => value !== null);
    const said = document.querySelector(`[data-last="${this.name}"]`);
    const bold = document.createElement("b");
    bold.textContent = LAST[this.name](mean[i]);
    said.replaceChildren(bold, this.big ? ` at step ${whole(step[i])}` : "");
    this.host.setAttribute("aria-label", `${this.name.replace("_", " ")} by step, now ${bold.textContent} at step ${whole(step[i])}. Use the arrow keys to read values.`);
    const [x, y] = [this.x(step[i]), this.y(mean[i])];
    if (x <= this.width) add(this.svg, "circle", { class: "dot", cx: x, cy: y, r: 2.6 });
  }

  drawCursor() {
    if (!this.layer) return;
    this.layer.replaceChildren();
    const { cursor, figures } = this.view;
    if (cursor === null) return;
    const step = figures.step[cursor], value = this.series.mean[cursor];
    const x = this.x(step);
    if (x < LEFT - 1 || x > this.width) return;
    const line = Math.round(x) + 0.5;
    add(this.layer, "line", { class: "cursor", x1: line, x2: line, y1: this.top, y2: this.height - BOTTOM });
    if (value === null) return;
    const y = this.y(value);
    add(this.layer, "circle", { class: "cursor-dot", cx: x, cy: y, r: 3 });
    if (this.big) return;
    const flip = x > this.width - 70;
    const place = { x: x + (flip ? -7 : 7), y: Math.max(y - 7, this.top + 9), "text-anchor": flip ? "end" : "start" };
    add(this.layer, "text", { class: "strong halo", ...place }, LAST[this.name](value));
  }

  listen() {
    const { host, view } = this;
    let from = null, box = null;
    host.addEventListener("pointermove", (event) => {
      if (!view.figures?.step.length) return;
      view.point(view.at(this.stepAt(event.clientX)));
      if (from === null) return;
      const [a, b] = [this.x(from), this.x(this.stepAt(event.clientX))].sort((p, q) => p - q);
      box ??= add(this.svg, "rect", { class: "chosen", y: this.top, height: this.height - this.top - BOTTOM });
      box.setAttribute("x", a);
      box.setAttribute("width", b - a);
    });
    host.addEventListener("pointerleave", () => view.point(null));
    host.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && view.figures) from = this.stepAt(event.clientX);
    });
    window.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const range = [from, this.stepAt(event.clientX)].map(Math.round).sort((a, b) => a - b);
      const far = Math.abs(this.x(range[1]) - this.x(range[0])) > 8;
      from = null;
      box?.remove();
      box = null;
      if (far) view.zoom(range);
    });
    host.addEventListener("keydown", (event) => this.key(event));
    host.addEventListener("blur", () => view.point(null));
  }

  key(event) {
    const { view } = this;
    if (event.key === "Escape") view.zoom(null);
    if (!view.figures?.step.length || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    event.preventDefault();
    const [first, last] = view.window;
    const [a, b] = [view.at(first), view.at(last)];
    const stride = event.shiftKey ? 10 : 1;
    const here = view.cursor ?? b;
    const next = { ArrowLeft: here - stride, ArrowRight: here + stride, Home: a, End: b }[event.key];
    view.point(Math.max(a, Math.min(b, next)));
  }
}

function fidelity(attempt) {
  if (!attempt.resumed_from) return "from step 0";
  const from = `from ${whole(attempt.resumed_from)}`;
  if (attempt.identical === true) return `${from}, bit-identical`;
  if (attempt.identical === false) return `${from}, replay differs`;
  return from;
}
