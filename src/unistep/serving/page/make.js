// Make: classes, steps, a seed, and a grid that fills while the images are made.

import * as api from "./api.js";
import { failed, h, large, milliseconds, notice, options, randomSeed, seedField } from "./ui.js";

export function makeTab(app) {
  const state = app.state.make ??= { classes: [], steps: 1, count: 24, seed: 0, locked: false };
  const grid = h("div", { class: "grid", "aria-label": "Pictures" });
  const time = h("p", { class: "time", role: "status" });
  let running = null;

  async function run(again) {
    if (again && !state.locked) { state.seed = randomSeed(); seed.show(); }
    running?.abort();
    const own = running = new AbortController();
    notice("");
    const model = app.model();
    const body = { model: model.id, n: state.count, steps: state.steps, seed: state.seed };
    if (state.classes.length) body.class_labels = state.classes;
    app.did({ kind: "make", body });
    const places = Array.from({ length: state.count }, () => h("div", { class: "shot empty" }));
    grid.classList.toggle("small", model.width < 128);
    grid.replaceChildren(...places);
    try {
      const made = await api.make(body, (number, url, ms) => {
        if (own.signal.aborted) return;
        const name = `Picture ${number + 1} of seed ${body.seed}`;
        places[number].replaceWith(h("button", { "aria-label": name, onclick: () => show(url, name) }, h("img", { src: url, alt: "" })));
        time.textContent = `${milliseconds(ms)}…`;
      }, own.signal);
      time.textContent = `${made.count} pictures in ${milliseconds(made.ms)}: ${milliseconds(made.ms / made.count)} each, ` +
        `${state.steps} ${state.steps === 1 ? "step" : "steps"}`;
    } catch (error) {
      if (own === running) time.textContent = "";
      failed(error);
    }
  }

  function show(url, name) {
    large(url, name, [
      ["More like this", () => app.open("edit", { picture: url, task: "vary" })],
      ["Edit this", () => app.open("edit", { picture: url, task: "inpaint" })],
    ]);
  }

  const seed = seedField(state, () => run(false));
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Classes" });
  function drawChips() {
    const names = app.model().classes;
    const all = h("button", { "aria-pressed": String(!state.classes.length), onclick: () => { state.classes = []; drawChips(); run(false); } }, "any");
    chips.replaceChildren(...(names.length ? [all] : []), ...names.map((name, i) => h("button", {
      "aria-pressed": String(state.classes.includes(i)),
      onclick: () => {
        state.classes = state.classes.includes(i) ? state.classes.filter((c) => c !== i) : [...state.classes, i];
        drawChips();
        run(false);
      },
    }, name)));
  }
  drawChips();
  const steps = [1, 2, 4, 8].filter((s) => s < app.model().noise_levels).map((s) => [s, String(s)]);
  const element = h("div", {},
    h("p", { class: "hint" }, app.model().classes.length ? "Choose what to make, then press the button. Click a picture for more." : "Press the button. Click a picture for more."),
    chips,
    h("div", { class: "row" },
      h("button", { class: "main", id: "make", onclick: () => run(true) }, "Make"),
      options("Steps", steps, state.steps, (v) => { state.steps = Number(v); run(false); }),
      options("Pictures", [1, 4, 12, 24, 48, 96].map((n) => [n, String(n)]), state.count, (v) => { state.count = Number(v); run(false); }),
      seed.element),
    time, grid);
  run(false);
  return { element, leave: () => running?.abort() };
}
