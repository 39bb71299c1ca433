// Paints a mask over a picture: white is drawn anew, black stays. By pointer, and by keyboard.

import { byId, element } from "./elements.js";

const VEIL = [214, 64, 69, 255];

let context;
let brush = { x: 0, y: 0, down: false, erasing: false };
let undone = [];

/** Promises the painted mask as a data: URL, null for none at all, undefined where it stays as it was. */
export async function paintMask(picture, mask) {
  const dialog = byId("painter");
  const image = byId("painter-image");
  const canvas = byId("painter-canvas");
  image.src = picture;
  await image.decode();
  context = canvas.getContext("2d", { willReadFrequently: true });
  if (mask) await showVeil(canvas, image, mask);
  else [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  brush = { x: canvas.width / 2, y: canvas.height / 2, down: false, erasing: false };
  undone = [];
  byId("erase").setAttribute("aria-pressed", false);
  byId("painter-cursor").hidden = true;
  dialog.showModal();
  canvas.focus();
  return new Promise((done) => {
    const leave = (result) => {
      dialog.onclose = null;
      dialog.close();
      done(result);
    };
    byId("painter-done").onclick = () => leave(exported());
    byId("painter-cancel").onclick = () => leave(undefined);
    dialog.onclose = () => leave(undefined);
  });
}

/** Draws a black and white mask as a veil over what is white, on a canvas of the picture's size. */
export async function showVeil(canvas, image, mask) {
  const source = new Image();
  source.src = mask;
  await source.decode();
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const place = canvas.getContext("2d");
  place.drawImage(source, 0, 0, canvas.width, canvas.height);
  const pixels = place.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    pixels.data.set(pixels.data[at] > 127 ? VEIL : [0, 0, 0, 0], at);
  }
  place.putImageData(pixels, 0, 0);
}

function exported() {
  const { width, height } = context.canvas;
  const pixels = context.getImageData(0, 0, width, height);
  let painted = false;
  for (let at = 0; at < pixels.data.length; at += 4) {
    const white = pixels.data[at + 3] > 127 ? 255 : 0;
    painted ||= white > 0;
    pixels.data.set([white, white, white, 255], at);
  }
  if (!painted) return null;
  const copy = element("canvas", { width, height });
  copy.getContext("2d").putImageData(pixels, 0, 0);
  return copy.toDataURL("image/png");
}

function width() {
  return (Number(byId("brush").value) / 100) * Math.min(context.canvas.width, context.canvas.height);
}

/** Draws from where the brush was to where it is. */
function strokeTo(x, y) {
  context.globalCompositeOperation = brush.erasing ? "destination-out" : "source-over";
  context.strokeStyle = `rgb(${VEIL.slice(0, 3)})`;
  context.lineWidth = width();
  context.lineCap = "round";
  context.beginPath();
  context.moveTo(brush.x, brush.y);
  context.lineTo(x, y);
  context.stroke();
  [brush.x, brush.y] = [x, y];
}

function remember() {
  undone.push(context.getImageData(0, 0, context.canvas.width, context.canvas.height));
  if (undone.length > 20) undone.shift();
}

function place(event) {
  const box = context.canvas.getBoundingClientRect();
  const scale = context.canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

function showCursor() {
  const { width: across, height: down } = context.canvas;
  const cursor = byId("painter-cursor");
  cursor.hidden = false;
  cursor.style.left = `${(100 * brush.x) / across}%`;
  cursor.style.top = `${(100 * brush.y) / down}%`;
  cursor.style.width = `${(100 * width()) / across}%`;
}

function byPointer(canvas) {
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    canvas.focus();
    remember();
    [brush.x, brush.y] = place(event);
    brush.down = true;
    strokeTo(brush.x, brush.y);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (brush.down) {
      for (const one of event.getCoalescedEvents?.() ?? [event]) strokeTo(...place(one));
    } else {
      [brush.x, brush.y] = place(event);
    }
    showCursor();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, () => (brush.down = false));
  }
  canvas.addEventListener("pointerleave", () => (byId("painter-cursor").hidden = true));
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function byKeyboard(canvas) {
  canvas.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (move) {
      const far = (event.shiftKey ? 0.15 : 0.04) * Math.min(canvas.width, canvas.height);
      const clamp = (value, most) => Math.min(most, Math.max(0, value));
      brush.x = clamp(brush.x + move[0] * far, canvas.width);
      brush.y = clamp(brush.y + move[1] * far, canvas.height);
    } else if (event.key === " ") {
      remember();
      strokeTo(brush.x, brush.y);
    } else {
      return;
    }
    event.preventDefault();
    showCursor();
  });
}

/** Makes the painter's tools work; called once. */
export function preparePainter() {
  byPointer(byId("painter-canvas"));
  byKeyboard(byId("painter-canvas"));
  byId("erase").onclick = ({ currentTarget }) => {
    brush.erasing = !brush.erasing;
    currentTarget.setAttribute("aria-pressed", brush.erasing);
  };
  byId("undo").onclick = () => undone.length && context.putImageData(undone.pop(), 0, 0);
  byId("clear").onclick = () => {
    remember();
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  };
}
