#!/usr/bin/env python3
"""LangChain over its OpenAI and Anthropic packages.

usage: langchain_client.py URL_OR_PATH_TO_TESSERA
"""

from typing import Annotated, Literal

import openai
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import Field

from answers import Answer, Whatever
from harness import (ANSWER_TOKENS, ASKED, anthropic_url, greedy, is_answer, raises, run, versions,
                     wait)


@tool
def weather(town: Literal["Oslo", "Rome"], days: Annotated[int, Field(ge=0, le=9)]) -> str:
    """The weather of a town."""
    return f"rain in {town} for {days} days"


def chat_model(url, model="demo", **more):
    given = {"temperature": 0, "max_tokens": 64} | more
    return ChatOpenAI(base_url=url, api_key="none", model=model, max_retries=0, **given)


def invoke(url):
    for model in ("demo", "pirate"):
        reply = chat_model(url, model).invoke(ASKED)
        assert reply.content == greedy(url, model)
        assert reply.response_metadata["finish_reason"] in ("stop", "length")
        assert reply.usage_metadata["total_tokens"] > reply.usage_metadata["output_tokens"] > 0
    several = chat_model(url, n=2, temperature=1, seed=4, logprobs=True, top_logprobs=2)
    found = several.generate([[HumanMessage(ASKED)]]).generations[0]
    assert len(found) == 2 and found[0].generation_info["logprobs"]["content"]
    together = chat_model(url).batch([ASKED] * 4)
    assert {reply.content for reply in together} == {greedy(url)}
    assert wait(chat_model(url).ainvoke(ASKED)).content == greedy(url)


def history(url):
    """Each kind of message, parts among them, in one conversation."""
    call = {"name": "weather", "args": {"town": "Oslo", "days": 2}, "id": "call_1"}
    messages = [
        SystemMessage("Be brief."), HumanMessage([{"type": "text", "text": "Weather?"}]),
        AIMessage("", tool_calls=[call]), ToolMessage("rain", tool_call_id="call_1"),
        AIMessage("Rain."), HumanMessage("And?")]
    assert chat_model(url).bind_tools([weather]).invoke(messages) is not None


def streamed(url):
    chunks = list(chat_model(url, stream_usage=True).stream(ASKED))
    whole = sum(chunks[1:], chunks[0])
    assert whole.content == greedy(url) and whole.usage_metadata["output_tokens"] > 0

    async def read():
        return "".join([chunk.content async for chunk in chat_model(url).astream(ASKED)])

    assert wait(read()) == greedy(url)


def is_weather(call):
    return call["name"] == "weather" and weather.invoke(call["args"]).startswith("rain in")


def tools(url):
    for choice in ("any", "required", "weather", True):
        model = chat_model(url, max_tokens=ANSWER_TOKENS).bind_tools([weather], tool_choice=choice)
        reply = model.invoke(ASKED)
        assert is_weather(reply.tool_calls[0]) and not reply.invalid_tool_calls
        chunks = list(model.stream(ASKED))
        whole = sum(chunks[1:], chunks[0])
        assert whole.tool_calls[0]["args"] == reply.tool_calls[0]["args"]
    strict = chat_model(url, max_tokens=ANSWER_TOKENS).bind_tools(
        [weather], tool_choice="any", strict=True, parallel_tool_calls=False)
    assert len(strict.invoke(ASKED).tool_calls) == 1
    assert chat_model(url).bind_tools([weather]).invoke(ASKED).content


def agent(url):
    """The loop of an agent: by itself the demo calls nothing, so that it ends at once."""
    found = create_agent(chat_model(url), [weather]).invoke({"messages": [HumanMessage(ASKED)]})
    assert isinstance(found["messages"][-1], AIMessage)


def structured(url):
    model = chat_model(url, max_tokens=ANSWER_TOKENS)
    for method in ("function_calling", "json_schema"):
        for strict in (None, True):
            form = model.with_structured_output(Answer, method=method, strict=strict)
            assert is_answer(form.invoke(ASKED).model_dump())
        form = model.with_structured_output(Answer.model_json_schema(), method=method)
        assert is_answer(form.invoke(ASKED))
        raw = model.with_structured_output(Answer, method=method, include_raw=True).invoke(ASKED)
        assert raw["parsing_error"] is None and is_answer(raw["parsed"].model_dump())
    named = chat_model(url, "json", max_tokens=ANSWER_TOKENS)
    form = named.with_structured_output(Whatever, method="json_mode")
    assert isinstance(form.invoke(ASKED), Whatever)
    parts = list(model.with_structured_output(Answer).stream(ASKED))
    assert is_answer(parts[-1].model_dump())


def embeddings(url):
    # Otherwise it sends ids of OpenAI's own tokens.
    model = OpenAIEmbeddings(base_url=url, api_key="none", model="demo",
                             check_embedding_ctx_length=False)
    one, two = model.embed_documents(["a fox", "an owl"])
    assert len(one) == len(two) and one != two
    assert max(abs(a - b) for a, b in zip(one, model.embed_query("a fox"))) < 1e-6


def text(url):
    model = OpenAI(base_url=url, api_key="none", model="demo", temperature=0, max_tokens=8)
    whole = model.invoke("The fox")
    assert whole and "".join(model.stream("The fox")) == whole


def mistakes(url):
    raises(openai.NotFoundError, lambda: chat_model(url, "nobody").invoke(ASKED))
    error = raises(openai.BadRequestError, lambda: chat_model(url).invoke("fox " * 20000))
    assert error.code == "context_length_exceeded"


def responses(url):
    model = chat_model(url, use_responses_api=True)
    assert model.invoke(ASKED).text == greedy(url)
    assert "".join(chunk.text for chunk in model.stream(ASKED)) == greedy(url)
    form = chat_model(url, use_responses_api=True, max_tokens=ANSWER_TOKENS)
    assert is_answer(form.with_structured_output(Answer).invoke(ASKED).model_dump())


def response_tools(url):
    model = chat_model(url, use_responses_api=True, max_tokens=ANSWER_TOKENS)
    reply = model.bind_tools([weather], tool_choice="any").invoke(ASKED)
    assert is_weather(reply.tool_calls[0])


def anthropic_model(url, **more):
    given = {"temperature": 0, "max_tokens": 64} | more
    return ChatAnthropic(base_url=anthropic_url(url), api_key="none", model="demo", max_retries=0,
                         **given)


def anthropic(url):
    reply = anthropic_model(url).invoke(ASKED)
    assert reply.text == greedy(url) and reply.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in anthropic_model(url).stream(ASKED)) == greedy(url)


def anthropic_tools(url):
    model = anthropic_model(url, max_tokens=ANSWER_TOKENS)
    for choice in ("any", "weather"):
        reply = model.bind_tools([weather], tool_choice=choice).invoke(ASKED)
        assert is_weather(reply.tool_calls[0])
    assert is_answer(model.with_structured_output(Answer).invoke(ASKED).model_dump())


if __name__ == "__main__":
    run(versions("langchain", "langchain-openai", "langchain-anthropic"), [
        invoke, history, streamed, tools, agent, structured, embeddings, text, mistakes, responses,
        response_tools, anthropic, anthropic_tools])
