// Servers to look at, a browser to look with, and checks that are counted.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { setMaxListeners } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

export const ROOT = new URL("../../", import.meta.url).pathname;
const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
// For whatever should happen at once, on a machine that has other things to do.
export const PATIENCE_MS = 30_000;

/** The server as a user starts it, on a free port. */
export async function serve(binary, ...args) {
  const child = spawn(binary, ["serve", "--port", "0", ...args],
    { stdio: ["ignore", "pipe", "inherit"], env: { ...process.env, RUST_LOG: "error" } });
  const lines = createInterface({ input: child.stdout });
  const url = await new Promise((ready, failed) => {
    lines.on("line", (line) => {
      const found = /^ready: (http:\/\/[^/\s]+)/.exec(line);
      if (found) ready(found[1]);
    });
    child.on("exit", (code) => failed(new Error(`the server ended with ${code}`)));
  });
  const stop = () => new Promise((stopped) => {
    child.removeAllListeners("exit");
    child.on("exit", stopped);
    child.kill("SIGTERM");
  });
  return { url, stop };
}

/** What the server answers without a page. */
export async function api(url, path, body, key) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  const method = body === undefined ? "GET" : "POST";
  return fetch(`${url}${path}`, { method, headers, body: body && JSON.stringify(body) });
}

// What a check has begun, and did not end if it failed.
const begun = new Set();

/** Requests that run until `stop` is called, as many as there are names, one after another each. */
export function load(url, names, { tokens = 400, key } = {}) {
  const controller = new AbortController();
  setMaxListeners(0, controller.signal);
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  const one = async (model, i) => {
    for (let turn = 0; !controller.signal.aborted; turn += 1) {
      const body = JSON.stringify({ model, prompt: `Once upon a time ${i} ${turn}`,
        max_tokens: tokens, ignore_eos: true, temperature: 1, seed: i });
      const sent = fetch(`${url}/v1/completions`,
        { method: "POST", headers, body, signal: controller.signal });
      await sent.then((answer) => answer.text()).catch((error) => {
        if (!controller.signal.aborted) throw error;
      });
    }
  };
  const all = Promise.all(names.map(one));
  all.catch(() => {});
  const stop = () => {
    begun.delete(stop);
    controller.abort();
    return all;
  };
  begun.add(stop);
  return { stop };
}

/** Waits until so many sequences run. */
export async function areRunning(url, count) {
  for (;;) {
    if ((await (await fetch(`${url}/v1/batch`)).json()).running >= count) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export class Browser {
  static async open() {
    const browser = new Browser();
    browser.folder = mkdtempSync(join(tmpdir(), "tessera-page-"));
    browser.count = 0;
    return browser;
  }

  /** A page in a browser that has never been anywhere, and all that it does wrong. */
  async page(url, options = {}) {
    this.count += 1;
    const context = await chromium.launchPersistentContext(join(this.folder, `${this.count}`), {
      executablePath: CHROMIUM, headless: true, args: FLAGS,
      viewport: { width: 1280, height: 900 }, ...options,
    });
    const end = () => context.close();
    begun.add(end);
    context.on("close", () => begun.delete(end));
    const [page] = context.pages();
    page.setDefaultTimeout(PATIENCE_MS);
    page.wrong = [];
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) page.wrong.push(message.text());
    });
    page.on("pageerror", (error) => page.wrong.push(String(error)));
    context.on("request", (request) => {
      const isOwn = request.url().startsWith(`${url}/`) || request.url().startsWith("data:");
      if (!isOwn) page.wrong.push(`asks ${request.url()}`);
    });
    await options.before?.(page);
    await page.goto(url);
    return page;
  }

  close() {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Closes a page on which nothing may have gone wrong but what matches `expected`. */
export async function close(page, expected = /^$/) {
  await page.context().close();
  assert.deepEqual(page.wrong.filter((text) => !expected.test(text)), []);
}

/** Every rule of axe for the page as it is now. */
export async function axe(page, what) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run());
  const told = violations.map(({ id, help, nodes }) =>
    `${what}: ${id}: ${help}: ${nodes.map(({ html, any }) =>
      `${html} ${any.map(({ message }) => message).join()}`).join("\n  ")}`);
  assert.deepEqual(told, []);
}

/** Runs the checks, and ends with status 1 if one fails. */
export async function run(checks, only) {
  let failed = 0;
  const chosen = checks.filter(({ name }) => !only || name.includes(only));
  for (const check of chosen) {
    const start = performance.now();
    try {
      await check();
      console.log(`ok ${check.name} (${((performance.now() - start) / 1000).toFixed(1)} s)`);
    } catch (error) {
      failed += 1;
      console.log(`failed ${check.name}\n${error.stack}`);
    }
    await Promise.allSettled([...begun].map((end) => end()));
  }
  console.log(`page: ${chosen.length - failed} passed, ${failed} failed`);
  process.exitCode = failed > 0 || chosen.length === 0 ? 1 : 0;
}
