// Sampling of consistency models, and the arrays that it works on: images in a row in one Float32Array.
//
// A denoiser is an async function (x, sigmas, labels) -> x0: images, a noise level each, classes or null. A flow map takes
// the level at which each trajectory ends after these; left out it is 0.

export const clamp = (x) => {
  for (let i = 0; i < x.length; i++) x[i] = x[i] < -1 ? -1 : x[i] > 1 ? 1 : x[i];
  return x;
};

export const level = (sigma, count) => new Float32Array(count).fill(sigma);

// x + scale * noise.
export function plus(x, noise, scale) {
  const sum = new Float32Array(x.length), by = Math.fround(scale);
  for (let i = 0; i < x.length; i++) sum[i] = x[i] + Math.fround(noise[i] * by);
  return sum;
}

// Images that carry the noise of sigma_min, raised to a higher level.
export function renoise(x0, noise, sigma, sigma_min) {
  return plus(x0, noise, Math.sqrt(Math.max(sigma ** 2 - sigma_min ** 2, 0)));
}

// The same image several times.
export function repeated(image, count) {
  const all = new Float32Array(image.length * count);
  for (let i = 0; i < count; i++) all.set(image, i * image.length);
  return all;
}

// One image of a row.
export const row = (x, i, count) => x.subarray((i * x.length) / count, ((i + 1) * x.length) / count);

// Images in [-1, 1] from unit noise: one evaluation at every level.
export async function sample(denoise, random, shape, sigmas, labels, model) {
  if (model.flow_map) return jumps(denoise, random, shape, sigmas, labels, model);
  const { sigma_min, clip = true } = model;
  const size = shape.reduce((a, b) => a * b), count = random.keys.length;
  const noise = random.randn(size), kept = clip ? clamp : (x) => x;
  let x0 = kept(await denoise(plus(new Float32Array(noise.length), noise, sigmas[0]), level(sigmas[0], count), labels));
  for (const sigma of sigmas.slice(1)) {
    if (sigma <= sigma_min) break;
    x0 = kept(await denoise(renoise(x0, random.randn(size), sigma, sigma_min), level(sigma, count), labels));
  }
  return x0;
}

// Images of a flow map: a jump from every level to the next, and from the last to 0. Between them gamma of each level is
// fresh noise, for which a jump goes below the level.
async function jumps(denoise, random, shape, sigmas, labels, { gamma = 0, clip = true }) {
  const size = shape.reduce((a, b) => a * b), count = random.keys.length, noise = random.randn(size);
  const levels = [...sigmas.filter((sigma) => sigma > 0), 0];
  let x = plus(new Float32Array(noise.length), noise, sigmas[0]);
  for (let i = 0; i + 1 < levels.length; i++) {
    const next = levels[i + 1], start = level(levels[i], count), end = level(next * Math.sqrt(1 - gamma ** 2), count);
    const x0 = await denoise(x, start, labels, end), way = Math.fround(end[0] - start[0]);
    x = end[0] === 0 ? x0 : x.map((v, j) => v + Math.fround(Math.fround(Math.fround(v - x0[j]) / start[0]) * way));
    if (gamma && next) x = plus(x, random.randn(size), gamma * next);
  }
  return clip ? clamp(x) : x;
}

// The integer nearest to x, the even one of two.
function rounded(x) {
  const low = Math.floor(x), rest = x - low;
  return rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low;
}

// Values as the nearest pixels.
export function toPixels(x) {
  const pixels = new Uint8Array(x.length);
  for (let i = 0; i < x.length; i++) {
    if (!Number.isFinite(x[i])) throw new Error("The network's output is not finite.");
    const unit = Math.fround(Math.fround(x[i] / 2) + 0.5);
    pixels[i] = rounded(Math.fround((unit < 0 ? 0 : unit > 1 ? 1 : unit) * 255));
  }
  return pixels;
}

// Pixels as values in [-1, 1].
export const toValues = (pixels) => Float32Array.from(pixels, (p) => Math.fround(Math.fround(p / 127.5)) - 1);
