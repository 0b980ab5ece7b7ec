#!/usr/bin/env python3
"""smolagents' model of OpenAI's API: text, streams, tools and forms.

usage: smolagents_client.py URL_OR_PATH_TO_TESSERA
"""

import json

from smolagents import OpenAIModel, tool

from harness import ANSWER_TOKENS, QUESTION, greedy, run, versions


@tool
def weather(days: int) -> str:
    """The weather of the coming days.

    Args:
        days: how many.
    """
    return f"rain for {days} days"


def model(url, **more):
    given = {"temperature": 0, "max_tokens": 64} | more
    return OpenAIModel("demo", api_base=url, api_key="none", **given)


def chat(url):
    assert model(url).generate(QUESTION).content == greedy(url)
    parts = [part.content or "" for part in model(url).generate_stream(QUESTION)]
    assert "".join(parts) == greedy(url)


def tools(url):
    reply = model(url, max_tokens=ANSWER_TOKENS).generate(QUESTION, tools_to_call_from=[weather])
    call = reply.tool_calls[0].function
    given = json.loads(call.arguments) if isinstance(call.arguments, str) else call.arguments
    assert call.name == "weather" and isinstance(given["days"], int)


def form(url):
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"],
              "additionalProperties": False}
    reply = model(url, max_tokens=ANSWER_TOKENS).generate(QUESTION, response_format={
        "type": "json_schema", "json_schema": {"name": "form", "schema": schema, "strict": True}})
    assert json.loads(reply.content)["yes"] in (True, False)


if __name__ == "__main__":
    run(versions("smolagents", "openai"), [chat, tools, form])
