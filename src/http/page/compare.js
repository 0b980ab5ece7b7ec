// One question to several models at once.

import { Answer, asRequest } from "./answer.js";
import { hasKey, json } from "./api.js";
import { tint } from "./colours.js";
import { byId, count, duration, el, narrow, rounded, setText } from "./dom.js";

// A browser opens six connections of HTTP/1.1 to a server, and one of them is the batch's.
const AT_ONCE = 5;
// More names than these are found by typing.
const NAMES_SEEN = 16;
const CHOSEN_AT_FIRST = 5;

let chips = new Map();
const templates = new Map();
let running = null;

/** Offers these names; those that were chosen stay so. */
export function offer(names) {
  const isFirst = chips.size === 0;
  const chosen = new Set(isFirst ? names.slice(0, CHOSEN_AT_FIRST) : chosenNames());
  chips = new Map(names.map((name) => {
    const box = el("input", { type: "checkbox", value: name, checked: chosen.has(name) });
    const dot = el("span", { class: "dot", "aria-hidden": "true" });
    return [name, tint(el("label", { class: "chip" }, box, dot, name), name)];
  }));
  byId("names-list").replaceChildren(...chips.values());
  byId("names-filter").hidden = names.length <= NAMES_SEEN;
  narrow(byId("names-filter"), chips);
  templates.clear();
}

function chosenNames() {
  const isChosen = (label) => label.querySelector("input").checked;
  return [...chips].filter(([, label]) => isChosen(label)).map(([name]) => name);
}

function numberIn(id) {
  const { value } = byId(id);
  return value === "" ? null : Number(value);
}

function question() {
  return {
    prompt: byId("prompt").value,
    system: byId("system").value,
    temperature: numberIn("temperature"),
    maxTokens: numberIn("max-tokens") ?? 128,
    seed: numberIn("seed"),
    shades: byId("shade").checked,
  };
}

/** Whether a model has a chat template. One that cannot tell is asked as if it had. */
async function isChat(name) {
  if (!templates.has(name)) {
    const info = await json(`tokenizer_info?model=${encodeURIComponent(name)}`).catch(() => null);
    templates.set(name, info === null || info.chat_template !== null);
  }
  return templates.get(name);
}

function atOnce() {
  const [navigation] = performance.getEntriesByType("navigation");
  return navigation?.nextHopProtocol === "h2" ? Infinity : AT_ONCE;
}

/** The request as somebody would send it without this page. */
async function showCommand(name, asked) {
  const [path, body] = asRequest(name, asked, await isChat(name));
  delete body.stream_options;
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const url = new URL(path, document.baseURI);
  const key = hasKey() ? '  -H "Authorization: Bearer $KEY" \\\n' : "";
  const type = "  -H 'Content-Type: application/json' \\\n";
  const data = quoted(JSON.stringify(body, null, 2));
  setText(byId("command"), `curl -N ${quoted(url.href)} \\\n${type}${key}  -d ${data}`);
  byId("terminal").hidden = false;
}

/** Buttons that do nothing now keep the keyboard's focus, which disabled ones would lose. */
function setRunning(controller) {
  running = controller;
  byId("stop").setAttribute("aria-disabled", controller === null);
  byId("send").setAttribute("aria-disabled", controller !== null);
}

/** As many as leave the fewest places empty in the last line. */
function columns(answers) {
  const empty = (columns) => (columns - (answers % columns)) % columns;
  return answers < 3 ? 2 : [5, 4, 3].reduce((best, other) =>
    (empty(other) < empty(best) ? other : best));
}

async function ask() {
  const names = chosenNames();
  if (names.length === 0) {
    setText(byId("said"), "Choose at least one name under Who answers.");
    return;
  }
  const controller = new AbortController();
  setRunning(controller);
  const asked = question();
  const answers = names.map((name) => new Answer(name, asked.shades));
  byId("answers").replaceChildren(...answers.map((answer) => answer.element));
  byId("answers").style.setProperty("--columns", columns(answers.length));
  byId("shade-hint").hidden = !asked.shades;
  setText(byId("said"), `${count(names.length, "answer")} on the way.`);
  const chats = await Promise.all(names.map(isChat));
  const left = answers.map((answer, i) => [answer, chats[i]]);
  const begun = performance.now();
  const work = async () => {
    for (let next = left.shift(); next; next = left.shift()) {
      const [answer, chat] = next;
      await answer.run(asked, chat, controller.signal);
    }
  };
  await Promise.all(Array.from({ length: Math.min(atOnce(), left.length) }, work));
  const ms = performance.now() - begun;
  const tokens = answers.reduce((sum, answer) => sum + answer.tokens, 0);
  setText(byId("said"), `${count(names.length, "answer")}, ${count(tokens, "token")} in `
    + `${duration(ms)}: ${rounded((1000 * tokens) / ms)} tokens/s together.`);
  setRunning(null);
  await showCommand(names[names.length - 1], asked);
}

/** Wires the form up; `whenDone` is told after each question. */
export function start(whenDone) {
  const form = byId("ask");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running === null) ask().finally(() => { setRunning(null); whenDone(); });
  });
  // A field that is hidden could not say what is wrong with it.
  form.addEventListener("invalid", ({ target }) => {
    for (let at = target.closest("details"); at; at = at.parentElement.closest("details")) {
      at.open = true;
    }
  }, true);
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  byId("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  byId("names-filter").addEventListener("input", () => narrow(byId("names-filter"), chips));
}
