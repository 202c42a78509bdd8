// What the page asks for, computed in this browser: the same functions as those that ask a server.

export const served = false;

const ROOT = new URL("..", import.meta.url), RELOADED = `unistep-reloaded ${ROOT.pathname}`;
const waiting = new Map();
let worker = null, last = 0, described = null;

export class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// A service worker keeps the files, and sends the headers without which there is one thread alone: the page is loaded once
// more, through it. Where there is none, as over plain http from another machine, the page works without both.
async function kept(tell) {
  if (!navigator.serviceWorker) return;
  try {
    navigator.serviceWorker.addEventListener("message", ({ data }) => {
      if (data.loaded) tell(`Loading, once: ${(data.loaded / 1e6).toFixed(0)} of ${(data.total / 1e6).toFixed(0)} MB. Afterwards the page needs no network.`);
    });
    const registration = await navigator.serviceWorker.register(new URL("sw.js", ROOT), { updateViaCache: "none" });
    const coming = registration.active ? null : registration.installing ?? registration.waiting;
    if (coming) await new Promise((resolve) => coming.addEventListener("statechange", () => ["activated", "redundant"].includes(coming.state) && resolve()));
    const may = registration.active && location.href.startsWith(ROOT.href) && !sessionStorage.getItem(RELOADED);
    if (!self.crossOriginIsolated && may) {
      sessionStorage.setItem(RELOADED, "1");
      location.reload();
      await new Promise(() => {});
    }
  } catch { /* private windows, full disks */ }
}

function ask(message, { each, signal, transfer = [] } = {}) {
  if (signal?.aborted) return Promise.reject(new DOMException("outdated", "AbortError"));
  const id = ++last;
  return new Promise((resolve, reject) => {
    waiting.set(id, { each, resolve, reject });
    signal?.addEventListener("abort", () => {
      worker.postMessage({ id, kind: "cancel" });
      waiting.get(id)?.reject(new DOMException("outdated", "AbortError"));
      waiting.delete(id);
    });
    worker.postMessage({ id, ...message }, transfer);
  });
}

function start() {
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data: { id, part, result, error } }) => {
    const request = waiting.get(id);
    if (!request) return;
    if (part) { request.each?.(part); return; }
    waiting.delete(id);
    if (error) request.reject(error.name === "AbortError" ? new DOMException("outdated", "AbortError") : new Failure(error.message, 500));
    else request.resolve(result);
  };
  worker.onerror = (event) => {
    event.preventDefault();
    for (const { reject } of waiting.values()) reject(new Failure("The network could not be loaded. Is the connection there?", 0));
    waiting.clear();
  };
}

// What was found out about the GPU of this browser for this model; a browser that is updated is tried again.
const FOUND = `unistep-provider ${ROOT.pathname}`;

function remembered() {
  try {
    const { agent, kind } = JSON.parse(localStorage.getItem(FOUND) ?? "{}");
    return agent === navigator.userAgent ? kind : "";
  } catch {
    return "";
  }
}

async function opened(tell) {
  await kept(tell);
  tell("Preparing the network…");
  start();
  let found;
  try {
    found = await ask({ kind: "open", known: remembered() });
  } catch (error) { // threads that do not start end the worker; one is enough
    if (!self.crossOriginIsolated) throw error;
    worker.terminate();
    start();
    found = await ask({ kind: "open", known: "wasm", alone: true });
  }
  try {
    localStorage.setItem(FOUND, JSON.stringify({ agent: navigator.userAgent, kind: found.kind }));
  } catch { /* no storage: tried again at the next visit */ }
  const where = found.kind === "webgpu" ? "on the GPU" : `on ${found.threads} ${found.threads === 1 ? "thread" : "threads"}`;
  return [{ ...found.model, runs: `Computed in this browser, ${where}.`, why: `GPU: ${found.gpu}` }];
}

export function models(tell = () => {}) {
  described ??= opened(tell);
  return described;
}

// Makes images; `each` is called with (number, data URL, milliseconds since the start, class) as they come.
export async function make(body, each, signal) {
  await models();
  const started = performance.now();
  let count = 0;
  await ask({ kind: "make", body }, { signal, each({ number, url, label }) {
    count += 1;
    each(number, url, performance.now() - started, label);
  } });
  return { count, ms: performance.now() - started };
}

async function decoded(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" }).catch(() => { throw new Failure("The picture cannot be read.", 400); });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { data, width, height } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  return { data, width, height };
}

// Edits pictures: `images` and `mask` are blobs; returns data URLs, best first, and the milliseconds.
export async function edit(options, images, mask, model, signal) {
  await models();
  const pictures = await Promise.all(images.map(decoded)), marks = mask && await decoded(mask);
  return ask({ kind: "edit", options, pictures, mask: marks }, { signal });
}
