// node sample.mjs digits.onnx 7 0 seven.png: image 0 of `unistep sample --seed 0 --class-labels 7`, without Python.
//
// digits.onnx is a sampler: unistep export mnist digits.onnx --steps 1. The two modules imported from a path are those of an
// exported page, its folder page/.

import { writeFile } from "node:fs/promises";
import * as ort from "onnxruntime-node";

const [file, label, seed, output, modules] = process.argv.slice(2);
const { ImageRandom, imageSeed } = await import(`${modules}/random.js`);
const { encodePng } = await import(`${modules}/pictures.js`);

const session = await ort.InferenceSession.create(file);
const [, draws, ...shape] = session.inputMetadata.find((one) => one.name === "noise").shape;
const size = shape.reduce((a, b) => a * b), random = new ImageRandom([imageSeed(seed, 0)]);
const noise = new Float32Array(draws * size);
for (let draw = 0; draw < draws; draw++) noise.set(random.randn(size), draw * size);
const feeds = { noise: new ort.Tensor("float32", noise, [1, draws, ...shape]) };
if (session.inputNames.includes("class_labels")) feeds.class_labels = new ort.Tensor("int32", [Number(label)], [1]);
const { images } = await session.run(feeds); // uint8 [1, height, width, channels]

const [, height, width, channels] = images.dims, plane = height * width;
const pixels = Uint8Array.from(images.data, (_, i) => images.data[(i % plane) * channels + Math.floor(i / plane)]);
await writeFile(output, Buffer.from(await (await encodePng(pixels, [channels, height, width])).arrayBuffer()));
