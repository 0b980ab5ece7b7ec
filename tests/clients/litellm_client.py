#!/usr/bin/env python3
"""litellm, by which gateways and agents talk to servers, under each of its names for ours.

usage: litellm_client.py URL_OR_PATH_TO_TESSERA
"""

import asyncio
import json
import os
from typing import Annotated, Literal

# Else it asks the network for a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm  # noqa: E402
from pydantic import BaseModel, Field  # noqa: E402

from harness import (  # noqa: E402
    ANSWER_TOKENS, ASKED, QUESTION, anthropic_url, greedy, is_answer, raises, run, versions, wait)

PROVIDERS = ("openai/", "hosted_vllm/")


class Answer(BaseModel):
    animal: Literal["fox", "owl"]
    legs: Annotated[int, Field(ge=0, le=8)]


TOOL = {"type": "function", "function": {
    "name": "answer", "description": "Answers.", "parameters": Answer.model_json_schema()}}


def complete(url, provider, model="demo", **more):
    asked = {"messages": QUESTION, "temperature": 0, "max_tokens": 64} | more
    return litellm.completion(model=provider + model, api_base=url, api_key="none", **asked)


def chat(url):
    for provider in PROVIDERS:
        for model in ("demo", "pirate"):
            reply = complete(url, provider, model)
            assert reply.choices[0].message.content == greedy(url, model)
            assert reply.choices[0].finish_reason in ("stop", "length")
            assert reply.usage.total_tokens > reply.usage.completion_tokens > 0
        several = complete(url, provider, n=2, temperature=1, seed=3, stop=["zzz"], logprobs=True,
                           top_logprobs=2, presence_penalty=0.5, logit_bias={"9": -5})
        assert [choice.index for choice in several.choices] == [0, 1]
        assert len(several.choices[1].logprobs.content[0].top_logprobs) == 2


def streamed(url):
    for provider in PROVIDERS:
        chunks = list(complete(url, provider, stream=True, stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == greedy(url)
        whole = litellm.stream_chunk_builder(chunks, messages=QUESTION)
        assert whole.choices[0].message.content == text
        assert whole.usage.completion_tokens == complete(url, provider).usage.completion_tokens


def tools(url):
    for provider in PROVIDERS:
        for choice in ("required", {"type": "function", "function": {"name": "answer"}}):
            asked = {"tools": [TOOL], "tool_choice": choice, "max_tokens": ANSWER_TOKENS}
            message = complete(url, provider, **asked).choices[0].message
            call = message.tool_calls[0]
            assert call.function.name == "answer"
            assert is_answer(json.loads(call.function.arguments))
            chunks = list(complete(url, provider, stream=True, **asked))
            whole = litellm.stream_chunk_builder(chunks).choices[0].message
            assert whole.tool_calls[0].function.arguments == call.function.arguments
            result = {"role": "tool", "tool_call_id": call.id, "content": "noted"}
            again = complete(url, provider, tools=[TOOL], tool_choice="none",
                             messages=[*QUESTION, message.model_dump(), result])
            assert again.choices[0].message.tool_calls is None
        # By itself the demo calls nothing.
        assert complete(url, provider, tools=[TOOL]).choices[0].message.content


def structured(url):
    for provider in PROVIDERS:
        reply = complete(url, provider, response_format=Answer, max_tokens=ANSWER_TOKENS)
        assert is_answer(json.loads(reply.choices[0].message.content))
        loose = complete(url, provider, "json", response_format={"type": "json_object"},
                         max_tokens=ANSWER_TOKENS)
        assert isinstance(json.loads(loose.choices[0].message.content), dict)
    reply = complete(url, "hosted_vllm/", extra_body={"structured_outputs": {"choice": ["a", "b"]}})
    assert reply.choices[0].message.content in ("a", "b")


def reasoning(url):
    """A parameter that litellm sends to servers such as ours alone."""
    assert complete(url, "hosted_vllm/", reasoning_effort="low").choices[0].message.content


def embeddings(url):
    for provider in PROVIDERS:
        found = litellm.embedding(model=provider + "demo", input=["a fox", "an owl"], api_base=url,
                                  api_key="none", encoding_format="float")
        assert [one["index"] for one in found.data] == [0, 1]
        assert abs(sum(x * x for x in found.data[0]["embedding"]) - 1) < 1e-4
        assert found.usage.prompt_tokens > 0


def text(url):
    for model in ("text-completion-openai/demo", "hosted_vllm/demo", "openai/demo"):
        asked = {"model": model, "prompt": "The fox", "api_base": url, "api_key": "none",
                 "max_tokens": 8, "temperature": 0}
        reply = litellm.text_completion(**asked)
        assert reply.choices[0].text and reply.usage.completion_tokens > 0
        chunks = list(litellm.text_completion(**asked, stream=True))
        assert "".join(chunk.choices[0].text or "" for chunk in chunks) == reply.choices[0].text


def mistakes(url):
    """Gateways choose what to do next by the class of the error."""
    long = [{"role": "user", "content": "fox " * 20000}]
    for provider in PROVIDERS:
        raises(litellm.ContextWindowExceededError, lambda: complete(url, provider, messages=long))
        raises(litellm.NotFoundError, lambda: complete(url, provider, "nobody"))
        raises(litellm.BadRequestError, lambda: complete(url, provider, temperature=9))


def responses(url):
    for provider in PROVIDERS:
        asked = {"model": provider + "demo", "api_base": url, "api_key": "none", "input": ASKED,
                 "temperature": 0, "max_output_tokens": 64}
        reply = litellm.responses(**asked)
        assert reply.output[0].content[0].text == greedy(url)
        kinds = [event.type for event in litellm.responses(**asked, stream=True)]
        assert "response.output_text.delta" in kinds
        assert kinds[-1] in ("response.completed", "response.incomplete")


def response_tools(url):
    flat = {"type": "function", **TOOL["function"]}
    for provider in PROVIDERS:
        reply = litellm.responses(
            model=provider + "demo", api_base=url, api_key="none", input=ASKED, tools=[flat],
            tool_choice="required", temperature=0, max_output_tokens=ANSWER_TOKENS)
        call = next(item for item in reply.output if item.type == "function_call")
        assert call.name == "answer" and is_answer(json.loads(call.arguments))


def anthropic(url):
    root = anthropic_url(url)
    assert complete(root, "anthropic/").choices[0].message.content == greedy(url)
    chunks = complete(root, "anthropic/", stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == greedy(url)
    message = wait(litellm.anthropic.messages.acreate(
        model="anthropic/demo", api_base=root, api_key="none", messages=QUESTION, max_tokens=64,
        temperature=0))
    assert message["content"][0]["text"] == greedy(url)


def anthropic_tools(url):
    message = complete(anthropic_url(url), "anthropic/", tools=[TOOL], tool_choice="required",
                       max_tokens=ANSWER_TOKENS).choices[0].message
    assert is_answer(json.loads(message.tool_calls[0].function.arguments))


def at_once(url):
    async def ask(model):
        reply = await litellm.acompletion(
            model="hosted_vllm/" + model, api_base=url, api_key="none", messages=QUESTION,
            temperature=0, max_tokens=64)
        return reply.choices[0].message.content

    async def all_of(models):
        return await asyncio.gather(*map(ask, models))

    models = ["demo", "pirate", "poet", "telegram"] * 4
    assert wait(all_of(models)) == [greedy(url, model) for model in models]


if __name__ == "__main__":
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    run(versions("litellm", "openai"), [
        chat, streamed, tools, structured, reasoning, embeddings, text, mistakes, responses,
        response_tools, anthropic, anthropic_tools, at_once])
