// The page: tabs, the model, the shared state in the address, and the code of what was done last.

import * as api from "./api.js";
import { LANGUAGES, snippet } from "./code.js";
import { compareTab } from "./compare.js";
import { editTab } from "./edit.js";
import { makeTab } from "./make.js";
import { $, failed, h, notice, say } from "./ui.js";
import { walkTab } from "./walk.js";

const TABS = { make: makeTab, edit: editTab, walk: walkTab, compare: compareTab };

const app = {
  models: [],
  state: { tab: "make", model: "" },
  done: null,
  model: () => app.models.find((m) => m.id === app.state.model) ?? app.models[0],
  did(done) {
    app.done = done;
    write();
    history.replaceState(null, "", `#${packed(app.state)}`);
  },
  open(tab, given = {}) {
    current?.leave();
    app.state.tab = tab;
    for (const button of document.querySelectorAll("[role=tab][data-tab]")) {
      const own = button.dataset.tab === tab;
      button.setAttribute("aria-selected", String(own));
      button.tabIndex = own ? 0 : -1;
    }
    $("panel").setAttribute("aria-labelledby", `tab-${tab}`);
    // Before the models are there, a tab is only chosen: start() opens it.
    if (!app.models.length) { chosen = tab; return; }
    notice("");
    current = TABS[tab](app, given);
    $("panel").replaceChildren(current.element);
  },
};
let current = null, chosen = null, language = LANGUAGES[0];
const HERE = location.href.split("#")[0], BASE = new URL(".", HERE).href.slice(0, -1);

function packed(state) {
  const bytes = new TextEncoder().encode(JSON.stringify(state));
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

function unpacked(text) {
  try {
    const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    const state = JSON.parse(new TextDecoder().decode(bytes));
    return state && typeof state === "object" && Object.hasOwn(TABS, state.tab) ? state : null;
  } catch {
    return null;
  }
}

function write() {
  $("languages").replaceChildren(...LANGUAGES.map((name) => h("button", {
    "aria-pressed": String(name === language), onclick: () => { language = name; write(); } }, name)));
  $("snippet").textContent = app.done ? snippet(app.done, language, BASE) : "";
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied.`);
  } catch {
    window.prompt("Copy this:", text);
  }
}

function wire() {
  const tabs = [...document.querySelectorAll("[role=tab][data-tab]")];
  tabs.forEach((button, i) => {
    button.addEventListener("click", () => app.open(button.dataset.tab));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      const next = tabs[(i + step + tabs.length) % tabs.length];
      next.focus();
      next.click();
    });
  });
  $("copy-code").addEventListener("click", () => copy($("snippet").textContent, "Code"));
  $("share").addEventListener("click", () => copy(`${HERE}#${packed(app.state)}`, "Link"));
  $("large").addEventListener("click", (event) => { if (event.target === $("large")) $("large").close(); });
}

async function start() {
  wire();
  $("api").hidden = !api.served;
  try {
    app.models = await api.models((text) => $("panel").replaceChildren(h("p", { class: "hint", role: "status" }, text)));
  } catch (error) {
    failed(error);
    return;
  }
  $("runs").textContent = app.models[0].runs ?? "";
  $("runs").title = app.models[0].why ?? "";
  Object.assign(app.state, unpacked(location.hash.slice(1)) ?? {});
  if (app.models.length > 1) {
    $("model-choice").hidden = false;
    $("model").replaceChildren(...app.models.map((m) => h("option", { value: m.id, selected: m.id === app.model().id }, m.id)));
    $("model").addEventListener("change", () => {
      app.state = { tab: app.state.tab, model: $("model").value };
      app.open(app.state.tab);
    });
  }
  app.open(chosen ?? app.state.tab);
}

start();
