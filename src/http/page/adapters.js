// The adapters that are loaded; loading, inspecting and unloading them.

import { call, json } from "./api.js";
import { tint } from "./colours.js";
import { byId, bytes, count, el, narrow, setText } from "./dom.js";

// More than these are found by typing.
const ADAPTERS_SEEN = 8;
// Tensors of a report that are listed.
const TENSORS_SEEN = 200;
// A button that was pressed once asks whether that was meant, for so long.
const SURE_MS = 4000;

// What stands in an adapter's line or heading is not repeated beneath it.
const TOLD = new Set(["id", "name", "object"]);
const SAID = {
  method: (method) => method,
  bytes: (n) => `${bytes(n)} (${count(n, "byte")})`,
  created: (seconds) => new Date(seconds * 1000).toLocaleString(),
};

let items = new Map();
let mayChange = false;
let whenChanged = () => {};

/** Any field: those of later servers too. */
function value(name, given) {
  if (given === null || given === undefined || given === "") return "none";
  if (SAID[name]) return SAID[name](given);
  const isPlain = Array.isArray(given) && given.every((one) => typeof one !== "object");
  if (isPlain) return given.join(", ");
  return typeof given === "object" ? JSON.stringify(given) : String(given);
}

const words = (field) => field.replaceAll("_", " ");

function facts(object, leaves = TOLD) {
  const rows = Object.entries(object).filter(([name]) => !leaves.has(name));
  return el("dl", {}, ...rows.flatMap(([name, given]) =>
    [el("dt", {}, words(name)), el("dd", {}, value(name, given))]));
}

function say(text) {
  setText(byId("adapters-said"), text);
}

/** Adds up the days of all keys that this one may see. */
function usesByName(usage) {
  const uses = new Map();
  for (const { adapter, requests, completion_tokens: tokens } of usage.data) {
    const sum = uses.get(adapter) ?? { requests: 0, tokens: 0 };
    uses.set(adapter, { requests: sum.requests + requests, tokens: sum.tokens + tokens });
  }
  return uses;
}

function unloadButton(name) {
  const button = el("button", { type: "button", class: "bad" }, "Unload");
  let isSure = false;
  const reset = () => {
    isSure = false;
    setText(button, "Unload");
  };
  button.addEventListener("click", async () => {
    if (!isSure) {
      isSure = true;
      setText(button, `Unload ${name}: sure?`);
      setTimeout(reset, SURE_MS);
      return;
    }
    reset();
    await attempt(`Unloaded ${name}.`, () =>
      call(`v1/adapters/${encodeURIComponent(name)}`, { method: "DELETE" }));
    byId("adapters-title").focus();
  });
  return button;
}

function newItem(card) {
  const line = el("span", { class: "line" });
  const body = el("div", { class: "facts" });
  const details = el("details", {}, el("summary", {},
    el("span", { class: "dot", "aria-hidden": "true" }), el("b", {}, card.name), line), body);
  if (mayChange) details.append(el("div", { class: "actions" }, unloadButton(card.name)));
  return { li: tint(el("li", {}, details), card.name), line, body };
}

/** Lists these cards; what is open stays open. */
function list(cards, uses) {
  const before = items;
  items = new Map(cards.map((card) => [card.name, before.get(card.name) ?? newItem(card)]));
  for (const card of cards) {
    const { line, body } = items.get(card.name);
    const use = uses.get(card.name) ?? { requests: 0, tokens: 0 };
    const rank = card.rank > 0 ? [`rank ${card.rank}`] : [];
    setText(line, [card.method, ...rank, bytes(card.bytes),
      use.requests > 0 ? count(use.requests, "request") : "not used yet"].join(" · "));
    const shown = { ...card, requests: use.requests, "tokens written": use.tokens };
    const told = JSON.stringify(shown);
    if (items.get(card.name).told !== told) body.replaceChildren(facts(shown));
    items.get(card.name).told = told;
  }
  const wanted = [...items.values()].map(({ li }) => li);
  const shown = [...byId("adapters").children];
  if (wanted.length !== shown.length || wanted.some((li, i) => li !== shown[i])) {
    byId("adapters").replaceChildren(...wanted);
  }
  byId("adapters-empty").hidden = cards.length > 0;
  byId("adapters-filter").hidden = cards.length <= ADAPTERS_SEEN;
  filter();
}

function filter() {
  narrow(byId("adapters-filter"), new Map([...items].map(([name, { li }]) => [name, li])));
}

/** Asks the server what is there; resolves to the names. */
export async function refresh(options) {
  const [adapters, usage] = await Promise.all([
    json("v1/adapters", options), json("v1/usage", options).catch(() => ({ data: [] })),
  ]);
  list(adapters.data, usesByName(usage));
  return adapters.data.map(({ name }) => name);
}

/** Does something, and says how it went. */
async function attempt(success, work) {
  try {
    const result = await work();
    say(success);
    await whenChanged();
    return result;
  } catch (error) {
    say(error.message);
    return null;
  }
}

function report(found) {
  const { tensors = [], notes = [], ...rest } = found;
  const leaves = new Set(["object"]);
  const lines = tensors.slice(0, TENSORS_SEEN).map(({ name, bytes: size }) =>
    el("li", {}, el("code", {}, name), ` ${bytes(size)}`));
  const left = tensors.length - lines.length;
  byId("report").replaceChildren(el("div", { class: "report" },
    el("h3", {}, "It would be served"),
    facts(rest, leaves),
    notes.length > 0 ? el("ul", {}, ...notes.map((note) => el("li", {}, note))) : null,
    el("details", {}, el("summary", {}, count(tensors.length, "tensor")),
      el("ul", {}, ...lines), left > 0 ? el("p", {}, `and ${left} more`) : null)));
}

/** Wires the forms up. `changed` is told when names have come or gone. */
export function start(index, changed) {
  mayChange = index.runtime_adapters;
  whenChanged = changed;
  byId("load").hidden = !mayChange;
  byId("load-off").hidden = mayChange;
  setText(byId("load-off"), "This server loads no adapters while it serves. It does when it is "
    + "started with --allow-runtime-adapters and --adapter-root DIR, and without --merge.");
  const given = () => ({ lora_name: byId("load-name").value, lora_path: byId("load-path").value });
  byId("load").addEventListener("submit", (event) => {
    event.preventDefault();
    const body = given();
    say(`Loading ${body.lora_name}…`);
    byId("report").replaceChildren();
    attempt(`Loaded ${body.lora_name}.`, () =>
      call("v1/load_lora_adapter", { method: "POST", body }));
  });
  byId("inspect").addEventListener("click", async () => {
    if (!byId("load-path").reportValidity()) return;
    const { lora_path: path } = given();
    byId("report").replaceChildren();
    say("Reading…");
    try {
      report(await json("v1/adapters/validate", { method: "POST", body: { lora_path: path } }));
      say("");
    } catch (error) {
      say(error.message);
    }
  });
  byId("adapters-filter").addEventListener("input", filter);
}
