// Edits of one picture: tasks with their levels, the methods behind them, the guess of its class.
//
// They are those of unistep.editing, with the same noise: the same options and seed give the same results.

import { editLevels, levelsBelow, settleLevels, sigmaOfStrength } from "./levels.js";
import { estimateNoise } from "./noise_level.js";
import { agree, agreeInRange, blur, distance, luma, masked, patches } from "./operators.js";
import { ImageRandom, STREAMS, drawnLabel, imageSeed } from "./random.js";
import { clamp, level, plus, renoise, repeated, row, toPixels, toValues } from "./sampling.js";

const MOST_GUESSED = 32, CANDIDATE_SHIFT = 20n, RESTORED = 0.5;

// A method keeps a measurement (`operator`, `y`, `settle`), or begins with the picture (`x`), or with its own noise (`sigma`).
const measured = (first, last, steps, settle, operator) => ({ first, last, steps, settle, operator });
const TASKS = {
  inpaint: measured(5, 0.2, 9, 3, ({ shape, known }) => {
    if (!known) throw new Error("Mark a part of the picture.");
    return masked(known, shape[0]);
  }),
  outpaint: measured(5, 0.2, 9, 3, ({ shape, known }) => masked(known, shape[0])),
  upscale: measured(2, 0.2, 9, 3, ({ shape, factor }) => patches(shape, factor)),
  deblur: measured(2, 0.05, 2, 4, ({ shape, options }) => blur(shape, options.blur)),
  colorize: measured(20, 0.2, 9, 3, () => luma()),
  strokes: { first: 1.5, last: 0.3, steps: 3, settle: 0 },
  vary: { first: 5, last: 0.3, steps: 2, settle: 0 },
  denoise: { steps: 1 },
};

// Tasks that there are for a model.
export function tasksOf({ channels, height, width }) {
  const all = Object.keys(TASKS).filter((task) => task !== "colorize" || channels === 3);
  return all.filter((task) => (task !== "upscale" || !(height % 4 || width % 4)) && (task !== "deblur" || Math.max(height, width) <= 128));
}

// The shape at which a task reads its picture.
export function inputShape(model, { task, factor = 4 }) {
  const { channels, height, width } = model, quarter = Math.floor(height / 4);
  if (task === "upscale") {
    if (height % factor || width % factor) throw new Error(`factor ${factor}: the model's ${height} pixels have no such parts`);
    return [channels, height / factor, width / factor];
  }
  return task === "outpaint" ? [channels, height - 2 * quarter, width - 2 * quarter] : [channels, height, width];
}

// Edits a picture. `pixels` has the input shape of the task, `known` is true where a pixel is known (inpaint). Returns
// pixels of the candidates, best first, and their classes.
export async function edit(denoise, model, options, pixels, known = null) {
  const method = methodOf(model, options, pixels, known), count = options.candidates ?? 1;
  const keys = Array.from({ length: count }, (_, j) => imageSeed(options.seed ?? 0, BigInt(j) << CANDIDATE_SHIFT));
  const labels = await labelsOf(denoise, model, method, options, keys);
  const { x, residuals } = await method.run(denoise, new ImageRandom(keys), labels && Int32Array.from(labels));
  const order = residuals.map((_, i) => i).sort((a, b) => residuals[a] - residuals[b] || a - b);
  const images = order.map((i) => toPixels(method.finish(row(x, i, count))));
  return { images, labels: labels && order.map((i) => labels[i]) };
}

function methodOf(model, options, pixels, known) {
  const task = TASKS[options.task], shape = [model.channels, model.height, model.width];
  if (!task) throw new Error(`There is no task ${options.task}.`);
  const levels = (first) => options.sigmas ?? editLevels({ ...task, first, steps: options.steps ?? task.steps }, model.rho);
  const x = toValues(pixels);
  if (options.task === "denoise") return denoising(model, x, options.sigma ?? estimateNoise(x, shape), options.steps ?? 1);
  if (!task.operator) {
    const first = options.sigma ?? (options.strength == null ? task.first : sigmaOfStrength(options.strength, model));
    return noising(model, x, levels(first));
  }
  const given = { shape, options, known, factor: options.factor ?? 4 };
  let y = x;
  if (options.task === "outpaint") {
    const canvas = onCanvas(x, inputShape(model, options), shape);
    given.known = canvas.known;
    y = canvas.x;
  }
  const operator = task.operator(given);
  if (options.task === "deblur") y = operator.A(operator.pinv(y));
  else if (options.task !== "upscale") y = operator.A(y);
  const settle = settleLevels(options.settle ?? (options.sigmas ? 0 : task.settle), model.sigma_max, model.rho);
  return measuring(model, operator, y, levels(task.first), settle);
}

// A picture in the middle of a canvas, and where it is known.
function onCanvas(x, [, h, w], [channels, height, width]) {
  const canvas = new Float32Array(channels * height * width), known = new Array(height * width).fill(false);
  const [top, left] = [Math.floor(height / 4), Math.floor(height / 4)];
  for (let c = 0; c < channels; c++) for (let i = 0; i < h; i++) for (let j = 0; j < w; j++) {
    canvas[(c * height + top + i) * width + left + j] = x[(c * h + i) * w + j];
    known[(top + i) * width + left + j] = true;
  }
  return { x: canvas, known };
}

// ---------------------------------------------------------------------------------------------------- methods

const rms = (x, image, count) => Array.from({ length: count }, (_, i) => distance(row(x, i, count), image));

// What is measured stays, the rest is made: sampling that restores it after every step, then evaluations without noise.
function measuring(model, operator, y, levels, settle) {
  const known = operator.pinv(y), size = known.length;

  async function zeroShot(denoise, random, sigmas, labels) {
    const count = random.keys.length, residuals = [];
    let x = plus(repeated(known, count), random.randn(size), sigmas[0]), x0 = null;
    for (const [number, sigma] of sigmas.entries()) {
      if (number) {
        if (sigma <= model.sigma_min) break;
        x = renoise(x0, random.randn(size), sigma, model.sigma_min);
      }
      x0 = clamp(await denoise(x, level(sigma, count), labels));
      residuals.push(Array.from({ length: count }, (_, i) => distance(operator.A(row(x0, i, count)), y)));
      for (let i = 0; i < count; i++) row(x0, i, count).set(agree(operator, row(x0, i, count), known));
    }
    return { x: x0, residuals };
  }

  return {
    size,
    async run(denoise, random, labels) {
      const count = random.keys.length, edited = await zeroShot(denoise, random, levels, labels);
      const inRange = (x) => {
        for (let i = 0; i < count; i++) row(x, i, count).set(agreeInRange(operator, row(x, i, count), y));
        return x;
      };
      let x = settle.length ? inRange(edited.x) : edited.x;
      for (const sigma of settle) x = inRange(clamp(await denoise(x, level(sigma, count), labels)));
      return { x, residuals: edited.residuals.at(-1) };
    },
    finish: (x) => agreeInRange(operator, x, y),
    classResiduals: async (denoise, random, labels, sigmas) => (await zeroShot(denoise, random, sigmas, labels)).residuals,
  };
}

// Noise of a level is added to the picture and removed.
function noising(model, image, levels) {
  const size = image.length;
  return {
    size,
    async run(denoise, random, labels) {
      const count = random.keys.length;
      let x = repeated(image, count);
      for (const [number, sigma] of levels.entries()) {
        if (sigma <= model.sigma_min) break;
        const noise = random.randn(size);
        const noisy = number ? renoise(x, noise, sigma, model.sigma_min) : plus(x, noise, sigma);
        x = clamp(await denoise(noisy, level(sigma, count), labels));
      }
      return { x, residuals: rms(x, image, count) };
    },
    finish: (x) => x,
    async classResiduals(denoise, random, labels, sigmas) {
      const count = random.keys.length, all = [];
      for (const sigma of sigmas) {
        const noisy = plus(repeated(image, count), random.randn(size), sigma);
        all.push(rms(clamp(await denoise(noisy, level(sigma, count), labels)), image, count));
      }
      return all;
    },
  };
}

// The picture enters at the level of its own noise; the part of it that was clipped is put back.
function denoising(model, image, sigma, steps) {
  const size = image.length, own = Math.min(sigma, model.sigma_max);
  const restored = (count, random) => {
    const noise = random.randn(size), x = repeated(image, count);
    if (own > RESTORED) return x;
    return x.map((v, i) => (v <= -1 ? -1 - Math.abs(noise[i]) * own : v >= 1 ? 1 + Math.abs(noise[i]) * own : v));
  };
  return {
    size,
    async run(denoise, random, labels) {
      const count = random.keys.length;
      let x = restored(count, random);
      for (const [number, sigma_i] of levelsBelow(Math.max(own, model.sigma_min), steps, model.sigma_min, model.rho).entries()) {
        if (number) x = renoise(x, random.randn(size), sigma_i, model.sigma_min);
        x = clamp(await denoise(x, level(sigma_i, count), labels));
      }
      return { x, residuals: rms(x, image, count) };
    },
    finish: (x) => x,
    async classResiduals(denoise, random, labels, sigmas) {
      const count = random.keys.length, all = [];
      for (const sigma_i of sigmas) {
        const total = Math.max(own, sigma_i), noise = random.randn(size);
        const noisy = plus(restored(count, random), noise, Math.sqrt(total ** 2 - own ** 2));
        all.push(rms(clamp(await denoise(noisy, level(total, count), labels)), image, count));
      }
      return all;
    },
  };
}

// ---------------------------------------------------------------------------------------------------- classes

async function labelsOf(denoise, model, method, { class_labels }, keys) {
  const classes = model.classes.length;
  if (!classes) return null;
  if (class_labels != null) return keys.map(() => Number(Array.isArray(class_labels) ? class_labels[0] : class_labels));
  if (classes > MOST_GUESSED) return keys.map((key) => drawnLabel(key, 0, classes));
  const guessed = await guess(denoise, model, method, keys[0]);
  return keys.map(() => guessed);
}

// The class whose estimates agree best with the picture; the worse half is left out round by round.
export async function guess(denoise, model, method, key) {
  const levels = [8, 4, 2, 1].filter((sigma) => sigma > model.sigma_min && sigma < model.sigma_max);
  const total = model.classes.map(() => 0);
  let left = model.classes.map((_, c) => c);
  for (let round = 0; left.length > 1; round++) {
    const own = imageSeed(key, round, STREAMS.GUESS);
    const random = new ImageRandom(left.map(() => own));
    const residuals = await method.classResiduals(denoise, random, Int32Array.from(left), levels.length ? levels : [model.sigma_max]);
    left.forEach((c, i) => { for (const at of residuals) total[c] += Math.log(Math.max(at[i], 1e-6)); });
    left = [...left].sort((a, b) => total[a] - total[b] || a - b).slice(0, (left.length + 1) >> 1);
  }
  return left[0];
}

// ---------------------------------------------------------------------------------------------------- paths

// A path through noise on arcs of great circles: from seed to seed, or from picture to picture. Returns pixels a frame.
export async function path(denoise, model, options, pictures, each = () => {}) {
  const size = model.channels * model.height * model.width, { frames = 16, loop = false, seed = 0 } = options;
  const classes = model.classes.length, given = options.class_labels;
  let points, labels = null, sigma = model.sigma_max;
  if (options.task === "walk") {
    const noise = new ImageRandom(options.seeds.map(BigInt)).randn(size);
    points = options.seeds.map((_, i) => row(noise, i, options.seeds.length).map((v) => v * sigma));
    if (classes) labels = points.map(() => given ?? drawnLabel(seed, 0, classes));
  } else {
    sigma = Math.min(options.sigma ?? TASKS.vary.first, model.sigma_max);
    const keys = pictures.map((_, i) => imageSeed(seed, i)), noise = new ImageRandom(keys).randn(size);
    points = pictures.map((pixels, i) => plus(toValues(pixels), row(noise, i, keys.length), sigma));
    if (classes) {
      labels = [];
      for (const [i, pixels] of pictures.entries()) {
        labels.push(given ?? (classes > MOST_GUESSED ? drawnLabel(keys[i], 0, classes) : await guess(denoise, model, noising(model, toValues(pixels), [sigma]), keys[i])));
      }
    }
  }
  const ends = loop ? points.map((p, i) => [p, points[(i + 1) % points.length]]) : points.slice(1).map((p, i) => [points[i], p]);
  const way = ends.flatMap(([a, b]) => Array.from({ length: frames }, (_, i) => slerp(a, b, i / frames)));
  if (!loop) way.push(points.at(-1));
  const levels = options.sigmas ?? editLevels({ first: sigma, last: 0.3, steps: options.steps ?? 1 }, model.rho);
  const random = new ImageRandom([BigInt(seed)]), noises = levels.slice(1).map(() => random.randn(size));
  const made = [], tile = 8;
  for (let start = 0; start < way.length; start += tile) {
    const part = way.slice(start, start + tile), x = new Float32Array(size * part.length);
    part.forEach((one, i) => x.set(one, i * size));
    const own = labels && Int32Array.from(part, (_, i) => labels[even((start + i) / frames) % labels.length]);
    let x0 = clamp(await denoise(x, level(levels[0], part.length), own));
    for (const [i, sigma_i] of levels.slice(1).entries()) {
      x0 = clamp(await denoise(renoise(x0, repeated(noises[i], part.length), sigma_i, model.sigma_min), level(sigma_i, part.length), own));
    }
    for (let i = 0; i < part.length; i++) {
      made.push(toPixels(row(x0, i, part.length)));
      each(made.length - 1, made.at(-1));
    }
  }
  return made;
}

const even = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

function slerp(a, b, t) {
  const norm = (v) => Math.sqrt(v.reduce((sum, value) => sum + value * value, 0));
  const [na, nb] = [norm(a), norm(b)];
  let apart = 0, together = 0;
  for (let i = 0; i < a.length; i++) {
    apart += (a[i] / na - b[i] / nb) ** 2;
    together += (a[i] / na + b[i] / nb) ** 2;
  }
  const psi = 2 * Math.atan2(Math.sqrt(apart), Math.sqrt(together)), sine = Math.sin(psi), whole = na * (1 - t) + nb * t;
  const [wa, wb] = psi < 1e-6 ? [1 - t, t] : [Math.sin((1 - t) * psi) / sine, Math.sin(t * psi) / sine];
  return a.map((value, i) => (wa * whole / na) * value + (wb * whole / nb) * b[i]);
}

