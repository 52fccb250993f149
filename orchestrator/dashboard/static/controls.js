// What every page can do: change its theme and its times, open dialogs, and ask the API for things.

const YEAR_S = 31_536_000;

export function controls(live) {
  theme();
  times();
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-open]");
    if (opener && document.documentElement.dataset.link !== "lost") open(opener);
    event.target.closest("[data-close]")?.closest("dialog").close();
  });
  document.addEventListener("input", (event) => {
    const form = event.target.closest("form[data-name]");
    if (form) form.querySelector(".danger").disabled = form.querySelector("[data-confirm]").value !== form.dataset.name;
  });
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-post]");
    if (!form) return;
    event.preventDefault();
    ask(form, live);
  });
}

// One dialog can serve many buttons: each says what it is about, and what is sent for it.
function open(opener) {
  const dialog = document.getElementById(opener.dataset.open);
  if (!dialog) return;
  const form = dialog.querySelector("form");
  form.reset();
  form.querySelector(".wrong").hidden = true;
  for (const name of ["post", "body", "name"]) {
    if (opener.dataset[name] !== undefined) form.dataset[name] = opener.dataset[name];
  }
  for (const [name, words] of Object.entries(JSON.parse(opener.dataset.say ?? "{}"))) {
    for (const place of dialog.querySelectorAll(`[data-say="${name}"]`)) place.textContent = words;
  }
  if (form.dataset.name) form.querySelector(".danger").disabled = true;
  dialog.showModal();
}

async function ask(form, live) {
  const button = form.querySelector("button:not([data-close])");
  button.disabled = true;
  const body = { ...JSON.parse(form.dataset.body ?? "{}"), ...given(form) };
  const [answer, wrong] = await call(form.dataset.post, form.dataset.method ?? "POST", body);
  button.disabled = false;
  const line = form.querySelector(".wrong");
  line.textContent = wrong ?? "";
  line.hidden = wrong === null;
  if (wrong !== null) return;
  const shown = form.querySelector("[data-answer]");
  if (shown) reveal(form, shown, answer);
  else form.closest("dialog").close();
  live.soon();
}

// A secret that is told once stays until it is closed.
function reveal(form, shown, answer) {
  shown.hidden = false;
  shown.querySelector("code").textContent = answer[shown.dataset.answer];
  for (const part of form.querySelectorAll("label, button:not([data-close])")) part.hidden = true;
  form.querySelector("[data-close]").textContent = "Close";
  form.closest("dialog").addEventListener("close", () => location.reload(), { once: true });
}

// What was filled in, by name; what was left empty is left out.
function given(form) {
  const found = {};
  for (const { name, value, type } of form.elements) {
    if (name && value !== "") found[name] = type === "number" ? Number(value) : value;
  }
  return found;
}

// [answer, null] when it was accepted, else [problem, what is wrong and what to do].
export async function call(url, method, body, more = {}) {
  const csrf = document.querySelector('meta[name="longhaul-csrf"]').content;
  const headers = { "X-CSRF-Token": csrf, "Content-Type": "application/json", ...more };
  try {
    const sent = method === "DELETE" ? {} : { body: JSON.stringify(body) };
    const answer = await fetch(url, { method, headers, ...sent });
    const told = await answer.json().catch(() => ({}));
    if (answer.ok) return [told, null];
    const detail = told.detail ?? `The service answered ${answer.status}.`;
    return [told, told.hint ? `${detail} ${told.hint}` : detail];
  } catch {
    return [{}, "The service did not answer; nothing may have changed. Try again when the page is live."];
  }
}

function theme() {
  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    const next = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
    root.dataset.theme = next;
    document.cookie = `longhaul_theme=${next}; path=/; max-age=${YEAR_S}; samesite=strict`;
  });
}

function times() {
  const button = document.getElementById("times");
  button.addEventListener("click", () => {
    const absolute = document.documentElement.dataset.times !== "abs";
    document.documentElement.dataset.times = absolute ? "abs" : "rel";
    button.setAttribute("aria-pressed", String(absolute));
  });
}
