// What every page can do: change its theme and its times, open dialogs, and ask the API for things.

const YEAR_S = 31_536_000;

export function controls(live) {
  theme();
  times();
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-open]");
    if (opener && document.documentElement.dataset.link !== "lost") open(opener.dataset.open);
    event.target.closest("[data-close]")?.closest("dialog").close();
  });
  document.addEventListener("input", (event) => {
    const form = event.target.closest("form[data-name]");
    if (form) form.querySelector(".danger").disabled = event.target.value !== form.dataset.name;
  });
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-post]");
    if (!form) return;
    event.preventDefault();
    ask(form, live);
  });
}

function open(id) {
  const dialog = document.getElementById(id);
  if (!dialog) return;
  dialog.querySelector(".wrong").hidden = true;
  dialog.showModal();
}

async function ask(form, live) {
  const button = form.querySelector("button:not([data-close])");
  button.disabled = true;
  const wrong = await post(form.dataset.post);
  button.disabled = false;
  if (wrong === null) {
    form.closest("dialog").close();
    live.soon();
    return;
  }
  const line = form.querySelector(".wrong");
  line.textContent = wrong;
  line.hidden = false;
}

// Null when it was accepted, else what is wrong and what to do.
async function post(url) {
  const csrf = document.querySelector('meta[name="longhaul-csrf"]').content;
  const headers = { "X-CSRF-Token": csrf, "Content-Type": "application/json" };
  try {
    const answer = await fetch(url, { method: "POST", headers, body: "{}" });
    if (answer.ok) return null;
    const problem = await answer.json().catch(() => ({}));
    const detail = problem.detail ?? `The service answered ${answer.status}.`;
    return problem.hint ? `${detail} ${problem.hint}` : detail;
  } catch {
    return "The service did not answer; nothing may have changed. Try again when the page is live.";
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
