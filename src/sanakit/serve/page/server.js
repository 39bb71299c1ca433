// Talks to the server: requests with the key it may ask for, its errors in its words, event streams that resume.

const KEY = "sanakit-key";
let asking = null;
// Whoever gave none is not asked again by every request, until the page is loaded anew.
let declined = false;
let askForKey = async () => null;

/** Says how a key is asked for: a function that promises one, or null where the user gives none. */
export function onKeyAsked(ask) {
  askForKey = ask;
}

/** What the server answered in place of what was asked for. */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The server did not answer at all. */
export class Unreachable extends Error {
  constructor() {
    super("The server cannot be reached. Is it still running?");
  }
}

/** A response that is fine; any other is a ServerError, none at all Unreachable. */
export async function request(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = new Headers(options.headers);
    if (key) headers.set("Authorization", `Bearer ${key}`);
    // Without credentials of its own, the browser leaves it to the page to ask for a key.
    const response = await fetch(path, { ...options, headers, credentials: "omit" }).catch(() => {
      throw new Unreachable();
    });
    if (response.ok) return response;
    const error = new ServerError(response.status, await reason(response));
    if (response.status !== 401 || declined) throw error;
    // Requests that are refused at the same moment share one question.
    asking ??= askForKey(key ? error.message : "").finally(() => (asking = null));
    const given = await asking;
    if (!given) {
      declined = true;
      throw error;
    }
    sessionStorage.setItem(KEY, given);
  }
}

export async function getJson(path) {
  return (await request(path)).json();
}

export async function postJson(path, body, headers = {}) {
  const options = { method: "POST", headers: { "Content-Type": "application/json", ...headers } };
  return (await request(path, { ...options, body: JSON.stringify(body) })).json();
}

async function reason(response) {
  const said = (await response.json().catch(() => null))?.error?.message;
  return said ?? `The server answered ${response.status} without a reason.`;
}

/** Events of a job after the numbered one, each {kind, number, data}, until the server ends the stream. */
export async function* events(path, after, signal) {
  const headers = { Accept: "text/event-stream", "Last-Event-ID": String(after) };
  const response = await request(path, { headers, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (buffer + value.replaceAll("\r", "")).split("\n\n");
    buffer = blocks.pop();
    for (const block of blocks) {
      const event = parseEvent(block);
      if (event) yield event;
    }
  }
}

function parseEvent(block) {
  const fields = { data: [] };
  for (const line of block.split("\n")) {
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (name === "data") fields.data.push(value);
    else if (name) fields[name] = value;
  }
  if (!fields.event) return null;
  return { kind: fields.event, number: Number(fields.id), data: JSON.parse(fields.data.join("\n") || "{}") };
}

const pictures = new Map();

/** An address that an img can show: the path itself, or a copy where the server asks for a key. */
export async function pictureAddress(path) {
  if (!sessionStorage.getItem(KEY)) return path;
  if (!pictures.has(path)) {
    const copy = request(path).then(async (response) => URL.createObjectURL(await response.blob()));
    pictures.set(path, copy);
    copy.catch(() => pictures.delete(path));
  }
  return pictures.get(path);
}
