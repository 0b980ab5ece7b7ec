// OpenAI's client for Node.
//
// usage: node openai.mjs URL

import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { ANSWER_TOKENS, ASKED, Answer, QUESTION, Weather, greedy, run } from "./harness.mjs";

const asked = { model: "demo", messages: QUESTION, temperature: 0, max_tokens: 64 };
const longer = { ...asked, max_tokens: ANSWER_TOKENS };

function client(url) {
  return new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
}

async function chat(url) {
  const reply = await client(url).chat.completions.create(asked);
  assert.equal(reply.choices[0].message.content, await greedy(url));
  assert.ok(reply._request_id);
  const models = await client(url).models.list();
  assert.equal(models.data[0].id, "demo");
}

async function streamed(url) {
  const stream = await client(url).chat.completions.create({ ...asked, stream: true });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  assert.equal(text, await greedy(url));
  const runner = client(url).chat.completions.stream({
    ...asked,
    stream_options: { include_usage: true },
  });
  let pieces = "";
  runner.on("content", (piece) => (pieces += piece));
  assert.equal(await runner.finalContent(), text);
  assert.equal(pieces, text);
  assert.ok((await runner.totalUsage()).completion_tokens > 0);
}

async function parse(url) {
  const form = zodResponseFormat(Answer, "answer");
  const reply = await client(url).chat.completions.parse({ ...longer, response_format: form });
  Answer.parse(reply.choices[0].message.parsed);
  const stream = client(url).chat.completions.stream({ ...longer, response_format: form });
  Answer.parse((await stream.finalChatCompletion()).choices[0].message.parsed);
}

async function tools(url) {
  const tool = zodFunction({ name: "weather", parameters: Weather });
  const named = { type: "function", function: { name: "weather" } };
  for (const tool_choice of ["required", named]) {
    const body = { ...longer, tools: [tool], tool_choice };
    const reply = await client(url).chat.completions.parse(body);
    const call = reply.choices[0].message.tool_calls[0].function;
    Weather.parse(call.parsed_arguments);
    const stream = client(url).chat.completions.stream(body);
    const whole = (await stream.finalChatCompletion()).choices[0].message.tool_calls[0].function;
    assert.equal(whole.arguments, call.arguments);
  }
}

// The runner calls the function and sends its result back, until the model calls no more.
async function runner(url) {
  const seen = [];
  const tool = zodFunction({
    name: "weather",
    parameters: Weather,
    function: (given) => {
      seen.push(given);
      return "rain";
    },
  });
  const named = { type: "function", function: { name: "weather" } };
  for (const stream of [false, true]) {
    const body = { ...longer, tools: [tool], tool_choice: named, stream };
    const done = client(url).chat.completions.runTools(body, { maxChatCompletions: 2 });
    await done.finalMessage().catch((error) => assert.match(String(error), /without/));
    assert.ok(done.messages.some((message) => message.role === "tool"), "the result went back");
  }
  seen.forEach((given) => Weather.parse(given));
}

async function text(url) {
  const body = { model: "demo", prompt: "The fox", max_tokens: 8, temperature: 0 };
  const whole = (await client(url).completions.create(body)).choices[0].text;
  let pieces = "";
  const stream = await client(url).completions.create({ ...body, stream: true });
  for await (const chunk of stream) pieces += chunk.choices[0]?.text ?? "";
  assert.ok(whole.length > 0);
  assert.equal(pieces, whole);
}

async function responses(url) {
  const body = { model: "demo", input: ASKED, temperature: 0, max_output_tokens: 64 };
  const reply = await client(url).responses.create(body);
  assert.equal(reply.output_text, await greedy(url));
  const stream = client(url).responses.stream(body);
  assert.equal((await stream.finalResponse()).output_text, reply.output_text);
  const parsed = await client(url).responses.parse({
    ...body,
    max_output_tokens: ANSWER_TOKENS,
    text: { format: zodTextFormat(Answer, "answer") },
  });
  Answer.parse(parsed.output_parsed);
}

async function responseTools(url) {
  const { name, parameters } = zodFunction({ name: "weather", parameters: Weather }).function;
  const reply = await client(url).responses.create({
    model: "demo",
    input: ASKED,
    tools: [{ type: "function", name, parameters, strict: true }],
    tool_choice: "required",
    max_output_tokens: ANSWER_TOKENS,
  });
  const call = reply.output.find((item) => item.type === "function_call");
  Weather.parse(JSON.parse(call.arguments));
}

async function embeddings(url) {
  const body = { model: "demo", input: ["a fox", "an owl"] };
  const packed = await client(url).embeddings.create(body);
  const plain = await client(url).embeddings.create({ ...body, encoding_format: "float" });
  packed.data.forEach((one, index) =>
    one.embedding.forEach((x, at) =>
      assert.ok(Math.abs(x - plain.data[index].embedding[at]) < 1e-6)));
}

async function mistakes(url) {
  const wrong = (more) => client(url).chat.completions.create({ ...asked, ...more });
  await assert.rejects(wrong({ model: "nobody" }), OpenAI.NotFoundError);
  await assert.rejects(wrong({ temperature: 9 }), { status: 400, param: "temperature" });
  const long = [{ role: "user", content: "fox ".repeat(20000) }];
  await assert.rejects(wrong({ messages: long }), { code: "context_length_exceeded" });
}

// A client that goes away in the middle of a stream leaves a server that answers the next one.
async function aborted(url) {
  const stream = await client(url).chat.completions.create({ ...asked, stream: true });
  for await (const _ of stream) break;
  stream.controller.abort();
  await chat(url);
}

await run(["openai", "zod"], [
  chat, streamed, parse, tools, runner, text, responses, responseTools, embeddings, mistakes,
  aborted,
]);
