// Walk: from seed to seed through noise, with a slider, a player, and a GIF.

import * as api from "./api.js";
import { encodeGif } from "./gif.js";
import { download, failed, h, loaded, milliseconds, notice, options, randomSeed, toBlob } from "./ui.js";

export function walkTab(app) {
  const model = app.model();
  const state = app.state.walk ??= { a: 3, b: 8, frames: 24, class: "", loop: false };
  const shot = h("div", { class: `shot ${model.width < 128 ? "small" : ""}` });
  const range = h("input", { type: "range", min: 0, max: 1, value: 0, "aria-label": "Place on the way", oninput: () => { stop(); show(Number(range.value)); } });
  const time = h("p", { class: "time", role: "status" });
  let frames = [], running = null, timer = null, current = 0;

  function show(i) {
    current = i;
    range.value = i;
    if (frames[i]) shot.replaceChildren(h("img", { src: frames[i], alt: `Frame ${i + 1} of ${frames.length}` }));
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  const play = h("button", { onclick: () => {
    if (timer) { stop(); return; }
    play.textContent = "Pause";
    let step = 1;
    timer = setInterval(() => {
      if (current + step < 0 || current + step >= frames.length) step = state.loop ? step : -step;
      show((current + step + frames.length) % frames.length);
    }, 80);
  } }, "Play");

  async function run() {
    stop();
    running?.abort();
    const own = running = new AbortController();
    notice("");
    const pair = state.from && state.to;
    const given = pair ? { task: "interpolate", frames: state.frames } : { task: "walk", seeds: [state.a, state.b], frames: state.frames, loop: state.loop };
    if (state.class !== "" && model.classes.length) given.class_labels = Number(state.class);
    app.did({ kind: pair ? "pair" : "walk", options: given, model: model.id });
    time.textContent = "…";
    try {
      const images = pair ? await Promise.all([toBlob(state.from), toBlob(state.to)]) : [];
      const made = await api.edit(given, images, null, model.id, own.signal);
      frames = made.images;
      range.max = frames.length - 1;
      show(0);
      time.textContent = `${frames.length} frames in ${milliseconds(made.ms)}`;
    } catch (error) {
      if (own === running) time.textContent = "";
      failed(error);
    }
  }

  async function save() {
    if (!frames.length) return;
    const scale = Math.max(1, Math.floor(256 / model.width));
    const pictures = [];
    for (const url of frames) {
      const canvas = h("canvas", { width: model.width * scale, height: model.height * scale });
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(await loaded(url), 0, 0, canvas.width, canvas.height);
      pictures.push(context.getImageData(0, 0, canvas.width, canvas.height));
    }
    const url = URL.createObjectURL(new Blob([encodeGif(pictures, 8)], { type: "image/gif" }));
    download(url, `walk-${state.a}-${state.b}.gif`);
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  function field(name, label) {
    const input = h("input", { type: "number", min: 0, max: 4294967295, value: state[name], onchange: () => { state[name] = Math.max(0, Math.floor(Number(input.value) || 0)); run(); } });
    const dice = h("button", { "aria-label": `Another ${label}`, title: `Another ${label}`, onclick: () => { state[name] = randomSeed(); input.value = state[name]; run(); } }, "Dice");
    return h("span", { class: "row" }, h("label", {}, label, input), dice);
  }

  // A picture in place of a seed, brought to the model's size; both ends must be pictures.
  function chooser(end, label) {
    const file = h("input", { type: "file", accept: "image/*", hidden: true, onchange: () => choose(end, file.files[0]).catch(failed) });
    return h("span", { class: "row" }, h("button", { onclick: () => file.click() }, label),
      state[end] ? h("img", { src: state[end], alt: label, width: 40, height: 40 }) : null, file);
  }

  async function choose(end, blob) {
    if (!blob) return;
    const url = URL.createObjectURL(blob);
    const image = await loaded(url);
    const canvas = h("canvas", { width: model.width, height: model.height }), context = canvas.getContext("2d");
    const side = Math.min(image.naturalWidth / model.width, image.naturalHeight / model.height);
    const [w, t] = [model.width * side, model.height * side];
    context.imageSmoothingQuality = "high";
    context.drawImage(image, (image.naturalWidth - w) / 2, (image.naturalHeight - t) / 2, w, t, 0, 0, model.width, model.height);
    URL.revokeObjectURL(url);
    state[end] = canvas.toDataURL("image/png");
    drawPair();
    if (state.from && state.to) run();
  }

  const pair = h("div", { class: "row" });
  function drawPair() {
    pair.replaceChildren(h("span", {}, "or"), chooser("from", "From a picture…"), chooser("to", "to a picture…"),
      ...(state.from || state.to ? [h("button", { onclick: () => { state.from = state.to = ""; drawPair(); run(); } }, "Back to seeds")] : []));
  }

  const loop = h("input", { type: "checkbox", checked: state.loop, onchange: () => { state.loop = loop.checked; run(); } });
  const classes = [["", "any class"], ...model.classes.map((name, i) => [i, name])];
  const element = h("div", {},
    h("p", { class: "hint" }, "Two seeds are two pictures, or choose two of your own. Between them lie others: move the slider."),
    h("div", { class: "row" }, field("a", "From seed"), field("b", "to seed"),
      model.classes.length ? options("Class", classes, state.class, (v) => { state.class = v; run(); }) : null,
      options("Frames", [12, 24, 48, 96].map((n) => [n, String(n)]), state.frames, (v) => { state.frames = Number(v); run(); }),
      h("label", {}, loop, "Round trip")),
    pair,
    h("div", { class: "film" }, shot, range,
      h("div", { class: "row" }, play, h("button", { onclick: () => save().catch(failed) }, "Save GIF")), time));
  drawPair();
  run();
  return { element, leave: () => { running?.abort(); stop(); } };
}
