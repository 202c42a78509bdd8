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

// Opens the network by one provider: an async function (x, sigmas, labels) -> x0.
export async function openDenoiser(kind, root, model, threads) {
  const { module, code, binary } = KINDS[kind], folder = new URL("runtime/", root);
  const ort = await import(new URL(module, folder).href);
  ort.env.wasm.wasmPaths = { mjs: new URL(code, folder).href, wasm: new URL(binary, folder).href };
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(new URL(model.file, root).href, { executionProviders: [kind], logSeverityLevel: 3 });
  const shape = [model.channels, model.height, model.width];
  return async (x, sigmas, labels) => {
    const feeds = { x_t: new ort.Tensor("float32", x, [sigmas.length, ...shape]), sigma: new ort.Tensor("float32", sigmas, [sigmas.length]) };
    if (labels) feeds.class_labels = new ort.Tensor("int32", labels, [sigmas.length]);
    const { x0 } = await session.run(feeds);
    return x0.getData(true);
  };
}

// Whether the two make the same image at high, middle and low noise, and the milliseconds of each for a few images.
export async function compared(fast, sure, model) {
  const size = model.channels * model.height * model.width, [most, share] = BOUNDS[model.dtype] ?? BOUNDS.fp16;
  const run = async (denoise, x, sigma, count) => {
    const started = performance.now(), labels = model.classes.length ? new Int32Array(count) : null;
    const made = await denoise(x.slice(), level(sigma, count), labels);
    return [made, performance.now() - started];
  };
  const noise = new ImageRandom([imageSeed(0, 0)]).randn(size), ms = { fast: Infinity, sure: Infinity };
  let x0 = new Float32Array(size), near = 0, all = 0;
  for (const sigma of [model.sigma_max, 2, 0.3]) {
    const x = plus(x0, noise, sigma), [mine, fastMs] = await run(fast, x, sigma, 1), [theirs, sureMs] = await run(sure, x, sigma, 1);
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
  const x = plus(new Float32Array(size * TRIED), repeated(noise, TRIED), 2);
  await run(fast, x, 2, TRIED);
  [ms.fast, ms.sure] = [(await run(fast, x, 2, TRIED))[1], (await run(sure, x, 2, TRIED))[1]];
  return { right, ms };
}

// The fastest denoiser that is right, with its kind and what became of the GPU. `known` is the kind that was found at an
// earlier visit, "" for nothing.
export async function chosen(open, hasGpu, known, model) {
  let gpu = hasGpu ? "known to be wrong or slower" : "there is none";
  if (hasGpu && known !== "wasm") {
    try {
      const fast = await open("webgpu");
      if (known === "webgpu") return { denoise: fast, kind: "webgpu", gpu: "known to be right and faster" };
      const sure = await open("wasm"), { right, ms } = await compared(fast, sure, model);
      const times = `${ms.fast.toFixed(1)} ms, the processor ${ms.sure.toFixed(1)} ms`;
      if (right && ms.fast < ms.sure) return { denoise: fast, kind: "webgpu", gpu: `right and faster: ${times}` };
      return { denoise: sure, kind: "wasm", gpu: right ? `slower: ${times}` : "wrong" };
    } catch (error) {
      gpu = `does not run the network: ${error.message}`;
    }
  }
  return { denoise: await open("wasm"), kind: "wasm", gpu };
}
