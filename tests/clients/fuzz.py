#!/usr/bin/env python3
"""Random requests to the demo and its adapters. Each must have the same answer whole, streamed,
alone and among 32 others, to the last digit of every logprob; none may break the server.

usage: fuzz.py URL_OR_PATH_TO_TESSERA [--seed N] [--requests N]

Without numbers it is the slice that CI runs.
"""

import argparse
import collections
import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from fuzz_requests import requests
from harness import serving

AT_ONCE = 32
REPLY_SECONDS_MAX = 300
STREAM_OPTIONS = {"include_usage": True}


def post(url, path, body):
    """The status and the text of the answer, whichever it is."""
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=REPLY_SECONDS_MAX) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def choice_of(choice):
    """What a choice says, but for the ids of calls, which are new each time."""
    said = choice.get("message") or {"content": choice["text"]}
    calls = [(call["function"]["name"], call["function"]["arguments"])
             for call in said.get("tool_calls") or []]
    return {"text": said["content"] or "", "calls": calls, "end": choice["finish_reason"],
            "stop": choice["stop_reason"], "logprobs": choice["logprobs"],
            "ids": choice.get("token_ids")}


def usage_of(reply):
    """How much of a prompt was cached depends on who came before."""
    return {key: reply["usage"][key] for key in ("prompt_tokens", "completion_tokens")}


def whole_of(text):
    reply = json.loads(text)
    choices = {choice["index"]: choice_of(choice) for choice in reply["choices"]}
    return {"choices": choices, "usage": usage_of(reply),
            "prompt": [reply.get("prompt_logprobs"), reply.get("prompt_token_ids")]
            + [[choice.get("prompt_logprobs"), choice.get("prompt_token_ids")]
               for choice in reply["choices"]]}


def error_of(text):
    error = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    return error["code"]


class Streamed:
    """A stream put together again."""

    def __init__(self, text):
        events = [json.loads(part[6:]) for part in text.split("\n\n")
                  if part.startswith("data: ") and part != "data: [DONE]"]
        self.error = next((event["error"]["code"] for event in events if "error" in event), None)
        if self.error is None:
            assert text.endswith("data: [DONE]\n\n"), text[-80:]
            self.usage = usage_of(next(event for event in events if event.get("usage")
                                       and not event["choices"]))
            self.choices = collections.defaultdict(lambda: {
                "text": "", "calls": [], "end": None, "stop": None, "logprobs": None, "ids": None})
            for event in events:
                for choice in event["choices"]:
                    self.add(self.choices[choice["index"]], choice)

    def add(self, so_far, choice):
        assert so_far["end"] is None, "nothing comes after a finish_reason"
        said = choice.get("delta", {"content": choice.get("text")})
        so_far["text"] += said.get("content") or ""
        for call in said.get("tool_calls") or []:
            if call["index"] == len(so_far["calls"]):
                so_far["calls"].append((call["function"]["name"], ""))
            name, arguments = so_far["calls"][call["index"]]
            more = call["function"].get("arguments", "")
            so_far["calls"][call["index"]] = (name, arguments + more)
        so_far["end"], so_far["stop"] = choice["finish_reason"], choice.get("stop_reason")
        if choice.get("token_ids") is not None:
            so_far["ids"] = (so_far["ids"] or []) + choice["token_ids"]
        if choice.get("logprobs"):
            parts = so_far["logprobs"] or dict.fromkeys(choice["logprobs"])
            for key, more in choice["logprobs"].items():
                parts[key] = parts[key] if more is None else (parts[key] or []) + more
            so_far["logprobs"] = parts


def cannot_stream(body):
    """What only a whole answer can have."""
    return body.get("prompt_logprobs") is not None or (body.get("best_of") or 1) > 1


class Fuzz:
    """Sends the requests and keeps what went wrong."""

    def __init__(self, url):
        self.url, self.faults, self.statuses = url, [], collections.Counter()

    def fault(self, what, body, *found):
        self.faults.append(what)
        print(f"{what}: {json.dumps(body)}")
        for one in found:
            print(f"  {json.dumps(one, default=str)[:1500]}")

    def alone(self, path, body):
        """The answer, or None of a request that was refused."""
        status, text = post(self.url, path, body)
        self.statuses[status] += 1
        if status >= 500:
            self.fault(f"status {status}", body, text)
        elif status != 200:
            self.is_refused_streamed(path, body, status, error_of(text))
        else:
            whole = whole_of(text)
            if not cannot_stream(body):
                self.is_streamed_alike(path, body, whole)
            return whole
        return None

    def streamed(self, path, body):
        return post(self.url, path, {**body, "stream": True, "stream_options": STREAM_OPTIONS})

    def is_refused_streamed(self, path, body, status, code):
        """At once, or by an event if the reason was found on the way."""
        again, text = self.streamed(path, body)
        found = Streamed(text).error if again == 200 else error_of(text)
        # What cannot be streamed may be told of before anything else.
        if again not in (200, status) or found != code and not cannot_stream(body):
            self.fault("refused whole, not streamed", body, [status, code], [again, found])

    def is_streamed_alike(self, path, body, whole):
        status, text = self.streamed(path, body)
        if status != 200:
            return self.fault(f"streamed: status {status}", body, text)
        stream = Streamed(text)
        if stream.error:
            return self.fault("streamed: error", body, stream.error)
        if stream.usage != whole["usage"]:
            self.fault("streamed: usage", body, stream.usage, whole["usage"])
        for index, choice in whole["choices"].items():
            if json.dumps(stream.choices[index]) != json.dumps(choice):
                self.fault("streamed: not alike", body, stream.choices[index], choice)

    def together(self, asked):
        """All again, many at once: each has the answer that it had alone."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            replies = list(pool.map(lambda one: post(self.url, one[0], one[1]), asked))
        for (_, body, whole), (status, text) in zip(asked, replies):
            if status != 200:
                self.fault(f"at once: status {status}", body, text)
            elif json.dumps(whole_of(text)) != json.dumps(whole):
                self.fault("at once: not alike", body, whole_of(text), whole)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tessera")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=120)
    asked = parser.parse_args()
    with serving(asked.tessera) as url:
        fuzz = Fuzz(url)
        answered = []
        for path, body in requests(asked.seed, asked.requests):
            whole = fuzz.alone(path, body)
            if whole is not None:
                answered.append((path, body, whole))
        fuzz.together(answered)
    statuses = ", ".join(f"{count} of status {status}"
                         for status, count in sorted(fuzz.statuses.items()))
    failed = min(len(fuzz.faults), asked.requests)
    print(f"fuzz.py with seed {asked.seed} ({statuses}): {asked.requests - failed} passed, "
          f"{failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
