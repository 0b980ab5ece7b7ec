// One model's answer, from the request to its numbers.

import { call, events } from "./api.js";
import { tint } from "./colours.js";
import { count, duration, el, rounded, setText } from "./dom.js";
import { Tokens } from "./tokens.js";

const ALTERNATIVES = 5;

// What is to be said of an answer's end, if anything is.
/** Tokens that arrive within so little time came together, however fast they were drawn. */
const BURST_SECONDS = 0.05;
const ENDS = { stop: "", length: "reached the token limit", tool_calls: "ended with a call" };

/** The path and body that a question becomes for a model with or without a chat template. */
export function asRequest(model, question, isChat) {
  const { prompt, system, temperature, maxTokens, seed, shades } = question;
  const body = { model, max_tokens: maxTokens, stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true } };
  if (temperature !== null) body.temperature = temperature;
  if (seed !== null) body.seed = seed;
  if (isChat) {
    const before = system ? [{ role: "system", content: system }] : [];
    body.messages = [...before, { role: "user", content: prompt }];
    if (shades) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES });
    return ["v1/chat/completions", body];
  }
  body.prompt = system ? `${system}\n\n${prompt}` : prompt;
  if (shades) body.logprobs = ALTERNATIVES;
  return ["v1/completions", body];
}

/** Tokens of a chunk in both forms, as [token, logprob, top]. */
function logprobsOf(choice) {
  const { logprobs } = choice;
  if (!logprobs) return [];
  if (logprobs.content) {
    return logprobs.content.map((one) =>
      [one.token, one.logprob, one.top_logprobs.map((top) => [top.token, top.logprob])]);
  }
  return (logprobs.tokens ?? []).map((token, i) => [token, logprobs.token_logprobs[i] ?? 0,
    Object.entries(logprobs.top_logprobs?.[i] ?? {}).sort((a, b) => b[1] - a[1])]);
}

export class Answer {
  constructor(model, shades) {
    this.model = model;
    this.shades = shades;
    this.tokens = 0;
    this.text = el("p", { class: "text" });
    this.thought = el("p", { class: "text" });
    this.thoughts = el("details", { class: "thoughts", hidden: true },
      el("summary", {}, "Thoughts"), this.thought);
    this.shaded = new Tokens(model);
    this.numbers = el("p", { class: "numbers" }, "waiting");
    const heading = el("h3", {}, el("span", { class: "dot", "aria-hidden": "true" }), model);
    this.element = tint(el("article", { class: "answer", "aria-label": `Answer of ${model}`,
      "aria-busy": "true" }, heading, this.thoughts,
    shades ? this.shaded.element : this.text, this.numbers), model);
  }

  /** Streams until the answer's end, a failure or a stop. */
  async run(question, isChat, signal) {
    try {
      const [path, body] = asRequest(this.model, question, isChat);
      this.begun = performance.now();
      setText(this.numbers, "sent");
      const response = await call(path, { method: "POST", body, signal });
      for await (const data of events(response)) {
        if (data === "[DONE]") break;
        this.take(JSON.parse(data));
      }
      this.finished(ENDS[this.end] ?? this.end);
    } catch (error) {
      this.element.classList.toggle("failed", !signal.aborted);
      this.finished(signal.aborted ? "stopped" : error.message);
    }
  }

  take(chunk) {
    if (chunk.error) throw new Error(chunk.error.message);
    const now = performance.now();
    const choice = chunk.choices?.[0];
    const tokens = chunk.usage?.completion_tokens ?? this.tokens;
    if (tokens > this.tokens) {
      this.first ??= { at: now, tokens };
      this.last = now;
      this.tokens = tokens;
    }
    if (!choice) return;
    const { delta = {}, text = "", finish_reason: end } = choice;
    // Text that is added to a text: whatever a model writes cannot become an element.
    this.text.append(delta.content ?? text);
    const thought = delta.reasoning ?? delta.reasoning_content;
    if (thought) {
      this.thoughts.hidden = false;
      this.thought.append(thought);
    }
    const isEnd = end === "stop" && !(delta.content ?? text);
    logprobsOf(choice).forEach((one) => this.shaded.add(...one, isEnd));
    this.end = end ?? this.end;
    this.count();
  }

  count(how) {
    const parts = [count(this.tokens, "token")];
    if (this.first) {
      const seconds = (this.last - this.first.at) / 1000;
      const speed = (this.tokens - this.first.tokens) / seconds;
      // What arrived in one burst says nothing of how fast it was made.
      if (seconds >= BURST_SECONDS && speed > 0) parts.push(`${rounded(speed)} tokens/s`);
      parts.push(`first after ${duration(this.first.at - this.begun)}`);
    }
    if (how) parts.push(how);
    setText(this.numbers, parts.join(" · "));
  }

  finished(how) {
    this.element.setAttribute("aria-busy", "false");
    this.count(how);
  }
}
