// The server's API, as any client has it: this page uses nothing else.

export const served = true;

let token = sessionStorage.getItem("unistep-token") || "";

export class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(extra = {}) {
  return token ? { ...extra, Authorization: `Bearer ${token}` } : extra;
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server does not answer. Is it still running?", 0);
  }
  if (answer.status === 401) {
    const given = window.prompt("This server asks for a token:");
    if (given) {
      token = given.trim();
      sessionStorage.setItem("unistep-token", token);
      return ask(path, options);
    }
  }
  if (!answer.ok) {
    let message = `The server answers ${answer.status}.`;
    try {
      message = (await answer.json()).error.message;
    } catch { /* no body of ours */ }
    if (answer.status === 429) message = `The server is busy. ${message}`;
    throw new Failure(message, answer.status);
  }
  return answer;
}

export async function models() {
  return (await (await ask("/v1/models")).json()).data;
}

// Makes images; `each` is called with (number, data URL, milliseconds since the start) as they come.
export async function make(body, each, signal) {
  const started = performance.now();
  const answer = await ask("/v1/images/generations", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, interactive: true }),
    signal,
  });
  let count = 0;
  for await (const event of events(answer.body)) {
    if (event.error) throw new Failure(event.error.message, 500);
    count += 1;
    each(event.index, `data:image/png;base64,${event.b64_json}`, performance.now() - started, event.class_label);
  }
  return { count, ms: performance.now() - started };
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const data = text.slice(0, end).split("\n").filter((l) => l.startsWith("data: ")).map((l) => l.slice(6));
        text = text.slice(end + 2);
        if (data.length) yield JSON.parse(data.join("\n"));
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The connection broke off. Is the server still running?", 0);
  }
}

// Edits pictures: `images` and `mask` are blobs; returns data URLs, best first, and the server's milliseconds.
export async function edit(options, images, mask, model, signal) {
  const form = new FormData();
  for (const image of images) form.append("image", image, "image.png");
  if (mask instanceof Blob) form.append("mask", mask, "mask.png");
  const given = mask && !(mask instanceof Blob) ? { ...options, mask } : options;
  form.append("options", JSON.stringify(given));
  if (model) form.append("model", model);
  const answer = await ask("/v1/images/edits", { method: "POST", body: form, signal });
  const body = await answer.json();
  return { images: body.data.map((d) => `data:image/png;base64,${d.b64_json}`), ms: body.seconds * 1000, note: body.note,
    classes: body.data.map((d) => d.class_label).filter((c) => c != null) };
}
