// Puts the page together: what is shown, what buttons and keys do, pictures that are dropped on it.

import { comparison } from "./compare.js";
import { paint, prepareComposer, readSettings, rememberSeed, startFromFile, startFromPicture, useSettings } from "./composer.js";
import { byId, say } from "./elements.js";
import { Gallery } from "./gallery.js";
import { Jobs, isActive } from "./jobs.js";
import { preparePainter } from "./painter.js";
import { ServerError, Unreachable, getJson, onKeyAsked, pictureAddress, request } from "./server.js";
import { Stage, duration, progressWords } from "./stage.js";

const jobs = new Jobs();
const stage = new Stage();
const gallery = new Gallery(choose);
let capabilities;
// The picture on the stage, {id, index}; and the one that a second is being chosen for.
let shown = null;
let comparing = null;

function render() {
  const job = shown && jobs.get(shown.id);
  gallery.show(jobs.all, shown && `${shown.id} ${shown.index}`);
  if (!comparing?.open) {
    if (job) stage.show(job, shown.index, actionsOf(job, shown.index));
    else stage.showEmpty();
  }
  const active = jobs.all.filter(isActive);
  if (active.length === 0 && document.activeElement === byId("cancel")) byId("generate").focus();
  byId("cancel").hidden = active.length === 0;
  byId("queue").replaceChildren(active.length > 1 ? `${active.length} jobs under way` : "");
  byId("older").hidden = !jobs.hasOlder;
  document.title = active[0]?.steps ? `${Math.floor((100 * active[0].step) / active[0].steps)} % · sanakit` : "sanakit";
}

function choose(id, index) {
  if (comparing && !comparing.open && jobs.get(id).images[index]) {
    compare(comparing, { id, index });
    return;
  }
  comparing = null;
  shown = { id, index };
  render();
  byId("stage").scrollIntoView({ block: "nearest" });
}

function actionsOf(job, index) {
  const offered = [["Use these settings", () => useJob(job, index)]];
  if (job.state === "done") {
    const { url } = job.images[index];
    if (capabilities.supports.img2img) offered.push(["Start from this", attempt(() => startFromPicture(url))]);
    if (capabilities.supports.inpaint) {
      offered.push(["Paint over", attempt(async () => {
        await startFromPicture(url);
        await paint();
      })]);
    }
    offered.push(["Compare", beginComparing], ["Download", attempt(() => download(job, index))]);
  }
  if (!isActive(job)) offered.push(["Delete", attempt(() => remove(job))]);
  return { offered, choose: (at) => choose(job.id, at) };
}

function useJob(job, index) {
  const missing = useSettings({ ...job.request, count: 1, seed: job.seeds[index] });
  byId("prompt").focus();
  say(`The form has the settings of this picture.${missing}`);
}

async function download(job, index) {
  const link = document.createElement("a");
  link.href = await pictureAddress(job.images[index].url);
  link.download = `sanakit-${job.seeds[index]}.png`;
  link.click();
}

async function remove(job) {
  const what = job.images.length > 1 ? `these ${job.images.length} pictures` : "this picture";
  if (!confirm(`Delete ${what} for good?`)) return;
  await jobs.remove(job.id);
  if (shown?.id === job.id) shown = null;
  render();
  byId("stage").focus();
  say("Deleted.");
}

function beginComparing() {
  comparing = { ...shown };
  say("Choose the picture to compare with from the history.");
  byId("gallery").querySelector("button:not([aria-current])")?.focus();
}

function compare(left, right) {
  comparing = { open: true };
  const sides = [left, right].map(({ id, index }) => ({ job: jobs.get(id), index }));
  stage.showInstead(comparison(...sides, () => {
    comparing = null;
    render();
  }));
  byId("stage").querySelector("input").focus();
}

async function generate(event) {
  event.preventDefault();
  const job = await jobs.submit(readSettings());
  comparing = null;
  shown = { id: job.id, index: 0 };
  say("");
  speak(progressWords(job));
  render();
  if (matchMedia("(max-width: 50rem)").matches) byId("stage").scrollIntoView();
}

/** Cancels the job that is shown, else the newest that is under way. */
async function cancel() {
  const job = shown && jobs.get(shown.id);
  const target = job && isActive(job) ? job : jobs.all.find(isActive);
  if (target) await jobs.cancel(target.id);
}

function ended(job) {
  if (job.state === "done") {
    rememberSeed(job.seeds[0]);
    const took = duration(job.finished_at - job.created_at);
    speak(`${job.images.length === 1 ? "The picture is" : `${job.images.length} pictures are`} done after ${took}.`);
  } else {
    speak(job.state === "failed" ? `It failed: ${job.error}` : "Cancelled.");
  }
}

function speak(text) {
  byId("spoken").replaceChildren(text);
}

/** Reads the settings inside a picture file; a file without any may be what to start from. */
async function restore(file) {
  try {
    const answer = await request("/settings", { method: "POST", body: file, headers: { "Content-Type": "image/png" } });
    const missing = useSettings(await answer.json());
    say(`The form has the settings of that picture.${missing}`);
    byId("prompt").focus();
  } catch (error) {
    if (!(error instanceof ServerError) || error.status === 401 || !capabilities.supports.img2img) throw error;
    await startFromFile(file);
    say(`${error.message} The next picture starts from it.`);
  }
}

/** The same function, whose errors are told to the user. */
function attempt(act) {
  return async (...given) => {
    try {
      await act(...given);
    } catch (error) {
      say(error.message, "error");
      if (!(error instanceof ServerError || error instanceof Unreachable)) console.error(error);
    }
  };
}

function listen() {
  byId("composer").addEventListener("submit", attempt(generate));
  byId("cancel").onclick = attempt(cancel);
  byId("older").onclick = attempt(() => jobs.loadOlder());
  byId("restore").onchange = attempt(async ({ target }) => {
    if (target.files[0]) await restore(target.files[0]);
    target.value = "";
  });
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("composer").requestSubmit();
    if (event.key === "Escape") attempt(cancel)();
  });
  listenToDrops();
}

function listenToDrops() {
  const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let inside = 0;
  const show = (change) => {
    inside = change === 0 ? 0 : inside + change;
    byId("drop").hidden = inside <= 0;
  };
  document.addEventListener("dragenter", (event) => carries(event) && show(1));
  document.addEventListener("dragleave", (event) => carries(event) && show(-1));
  document.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  document.addEventListener("drop", attempt(async (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    show(0);
    const [file] = event.dataTransfer.files;
    if (!file) return;
    if (event.target.closest?.("#start")) await startFromFile(file);
    else await restore(file);
  }));
}

function askForKey(problem) {
  const dialog = byId("key");
  byId("key-error").replaceChildren(problem);
  byId("key-value").value = "";
  dialog.returnValue = "";
  byId("key-cancel").onclick = () => dialog.close();
  dialog.showModal();
  return new Promise((done) => {
    dialog.onclose = () => done(dialog.returnValue === "use" ? byId("key-value").value : null);
  });
}

/** What the model can do, once it is loaded. */
async function loaded() {
  for (;;) {
    try {
      const found = await getJson("/capabilities");
      say("");
      return found;
    } catch (error) {
      if (error.status !== 503 && !(error instanceof Unreachable)) throw error;
      say(error.status === 503 ? "The model is being loaded…" : error.message);
      await new Promise((done) => setTimeout(done, 1000));
    }
  }
}

async function begin() {
  onKeyAsked(askForKey);
  preparePainter();
  stage.showEmpty();
  if (matchMedia("(max-width: 50rem)").matches) byId("settings").open = false;
  jobs.addEventListener("change", render);
  jobs.addEventListener("end", ({ detail }) => ended(detail));
  jobs.addEventListener("connection", ({ detail }) => {
    byId("connection").replaceChildren(detail ? "" : "Connection lost, trying again…");
  });
  capabilities = await loaded();
  byId("model").replaceChildren(capabilities.model);
  prepareComposer(capabilities);
  listen();
  await jobs.load();
  const first = jobs.all.find(isActive) ?? jobs.all[0];
  if (first) {
    shown = { id: first.id, index: 0 };
    render();
  }
}

attempt(begin)();
