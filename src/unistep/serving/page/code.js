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

// The embedded model is what the command takes where none is named.
const named = (model, flag = "") => (model === "mnist" ? "" : `${flag}${model} `);

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
  unistep: ({ body }) => `unistep sample ${named(body.model)}--num-images ${body.n} ${flags(body)} --output images.png`,
};

const pictures = (kind) => ({ edit: ["picture.png"], pair: ["first.png", "second.png"] })[kind] ?? [];

const edited = {
  curl: ({ options, masked, model, kind }, address) => `curl ${address}/v1/images/edits \\
${pictures(kind).map((name) => `  -F image=@${name} \\\n`).join("")}${masked ? "  -F mask=@mask.png \\\n" : ""}  -F model=${model} \\
  -F 'options=${json(options)}' | jq -r '.data[0].b64_json' | base64 -d > result.png`,
  Python: ({ options, masked, model, kind }, address) => `import base64
import json
import requests

files = [${[...pictures(kind).map((name) => `("image", open("${name}", "rb"))`), ...(kind === "walk" ? ['("image", (None, ""))'] : []), ...(masked ? ['("mask", open("mask.png", "rb"))'] : [])].join(", ")}]
form = {"model": "${model}", "options": json.dumps(${python(options)})}
answer = requests.post("${address}/v1/images/edits", data=form, files=files)
for i, image in enumerate(answer.json()["data"]):
    open(f"result-{i}.png", "wb").write(base64.b64decode(image["b64_json"]))`,
  "Python (openai)": ({ options, masked, model, kind }, address) => kind !== "walk" ? `import base64
import json
from openai import OpenAI

client = OpenAI(base_url="${address}/v1", api_key="none")
answer = client.images.edit(
    model="${model}", prompt="", image=${kind === "edit" ? 'open("picture.png", "rb")' : '[open("first.png", "rb"), open("second.png", "rb")]'}, ${masked ? 'mask=open("mask.png", "rb"), ' : ""}
    extra_body={"options": json.dumps(${python(options)})},
)
open("result.png", "wb").write(base64.b64decode(answer.data[0].b64_json))` : "# The openai client has no walks: see Python.",
  Node: ({ options, masked, model, kind }, address) => `import { openAsBlob } from "node:fs";
import { writeFile } from "node:fs/promises";

const form = new FormData();
${pictures(kind).map((name) => `form.append("image", await openAsBlob("${name}"), "${name}");\n`).join("")}${masked ? 'form.append("mask", await openAsBlob("mask.png"), "mask.png");\n' : ""}form.append("model", "${model}");
form.append("options", JSON.stringify(${json(options)}));
const answer = await fetch("${address}/v1/images/edits", { method: "POST", body: form });
const { data } = await answer.json();
for (const [i, image] of data.entries()) await writeFile(\`result-\${i}.png\`, Buffer.from(image.b64_json, "base64"));`,
  unistep: ({ options, masked, kind, model }) => `unistep edit ${options.task} ${named(model, "--model ")}${kind === "walk" ? "" : `--input ${pictures(kind).join(" ")} `}${masked ? "--mask mask.png " : ""}${flags(options)} --output ${kind === "edit" ? "result.png" : "walk.gif"}`,
};
