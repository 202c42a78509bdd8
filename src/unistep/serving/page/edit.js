// Draw and edit: a picture that is drawn, dropped or pasted; a mask that is brushed; results that follow the brush.

import * as api from "./api.js";
import { canvasBlob, download, failed, h, large, loaded, milliseconds, notice, options, randomSeed, seedField } from "./ui.js";

// Task: its name, what is brushed ("mask" or "paint" or ""), and its extra fields.
const TASKS = [
  ["inpaint", "Paint what is marked", "mask"],
  ["strokes", "From strokes to a picture", "paint"],
  ["vary", "Variations", "paint"],
  ["denoise", "Remove noise", "paint"],
  ["deblur", "Sharpen", "paint"],
  ["upscale", "Enlarge", "paint"],
  ["outpaint", "Paint around it", "paint"],
  ["colorize", "Colour it", "paint"],
];
const HINTS = {
  inpaint: "Mark what should be made anew: the result follows the brush.",
  strokes: "Draw roughly: the network makes a picture of it while you draw.",
  vary: "Other pictures like this one.",
  denoise: "A noisy picture becomes clean.",
  deblur: "A blurred picture becomes sharp.",
  upscale: "A picture of a quarter of the size becomes large.",
  outpaint: "The picture is made larger on all sides.",
  colorize: "A grey picture gets colours.",
};

export function editTab(app, given = {}) {
  const model = app.model();
  const state = app.state.edit ??= { task: "inpaint", candidates: 3, brush: 3, seed: 0, live: true, strength: 0.5, blur: 1, picture: "", mask: "" };
  state.blur ??= 1; // of links from before there was one
  Object.assign(state, given);
  const scale = Math.max(1, Math.min(4, Math.floor(512 / model.width)));
  const size = [model.width * scale, model.height * scale];
  const base = h("canvas", { width: size[0], height: size[1], "aria-label": "Picture", role: "img" });
  const mask = h("canvas", { width: size[0], height: size[1], tabindex: 0, "aria-label": "Brush here; arrow keys move, space paints" });
  const paint = base.getContext("2d", { willReadFrequently: true }), mark = mask.getContext("2d", { willReadFrequently: true });
  const results = h("div", { class: "results", "aria-label": "Results" });
  const time = h("p", { class: "time", role: "status" });
  const slider = h("div", {});
  const easel = h("div", { class: "easel" }, base, mask);
  let running = null, waiting = false, guessed = null, colour = "#ffffff", erase = false, last = null, empty = true, latest = [], left = false;

  const tool = () => TASKS.find(([name]) => name === state.task)[2];

  // -------------------------------------------------------------------------------------------- the picture

  function clear() {
    paint.globalCompositeOperation = "source-over";
    paint.fillStyle = "#000";
    paint.fillRect(0, 0, ...size);
    mark.clearRect(0, 0, ...size);
    empty = true;
    guessed = null;
    state.picture = state.mask = "";
    state.label = null;
    results.replaceChildren();
    slider.replaceChildren();
    time.textContent = "";
  }

  async function take(url, marks, label = null) {
    try {
      const image = await loaded(url), marked = marks ? await loaded(marks) : null;
      if (left) return;
      clear();
      const side = Math.min(image.naturalWidth / model.width, image.naturalHeight / model.height);
      const [w, t] = [model.width * side, model.height * side];
      paint.imageSmoothingEnabled = image.naturalWidth > model.width;
      paint.drawImage(image, (image.naturalWidth - w) / 2, (image.naturalHeight - t) / 2, w, t, 0, 0, ...size);
      if (marked) {
        mark.imageSmoothingEnabled = false;
        mark.drawImage(marked, 0, 0, ...size);
      }
      guessed = state.label = label;
      empty = false;
      keep();
      request();
    } catch (error) {
      failed(error);
    }
  }

  async function file(blob) {
    if (!blob) return;
    const url = URL.createObjectURL(blob);
    await take(url);
    URL.revokeObjectURL(url);
  }

  function reduced(canvas, threshold) {
    const small = h("canvas", { width: model.width, height: model.height });
    const context = small.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(canvas, 0, 0, model.width, model.height);
    if (threshold != null) {
      const data = context.getImageData(0, 0, model.width, model.height);
      for (let i = 0; i < data.data.length; i += 4) {
        const on = data.data[i + 3] > threshold ? 255 : 0;
        data.data.set([on, on, on, 255], i);
      }
      context.putImageData(data, 0, 0);
    }
    return small;
  }

  // What a shared link carries: a small picture and its marks as they are.
  function keep() {
    const [url, marks] = [reduced(base).toDataURL("image/png"), reduced(mask).toDataURL("image/png")];
    [state.picture, state.mask] = url.length + marks.length < 12000 ? [url, marks] : ["", ""];
  }

  // -------------------------------------------------------------------------------------------- the brush

  function at(event) {
    const box = mask.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * size[0], (event.clientY - box.top) / box.height * size[1]];
  }

  function stroke(from, to) {
    const marking = tool() === "mask";
    const context = marking ? mark : paint;
    context.globalCompositeOperation = marking && erase ? "destination-out" : "source-over";
    context.strokeStyle = marking ? "rgb(255 70 70 / 1)" : erase ? "#000" : colour;
    context.lineWidth = state.brush * scale;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
    if (!marking) { empty = false; guessed = null; }
  }

  mask.addEventListener("pointerdown", (event) => {
    mask.setPointerCapture(event.pointerId);
    last = at(event);
    stroke(last, last);
    if (state.live) request();
  });
  mask.addEventListener("pointermove", (event) => {
    if (!last) return;
    const now = at(event);
    stroke(last, now);
    last = now;
    if (state.live) request();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    mask.addEventListener(name, () => {
      if (!last) return;
      last = null;
      keep();
      request();
    });
  }
  const cursor = [size[0] / 2, size[1] / 2];
  mask.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) {
      const from = [...cursor];
      cursor[0] = Math.min(size[0], Math.max(0, cursor[0] + step[0] * scale * 2));
      cursor[1] = Math.min(size[1], Math.max(0, cursor[1] + step[1] * scale * 2));
      if (event.shiftKey) { stroke(from, cursor); keep(); request(); }
    } else if (event.key === " ") {
      stroke(cursor, cursor);
      keep();
      request();
    } else {
      return;
    }
    event.preventDefault();
  });
  easel.addEventListener("dragover", (event) => { event.preventDefault(); easel.classList.add("over"); });
  easel.addEventListener("dragleave", () => easel.classList.remove("over"));
  easel.addEventListener("drop", (event) => { event.preventDefault(); easel.classList.remove("over"); file(event.dataTransfer.files[0]); });
  const pasted = (event) => file([...event.clipboardData.items].find((i) => i.type.startsWith("image/"))?.getAsFile());
  document.addEventListener("paste", pasted);

  // -------------------------------------------------------------------------------------------- the result

  // One request is under way; while the brush moves on, the next begins when it ends, so that what comes is never old.
  function request() {
    if (empty) return;
    if (running && state.live && last) { waiting = true; return; }
    run();
  }

  async function run() {
    running?.abort();
    const own = running = new AbortController();
    waiting = false;
    const given = { task: state.task, candidates: state.candidates, seed: state.seed };
    if (["strokes", "vary"].includes(state.task)) given.strength = state.strength;
    if (state.task === "deblur") given.blur = state.blur;
    const painted = tool() === "mask" ? reduced(mask, 64) : null;
    if (painted && !painted.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, painted.width, painted.height).data.some((v, i) => i % 4 === 0 && v)) {
      results.replaceChildren(h("p", { class: "hint" }, "Mark a part of the picture."));
      running = null;
      return;
    }
    // Trying all classes costs more than the edit: once for a picture is enough.
    if (guessed !== null) given.class_labels = guessed;
    app.did({ kind: "edit", options: given, masked: !!painted, model: model.id });
    try {
      const image = await canvasBlob(reduced(base));
      const made = await api.edit(given, [image], painted && await canvasBlob(painted), model.id, own.signal);
      if (own !== running) return;
      notice("");
      if (made.classes.length) guessed = state.label = made.classes[0];
      show(made.images);
      time.textContent = `${made.images.length} ${made.images.length === 1 ? "result" : "results"} in ${milliseconds(made.ms)}`;
    } catch (error) {
      if (own === running) failed(error);
    } finally {
      if (own === running) {
        running = null;
        if (waiting) run();
      }
    }
  }

  function show(images) {
    latest = images;
    results.replaceChildren(...images.map((url, i) => h("button", { class: "shot", "aria-label": `Result ${i + 1}`,
      onclick: () => large(url, `Result ${i + 1}`, [["Take it as the picture", () => take(url)]]) }, h("img", { src: url, alt: "" }))));
    const before = reduced(base).toDataURL();
    const after = h("img", { src: images[0], alt: "After" });
    const share = slider.querySelector("input")?.value ?? 50;
    const range = h("input", { type: "range", min: 0, max: 100, value: share, "aria-label": "Before and after",
      oninput: () => { after.style.clipPath = `inset(0 0 0 ${range.value}%)`; } });
    after.style.clipPath = `inset(0 0 0 ${share}%)`;
    slider.replaceChildren(h("div", { class: "compare" }, h("img", { src: before, alt: "Before" }), after), range);
  }

  // -------------------------------------------------------------------------------------------- the controls

  const input = h("input", { type: "file", accept: "image/*", hidden: true, onchange: () => file(input.files[0]) });
  const tasks = TASKS.filter(([name]) => model.tasks?.includes(name) ?? (name !== "colorize" || model.channels === 3)).map(([name, text]) => [name, text]);
  const hint = h("p", { class: "hint" });
  const brushes = h("span", { class: "row" });
  const seed = seedField(state, request);
  function drawTools() {
    hint.textContent = HINTS[state.task];
    mask.style.opacity = tool() === "mask" ? ".55" : "0";
    const pen = h("button", { "aria-pressed": String(!erase), onclick: () => { erase = false; drawTools(); } }, tool() === "mask" ? "Mark" : "Draw");
    const rubber = h("button", { "aria-pressed": String(erase), onclick: () => { erase = true; drawTools(); } }, "Rub out");
    const chosen = h("input", { type: "color", value: colour, "aria-label": "Colour", oninput: () => { colour = chosen.value; } });
    const width = h("input", { type: "range", min: 1, max: Math.round(model.width / 3), value: state.brush, "aria-label": "Brush", oninput: () => { state.brush = Number(width.value); } });
    const strength = h("input", { type: "range", min: 0.1, max: 0.95, step: 0.05, value: state.strength, "aria-label": "Freedom", oninput: () => { state.strength = Number(strength.value); request(); } });
    const blur = h("input", { type: "range", min: 0.5, max: 3, step: 0.1, value: state.blur, "aria-label": "Blur", oninput: () => { state.blur = Number(blur.value); request(); } });
    brushes.replaceChildren(pen, rubber, h("label", {}, "Brush", width),
      ...(tool() === "paint" && model.channels === 3 ? [h("label", {}, "Colour", chosen)] : []),
      ...(["strokes", "vary"].includes(state.task) ? [h("label", {}, "Freedom", strength)] : []),
      ...(state.task === "deblur" ? [h("label", {}, "Blur", blur)] : []));
  }
  const live = h("input", { type: "checkbox", checked: state.live, onchange: () => { state.live = live.checked; } });
  async function random() {
    try {
      await api.make({ model: model.id, n: 1, seed: randomSeed() }, (_, url, ms, label) => { take(url, null, label ?? null); });
    } catch (error) {
      failed(error);
    }
  }

  const small = model.width < 128 ? "small" : "";
  const element = h("div", {}, hint,
    h("div", { class: "row" }, options("Task", tasks, state.task, (v) => { state.task = v; erase = false; drawTools(); request(); }),
      options("Results", [1, 3, 6, 12].map((n) => [n, String(n)]), state.candidates, (v) => { state.candidates = Number(v); request(); }),
      seed.element, h("label", {}, live, "Live")),
    h("div", { class: "work" },
      h("div", {}, easel, brushes,
        h("div", { class: "row" }, h("button", { onclick: () => input.click() }, "Open…"), h("button", { onclick: random }, "A random one"),
          h("button", { onclick: () => { mark.clearRect(0, 0, ...size); keep(); request(); } }, "Clear marks"), h("button", { onclick: clear }, "Clear all"), input)),
      h("div", { class: small }, time, results, slider,
        h("div", { class: "row" }, h("button", { onclick: () => latest[0] && download(latest[0], "result.png") }, "Download the best")))));
  const { picture, mask: marks, label } = state;
  clear();
  drawTools();
  if (picture) take(picture, given.picture ? "" : marks, given.picture ? null : label); else random();
  return { element, leave: () => { left = true; running?.abort(); document.removeEventListener("paste", pasted); } };
}
