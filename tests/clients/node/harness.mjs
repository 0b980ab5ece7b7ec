// What the scripts of this folder share: questions, answers, and checks that are counted. Their one
// argument is the URL of a running server, which ends in /v1.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { z } from "zod";

export const ASKED = "What is a fox?";
export const QUESTION = [{ role: "user", content: ASKED }];
// Without an end that the schema sets, a model that knows no JSON may write a text for ever.
export const ANSWER_TOKENS = 400;
// Some libraries write whole requests into their errors.
const ERROR_CHARACTERS_MAX = 2000;

export const Answer = z.object({
  animal: z.enum(["fox", "owl"]),
  legs: z.number().int().min(0).max(8),
});

export const Weather = z.object({
  town: z.enum(["Oslo", "Rome"]),
  days: z.number().int().min(0).max(9),
});

/** The greedy answer that the server gives without any client between. */
export async function greedy(url, model = "demo", tokens = 64) {
  const body = { model, messages: QUESTION, temperature: 0, max_tokens: tokens };
  const reply = await fetch(`${url}/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  return (await reply.json()).choices[0].message.content;
}

/** The installed version of a package, as the lock file has it. */
function version(name) {
  const lock = JSON.parse(readFileSync(new URL("package-lock.json", import.meta.url)));
  return `${name} ${lock.packages[`node_modules/${name}`].version}`;
}

/** Runs the checks, functions of the URL, and ends with status 1 if one fails. */
export async function run(packages, checks) {
  const url = process.argv[2];
  assert(url?.startsWith("http"), "usage: SCRIPT URL");
  const failed = [];
  for (const check of checks) {
    try {
      await check(url);
    } catch (error) {
      console.log(String(error.stack).slice(0, ERROR_CHARACTERS_MAX));
      failed.push(check.name);
    }
  }
  failed.forEach((name) => console.log(`failed: ${name}`));
  const passed = checks.length - failed.length;
  console.log(`${packages.map(version).join(", ")}: ${passed} passed, ${failed.length} failed`);
  process.exitCode = failed.length ? 1 : 0;
}
