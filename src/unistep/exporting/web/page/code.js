// What was just done, as code: for the package, and for a page beside this one.

const json = (value) => JSON.stringify(value);
const python = (value) => json(value).replace(/\btrue\b/g, "True").replace(/\bfalse\b/g, "False").replace(/\bnull\b/g, "None");
const words = (given, left = []) => Object.entries(given).filter(([name, value]) => !left.includes(name) && value !== false && value != null);

export const LANGUAGES = ["Python", "unistep", "JavaScript"];

export function snippet(done, language, address) {
  return (done.kind === "make" ? made : edited)[language](done, address);
}

const flags = (given, left) => words(given, left)
  .map(([name, value]) => ` --${name.replaceAll("_", "-")}${value === true ? "" : ` ${Array.isArray(value) ? value.join(",") : value}`}`).join("");
const named = (given, left) => words(given, left).map(([name, value]) => `, ${name}=${python(value)}`).join("");
const pictures = (kind) => ({ edit: ["picture.png"], pair: ["first.png", "second.png"] })[kind] ?? [];

const made = {
  Python: ({ body }) => `import unistep

images = unistep.sample(${json(body.model)}, num_images=${body.n}${named(body, ["model", "n"])})
images.save("images.png")`,
  unistep: ({ body }) => `unistep sample ${body.model} --num-images ${body.n}${flags(body, ["model", "n"])} --output images.png`,
  JavaScript: ({ body: { model, ...body } }, address) => `import { make } from "${address}/page/api.js";  // on a page of this host

await make(${json(body)}, (number, url) => {
  const image = new Image();
  image.src = url;
  document.body.append(image);
});`,
};

const edited = {
  Python: ({ options, masked, model, kind }) => {
    const given = pictures(kind), image = given.length > 1 ? json(given) : given.length ? json(given[0]) : "None";
    return `import unistep

result = unistep.edit(${json(model)}, ${image}, ${json(options.task)}${masked ? ', mask="mask.png"' : ""}${named(options, ["task"])})
result.save("${kind === "edit" ? "result.png" : "walk.gif"}")`;
  },
  unistep: ({ options, masked, model, kind }) => `unistep edit ${options.task} --model ${model}${pictures(kind).length ? ` --input ${pictures(kind).join(" ")}` : ""}${masked ? " --mask mask.png" : ""}${flags(options, ["task"])} --output ${kind === "edit" ? "result.png" : "walk.gif"}`,
  JavaScript: ({ options, masked, kind }, address) => `import { edit } from "${address}/page/api.js";  // on a page of this host

const { images } = await edit(
  ${json(options)},
  [${kind === "edit" ? "picture" : kind === "pair" ? "first, second" : ""}],${masked ? " mask," : " null,"}  // blobs
);
for (const url of images) {
  const image = new Image();
  image.src = url;
  document.body.append(image);
}`,
};
