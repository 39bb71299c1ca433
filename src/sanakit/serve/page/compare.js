// Two pictures, one over the other, with a slider between them and what differs in their settings.

import { element } from "./elements.js";
import { pictureAddress } from "./server.js";
import { facts } from "./stage.js";

/** An element that compares two images, each {job, index}; `close` is called when it is left. */
export function comparison(first, second, close) {
  const images = [first, second].map(({ job, index }, at) => {
    const image = element("img", { alt: `${at === 0 ? "Left" : "Right"}: ${job.request.prompt}` });
    pictureAddress(job.images[index].url).then((address) => (image.src = address));
    return image;
  });
  images[1].className = "over";
  const { width, height } = first.job.images[first.index];
  const slider = element("input", { type: "range", min: 0, max: 100, value: 50 });
  slider.setAttribute("aria-label", "How much of the left picture is shown");
  const canvas = element("div", { className: "canvas compare" }, ...images, element("span", { className: "divider" }), slider);
  canvas.style.aspectRatio = `${width} / ${height}`;
  canvas.style.setProperty("--ratio", width / height);
  const move = () => canvas.style.setProperty("--at", `${slider.value}%`);
  slider.oninput = move;
  move();
  return element(
    "div",
    { className: "comparison" },
    canvas,
    element("div", { className: "actions" }, element("button", { type: "button", textContent: "Stop comparing", onclick: close })),
    differences(first, second),
  );
}

function differences(first, second) {
  const left = new Map([["Prompt", first.job.request.prompt], ...facts(first.job, first.index)]);
  const right = new Map([["Prompt", second.job.request.prompt], ...facts(second.job, second.index)]);
  const names = [...new Set([...left.keys(), ...right.keys()])].filter((name) => left.get(name) !== right.get(name));
  if (names.length === 0) return element("p", { className: "quiet" }, "Their settings are the same.");
  const cells = (kind, ...texts) => element("tr", {}, ...texts.map((text) => element(kind, {}, text)));
  const rows = names.map((name) => cells("td", name, left.get(name) ?? "none", right.get(name) ?? "none"));
  return element("table", {}, element("caption", {}, "What differs"), cells("th", "Setting", "Left", "Right"), ...rows);
}
