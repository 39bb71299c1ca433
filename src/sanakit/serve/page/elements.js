// Makes elements. Text from anywhere becomes text nodes alone: nothing here or elsewhere parses markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties (data-*, aria-* and role as attributes), listeners (onclick, ...) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (/^(data-|aria-|role$)/.test(name)) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A symbol of index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Says it to screen readers, and shows it for a while; an error stays until the next thing is said. */
export function say(text, kind = "note") {
  const place = byId("notice");
  place.dataset.kind = kind;
  place.replaceChildren(text);
  clearTimeout(say.timer);
  if (kind !== "error") say.timer = setTimeout(() => place.replaceChildren(), 6000);
}
