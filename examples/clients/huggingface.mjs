// An image by Hugging Face's own client: npm install @huggingface/inference.
import { writeFile } from "node:fs/promises";
import { InferenceClient } from "@huggingface/inference";

const address = process.argv[2] ?? "http://127.0.0.1:8000";
const name = process.argv[3] ?? "mnist";
const client = new InferenceClient().endpoint(`${address}/models/${name}`);
const image = await client.textToImage({ inputs: "7", parameters: { num_inference_steps: 2, seed: 3 } }, { outputType: "blob" });
await writeFile("seven.png", Buffer.from(await image.arrayBuffer()));
console.log(`seven.png: ${image.size} bytes`);
