// The large picture: what is being drawn with its progress, or a finished picture with what can be done with it.

import { byId, element } from "./elements.js";
import { isActive } from "./jobs.js";
import { pictureAddress } from "./server.js";

/** How far a job is, in words. */
export function progressWords(job) {
  if (job.state === "queued") {
    const before = job.position ?? 0;
    if (before === 0) return "Next in the queue";
    return before === 1 ? "Queued, 1 job before it" : `Queued, ${before} jobs before it`;
  }
  if (job.step === 0) return "Beginning";
  // Steps are those of all its pictures, one after the other.
  const steps = job.steps / job.seeds.length;
  const picture = Math.ceil(job.step / steps);
  const which = job.seeds.length > 1 ? `Picture ${picture} of ${job.seeds.length}, step` : "Step";
  const left = job.eta_seconds ? `, about ${duration(job.eta_seconds)} left` : "";
  return `${which} ${job.step - (picture - 1) * steps} of ${steps}${left}`;
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** Names and values that made a picture, for people: [["Seed", "7"], ...]. */
export function facts(job, index) {
  const image = job.images[index];
  const { request } = job;
  const size = image ?? request;
  return [
    ["Seed", job.seeds[index]],
    ["Size", size.width ? `${size.width} × ${size.height}` : null],
    ["Steps", request.num_steps ?? (job.steps ? job.steps / job.seeds.length : null)],
    ["Guidance", request.guidance_scale],
    ["Solver", request.solver],
    ["LoRA", request.lora.join(", ")],
    ["Started from", request.edit ? `a picture, strength ${request.edit.strength ?? "as usual"}` : null],
    ["Kept out", request.negative_prompt],
  ]
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => [name, String(value)]);
}

/** Replaces what is on the stage; a button that had the focus gives it to the one of the same name. */
function replaceKeepingFocus(parts) {
  const name = (button) => button.getAttribute("aria-label") ?? button.textContent;
  const focused = byId("stage").contains(document.activeElement) ? name(document.activeElement) : null;
  byId("stage").replaceChildren(...parts);
  if (focused === null) return;
  const same = [...byId("stage").querySelectorAll("button")].find((button) => name(button) === focused);
  (same ?? byId("stage")).focus();
}

/** Shows one image of a job; `actions` are [label, function] of what can be done with it. */
export class Stage {
  #shown = null;

  /** Shows nothing but what to do first. */
  showEmpty() {
    this.#shown = null;
    byId("stage").replaceChildren(
      element("div", { className: "canvas empty" },
        element("p", {}, "Your picture appears here."),
        element("p", {}, "Drop a PNG anywhere to use the settings it was drawn with.")),
    );
  }

  show(job, index, actions) {
    const key = `${job.id} ${index} ${job.state} ${job.images.length}`;
    if (this.#shown !== key) this.#build(job, index, actions);
    this.#shown = key;
    if (isActive(job)) this.#advance(job, index);
  }

  /** Shows another element in the place of the picture, until the next is shown. */
  showInstead(content) {
    this.#shown = null;
    byId("stage").replaceChildren(content);
  }

  #build(job, index, actions) {
    const { request } = job;
    const place = job.images[index] ?? request;
    const picture = element("div", { className: `canvas ${job.state}`, "data-job": job.id });
    if (place.width) picture.style.aspectRatio = `${place.width} / ${place.height}`;
    picture.style.setProperty("--ratio", place.width ? place.width / place.height : 1);
    const image = element("img", { alt: request.prompt || "A picture without a prompt" });
    image.hidden = true;
    picture.append(image);
    if (job.images[index]) {
      pictureAddress(job.images[index].url).then((address) => {
        image.src = address;
        image.hidden = false;
      });
    } else if (!isActive(job)) {
      const why = job.state === "failed" ? job.error ?? "It failed." : "Cancelled.";
      picture.append(element("p", { className: job.state === "failed" ? "error" : "quiet" }, why));
    }
    const parts = [picture];
    if (isActive(job)) {
      const bar = element("progress", { max: 1, value: 0 });
      bar.setAttribute("aria-label", "Progress of this picture");
      parts.push(element("div", { className: "progress" }, bar, element("p", { className: "words" })));
    }
    if (job.seeds.length > 1) parts.push(this.#strip(job, index, actions));
    parts.push(
      element("div", { className: "actions" }, ...actions.offered.map(([label, act]) =>
        element("button", { type: "button", textContent: label, onclick: act }))),
      element("p", { className: "prompt", dir: "auto" }, request.prompt),
      element("dl", {}, ...facts(job, index).map(([name, value]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
    );
    replaceKeepingFocus(parts);
  }

  #strip(job, index, actions) {
    const buttons = job.seeds.map((seed, at) => {
      const button = element("button", { type: "button", onclick: () => actions.choose(at) });
      button.setAttribute("aria-label", `Picture ${at + 1} of ${job.seeds.length}, seed ${seed}`);
      button.setAttribute("aria-pressed", at === index);
      const image = element("img", { alt: "", hidden: true });
      button.append(image);
      if (job.images[at]) {
        pictureAddress(job.images[at].url).then((address) => Object.assign(image, { src: address, hidden: false }));
      }
      return button;
    });
    return element("div", { className: "strip", role: "group", "aria-label": "Pictures of this job" }, ...buttons);
  }

  #advance(job, index) {
    const stage = byId("stage");
    const image = stage.querySelector(".canvas img");
    const preview = job.previews[index];
    if (preview && !job.images[index]) Object.assign(image, { src: preview, hidden: false });
    stage.querySelectorAll(".strip img").forEach((small, at) => {
      if (job.previews[at] && !job.images[at]) Object.assign(small, { src: job.previews[at], hidden: false });
    });
    const bar = stage.querySelector("progress");
    if (job.state === "queued") bar.removeAttribute("value");
    else bar.value = job.steps ? job.step / job.steps : 0;
    stage.querySelector(".words").replaceChildren(progressWords(job));
  }
}
