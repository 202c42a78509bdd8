// Small parts of the page: elements, notices, the large view.

export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((c) => c != null && c !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);

export function notice(message) {
  const place = $("notice");
  place.hidden = !message;
  place.textContent = message || "";
}

export function say(message) {
  $("status").textContent = message;
}

export function failed(error) {
  if (error.name === "AbortError") return;
  notice(error.message);
}

export function milliseconds(ms) {
  return ms < 10 ? `${ms.toFixed(1)} ms` : ms < 10000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

export function download(url, name) {
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

export async function toBlob(url) {
  const [head, data] = url.split(",");
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}

export function loaded(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("The picture cannot be read."));
    image.src = url;
  });
}

export function canvasBlob(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

// The field of a seed: a number, a dice for another, a lock that keeps it.
export function seedField(state, changed) {
  const field = h("input", { type: "number", min: 0, max: 4294967295, step: 1, value: state.seed, "aria-label": "Seed",
    onchange: () => { state.seed = Math.max(0, Math.floor(Number(field.value) || 0)); field.value = state.seed; changed(); } });
  const dice = h("button", { type: "button", title: "Another seed", "aria-label": "Another seed",
    onclick: () => { state.seed = randomSeed(); field.value = state.seed; changed(); } }, "Dice");
  const lock = h("button", { type: "button", title: "Keep this seed", "aria-label": "Keep this seed", "aria-pressed": String(!!state.locked),
    onclick: () => { state.locked = !state.locked; lock.setAttribute("aria-pressed", String(state.locked)); } }, "Keep");
  const label = h("label", {}, "Seed", field);
  return { element: h("span", { class: "row" }, label, dice, lock), show: () => { field.value = state.seed; } };
}

export function options(name, values, chosen, changed) {
  const select = h("select", { onchange: () => changed(select.value) },
    values.map(([value, text]) => h("option", { value, selected: String(value) === String(chosen) }, text)));
  return h("label", {}, name, select);
}

// A picture in large, with what can be done with it.
export function large(url, name, actions) {
  const dialog = $("large");
  dialog.replaceChildren(
    h("img", { src: url, alt: name, class: "small" }),
    h("div", { class: "row" },
      h("button", { onclick: () => download(url, `${name.replace(/\W+/g, "-")}.png`) }, "Download PNG"),
      actions.map(([text, act]) => h("button", { onclick: () => { dialog.close(); act(); } }, text)),
      h("button", { onclick: () => dialog.close() }, "Close")));
  dialog.showModal();
}
