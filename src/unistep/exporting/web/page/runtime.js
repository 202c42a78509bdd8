// onnxruntime-web: the network as a denoiser, on a GPU where one is there, right and faster, else on the processor.

import { ImageRandom, imageSeed } from "./random.js";
import { clamp, level, plus, repeated, toPixels } from "./sampling.js";

// How far the GPU may be from the processor: levels of 255, and the share of pixels within them.
const BOUNDS = { fp32: [1, 0.999], fp16: [2, 0.99] };

const TRIED = 8, HOPELESS = 10, LONGEST = 15000; // images of the race; how many times slower, or ms, is not raced

const KINDS = {
  wasm: { module: "ort.wasm.min.js", code: "ort-wasm-simd-threaded.js", binary: "ort-wasm-simd-threaded.wasm" },
  webgpu: { module: "ort.webgpu.min.js", code: "ort-wasm-simd-threaded.asyncify.js", binary: "ort-wasm-simd-threaded.asyncify.wasm" },
};

// Opens the network by one provider: an async function (x, sigmas, labels, ends) -> x0; the ends of trajectories are of
// flow maps, 0 where they are left out.
export async function openDenoiser(kind, root, model, threads) {
  const { module, code, binary } = KINDS[kind], folder = new URL("runtime/", root);
  const ort = await import(new URL(`${module}?${threads}`, folder).href); // the number of threads is one of a module
  ort.env.wasm.wasmPaths = { mjs: new URL(code, folder).href, wasm: new URL(binary, folder).href };
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(new URL(model.file, root).href, { executionProviders: [kind], logSeverityLevel: 3 });
  const shape = [model.channels, model.height, model.width];
  const denoise = async (x, sigmas, labels, ends) => {
    const feeds = { x_t: new ort.Tensor("float32", x, [sigmas.length, ...shape]), sigma: new ort.Tensor("float32", sigmas, [sigmas.length]) };
    if (model.flow_map) feeds.sigma_end = new ort.Tensor("float32", ends ?? level(0, sigmas.length), [sigmas.length]);
    if (model.guidance_scale != null) feeds.guidance_scale = new ort.Tensor("float32", level(model.guidance_scale, sigmas.length), [sigmas.length]);
    if (labels) feeds.class_labels = new ort.Tensor("int32", labels, [sigmas.length]);
    const { x0 } = await session.run(feeds);
    return x0.getData(true);
  };
  return Object.assign(denoise, { end: () => session.release() });
}

// An evaluation of some images, and its milliseconds.
async function timed(denoise, model, x, sigma) {
  const count = x.length / (model.channels * model.height * model.width), started = performance.now();
  const made = await denoise(x.slice(), level(sigma, count), model.classes.length ? new Int32Array(count) : null);
  return [made, performance.now() - started];
}

// The milliseconds of a few images, the better of two.
async function raced(denoise, model, noise) {
  const x = repeated(noise, TRIED);
  await timed(denoise, model, x, 2);
  return Math.min((await timed(denoise, model, x, 2))[1], (await timed(denoise, model, x, 2))[1]);
}

const noiseOf = (model) => new ImageRandom([imageSeed(0, 0)]).randn(model.channels * model.height * model.width);

// Whether the two make the same image at high, middle and low noise, and the milliseconds of each for a few images.
export async function compared(fast, sure, model) {
  const noise = noiseOf(model), size = noise.length, [most, share] = BOUNDS[model.dtype] ?? BOUNDS.fp16;
  const ms = { fast: Infinity, sure: Infinity };
  let x0 = new Float32Array(size), near = 0, all = 0;
  for (const sigma of [model.sigma_max, 2, 0.3]) {
    const x = plus(x0, noise, sigma), [mine, fastMs] = await timed(fast, model, x, sigma), [theirs, sureMs] = await timed(sure, model, x, sigma);
    if (fastMs > LONGEST) throw new Error("too slow to be tried");
    if (!mine.every(Number.isFinite)) return { right: false, ms };
    const [a, b] = [toPixels(mine), toPixels(theirs)];
    all += size;
    for (let i = 0; i < size; i++) near += Math.abs(a[i] - b[i]) <= most;
    x0 = clamp(theirs);
    [ms.fast, ms.sure] = [Math.min(ms.fast, fastMs), Math.min(ms.sure, sureMs)]; // the first run of a GPU compiles
  }
  const right = near >= share * all;
  if (!right || ms.fast > HOPELESS * ms.sure) return { right, ms };
  return { right, ms: { fast: await raced(fast, model, noise), sure: await raced(sure, model, noise) } };
}

// The processor with several threads, or with one where that is faster, as for small networks and on busy machines.
async function processor(open, threads, known, model) {
  const single = async () => ({ denoise: await open("wasm", 1), kind: "wasm", threads: 1 });
  if (threads === 1 || known === "wasm") return single();
  const many = { denoise: await open("wasm", threads), kind: "threads", threads };
  if (known === "threads") return many;
  const one = await single(), noise = noiseOf(model);
  const faster = await raced(many.denoise, model, noise) < await raced(one.denoise, model, noise) ? many : one;
  await (faster === many ? one : many).denoise.end?.();
  return faster;
}

// The fastest denoiser that is right, with its kind, its threads and what became of the GPU. `known` is the kind that was
// found at an earlier visit, "" for nothing.
export async function chosen(open, { gpu: hasGpu, threads }, known, model) {
  let gpu = hasGpu ? "known to be wrong or slower" : "there is none";
  if (hasGpu && (known === "webgpu" || !known)) {
    try {
      const fast = { denoise: await open("webgpu", 1), kind: "webgpu", threads: 1 };
      if (known) return { ...fast, gpu: "known to be right and faster" };
      const sure = await processor(open, threads, known, model), { right, ms } = await compared(fast.denoise, sure.denoise, model);
      const times = `${ms.fast.toFixed(1)} ms, the processor ${ms.sure.toFixed(1)} ms`;
      if (right && ms.fast < ms.sure) return { ...fast, gpu: `right and faster: ${times}` };
      return { ...sure, gpu: right ? `slower: ${times}` : "wrong" };
    } catch (error) {
      gpu = `does not run the network: ${error.message}`;
    }
  }
  return { ...await processor(open, threads, known === "webgpu" ? "" : known, model), gpu };
}
