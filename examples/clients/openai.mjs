// Images by OpenAI's own client: npm install openai.
import { writeFile } from "node:fs/promises";
import OpenAI from "openai";

const address = process.argv[2] ?? "http://127.0.0.1:8000";
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none" });
const made = await client.images.generate({ prompt: "3", n: 2, steps: 2, seed: 7 });
for (const [i, image] of made.data.entries()) await writeFile(`three-${i}.png`, Buffer.from(image.b64_json, "base64"));
console.log(`${made.data.length} images`);
