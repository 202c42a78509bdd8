// What was just done, as code for other clients.

const json = (value) => JSON.stringify(value);
const python = (value) => json(value).replace(/\btrue\b/g, "True").replace(/\bfalse\b/g, "False").replace(/\bnull\b/g, "None");

export const LANGUAGES = ["curl", "Python", "Python (openai)", "Node", "unistep"];

export function snippet(done, language, address) {
  return (done.kind === "make" ? made : edited)[language](done, address);
}

const flags = (given) => Object.entries(given)
  .filter(([name, value]) => !["model", "task", "n"].includes(name) && value !== false)
  .map(([name, value]) => `--${name.replaceAll("_", "-")}${value === true ? "" : ` ${Array.isArray(value) ? value.join(",") : value}`}`)
  .join(" ");

const made = {
  curl: ({ body }, address) => `curl ${address}/v1/images/generations \\
  -H 'Content-Type: application/json' \\
  -d '${json(body)}' | jq -r '.data[0].b64_json' | base64 -d > image.png`,
  Python: ({ body }, address) => `import base64
import requests

answer = requests.post("${address}/v1/images/generations", json=${python(body)})
for i, image in enumerate(answer.json()["data"]):
    open(f"image-{i}.png", "wb").write(base64.b64decode(image["b64_json"]))`,
  "Python (openai)": ({ body }, address) => {
    const { model, n, ...extra } = body;
    return `import base64
from openai import OpenAI

client = OpenAI(base_url="${address}/v1", api_key="none")
answer = client.images.generate(model="${model}", prompt="", n=${n}, extra_body=${python(extra)})
open("image.png", "wb").write(base64.b64decode(answer.data[0].b64_json))`;
  },
  Node: ({ body }, address) => `import { writeFile } from "node:fs/promises";

const answer = await fetch("${address}/v1/images/generations", {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(${json(body)}),
});
const { data } = await answer.json();
for (const [i, image] of data.entries()) await writeFile(\`image-\${i}.png\`, Buffer.from(image.b64_json, "base64"));`,
  unistep: ({ body }) => `unistep sample --num-images ${body.n} ${flags(body)} --output images.png`,
};

const edited = {
  curl: ({ options, masked, model, kind }, address) => `curl ${address}/v1/images/edits \\
${kind === "edit" ? "  -F image=@picture.png \\\n" : ""}${masked ? "  -F mask=@mask.png \\\n" : ""}  -F model=${model} \\
  -F 'options=${json(options)}' | jq -r '.data[0].b64_json' | base64 -d > result.png`,
  Python: ({ options, masked, model, kind }, address) => `import base64
import json
import requests

files = {${kind === "edit" ? '"image": open("picture.png", "rb")' : '"image": (None, "")'}${masked ? ', "mask": open("mask.png", "rb")' : ""}}
form = {"model": "${model}", "options": json.dumps(${python(options)})}
answer = requests.post("${address}/v1/images/edits", data=form, files=files)
for i, image in enumerate(answer.json()["data"]):
    open(f"result-{i}.png", "wb").write(base64.b64decode(image["b64_json"]))`,
  "Python (openai)": ({ options, masked, model, kind }, address) => kind === "edit" ? `import base64
import json
from openai import OpenAI

client = OpenAI(base_url="${address}/v1", api_key="none")
answer = client.images.edit(
    model="${model}", prompt="", image=open("picture.png", "rb"), ${masked ? 'mask=open("mask.png", "rb"), ' : ""}
    extra_body={"options": json.dumps(${python(options)})},
)
open("result.png", "wb").write(base64.b64decode(answer.data[0].b64_json))` : "# The openai client has no walks: see Python.",
  Node: ({ options, masked, model, kind }, address) => `import { openAsBlob } from "node:fs";
import { writeFile } from "node:fs/promises";

const form = new FormData();
${kind === "edit" ? 'form.append("image", await openAsBlob("picture.png"), "picture.png");\n' : ""}${masked ? 'form.append("mask", await openAsBlob("mask.png"), "mask.png");\n' : ""}form.append("model", "${model}");
form.append("options", JSON.stringify(${json(options)}));
const answer = await fetch("${address}/v1/images/edits", { method: "POST", body: form });
const { data } = await answer.json();
for (const [i, image] of data.entries()) await writeFile(\`result-\${i}.png\`, Buffer.from(image.b64_json, "base64"));`,
  unistep: ({ options, masked, kind }) => `unistep edit ${options.task} ${kind === "edit" ? "--input picture.png " : ""}${masked ? "--mask mask.png " : ""}${flags(options)} --output ${kind === "edit" ? "result.png" : "walk.gif"}`,
};
