// The form of a spec: checked by the service as it is typed, and sent as JSON.
import { call, controls } from "./controls.js";
import { exact, whole } from "./svg.js";

const CHECK_MS = 350;
const form = document.getElementById("spec-form"), told = document.getElementById("preflight");
const send = document.getElementById("send");
const key = [...crypto.getRandomValues(new Uint8Array(16))].map((one) => one.toString(16).padStart(2, "0")).join("");
let timer = null, turn = 0;

// What is filled in and counts, as the nested object that a spec is.
function spec() {
  const made = {};
  for (const input of form.querySelectorAll(".field :is(input, select)")) {
    if (input.closest("[data-variant][hidden]") || input.value === "") continue;
    put(made, input.closest(".field").dataset.path.split("."), read(input));
  }
  return made;
}

function put(made, path, value) {
  const last = path.pop();
  let here = made;
  for (const name of path) here = here[name] ??= {};
  here[last] = value;
}

// What cannot be read is sent as it is: the service says what is wrong with it.
function read({ value, dataset }) {
  if (dataset.as === "number") return Number.isNaN(Number(value)) ? value : Number(value);
  if (dataset.as !== "json") return value;
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}

function variants() {
  for (const part of form.querySelectorAll("[data-variant]")) {
    const [path, kind] = part.dataset.variant.split("=");
    part.hidden = form.querySelector(`[data-kind="${path}"]`).value !== kind;
  }
}

async function check() {
  const mine = ++turn;
  const [answer, wrong] = await call("/api/v1/runs:preflight", "POST", spec());
  if (mine !== turn) return; // something was typed meanwhile
  show(answer, wrong);
}

function show(answer, wrong) {
  clear();
  send.disabled = wrong !== null;
  if (wrong === null) return told.replaceChildren(facts(answer));
  const left = (answer.errors ?? []).filter((error) => !mark(error));
  const line = document.createElement("p");
  line.className = "wrong";
  const name = !answer.errors?.length && /name/.test(answer.type ?? "") ? mark({ pointer: "/name", detail: wrong }) : false;
  line.textContent = name ? "The name is taken." : wrong;
  told.replaceChildren(line, ...left.map(item));
}

function clear() {
  for (const field of form.querySelectorAll(".field")) {
    const line = field.querySelector(".wrong");
    line.hidden = true;
    line.textContent = "";
    field.querySelector("input, select").removeAttribute("aria-invalid");
  }
}

// Says what is wrong beside the field, or beside the nearest group above it; false where there is none.
function mark({ pointer, detail, hint }) {
  const path = pointer.split("/").slice(1);
  while (path.length) {
    const found = [...form.querySelectorAll(`.field[data-path="${CSS.escape(path.join(".")).replaceAll("\\.", ".")}"]`)].find(
      (field) => !field.closest("[data-variant][hidden]"),
    );
    if (found) {
      const line = found.querySelector(".wrong");
      line.textContent = hint ? `${detail} ${hint}` : detail;
      line.hidden = false;
      found.querySelector("input, select").setAttribute("aria-invalid", "true");
      for (let part = found.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
      return true;
    }
    path.pop();
  }
  return false;
}

function item({ pointer, detail, hint }) {
  const line = document.createElement("p");
  line.className = "wrong";
  line.textContent = `${pointer.slice(1).replaceAll("/", ".") || "The spec"}: ${detail}${hint ? ` ${hint}` : ""}`;
  return line;
}

const size = (bytes) => {
  const [unit, by] = [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]].find(([, by]) => bytes >= by) ?? ["B", 1];
  return `${Number((bytes / by).toPrecision(3))} ${unit}`;
};

function facts(answer) {
  const list = document.createElement("dl");
  list.className = "facts";
  const rows = [
    ["It fits", "every check passed"],
    answer.parameters && ["Parameters", whole(answer.parameters)],
    answer.total_tokens && ["Tokens", whole(answer.total_tokens)],
    answer.memory_per_device_bytes && ["Memory a device", `${size(answer.memory_per_device_bytes)}: ${answer.memory_arithmetic}`],
    answer.storage_bytes && ["Checkpoints", `${whole(answer.checkpoints)}, ${size(answer.storage_bytes)} in all`],
    ["Time, without stops", answer.hours ? `${exact(answer.hours)} h: ${answer.hours_arithmetic}` : "not known"],
    ["Cost, without stops", answer.cost === null ? "no price is set" : `${answer.cost.toFixed(2)} ${answer.currency}: ${answer.cost_arithmetic}`],
    ...(answer.notes ?? []).map((note) => ["Note", note]),
  ];
  for (const row of rows.filter(Boolean)) {
    for (const [tag, words] of [["dt", row[0]], ["dd", row[1]]]) {
      const cell = document.createElement(tag);
      cell.textContent = words;
      list.append(cell);
    }
  }
  return list;
}

form.addEventListener("input", () => {
  variants();
  send.disabled = true;
  clearTimeout(timer);
  timer = setTimeout(check, CHECK_MS);
});
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  clearTimeout(timer);
  send.disabled = true;
  turn++;
  const body = spec();
  const [answer, wrong] = await call("/api/v1/runs", "POST", body, { "Idempotency-Key": `${key}-${body.name}` });
  if (wrong === null) location.assign(`/runs/${encodeURIComponent(answer.name)}`);
  else show(answer, wrong);
});
controls({ soon() {} });
variants();
check();
