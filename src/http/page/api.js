// Requests to the server that this page is from, with the key that it asks for.

// In this variable and nowhere else.
let key = null;
let asked = null;
let askForKey = async () => null;

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** `ask(why)` gives a key, or null from somebody who has none. */
export function setAskForKey(ask) {
  askForKey = ask;
}

export const hasKey = () => key !== null;

/** Asks for a key once, however many requests need it. False if there is none. */
export async function renewKey(why) {
  asked ??= askForKey(why).finally(() => { asked = null; });
  const given = await asked;
  if (given !== null) key = given;
  return given !== null;
}

async function failure(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    return new ApiError(response.status, error.code, error.message);
  } catch {
    return new ApiError(response.status, null, `The server answered ${response.status}.`);
  }
}

/**
 * A request that went well. Throws ApiError, or what fetch throws. With `asks: false` nobody is
 * asked for a key: what goes on by itself must not come back to whoever has none.
 */
export async function call(path, { method = "GET", body, accept, signal, asks = true } = {}) {
  for (;;) {
    const used = key;
    const headers = {};
    if (used !== null) headers.authorization = `Bearer ${used}`;
    if (accept) headers.accept = accept;
    if (body !== undefined) headers["content-type"] = "application/json";
    const response = await fetch(path, {
      method, headers, signal,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store", credentials: "omit", redirect: "error",
    });
    if (response.ok) return response;
    const error = await failure(response);
    if (response.status !== 401 || !asks) throw error;
    // Another request may have got a key meanwhile.
    const why = used === null ? "" : "The server does not know that key.";
    if (used === key && !(await renewKey(why))) throw error;
  }
}

export const json = async (path, options) => (await call(path, options)).json();

/** The data of each event of a stream. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const frames = text.split("\n\n");
    text = frames.pop();
    for (const frame of frames) {
      const lines = frame.split("\n").filter((line) => line.startsWith("data: "));
      if (lines.length > 0) yield lines.map((line) => line.slice(6)).join("\n");
    }
  }
}
