// Compare: the same noise in 1, 2 and 4 steps, and by a diffusion model where one is served.

import * as api from "./api.js";
import { failed, h, large, milliseconds, notice, seedField } from "./ui.js";

export function compareTab(app) {
  const model = app.model();
  const state = app.state.compare ??= { seed: 0, count: 8, locked: false };
  const lines = h("div", {});
  let running = null;

  function plans() {
    const own = [1, 2, 4].filter((s) => s < model.noise_levels).map((steps) => ({ model, steps, name: `${steps} ${steps === 1 ? "step" : "steps"}` }));
    const teacher = app.models.find((m) => m.kind === "diffusion" && m.width === model.width && m.channels === model.channels);
    if (model.kind === "diffusion") return [{ model, steps: 18, name: "18 steps of Heun", note: "35 evaluations" }];
    return teacher ? [...own, { model: teacher, steps: 18, name: "the teacher", note: "35 evaluations" }] : own;
  }

  async function run() {
    running?.abort();
    const own = running = new AbortController();
    notice("");
    lines.replaceChildren();
    try {
      for (const plan of plans()) {
        const time = h("small", {}, "…");
        const grid = h("div", { class: `grid ${model.width < 128 ? "small" : ""}` });
        lines.append(h("div", { class: "line" }, h("div", {}, h("b", {}, plan.name), plan.note ? h("small", {}, plan.note) : null, time), grid));
        const places = Array.from({ length: state.count }, () => h("div", { class: "shot empty" }));
        grid.replaceChildren(...places);
        const body = { model: plan.model.id, n: state.count, steps: plan.steps, seed: state.seed };
        if (plan.steps === 1) app.did({ kind: "make", body });
        const made = await api.make(body, (i, url) => {
          if (own.signal.aborted) return;
          const name = `Seed ${state.seed}, picture ${i + 1}, ${plan.name}`;
          places[i].replaceWith(h("button", { "aria-label": name, onclick: () => large(url, name, []) }, h("img", { src: url, alt: "" })));
        }, own.signal);
        time.textContent = `${milliseconds(made.ms / made.count)} a picture`;
      }
    } catch (error) {
      failed(error);
    }
  }

  const seed = seedField(state, run);
  const element = h("div", { class: "lines" },
    h("p", { class: "hint" }, "The same noise in more steps: each step costs as much again, and makes the pictures a little better."),
    h("div", { class: "row" }, seed.element), lines);
  run();
  return { element, leave: () => running?.abort() };
}
