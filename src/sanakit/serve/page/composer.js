// The form: its values become a request, and the settings of a picture become its values.

import { byId, element, icon, say } from "./elements.js";
import { paintMask, showVeil } from "./painter.js";
import { request } from "./server.js";

const NUMBERS = { width: "width", height: "height", steps: "num_steps", guidance: "guidance_scale", count: "count" };
const MOST_PIXELS = 2048 * 2048;
const SHAPES = [["Square", 1], ["Landscape", 4 / 3], ["Portrait", 3 / 4], ["Wide", 16 / 9], ["Tall", 9 / 16]];

// What the form has no field for, and is asked for all the same where a picture was drawn with it.
const OTHERS = { flow_shift: null, step_cache: 0, guidance_interval: [0, 1], use_resolution_binning: true, control: null };

let capabilities;
let usual;
let locked = false;
// What an edit names: the picture to start from and its mask, as data: URLs or by the server's names.
let start = null;
let others = {};

/** Fills the form with what the model offers, and with what it held when the page was left. */
export function prepareComposer(offered) {
  capabilities = offered;
  offerSizes();
  fill(byId("solver"), offered.solvers);
  byId("loras").hidden = offered.loras.length === 0;
  for (const name of offered.loras) {
    const box = element("input", { type: "checkbox", name: "lora", value: name });
    byId("loras").querySelector(".chips").append(element("label", { className: "chip" }, box, name));
  }
  byId("start").hidden = !offered.supports.img2img;
  limit("count", offered.limits.count);
  limit("steps", offered.limits.steps);
  for (const id of ["prompt", "negative"]) byId(id).maxLength = offered.limits.prompt_length;
  usual = {
    prompt: "",
    negative_prompt: "",
    width: offered.default_size,
    height: offered.default_size,
    num_steps: offered.default_steps,
    guidance_scale: offered.default_guidance,
    solver: offered.default_solver,
    count: 1,
    lora: [],
  };
  useSettings(JSON.parse(localStorage.getItem(kept()) ?? "{}"));
  listen();
}

/** Each model has its own sizes and steps. */
function kept() {
  return `sanakit-form ${capabilities.model}`;
}

function limit(id, most) {
  const range = document.querySelector(`[data-of="${id}"]`);
  byId(id).max = most;
  range.max = Math.min(range.max, most);
}

function fill(select, names) {
  select.replaceChildren(...names.map((name) => element("option", { value: name, textContent: name })));
}

/** The size that the model can draw of these proportions and about so many pixels. */
function sizeOf(ratio, pixels) {
  const round = (side) => Math.max(1, Math.round(side / capabilities.multiple)) * capabilities.multiple;
  return { width: round(Math.sqrt(pixels * ratio)), height: round(Math.sqrt(pixels / ratio)) };
}

function offerSizes() {
  const offered = new Set();
  for (const [name, ratio] of SHAPES) {
    const { width, height } = sizeOf(ratio, capabilities.default_size ** 2);
    const value = `${width}x${height}`;
    if (offered.has(value)) continue;
    offered.add(value);
    const shape = element("span", { className: "shape" });
    shape.style.aspectRatio = `${width} / ${height}`;
    shape.style.width = `${Math.min(1, width / height) * 1.4}rem`;
    const radio = element("input", { type: "radio", name: "size", value });
    radio.onchange = () => setSize(width, height);
    const words = element("span", {}, name, element("small", {}, `${width} × ${height}`));
    byId("presets").append(element("label", { className: "preset" }, radio, shape, words));
  }
  for (const side of ["width", "height"]) Object.assign(byId(side), { min: capabilities.multiple, step: capabilities.multiple });
}

function setSize(width, height) {
  byId("width").value = width;
  byId("height").value = height;
  settled();
}

function listen() {
  const form = byId("composer");
  form.addEventListener("input", (event) => {
    const twin = event.target.dataset.of;
    if (twin) byId(twin).value = event.target.value;
    if (event.target.id === "seed") setLock(byId("seed").value !== "");
    settled();
  });
  // What is wrong has to be seen, also where the settings are folded away.
  form.addEventListener("invalid", () => (byId("settings").open = true), true);
  byId("lock").onclick = () => {
    if (!locked && byId("seed").value === "") byId("seed").value = byId("seed").dataset.last ?? "0";
    setLock(!locked);
    settled();
  };
  byId("start-file").onchange = ({ target }) => {
    if (target.files[0]) startFromFile(target.files[0]);
    target.value = "";
  };
  byId("start-remove").onclick = () => {
    startFrom(null);
    byId("start-file").focus();
  };
  byId("paint").onclick = paint;
}

/** What follows from the values: ranges, the chosen preset, the summary, and what is kept. */
function settled() {
  for (const range of document.querySelectorAll("[data-of]")) range.value = byId(range.dataset.of).value;
  const size = `${byId("width").value}x${byId("height").value}`;
  for (const radio of document.getElementsByName("size")) radio.checked = radio.value === size;
  const seed = locked ? `seed ${byId("seed").value}` : "new seed";
  byId("summary").replaceChildren(`${size.replace("x", " × ")} · ${byId("steps").value} steps · ${seed}`);
  localStorage.setItem(kept(), JSON.stringify({ ...readSettings(), edit: null }));
}

function setLock(wanted) {
  locked = wanted;
  if (!locked) byId("seed").value = "";
  byId("lock").setAttribute("aria-pressed", locked);
  byId("lock").replaceChildren(icon(locked ? "lock" : "open"));
}

/** What the form asks for, as the server takes it. */
export function readSettings() {
  const settings = {
    prompt: byId("prompt").value,
    negative_prompt: byId("negative").value,
    solver: byId("solver").value,
    lora: [...document.querySelectorAll("[name=lora]:checked")].map((box) => box.value),
    ...others,
  };
  for (const [id, name] of Object.entries(NUMBERS)) settings[name] = Number(byId(id).value);
  if (locked && byId("seed").value !== "") settings.seed = Number(byId("seed").value);
  if (start) settings.edit = { ...start, strength: Number(byId("strength").value) };
  return settings;
}

/**
 * Puts the settings of a picture into the form; what they leave open is the model's own.
 * Gives a sentence on those that cannot be had here, or nothing.
 */
export function useSettings(settings) {
  const told = Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== null));
  const { lora, solver, edit, ...given } = { ...usual, ...told };
  byId("prompt").value = given.prompt;
  byId("negative").value = given.negative_prompt;
  for (const [id, name] of Object.entries(NUMBERS)) byId(id).value = given[name];
  const missing = lora.filter((name) => !capabilities.loras.includes(name));
  if (capabilities.solvers.includes(solver)) byId("solver").value = solver;
  else missing.push(solver);
  for (const box of document.querySelectorAll("[name=lora]")) box.checked = lora.includes(box.value);
  byId("seed").value = given.seed ?? "";
  setLock(given.seed !== undefined);
  takeOthers(given);
  start = null;
  if (edit) {
    const { strength, ...named } = edit;
    start = named;
    byId("strength").value = strength ?? (edit.mask ? 1 : 0.6);
  }
  showStart();
  settled();
  return missing.length ? ` What this server does not have: ${missing.join(", ")}.` : "";
}

function takeOthers(settings) {
  others = {};
  for (const [name, usual] of Object.entries(OTHERS)) {
    const value = settings[name] ?? usual;
    if (JSON.stringify(value) !== JSON.stringify(usual)) others[name] = value;
  }
  byId("others").hidden = Object.keys(others).length === 0;
  byId("others").querySelector(".chips").replaceChildren(...Object.entries(others).map(([name, value]) => {
    const words = name === "control" ? "a control picture" : `${name.replaceAll("_", " ")} ${value}`;
    const remove = element("button", { type: "button" }, icon("close"));
    remove.setAttribute("aria-label", `Leave out ${words}`);
    remove.onclick = () => {
      takeOthers({ ...others, [name]: null });
      settled();
      byId("solver").focus();
    };
    return element("span", { className: "chip" }, words, remove);
  }));
}

/** Remembers the seed that was drawn, for who locks it afterwards. */
export function rememberSeed(seed) {
  byId("seed").dataset.last = seed;
}

/** Begins the next picture at this file. */
export async function startFromFile(file) {
  await startFrom({ image: await dataUrl(file) }, "It is drawn anew as far as the strength says.");
}

/** Begins the next picture at one of the server's. */
export async function startFromPicture(url) {
  await startFromFile(await (await request(url)).blob());
}

function dataUrl(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function startFrom(picture, note) {
  const image = byId("start-image");
  if (picture) {
    try {
      await show(image, picture.image);
      picture.image = upright(image);
      await show(image, picture.image);
    } catch {
      say("That file is no picture that can be read: PNG, JPEG and WebP can.", "error");
      return;
    }
    const { naturalWidth: across, naturalHeight: down } = image;
    const { width, height } = sizeOf(across / down, Math.min(across * down, capabilities.default_size ** 2));
    setSize(width, height);
    say(`The next picture starts from this one. ${note}`);
  }
  start = picture;
  showStart();
  settled();
}

function showStart() {
  const named = start !== null && !start.image.startsWith("data:");
  byId("start-empty").hidden = start !== null;
  byId("start-chosen").hidden = start === null;
  byId("start-image").hidden = named;
  byId("start-named").hidden = !named;
  byId("paint").hidden = named || !capabilities.supports.inpaint;
  const mask = named ? null : start?.mask;
  byId("start-mask").hidden = !mask;
  byId("paint").replaceChildren(mask ? "Change the mask" : "Paint a mask");
  if (mask) showVeil(byId("start-mask"), byId("start-image"), mask);
}

async function show(image, source) {
  image.src = source;
  await image.decode();
}

/** The picture as it is seen: photographs are turned as their camera was, and made small enough to send. */
function upright(image) {
  const pixels = image.naturalWidth * image.naturalHeight;
  if (pixels <= MOST_PIXELS && !image.src.startsWith("data:image/jpeg")) return image.src;
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / pixels));
  const canvas = element("canvas", { width: image.naturalWidth * scale, height: image.naturalHeight * scale });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

/** Opens the painter over the picture to start from. */
export async function paint() {
  const mask = await paintMask(byId("start-image").src, start.mask);
  if (mask === undefined) return;
  start = { ...start, mask };
  // With a mask the whole way is usual, without one a part of it.
  byId("strength").value = mask ? 1 : 0.6;
  showStart();
  settled();
}
