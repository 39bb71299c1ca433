// All jobs that the page knows, newest first, kept up to date: a reload or a lost connection resumes.

import { Unreachable, ServerError, events, getJson, postJson, request } from "./server.js";

const PAGE = 24;
// A browser opens six connections to a server at most, and some must stay free.
const STREAMS = 3;
const REFRESH = 3000;

export function isActive(job) {
  return job.state === "queued" || job.state === "running";
}

/** Tells of "change" (detail: the job, or null where many changed), "end" (a job) and "connection" (a boolean). */
export class Jobs extends EventTarget {
  #jobs = new Map();
  #streams = new Map();
  #connected = true;
  hasOlder = false;

  get all() {
    return [...this.#jobs.values()].sort((a, b) => b.created_at - a.created_at || (a.id < b.id ? 1 : -1));
  }

  get(id) {
    return this.#jobs.get(id);
  }

  /** Reads the newest jobs, and watches those that are not finished. */
  async load() {
    const jobs = await getJson(`/jobs?limit=${PAGE}`);
    this.hasOlder = jobs.length === PAGE;
    jobs.forEach((job) => this.#take(job));
    this.#tell("change", null);
    this.#follow();
    setInterval(() => this.#refresh(), REFRESH);
    document.addEventListener("visibilitychange", () => this.#refresh());
  }

  async loadOlder() {
    const jobs = await getJson(`/jobs?limit=${PAGE}&before=${encodeURIComponent(this.all.at(-1).id)}`);
    this.hasOlder = jobs.length === PAGE;
    jobs.forEach((job) => this.#take(job));
    this.#tell("change", null);
  }

  async submit(settings) {
    // The server takes a key once: a request whose answer was lost is not drawn twice.
    const once = { "Idempotency-Key": Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-") };
    let job;
    try {
      job = await postJson("/jobs", settings, once);
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      job = await postJson("/jobs", settings, once);
    }
    this.#update(job);
    this.#follow();
    return this.get(job.id);
  }

  async cancel(id) {
    this.#update(await postJson(`/jobs/${id}/cancel`, {}));
  }

  async remove(id) {
    await request(`/jobs/${id}`, { method: "DELETE" });
    this.#streams.get(id)?.abort();
    this.#jobs.delete(id);
    this.#tell("change", null);
  }

  #tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  #take(job) {
    this.#jobs.set(job.id, { previews: [], ...this.#jobs.get(job.id), ...job });
  }

  #update(job) {
    const before = this.get(job.id);
    this.#take(job);
    this.#tell("change", this.get(job.id));
    if (before && isActive(before) && !isActive(job)) this.#tell("end", this.get(job.id));
  }

  #online(connected) {
    if (connected === this.#connected) return;
    this.#connected = connected;
    this.#tell("connection", connected);
  }

  /** Opens streams for the oldest unfinished jobs; the others wait for one to end. */
  #follow() {
    const unwatched = this.all.filter((job) => isActive(job) && !this.#streams.has(job.id)).reverse();
    for (const job of unwatched.slice(0, STREAMS - this.#streams.size)) this.#watch(job.id);
  }

  async #watch(id) {
    const stop = new AbortController();
    this.#streams.set(id, stop);
    let after = 0;
    let wait = 250;
    while (!stop.signal.aborted && this.get(id) && isActive(this.get(id))) {
      try {
        for await (const event of events(`/jobs/${id}/events`, after, stop.signal)) {
          after = event.number;
          wait = 250;
          this.#online(true);
          await this.#heed(id, event);
        }
        await this.#ask(id);
      } catch (error) {
        if (error instanceof ServerError && error.status === 404) this.#forget(id);
        // A server that was away may have begun again, and counts its events anew.
        if (error instanceof Unreachable) after = 0;
        if (!(error instanceof ServerError)) this.#online(stop.signal.aborted);
      }
      await new Promise((done) => setTimeout(done, wait));
      wait = Math.min(2 * wait, 8000);
    }
    this.#streams.delete(id);
    this.#follow();
  }

  async #heed(id, { kind, data }) {
    const job = this.get(id);
    if (!job) return;
    if (kind === "step") {
      this.#update({ ...job, ...data, state: "running" });
    } else if (kind === "preview") {
      job.previews[data.index ?? 0] = `data:image/jpeg;base64,${data.image}`;
      this.#tell("change", job);
    } else {
      await this.#ask(id);
    }
  }

  async #ask(id) {
    const job = await getJson(`/jobs/${id}`);
    this.#online(true);
    this.#update(job);
  }

  #forget(id) {
    this.#jobs.delete(id);
    this.#tell("change", null);
  }

  /** Learns of what other pages began, and of the places of jobs that no stream tells of. */
  async #refresh() {
    if (document.hidden) return;
    try {
      const jobs = await getJson(`/jobs?limit=${PAGE}`);
      this.#online(true);
      for (const job of jobs) {
        if (!this.#streams.has(job.id) && changed(this.get(job.id), job)) this.#update(job);
      }
      this.#follow();
    } catch (error) {
      if (error instanceof Unreachable) this.#online(false);
    }
  }
}

function changed(before, job) {
  return !before || before.state !== job.state || before.position !== job.position;
}
