// What the engine runs, as it runs.

import { call, events } from "./api.js";
import { tint } from "./colours.js";
import { byId, count, el, setText } from "./dom.js";

// Before the stream is opened again, after it was refused or broke.
const AGAIN_MS = 1000;
const AGAIN_MS_MAX = 30_000;
// For how long a row that has ended can still be seen: most answers take less than a look.
const LINGER_MS = 2500;
// More blocks than a line has room for become a number.
const TILES_MAX = 48;

const rows = new Map();

function newRow({ model }) {
  const dot = el("span", { class: "dot", "aria-hidden": "true" });
  const name = el("th", { scope: "row" }, dot, model);
  const cells = Object.fromEntries(["key", "state", "prompt", "written", "blocks"]
    .map((cell) => [cell, el("td", { class: cell })]));
  const tiles = el("span", { class: "tiles", "aria-hidden": "true" });
  const [prompt, written, held] = [el("span"), el("span"), el("span")];
  const [cached, max] = [el("span", { class: "more" }), el("span", { class: "more" })];
  cells.prompt.append(prompt, cached);
  cells.written.append(written, max);
  cells.blocks.append(tiles, held);
  const tr = tint(el("tr", {}, name, ...Object.values(cells)), model);
  return { tr, cells, prompt, cached, written, max, tiles, held };
}

/** A tile for each block, the last one as full as it is. */
function fill(shown, { blocks, computed_tokens: tokens }, blockTokens) {
  const seen = Math.min(blocks, TILES_MAX);
  while (shown.tiles.childElementCount > seen) shown.tiles.lastElementChild.remove();
  while (shown.tiles.childElementCount < seen) {
    shown.tiles.lastElementChild?.style.removeProperty("--full");
    shown.tiles.append(el("i"));
  }
  const full = blocks === 0 ? 0 : (tokens - (blocks - 1) * blockTokens) / blockTokens;
  shown.tiles.lastElementChild?.style.setProperty("--full", Math.max(0, Math.min(1, full)));
  setText(shown.held, blocks.toLocaleString("en"));
}

function showRow(row, blockTokens) {
  if (!rows.has(row.id)) {
    const made = newRow(row);
    rows.set(row.id, made);
    byId("batch").tBodies[0].append(made.tr);
  }
  const shown = rows.get(row.id);
  const { cells } = shown;
  setText(cells.key, row.key ?? "");
  setText(cells.state, row.state);
  const cached = row.cached_tokens > 0 ? ` (${row.cached_tokens} cached)` : "";
  setText(shown.prompt, String(row.prompt_tokens));
  setText(shown.cached, cached);
  setText(shown.written, String(row.completion_tokens));
  setText(shown.max, ` of ${row.max_tokens}`);
  shown.tr.dataset.state = row.state;
  fill(shown, row, blockTokens);
}

function end(id) {
  const { tr, cells } = rows.get(id);
  rows.delete(id);
  tr.dataset.state = "done";
  setText(cells.state, "done");
  setTimeout(() => { tr.remove(); showEmpty(); }, LINGER_MS);
}

function showEmpty() {
  byId("batch-empty").hidden = byId("batch").tBodies[0].childElementCount > 0;
}

function show(batch) {
  const { running, waiting, blocks_total: total, block_tokens: blockTokens } = batch;
  const ids = new Set(batch.rows.map(({ id }) => id));
  [...rows.keys()].filter((id) => !ids.has(id)).forEach(end);
  batch.rows.forEach((row) => showRow(row, blockTokens));
  const left = batch.rows_left_out > 0 ? ` · ${batch.rows_left_out} not shown` : "";
  setText(byId("batch-counts"), `${running} running · ${waiting} waiting${left}`);
  // Of a key that may not know how much all others use, its own.
  const own = batch.blocks_used === null;
  const used = own ? batch.rows.reduce((sum, row) => sum + row.blocks, 0) : batch.blocks_used;
  const share = total > 0 ? (100 * used) / total : 0;
  byId("memory").setAttribute("aria-valuenow", Math.round(share));
  byId("memory").firstElementChild.style.setProperty("--share", `${share}%`);
  setText(byId("memory-text"), `${own ? "Your rows: " : ""}${used.toLocaleString("en")} of `
    + `${count(total, "KV block")} in use, ${blockTokens} tokens each`);
  document.body.classList.toggle("has-keys", batch.rows.some(({ key }) => key !== null));
  showEmpty();
}

const visible = () => new Promise((done) => {
  if (!document.hidden) return done();
  return document.addEventListener("visibilitychange", () => done(), { once: true });
});

let begin = () => {};

/** Begins anew: with another key there is something else to see. */
export function restart() {
  begin();
}

/** Watches for as long as the page is seen. */
export async function watch() {
  let pause = AGAIN_MS;
  for (;;) {
    await visible();
    const controller = new AbortController();
    const { signal } = controller;
    begin = () => controller.abort();
    document.addEventListener("visibilitychange", begin, { signal });
    try {
      const response = await call("v1/batch", { accept: "text/event-stream", signal, asks: false });
      for await (const data of events(response)) {
        show(JSON.parse(data));
        pause = AGAIN_MS;
      }
    } catch (error) {
      if (!signal.aborted) setText(byId("batch-counts"), `Not to be seen: ${error.message}`);
    }
    if (!signal.aborted) {
      await new Promise((done) => {
        signal.addEventListener("abort", done);
        setTimeout(done, pause);
      });
      pause = Math.min(2 * pause, AGAIN_MS_MAX);
    }
    controller.abort();
  }
}
