// Anthropic's client for Node.
//
// usage: node anthropic.mjs URL

import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";
import { z } from "zod";
import { ANSWER_TOKENS, QUESTION, Weather, greedy, run } from "./harness.mjs";

const asked = { model: "demo", messages: QUESTION, temperature: 0, max_tokens: 64 };

function client(url) {
  return new Anthropic({ baseURL: url.replace(/\/v1$/, ""), apiKey: "none", maxRetries: 0 });
}

async function chat(url) {
  const reply = await client(url).messages.create(asked);
  assert.equal(reply.content[0].text, await greedy(url));
  const count = await client(url).messages.countTokens({ model: "demo", messages: QUESTION });
  const { input_tokens, cache_read_input_tokens } = reply.usage;
  assert.equal(count.input_tokens, input_tokens + cache_read_input_tokens);
}

async function streamed(url) {
  const stream = client(url).messages.stream(asked);
  let pieces = "";
  stream.on("text", (piece) => (pieces += piece));
  const whole = await stream.finalMessage();
  assert.equal(pieces, await greedy(url));
  assert.equal(whole.content[0].text, pieces);
  assert.ok(whole.usage.output_tokens > 0);
}

async function tools(url) {
  const tool = { name: "weather", input_schema: z.toJSONSchema(Weather) };
  for (const tool_choice of [{ type: "any" }, { type: "tool", name: "weather" }]) {
    const body = { ...asked, max_tokens: ANSWER_TOKENS, tools: [tool], tool_choice };
    const reply = await client(url).messages.create(body);
    assert.equal(reply.stop_reason, "tool_use");
    const call = reply.content.find((block) => block.type === "tool_use");
    Weather.parse(call.input);
    const whole = await client(url).messages.stream(body).finalMessage();
    const again = whole.content.find((block) => block.type === "tool_use");
    assert.deepEqual(again.input, call.input);
    const result = { type: "tool_result", tool_use_id: call.id, content: "rain" };
    const messages = [
      ...QUESTION,
      { role: "assistant", content: reply.content },
      { role: "user", content: [result] },
    ];
    await client(url).messages.create({ ...asked, messages, tools: [tool] });
  }
}

async function mistakes(url) {
  const wrong = (more) => client(url).messages.create({ ...asked, ...more });
  await assert.rejects(wrong({ model: "nobody" }), Anthropic.NotFoundError);
  await assert.rejects(wrong({ temperature: 9 }), Anthropic.BadRequestError);
}

await run(["@anthropic-ai/sdk"], [chat, streamed, tools, mistakes]);
