#!/usr/bin/env python3
"""Anthropic's own client against the real binary serving the built-in demo.

usage: anthropic_client.py PATH_TO_TESSERA
"""

import json
import sys

import anthropic

from harness import QUESTION, Server
from openai_client import ANSWER

# The newest models there take no temperature, so that the client has no argument for it.
GREEDY = {"temperature": 0}


def create(client, model, **more):
    asked = {"model": model, "messages": QUESTION, "max_tokens": 64, "extra_body": GREEDY} | more
    return client.messages.create(**asked)


def ask(client, model):
    reply = create(client, model)
    assert (reply.type, reply.role, reply.model) == ("message", "assistant", model)
    assert reply.stop_reason in ("end_turn", "max_tokens") and reply.stop_sequence is None
    counted = client.messages.count_tokens(model=model, messages=QUESTION).input_tokens
    usage = reply.usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens > 0
    assert usage.output_tokens > 0 and reply._request_id
    return reply.content[0].text


def stream(client, model):
    kinds = []
    with client.messages.stream(
            model=model, messages=QUESTION, max_tokens=64, extra_body=GREEDY) as events:
        for event in events:
            kinds.append(event.type)
        final = events.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert final.usage.output_tokens > 0 and final.stop_reason in ("end_turn", "max_tokens")
    return final.content[0].text


def shape(client, model, text):
    """What ends an answer, begins it, and gives it a form."""
    words = text.split(" ")
    stopped = create(client, model, stop_sequences=[words[2]])
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == words[2]
    assert words[2] not in stopped.content[0].text
    cut = create(client, model, max_tokens=1)
    assert cut.stop_reason == "max_tokens" and cut.usage.output_tokens == 1
    blocks = [{"type": "text", "text": "What is a fox?", "cache_control": {"type": "ephemeral"}}]
    same = create(client, model, messages=[{"role": "user", "content": blocks}])
    assert same.content[0].text == text
    create(client, model, system="Be brief.", thinking={"type": "disabled"},
           metadata={"user_id": "u"}, extra_body={"seed": 5, "min_p": 0.1, "top_k": 9})
    begun = [*QUESTION, {"role": "assistant", "content": words[0]}]
    assert create(client, model, messages=begun).content[0].text
    form = {"type": "json_schema", "schema": ANSWER}
    answer = create(client, model, max_tokens=400, output_config={"format": form})
    assert json.loads(answer.content[0].text)["animal"] in ("fox", "owl")


NOTE = {"name": "note", "description": "Writes down an animal.", "input_schema": ANSWER}


def call(client, model):
    """The model uses a tool, and reads what came of it."""
    asked = {"tools": [NOTE], "max_tokens": 200}
    for choice in ({"type": "any"}, {"type": "tool", "name": "note"}):
        choice |= {"disable_parallel_tool_use": True}
        reply = create(client, model, tool_choice=choice, **asked)
        [made] = reply.content
        assert reply.stop_reason == "tool_use" and made.type == "tool_use"
        assert made.name == "note" and made.input["animal"] in ("fox", "owl"), made
        with client.messages.stream(model=model, messages=QUESTION, tool_choice=choice,
                                    extra_body=GREEDY, **asked) as events:
            kinds = [event.type for event in events]
            final = events.get_final_message()
        assert "input_json" in kinds, "pieces of the input are seen as they come"
        assert final.stop_reason == "tool_use" and final.content[0].input == made.input
    result = {"type": "tool_result", "tool_use_id": made.id, "is_error": True,
              "content": [{"type": "text", "text": "no"}]}
    messages = [*QUESTION, {"role": "assistant", "content": reply.content},
                {"role": "user", "content": [result]}]
    assert create(client, model, messages=messages, **asked).content
    counted = [client.messages.count_tokens(model=model, messages=QUESTION, **more).input_tokens
               for more in ({}, {"tools": [NOTE]})]
    assert counted[0] < counted[1]
    for more, name in (
        ({"messages": messages[:2]}, made.id),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"tool_choice": {"type": "tool", "name": "nobody"}}, "nobody"),
    ):
        try:
            create(client, model, **asked | more)
        except anthropic.BadRequestError as refused:
            assert name in str(refused), refused
        else:
            raise AssertionError(f"{more} must be refused")


def refusals(client, model):
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
    for more, error, kind, name in (
        ({"model": "nobody"}, anthropic.NotFoundError, "not_found_error", "nobody"),
        ({"extra_body": {"temperature": 2}},
         anthropic.BadRequestError, "invalid_request_error", "temperature"),
        ({"max_tokens": 10_000}, anthropic.BadRequestError, "invalid_request_error", "max_tokens"),
        ({"messages": [{"role": "user", "content": [image]}]},
         anthropic.BadRequestError, "invalid_request_error", "image"),
    ):
        try:
            create(client, **{"model": model} | more)
        except error as refused:
            assert refused.body["error"]["type"] == kind and name in str(refused), refused
            assert refused.request_id == refused.body["request_id"]
        else:
            raise AssertionError(f"{more} must be refused")


def main():
    server = Server(sys.argv[1])
    try:
        # This client adds the version itself.
        client = anthropic.Anthropic(
            base_url=server.url.removesuffix("/v1"), api_key="none", max_retries=0)
        cards = client.get("/v1/models", cast_to=object)["data"]
        models = [card["id"] for card in cards]
        alone = {model: ask(client, model) for model in models}
        assert len(set(alone.values())) == len(models), f"every adapter its own way: {alone}"
        for model, text in alone.items():
            assert stream(client, model) == text, "streamed or not"
        shape(client, models[0], alone[models[0]])
        call(client, models[0])
        refusals(client, models[0])
    finally:
        server.stop()
    print("Anthropic's client is served: 1 passed, 0 failed")


if __name__ == "__main__":
    main()
