// Keeps the page true: at most one look a second, and plain words when there is no contact.
import { morph } from "./morph.js";

const AT_MOST_MS = 1000;
const POLL_MS = 2000;
const STREAMING_POLL_MS = 10_000; // a stream can hang without an error
const STREAM_AGAIN_MS = 10_000;
const COST_FACTOR = 4; // a slow service is asked less often
const TIMEOUT_MS = 8000;
const EVENTS = ["message", "run", "steps", "attempt", "attempts", "incident", "incidents", "log"];

export class Live {
  constructor({ stream = null, alsoFetch = async () => {} } = {}) {
    this.streamUrl = stream;
    this.alsoFetch = alsoFetch;
    this.streaming = false;
    this.lastLook = 0;
    this.cost = 0; // milliseconds that the last look took
    this.timer = null;
    this.looking = false;
    this.again = false;
    if (stream) this.listen();
    setInterval(() => {
      const due = Math.max(this.streaming ? STREAMING_POLL_MS : POLL_MS, this.cost * COST_FACTOR);
      if (Date.now() - this.lastLook >= due - AT_MOST_MS / 2) this.soon();
    }, POLL_MS);
    document.addEventListener("visibilitychange", () => document.hidden || this.soon());
  }

  listen() {
    const source = new EventSource(this.streamUrl);
    source.addEventListener("open", () => {
      this.streaming = true;
      this.soon();
    });
    source.addEventListener("error", () => {
      this.streaming = false;
      if (source.readyState === EventSource.CLOSED) setTimeout(() => this.listen(), STREAM_AGAIN_MS);
    });
    source.addEventListener("end", () => {
      source.close(); // the run is over; it may be resumed, so listen again later
      this.soon();
      setTimeout(() => this.listen(), STREAM_AGAIN_MS);
    });
    for (const name of EVENTS) source.addEventListener(name, () => this.soon());
    window.addEventListener("pagehide", () => source.close());
  }

  // Asks for a look as soon as the last one is a second old.
  soon() {
    if (this.looking) this.again = true;
    if (this.looking || this.timer !== null || document.hidden) return;
    const apart = Math.max(AT_MOST_MS, this.cost * COST_FACTOR);
    const wait = Math.max(0, this.lastLook + apart - Date.now());
    this.timer = setTimeout(() => this.look(), wait);
  }

  async look() {
    this.timer = null;
    this.looking = true;
    this.again = false;
    const began = Date.now();
    try {
      await this.fetchPage();
      await this.alsoFetch();
      this.cost = Date.now() - began;
      contact();
    } catch (error) {
      noContact(error);
    }
    this.looking = false;
    this.lastLook = Date.now();
    if (this.again) this.soon();
  }

  async fetchPage() {
    const html = await (await get(location.pathname + location.search)).text();
    const fresh = new DOMParser().parseFromString(html, "text/html");
    document.title = fresh.title;
    for (const part of ["#main", "nav.places"]) morph(document.querySelector(part), fresh.querySelector(part));
    document.getElementById("live-at").textContent = fresh.getElementById("live-at").textContent;
    this.onPage?.();
  }
}

export async function get(url) {
  const answer = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (!answer.ok) throw new Refusal(answer.status);
  return answer;
}

class Refusal extends Error {
  constructor(status) {
    super(`the service answered ${status}`);
    this.status = status;
  }
}

function contact() {
  delete document.documentElement.dataset.link;
  document.getElementById("lost").hidden = true;
}

function noContact(error) {
  const at = document.getElementById("live-at").textContent;
  const what = document.getElementById("lost-what"), why = document.getElementById("lost-why");
  document.documentElement.dataset.link = "lost";
  if (error.status === 401) {
    what.textContent = "Signed out";
    why.textContent = "The session is over. Run longhaul link on the service's machine and open the link that it prints.";
  } else {
    what.textContent = "Connection lost";
    why.textContent = `Numbers are from ${at} UTC. Trying again every 2 s${error.status ? ` (${error.message})` : ""}. Training goes on without this page and without the service: agents keep what they see and deliver it later.`;
  }
  document.getElementById("lost").hidden = false;
}
