// The worker: the network and all arithmetic, so that the page stays quick. One request after another.

import { edit, inputShape, path, tasksOf } from "./edits.js";
import { plan } from "./levels.js";
import { fitted, knownPixels, pngUrl } from "./pictures.js";
import { ImageRandom, drawnLabel, imageSeed } from "./random.js";
import { chosen, openDenoiser } from "./runtime.js";
import { sample, toPixels } from "./sampling.js";

const ROOT = new URL("..", import.meta.url), TILE = 8;
const cancelled = new Set();
let model = null, network = null, queue = Promise.resolve();

// Lets messages in: a request that came to an end meanwhile stops here.
const turn = () => new Promise((resolve) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => { port1.close(); resolve(); };
  port2.postMessage(0);
});

async function open({ known, alone }) {
  model = await (await fetch(new URL("model.json", ROOT))).json();
  const threads = self.crossOriginIsolated && !alone ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const gpu = await navigator.gpu?.requestAdapter().catch(() => null);
  const found = await chosen((kind, own) => openDenoiser(kind, ROOT, model, own), { gpu: !!gpu, threads }, known, model);
  network = found.denoise;
  return { model: { ...model, tasks: tasksOf(model) }, kind: found.kind, gpu: found.gpu, threads: found.threads };
}

// The network in tiles of a few images, with a look at the messages before each.
function denoiserOf(id) {
  return async (x, sigmas, labels, ends) => {
    const count = sigmas.length, size = x.length / count, out = new Float32Array(x.length);
    for (let start = 0; start < count; start += TILE) {
      await turn();
      if (cancelled.has(id)) throw new DOMException("outdated", "AbortError");
      const end = Math.min(count, start + TILE);
      const own = (one) => one && one.slice(start, end);
      out.set(await network(x.slice(start * size, end * size), own(sigmas), own(labels), own(ends)), start * size);
    }
    return out;
  };
}

async function make(id, { n = 1, seed = 0, class_labels, ...options }, tell) {
  const sigmas = plan(model, options), shape = [model.channels, model.height, model.width], classes = model.classes.length;
  const given = class_labels == null ? null : [].concat(class_labels);
  for (let start = 0; start < n; start += TILE) {
    const numbers = Array.from({ length: Math.min(TILE, n - start) }, (_, i) => start + i);
    const labels = classes ? Int32Array.from(numbers, (i) => (given ? given[i % given.length] : drawnLabel(seed, i, classes))) : null;
    const random = new ImageRandom(numbers.map((i) => imageSeed(seed, i)));
    const pixels = toPixels(await sample(denoiserOf(id), random, shape, sigmas, labels, model)), size = pixels.length / numbers.length;
    for (const [i, number] of numbers.entries()) {
      tell({ number, url: await pngUrl(pixels.subarray(i * size, (i + 1) * size), shape), label: labels?.[i] });
    }
  }
  return {};
}

async function change(id, { options, pictures, mask }) {
  const shape = [model.channels, model.height, model.width], isPath = ["walk", "interpolate"].includes(options.task);
  const made = isPath
    ? { images: await path(denoiserOf(id), model, options, pictures.map((one) => fitted(one, shape))) }
    : await edit(denoiserOf(id), model, options, fitted(pictures[0], inputShape(model, options)), mask && knownPixels(mask, model.height, model.width));
  const images = [];
  for (const pixels of made.images) images.push(await pngUrl(pixels, shape));
  return { images, classes: made.labels ?? [] };
}

async function answer({ id, kind, ...given }) {
  const tell = (part) => postMessage({ id, part });
  try {
    if (cancelled.has(id)) throw new DOMException("outdated", "AbortError");
    const started = performance.now();
    const result = await (kind === "open" ? open(given) : kind === "make" ? make(id, given.body, tell) : change(id, given));
    postMessage({ id, result: { ...result, ms: performance.now() - started } });
  } catch (error) {
    postMessage({ id, error: { name: error.name, message: error.message } });
  } finally {
    cancelled.delete(id);
  }
}

self.onmessage = ({ data }) => {
  if (data.kind === "cancel") cancelled.add(data.id);
  else queue = queue.then(() => answer(data));
};
