// The page at `/` in a real browser, against the real binary serving the built-in demo.
//
//     npm ci && node run.mjs TESSERA [--only WORDS] [--pictures FOLDER] [--picture FILE]
//
// Needs Debian's chromium. --only runs the checks whose names hold the words; --pictures keeps what
// the page looks like in both schemes and on a phone; --picture writes the one of the README.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { api, areRunning, axe, Browser, close, load, ROOT, run, serve } from "./harness.mjs";

const { values: flags, positionals: [binary] } = parseArgs({ allowPositionals: true, options: {
  only: { type: "string" }, pictures: { type: "string" }, picture: { type: "string" } } });
assert(binary, "usage: run.mjs TESSERA [--only WORDS] [--pictures FOLDER] [--picture FILE]");

const PHONE = { viewport: { width: 360, height: 780 }, hasTouch: true };
const HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>';

const folder = mkdtempSync(join(tmpdir(), "tessera-page-"));
const root = join(folder, "adapters");
mkdirSync(join(root, "broken"), { recursive: true });
cpSync(join(ROOT, "demo/adapters/pirate"), join(root, "corsair"), { recursive: true });
const hash = (key) => `sha256:${createHash("sha256").update(key).digest("hex")}`;
const keys = join(folder, "keys.toml");
writeFileSync(keys, `[[keys]]\nname = "ops"\nkey = "${hash("ops-key")}"\nadmin = true\n`
  + `[[keys]]\nname = "acme"\nkey = "${hash("acme-key")}"\nadapters = ["pirate"]\n`);

const runtime = ["--allow-runtime-adapters", "--adapter-root", root];
const open = await serve(binary, ...runtime);
const guarded = await serve(binary, ...runtime, "--keys", keys);
const fixed = await serve(binary);
const browser = await Browser.open();

const answers = (page) => page.locator("article.answer");
const texts = (page) => page.locator(".answer .text:not(.thoughts *)").allTextContents();
const chip = (page, name) => page.locator(".chip").filter({ hasText: new RegExp(`^${name}$`) });

async function choose(page, names) {
  await page.locator(".chip").first().waitFor();
  for (const box of await page.locator(".chip input").all()) {
    await box.setChecked(names.includes(await box.getAttribute("value")));
  }
}

async function done(page) {
  await page.waitForFunction(() => document.querySelectorAll(".answer").length > 0
    && !document.querySelector('.answer[aria-busy="true"]'));
}

async function ask(page, names, prompt = "What does a fox eat?") {
  await choose(page, names);
  await page.fill("#prompt", prompt);
  await page.click("#send");
  await done(page);
}

/** Answers that go on for long, whatever they say. */
// With so many rows a step takes longer than a browser needs to send a request.
const ROWS_OF_A_SLOW_STEP = 48;

async function askForMuch(page, names) {
  await choose(page, names);
  await page.locator(".settings summary").click();
  await page.fill("#temperature", "2");
  await page.fill("#max-tokens", "450");
  await page.fill("#seed", "1");
  await page.fill("#prompt", "Tell me all about animals.");
}

async function answersStreamSideBySide() {
  const page = await browser.page(open.url);
  await ask(page, ["demo", "pirate", "json"]);
  const expected = await Promise.all(["demo", "pirate", "json"].map(async (model) => {
    const body = { model, messages: [{ role: "user", content: "What does a fox eat?" }],
      temperature: 0, max_tokens: 128 };
    return (await (await api(open.url, "/v1/chat/completions", body)).json()).choices[0].message;
  }));
  assert.deepEqual(await texts(page), expected.map(({ content }) => content));
  for (const numbers of await page.locator(".numbers").allTextContents()) {
    // No rate is told of what came in one burst.
    assert.match(numbers, /^\d+ tokens( · [\d.,]+ tokens\/s)? · first after [\d.,]+ m?s$/);
  }
  const said = await page.textContent("#said");
  assert.match(said, /^3 answers, \d+ tokens in .* tokens\/s together\.$/);
  // Else a short answer may be over before a browser has begun to ask for the next.
  const busy = load(open.url, Array(ROWS_OF_A_SLOW_STEP).fill("demo"));
  await areRunning(open.url, ROWS_OF_A_SLOW_STEP);
  // Not the base, whose own requests are in its way.
  await askForMuch(page, ["pirate", "poet", "json", "formal"]);
  // When each text grew.
  await page.evaluate(() => {
    window.grown = new Map();
    new MutationObserver((changes) => {
      for (const { target } of changes) {
        const of = target.closest?.(".answer")?.getAttribute("aria-label");
        if (!of || !target.classList.contains("text")) continue;
        window.grown.set(of, [...(window.grown.get(of) ?? []), performance.now()]);
      }
    }).observe(document.getElementById("answers"), { childList: true, subtree: true });
  });
  await page.click("#send");
  await done(page);
  await busy.stop();
  const grown = await page.evaluate(() => [...window.grown.values()]);
  assert.equal(grown.length, 4);
  for (const times of grown) assert(times.length > 5, `written in ${times.length} steps`);
  const lastBegin = Math.max(...grown.map((times) => times[0]));
  const firstEnd = Math.min(...grown.map((times) => times.at(-1)));
  assert(lastBegin < firstEnd, "one answer ended before another began");
  await close(page);
}

async function aStopEndsAllAnswers() {
  const busy = load(open.url, Array(ROWS_OF_A_SLOW_STEP).fill("demo"));
  await areRunning(open.url, ROWS_OF_A_SLOW_STEP);
  const page = await browser.page(open.url);
  const isStopped = async (stop, seed) => {
    await page.reload();
    await askForMuch(page, ["demo", "pirate", "poet"]);
    await page.fill("#seed", String(seed));
    await page.click("#send");
    await page.waitForFunction(() => [...document.querySelectorAll(".answer .numbers")]
      .some(({ textContent }) => /^[1-9]\d* token/.test(textContent)));
    await stop().catch(() => {});
    await done(page);
    const numbers = await page.locator(".numbers").allTextContents();
    return numbers.some((text) => text.endsWith("stopped"));
  };
  for (const stop of [() => page.click("#stop", { timeout: 2000 }),
    () => page.keyboard.press("Escape")]) {
    // A model that feels like it is done before anybody can stop it.
    let tries = 1;
    while (!await isStopped(stop, tries)) assert((tries += 1) <= 5, "none was stopped");
  }
  await busy.stop();
  await close(page);
}

async function tokensAreShadedAndTellWhatElseTheyCouldHaveBeen() {
  const page = await browser.page(open.url);
  await page.check("#shade");
  await ask(page, ["demo", "poet"]);
  const shown = await page.locator(".tokens").first().locator("span:not(.end)").allTextContents();
  assert.equal(shown.join(""), "The fox eats berries and mice.");
  const doubts = await page.$$eval(".tokens span", (all) =>
    all.map((token) => Number(token.style.getPropertyValue("--doubt"))));
  assert(doubts.every((doubt) => doubt >= 0 && doubt <= 1) && Math.max(...doubts) > 0.01);
  const tokens = page.locator(".tokens").last();
  await tokens.focus();
  const about = page.locator(".about").last();
  assert.match(await about.textContent(), /^The [\d.]+ %; instead .* [\d.e-]+ %/);
  await page.keyboard.press("ArrowRight");
  assert.match(await about.textContent(), /^␣f/);
  await page.keyboard.press("End");
  assert.match(await about.textContent(), /^<\|end\|>/);
  await tokens.locator("span").nth(1).hover();
  assert.match(await about.textContent(), /^␣f/);
  assert.equal(await tokens.locator('[aria-selected="true"]').count(), 1);
  await close(page);
}

async function adaptersAreListedInspectedLoadedAndUnloaded() {
  const page = await browser.page(open.url);
  await page.locator("#adapters > li").first().waitFor();
  const lines = await page.locator("#adapters summary").allTextContents();
  assert.equal(lines.length, 5);
  assert.match(lines[1], /^poetMOS · rank 8 · 96\.0 KiB · /);
  await page.locator("#adapters summary").nth(1).click();
  const facts = await page.locator("#adapters dl").nth(1).textContent();
  for (const fact of ["digest", "targets", "down_proj", "98,304 bytes", "parent"]) {
    assert(facts.includes(fact), facts);
  }
  await page.click("#loading > summary");
  await page.fill("#load-path", join(root, "corsair"));
  await page.click("#inspect");
  await page.locator("#report h3").waitFor();
  assert.match(await page.textContent("#report"), /method\s*SSF.*digest/);
  await page.fill("#load-name", "corsair");
  await page.press("#load-name", "Enter");
  await chip(page, "corsair").waitFor();
  assert.equal(await page.textContent("#adapters-said"), "Loaded corsair.");
  await ask(page, ["pirate", "corsair"]);
  const [pirate, corsair] = await texts(page);
  assert(pirate.startsWith("Arr") && pirate === corsair, corsair);
  await page.fill("#load-path", join(root, "broken"));
  await page.fill("#load-name", "broken");
  await page.click("#load button.main");
  await page.waitForFunction(() => {
    const said = document.getElementById("adapters-said").textContent;
    return said.includes("broken") && !said.startsWith("Loading broken…");
  });
  const item = page.locator("#adapters > li").filter({ hasText: "corsair" });
  await item.locator("summary").click();
  await item.getByRole("button", { name: "Unload" }).click();
  assert.equal((await (await api(open.url, "/v1/adapters")).json()).data.length, 6, "asked first");
  await item.getByRole("button", { name: "Unload corsair: sure?" }).click();
  await chip(page, "corsair").waitFor({ state: "detached" });
  await item.waitFor({ state: "detached" });
  assert.equal((await (await api(open.url, "/v1/adapters")).json()).data.length, 5);
  await close(page, /status of 40[04]/);
  const other = await browser.page(fixed.url);
  await other.click("#loading > summary");
  assert.match(await other.textContent("#load-off"), /--allow-runtime-adapters/);
  await other.locator("#adapters summary").first().click();
  assert.equal(await other.locator("#load:visible, #adapters button").count(), 0);
  await close(other);
}

async function theBatchIsSeenAsItRuns() {
  const page = await browser.page(open.url);
  await page.waitForFunction(() => /^0 running/.test(
    document.getElementById("batch-counts").textContent));
  assert(await page.isVisible("#batch-empty"));
  const names = ["demo", "pirate", "poet", "telegram"];
  const busy = load(open.url, [...names, ...names, ...names]);
  await page.waitForFunction(() =>
    document.querySelectorAll('#batch tr[data-state="decode"]').length >= 12
    && /^12 running/.test(document.getElementById("batch-counts").textContent)
    && document.querySelectorAll("#batch .tiles i").length >= 12);
  assert(await page.isHidden("#batch-empty"));
  assert.match(await page.textContent("#memory-text"), /^[1-9]\d* of [\d,]+ KV blocks in use, 16/);
  const tints = await page.evaluate(() => {
    const of = (element) => getComputedStyle(element.querySelector(".dot")).backgroundColor;
    const entry = (name) => (element) => [element.querySelector(name)?.textContent
      ?? element.textContent, of(element)];
    const all = (selector, name) => [...document.querySelectorAll(selector)].map(entry(name));
    return { rows: all("#batch tbody tr", "th"), chips: all(".chip", "none") };
  });
  const byName = new Map(tints.chips);
  assert.equal(new Set(byName.values()).size, 6, "two names have one colour");
  for (const [name, colour] of tints.rows) assert.equal(colour, byName.get(name), name);
  const written = () => page.evaluate(() =>
    [...document.querySelectorAll("#batch .written")].map(({ textContent }) => textContent).join());
  const before = await written();
  await page.waitForFunction((text) => text !== [...document.querySelectorAll("#batch .written")]
    .map(({ textContent }) => textContent).join(), before);
  await busy.stop();
  await page.locator("#batch-empty").waitFor();
  assert.match(await page.textContent("#batch-counts"), /^0 running · 0 waiting/);
  assert.match(await page.textContent("#memory-text"), /^0 of/);
  await close(page);
}

async function aWrongSettingIsShownThoughItsPartWasClosed() {
  const page = await browser.page(open.url);
  const settings = page.locator(".settings");
  await settings.locator("summary").click();
  await page.fill("#temperature", "9");
  await settings.locator("summary").click();
  assert.equal(await settings.getAttribute("open"), null);
  await page.click("#send");
  assert.equal(await settings.getAttribute("open"), "");
  assert(await page.locator("#temperature").evaluate((field) => field === document.activeElement));
  await close(page);
}

async function theKeyboardAloneIsEnough() {
  const page = await browser.page(open.url);
  await page.locator("#adapters > li").first().waitFor();
  const focused = () => page.evaluate(() => {
    const { activeElement: at } = document;
    // Past the last element, before the first.
    if (at === document.body) return { what: "nothing", isSeen: true, isMarked: true };
    const box = at.getBoundingClientRect();
    const isSeen = box.width > 0 && box.bottom > 0 && box.top < innerHeight;
    const { outlineStyle, outlineWidth } = getComputedStyle(at);
    const what = at.id || at.value || at.textContent.trim();
    return { what, isSeen, isMarked: outlineStyle !== "none" && outlineWidth !== "0px" };
  });
  const seen = [];
  for (let i = 0; i < 60; i += 1) {
    await page.keyboard.press("Tab");
    const { what, isSeen, isMarked } = await focused();
    if (seen.includes(what)) break;
    assert(isSeen && isMarked, `${what} cannot be seen when it has the focus`);
    seen.push(what);
  }
  for (const one of ["To the prompt", "prompt", "demo", "json", "send", "stop", "shade"]) {
    assert(seen.includes(one), `${one} cannot be reached: ${seen}`);
  }
  const reach = async (what) => {
    for (let i = 0; i < 80; i += 1) {
      if ((await focused()).what.startsWith(what)) return;
      await page.keyboard.press("Tab");
    }
    throw new Error(`${what} cannot be reached`);
  };
  await page.reload();
  await chip(page, "json").waitFor();
  await reach("To the prompt");
  await page.keyboard.press("Enter");
  await reach("prompt");
  await page.keyboard.press("Control+A");
  await page.keyboard.type("What does an owl eat?");
  await reach("telegram");
  await page.keyboard.press("Space");
  assert.equal(await chip(page, "telegram").locator("input").isChecked(), false);
  await reach("send");
  await page.keyboard.press("Enter");
  await done(page);
  assert.equal((await focused()).what, "send", "the focus stays where it was");
  assert.equal(await answers(page).count(), 4);
  await reach("pirate");
  await reach("poetMOS");
  await page.keyboard.press("Enter");
  assert(await page.locator("#adapters details").nth(1).getAttribute("open") !== null);
  await close(page);
}

async function whatServersAndModelsSayIsText() {
  const data = [{ id: HOSTILE, name: HOSTILE, object: "adapter", method: HOSTILE, rank: 1, bytes: 1,
    targets: [HOSTILE], created: 1, later_field: { deep: HOSTILE }, state: "loaded" }];
  const models = [{ id: HOSTILE, parent: null }];
  const row = { id: 1, model: HOSTILE, key: HOSTILE, state: HOSTILE, prompt_tokens: 1, blocks: 1,
    cached_tokens: 0, computed_tokens: 1, completion_tokens: 1, max_tokens: 1 };
  const batch = { running: 1, waiting: 0, blocks_used: 1, blocks_total: 2, block_tokens: 16,
    rows_left_out: 0, rows: [row] };
  const chunk = { usage: { completion_tokens: 3 }, choices: [{
    delta: { content: HOSTILE, reasoning: HOSTILE }, finish_reason: null,
    logprobs: { content: [{ token: HOSTILE, logprob: -1,
      top_logprobs: [{ token: `${HOSTILE}2`, logprob: -1 }] }] } }] };
  const stream = (json) => ({ contentType: "text/event-stream", body: `data: ${json}\n\n` });
  const before = async (page) => {
    await page.route("**/v1/models", (route) => route.fulfill({ json: { data: models } }));
    await page.route("**/v1/adapters", (route) => route.fulfill({ json: { data } }));
    await page.route("**/v1/batch", (route) => route.fulfill(stream(JSON.stringify(batch))));
    await page.route("**/v1/chat/completions", (route) =>
      route.fulfill(stream(JSON.stringify(chunk))));
  };
  for (const shades of [false, true]) {
    const page = await browser.page(open.url, { before });
    await page.setChecked("#shade", shades);
    await page.locator(".chip").waitFor();
    await page.click("#send");
    await done(page);
    await page.locator("#adapters summary").click();
    await page.locator("#batch tbody tr").waitFor();
    if (shades) await page.locator(".tokens").focus();
    const shown = await page.evaluate(() => document.body.innerText);
    for (const place of [".chip", ".answer h3", "#adapters b", "#adapters dl",
      "#batch th[scope=row]", shades ? ".tokens" : ".answer > .text", ".thoughts"]) {
      assert((await page.locator(place).first().textContent()).includes(HOSTILE), place);
    }
    assert(shown.includes("later field"), "fields of later servers are shown");
    assert.equal(await page.evaluate(() => window.hacked), undefined);
    assert.equal(await page.locator("img").count(), 1, "the icon is the only picture");
    assert.equal(await page.locator("body script").count(), 0);
    await close(page, /status of 40[04]/);
  }
}

async function amongManyNamesSomeAreFoundByTyping() {
  const names = Array.from({ length: 40 }, (_, i) => `team-${i % 4}/adapter-${i}`);
  const data = names.map((name) => ({ id: name, name, method: "LORA", rank: 8, bytes: 1024 }));
  const models = [{ id: "demo", parent: null }, ...names.map((id) => ({ id, parent: "demo" }))];
  const page = await browser.page(open.url, { before: async (page) => {
    await page.route("**/v1/models", (route) => route.fulfill({ json: { data: models } }));
    await page.route("**/v1/adapters", (route) => route.fulfill({ json: { data } }));
  } });
  await page.locator("#adapters > li").first().waitFor();
  assert.equal(await page.locator(".chip:visible").count(), 41);
  assert.equal(await page.locator(".chip input:checked").count(), 5);
  await page.fill("#names-filter", "Team-1/");
  assert.equal(await page.locator(".chip:visible").count(), 10);
  await page.fill("#adapters-filter", "adapter-39");
  assert.equal(await page.locator("#adapters > li:visible").count(), 1);
  await axe(page, "many names");
  await close(page);
}

async function aKeyIsAskedForAndKeptInMemoryAlone() {
  const page = await browser.page(guarded.url);
  const dialog = page.locator("#key-dialog");
  await dialog.waitFor();
  await axe(page, "the question for a key");
  await page.fill("#key", "wrong");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.getElementById("key-why").textContent !== "");
  await page.fill("#key", "acme-key");
  await page.keyboard.press("Enter");
  await dialog.waitFor({ state: "hidden" });
  await chip(page, "pirate").waitFor();
  assert.deepEqual(await page.locator(".chip").allTextContents(), ["demo", "pirate"]);
  await ask(page, ["demo", "pirate"]);
  assert.equal((await texts(page))[0], "The fox eats berries and mice.");
  const busy = load(guarded.url, ["demo", "poet"], { key: "ops-key" });
  const own = load(guarded.url, ["pirate"], { key: "acme-key" });
  await page.waitForFunction(() => /^1 running/.test(
    document.getElementById("batch-counts").textContent));
  const live = page.locator("#batch tr:not([data-state=done]) th[scope=row]");
  assert.deepEqual([...new Set(await live.allTextContents())], ["pirate"]);
  assert.match(await page.textContent("#memory-text"), /^Your rows: /);
  await page.locator("#adapters summary").click();
  await page.getByRole("button", { name: "Unload" }).click();
  await page.getByRole("button", { name: "Unload pirate: sure?" }).click();
  await page.waitForFunction(() => /admin/.test(
    document.getElementById("adapters-said").textContent));
  const kept = await page.evaluate(() => [localStorage.length, sessionStorage.length,
    document.cookie, location.href, document.getElementById("key").value,
    document.documentElement.outerHTML.includes("acme-key")]);
  assert.deepEqual(kept, [0, 0, "", `${guarded.url}/`, "", false]);
  await page.click("#change-key");
  await page.fill("#key", "ops-key");
  await page.keyboard.press("Enter");
  await chip(page, "poet").waitFor();
  await page.reload();
  await dialog.waitFor();
  await page.fill("#key", "ops-key");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => /^3 running/.test(
    document.getElementById("batch-counts").textContent));
  assert(await page.isVisible("#batch td.key"));
  await Promise.all([busy.stop(), own.stop()]);
  await close(page, /status of 40[13]/);
}

async function nobodyIsLeftOutInEitherSchemeOrOnAPhone() {
  for (const colorScheme of ["light", "dark"]) {
    for (const [size, options] of [["wide", {}], ["phone", PHONE]]) {
      const what = `${colorScheme}, ${size}`;
      const page = await browser.page(open.url, { colorScheme, ...options });
      await page.locator("#adapters > li").first().waitFor();
      await axe(page, what);
      const busy = load(open.url, ["demo", "pirate", "poet", "telegram", "formal", "json"]);
      await ask(page, ["demo", "pirate", "poet"]);
      await axe(page, `${what}, answered`);
      await page.check("#shade");
      await ask(page, ["demo", "pirate", "json"]);
      await page.locator(".tokens").first().focus();
      for (const summary of await page.locator("summary:visible").all()) await summary.click();
      await page.locator('#batch tr[data-state="decode"]').first().waitFor();
      await page.evaluate(() => window.scrollTo(0, 0));
      if (flags.pictures) {
        mkdirSync(flags.pictures, { recursive: true });
        const path = join(flags.pictures, `${colorScheme}-${size}.png`);
        await page.screenshot({ path, fullPage: true });
      }
      await axe(page, `${what}, all open`);
      const [wanted, there] = await page.evaluate(() =>
        [document.documentElement.scrollWidth, innerWidth]);
      assert(wanted <= there, `${what}: ${wanted} pixels of ${there}`);
      await busy.stop();
      await close(page);
    }
  }
}

async function nothingMovesForWhoWantsNothingToMove() {
  const busy = load(open.url, Array(ROWS_OF_A_SLOW_STEP).fill("demo"));
  await areRunning(open.url, ROWS_OF_A_SLOW_STEP);
  for (const reducedMotion of ["reduce", "no-preference"]) {
    const page = await browser.page(open.url, { reducedMotion });
    await askForMuch(page, ["demo", "pirate"]);
    await page.click("#send");
    // Both in one look: an answer may be over at the next.
    const seen = await page.waitForFunction(() =>
      document.querySelector('.answer[aria-busy="true"]')
      && { moving: document.getAnimations().length });
    const { moving } = await seen.jsonValue();
    assert.equal(moving === 0, reducedMotion === "reduce");
    await page.click("#stop", { timeout: 2000 }).catch(() => {});
    await done(page);
    await close(page);
  }
  await busy.stop();
}

/** For the README: answers to compare, and a batch at work. */
async function aPictureIsTaken() {
  const page = await browser.page(open.url, { viewport: { width: 1180, height: 1060 } });
  await ask(page, ["demo", "pirate", "poet", "telegram", "formal"]);
  const busy = load(open.url, ["json", "demo", "formal", "telegram", "poet", "pirate", "poet"]);
  await page.waitForTimeout(4000);
  await page.screenshot({ path: flags.picture });
  await busy.stop();
  await close(page);
}

const checks = [answersStreamSideBySide, aStopEndsAllAnswers,
  tokensAreShadedAndTellWhatElseTheyCouldHaveBeen, adaptersAreListedInspectedLoadedAndUnloaded,
  theBatchIsSeenAsItRuns, aWrongSettingIsShownThoughItsPartWasClosed, theKeyboardAloneIsEnough,
  whatServersAndModelsSayIsText,
  amongManyNamesSomeAreFoundByTyping, aKeyIsAskedForAndKeptInMemoryAlone,
  nobodyIsLeftOutInEitherSchemeOrOnAPhone, nothingMovesForWhoWantsNothingToMove];
try {
  await run(flags.picture ? [aPictureIsTaken] : checks, flags.only);
} finally {
  await Promise.all([open, guarded, fixed].map((server) => server.stop()));
  browser.close();
  rmSync(folder, { recursive: true, force: true });
}
