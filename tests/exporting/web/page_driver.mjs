// Runs the page's modules under Node for the tests: reads a request as JSON, and answers with JSON.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, name] = process.argv.slice(2);
const load = (file) => import(pathToFileURL(`${folder}/${file}.js`));
const given = JSON.parse(readFileSync(0, "utf8"));

// A stand-in for a network, which test_web_numbers.py has too.
async function denoise(x, sigmas, labels, ends) {
  const out = new Float32Array(x.length), size = x.length / sigmas.length;
  for (let i = 0; i < x.length; i++) {
    const b = Math.floor(i / size), s = sigmas[b] - (ends ? ends[b] / 4 : 0), wave = labels ? 0.5 * Math.sin((i % size) * 0.05 * (labels[b] + 1)) : 0;
    out[i] = (x[i] + s * s * wave) / (1 + s * s);
  }
  return out;
}

const actions = {
  async words() {
    const { imageSeed, philox } = await load("random");
    return { words: given.cases.map(([counter, key]) => philox(counter, key, [])),
      seeds: given.seeds.map(([seed, index, stream]) => String(imageSeed(BigInt(seed), BigInt(index), BigInt(stream)))) };
  },
  async normals() {
    const { ImageRandom } = await load("random");
    const random = new ImageRandom(given.keys.map(BigInt));
    return given.draws.map((count) => [...random.randn(count)]);
  },
  async sample() {
    const { ImageRandom, drawnLabel, imageSeed } = await load("random"), { sample, toPixels } = await load("sampling"), { plan } = await load("levels");
    const { model, options, count } = given, numbers = Array.from({ length: count }, (_, i) => i);
    const labels = model.classes.length ? Int32Array.from(numbers, (i) => drawnLabel(options.seed, i, model.classes.length)) : null;
    const random = new ImageRandom(numbers.map((i) => imageSeed(options.seed, i)));
    const sigmas = plan(model, options);
    const shape = [model.channels, model.height, model.width];
    return { sigmas, labels: labels && [...labels], pixels: [...toPixels(await sample(denoise, random, shape, sigmas, labels, model))] };
  },
  async edit() {
    const { edit, inputShape } = await load("edits"), { fitted, knownPixels } = await load("pictures");
    const { model, options, picture, mask } = given;
    const known = mask && knownPixels(mask, model.height, model.width);
    const { images, labels } = await edit(denoise, model, options, fitted(picture, inputShape(model, options)), known);
    return { images: images.map((one) => [...one]), labels };
  },
  async path() {
    const { path } = await load("edits"), { fitted } = await load("pictures");
    const { model, options } = given, shape = [model.channels, model.height, model.width];
    return (await path(denoise, model, options, (given.pictures ?? []).map((one) => fitted(one, shape)))).map((one) => [...one]);
  },
  async fit() {
    const { fitted } = await load("pictures");
    return [...fitted(given.picture, given.shape)];
  },
  async png() {
    const { pngUrl } = await load("pictures");
    return pngUrl(Uint8Array.from(given.pixels), given.shape);
  },
  async noise() {
    const { estimateNoise } = await load("noise_level");
    return given.images.map((one) => estimateNoise(Float32Array.from(one), given.shape));
  },
  async operators() {
    const all = await load("operators"), { shape } = given, x = Float32Array.from(given.x);
    const made = { blur: all.blur(shape, 1.5), patches: all.patches(shape, 4), luma: all.luma() };
    return Object.fromEntries(Object.entries(made).map(([kind, one]) => [kind, { y: [...one.A(x)], x: [...one.pinv(one.A(x))] }]));
  },
};

process.stdout.write(JSON.stringify(await actions[name]()));
