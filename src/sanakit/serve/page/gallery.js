// The history as a grid: a card for each finished picture, and one for each job without any.

import { byId, element } from "./elements.js";
import { isActive } from "./jobs.js";
import { pictureAddress } from "./server.js";
import { progressWords } from "./stage.js";

const WORDS = { failed: "Failed", cancelled: "Cancelled" };

export class Gallery {
  #cards = new Map();
  #choose;

  /** `choose(job id, index)` is called with the picture that is clicked. */
  constructor(choose) {
    this.#choose = choose;
    byId("gallery").addEventListener("keydown", (event) => this.#walk(event));
  }

  /** Brings the grid up to date; cards stay the elements they are, so that focus stays, too. */
  show(jobs, chosen) {
    const wanted = jobs.flatMap((job) => (job.images.length ? job.images.map((_, index) => [job, index]) : [[job, 0]]));
    const before = this.#cards;
    this.#cards = new Map();
    wanted.forEach(([job, index], place) => {
      const key = `${job.id} ${index}`;
      const card = before.get(key) ?? this.#card(job.id, index);
      before.delete(key);
      this.#cards.set(key, card);
      this.#update(card, job, index, key === chosen);
      const there = byId("gallery").children[place];
      if (there !== card) byId("gallery").insertBefore(card, there ?? null);
    });
    for (const gone of before.values()) gone.remove();
    if (!wanted.length) byId("gallery").replaceChildren(element("li", { className: "none quiet" }, "Nothing yet."));
    else byId("gallery").querySelector(".none")?.remove();
  }

  #card(id, index) {
    const button = element("button", { type: "button", onclick: () => this.#choose(id, index) });
    button.append(element("img", { alt: "", hidden: true, loading: "lazy" }), element("span", { className: "state" }), element("span", { className: "bar" }));
    return element("li", {}, button);
  }

  #update(card, job, index, chosen) {
    const button = card.firstElementChild;
    const [image, state, bar] = button.children;
    const finished = job.images[index]?.url;
    const words = isActive(job) ? progressWords(job) : (WORDS[job.state] ?? "");
    const source = finished ?? job.previews[index];
    if (source && image.dataset.source !== source) {
      image.dataset.source = source;
      const address = finished ? pictureAddress(finished) : Promise.resolve(source);
      address.then((found) => image.dataset.source === source && Object.assign(image, { src: found, hidden: false }));
    }
    button.dataset.state = job.state;
    const seed = job.seeds[index] === undefined ? "" : `, seed ${job.seeds[index]}`;
    button.setAttribute("aria-label", `${job.request.prompt || "no prompt"}${seed}${words ? `: ${WORDS[job.state] ?? job.state}` : ""}`);
    button.title = job.request.prompt;
    if (chosen) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    state.replaceChildren(words);
    bar.style.width = job.state === "running" && job.steps ? `${(100 * job.step) / job.steps}%` : "0";
  }

  /** Arrow keys go from picture to picture, up and down by rows. */
  #walk(event) {
    const cards = [...byId("gallery").children];
    const at = cards.findIndex((card) => card.contains(document.activeElement));
    if (at < 0) return;
    const columns = cards.filter((card) => card.offsetTop === cards[0].offsetTop).length;
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: cards.length - 1 - at };
    const next = cards[at + (moves[event.key] ?? NaN)];
    if (!next) return;
    event.preventDefault();
    next.firstElementChild.focus();
  }
}
