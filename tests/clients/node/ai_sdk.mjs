// Vercel's AI SDK over its packages for OpenAI, for servers like OpenAI's, and for Anthropic.
//
// usage: node ai_sdk.mjs URL

import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embedMany, generateText, isStepCount, streamText, tool } from "ai";
import { ANSWER_TOKENS, ASKED, Answer, Weather, greedy, run } from "./harness.mjs";

const openai = (url) => createOpenAI({ baseURL: url, apiKey: "none" });
const compatible = (url) =>
  createOpenAICompatible({
    baseURL: url,
    name: "tessera",
    apiKey: "none",
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
const anthropicModel = (url) => createAnthropic({ baseURL: url, apiKey: "none" })("demo");
const chatModels = (url, name = "demo") => [compatible(url)(name), openai(url).chat(name)];
const asked = { prompt: ASKED, temperature: 0, maxOutputTokens: 64, maxRetries: 0 };
const longer = { ...asked, maxOutputTokens: ANSWER_TOKENS };

async function isText(url, model, name = "demo") {
  const reply = await generateText({ model, ...asked });
  assert.equal(reply.text, await greedy(url, name));
  assert.ok(reply.usage.outputTokens > 0 && reply.usage.inputTokens > 0);
  assert.ok(["stop", "length"].includes(reply.finishReason), reply.finishReason);
  const stream = streamText({ model, ...asked });
  let pieces = "";
  for await (const piece of stream.textStream) pieces += piece;
  assert.equal(pieces, reply.text);
  assert.equal((await stream.usage).outputTokens, reply.usage.outputTokens);
}

async function isObject(model) {
  const output = Output.object({ schema: Answer });
  Answer.parse((await generateText({ model, ...longer, output })).output);
  const stream = streamText({ model, ...longer, output });
  for await (const _ of stream.partialOutputStream);
  Answer.parse(await stream.output);
}

async function isCall(model) {
  const seen = [];
  const weather = tool({
    description: "The weather of a town.",
    inputSchema: Weather,
    execute: async (given) => {
      seen.push(given);
      return "rain";
    },
  });
  for (const toolChoice of ["required", { type: "tool", toolName: "weather" }]) {
    // Two steps: the result of the first one's call is sent with the second.
    const body = { model, ...longer, tools: { weather }, toolChoice, stopWhen: isStepCount(2) };
    const reply = await generateText(body);
    assert.equal(reply.steps.length, 2);
    assert.equal(reply.steps[0].toolCalls[0].toolName, "weather");
    const stream = streamText(body);
    await stream.consumeStream();
    assert.deepEqual(
      (await stream.steps)[0].toolCalls[0].input, reply.steps[0].toolCalls[0].input);
  }
  assert.ok(seen.length >= 4);
  seen.forEach((given) => Weather.parse(given));
}

async function chat(url) {
  for (const name of ["demo", "pirate"]) {
    for (const model of chatModels(url, name)) await isText(url, model, name);
  }
}

async function object(url) {
  for (const model of chatModels(url)) await isObject(model);
}

async function tools(url) {
  for (const model of chatModels(url)) await isCall(model);
}

async function text(url) {
  for (const model of [compatible(url).completionModel("demo"), openai(url).completion("demo")]) {
    const reply = await generateText({ model, ...asked });
    assert.ok(reply.text.length > 0);
    let pieces = "";
    for await (const piece of streamText({ model, ...asked }).textStream) pieces += piece;
    assert.equal(pieces, reply.text);
  }
}

async function embeddings(url) {
  const models = [compatible(url).embeddingModel("demo"), openai(url).embedding("demo")];
  for (const model of models) {
    const found = await embedMany({ model, values: ["a fox", "an owl"], maxRetries: 0 });
    assert.equal(found.embeddings.length, 2);
    assert.notDeepEqual(found.embeddings[0], found.embeddings[1]);
  }
}

async function mistakes(url) {
  for (const model of chatModels(url, "nobody")) {
    const error = await generateText({ model, ...asked }).catch((error) => error);
    assert.ok(APICallError.isInstance(error), error);
    assert.equal(error.statusCode, 404);
  }
}

async function responses(url) {
  await isText(url, openai(url).responses("demo"));
  await isObject(openai(url).responses("demo"));
}

async function responseTools(url) {
  await isCall(openai(url).responses("demo"));
}

async function anthropic(url) {
  await isText(url, anthropicModel(url));
}

async function anthropicTools(url) {
  await isCall(anthropicModel(url));
  await isObject(anthropicModel(url));
}

await run(["ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic"], [
  chat, object, tools, text, embeddings, mistakes, responses, responseTools, anthropic,
  anthropicTools,
]);
