// Images as they are made, by nothing but Node.
import { writeFile } from "node:fs/promises";

const address = process.argv[2] ?? "http://127.0.0.1:8000";
const answer = await fetch(`${address}/v1/images/generations`, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ n: 3, seed: 0, steps: 2, stream: true }),
});
if (!answer.ok) throw new Error((await answer.json()).error.message);
let text = "", count = 0;
for await (const part of answer.body.pipeThrough(new TextDecoderStream())) {
  text += part;
  for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
    const data = text.slice(0, end).split("\n").find((line) => line.startsWith("data: "));
    text = text.slice(end + 2);
    const image = JSON.parse(data.slice(6));
    await writeFile(`image-${image.index}.png`, Buffer.from(image.b64_json, "base64"));
    count += 1;
  }
}
console.log(`${count} images`);
