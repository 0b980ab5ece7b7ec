#!/usr/bin/env python3
"""pydantic-ai over its models of OpenAI (both APIs), vLLM and Anthropic.

usage: pydantic_ai_client.py URL_OR_PATH_TO_TESSERA
"""

from typing import Annotated, Literal

from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic import BaseModel, ConfigDict, Field
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.embeddings import Embedder
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.vllm import VLLMProvider

from harness import (ANSWER_TOKENS, ASKED, anthropic_url, greedy, is_answer, raises, run, versions,
                     wait)


class Answer(BaseModel):
    """What the animal is."""

    animal: Literal["fox", "owl"]
    legs: Annotated[int, Field(ge=0, le=8)]


class Whatever(BaseModel):
    """Any object: a prompt alone holds an answer to no schema."""

    model_config = ConfigDict(extra="allow")


def openai_client(url):
    return AsyncOpenAI(base_url=url, api_key="none", max_retries=0)


def chat_models(url, name="demo"):
    return (OpenAIChatModel(name, provider=OpenAIProvider(openai_client=openai_client(url))),
            OpenAIChatModel(name, provider=VLLMProvider(openai_client=openai_client(url))))


def responses_model(url):
    return OpenAIResponsesModel("demo", provider=OpenAIProvider(openai_client=openai_client(url)))


def anthropic_model(url):
    client = AsyncAnthropic(base_url=anthropic_url(url), api_key="none", max_retries=0)
    return AnthropicModel("demo", provider=AnthropicProvider(anthropic_client=client))


def agent(model, tokens=64, **more):
    return Agent(model, model_settings={"temperature": 0, "max_tokens": tokens}, retries=0, **more)


def is_text(url, model):
    """The answer is the server's own, whole and streamed."""
    reply = wait(agent(model).run(ASKED))
    assert reply.output == greedy(url), reply.output
    assert reply.usage.output_tokens > 0 and reply.usage.input_tokens > 0

    async def read():
        async with agent(model).run_stream(ASKED) as stream:
            return [part async for part in stream.stream_text(debounce_by=None)][-1]

    assert wait(read()) == greedy(url)


def is_structured(model, *forms):
    for form in forms:
        reply = wait(agent(model, ANSWER_TOKENS, output_type=form).run(ASKED))
        assert is_answer(reply.output.model_dump())

        async def read():
            async with agent(model, ANSWER_TOKENS, output_type=form).run_stream(ASKED) as stream:
                return await stream.get_output()

        assert is_answer(wait(read()).model_dump())


def chat(url):
    for model in chat_models(url):
        is_text(url, model)


def conversation(url):
    """A second turn sends what the first one answered."""
    for model in chat_models(url):
        first = wait(agent(model, instructions="Be brief.").run(ASKED))
        history = first.all_messages()
        again = wait(agent(model).run("And an owl?", message_history=history))
        assert isinstance(again.output, str)


def structured(url):
    for model in chat_models(url):
        is_structured(model, ToolOutput(Answer), ToolOutput(Answer, strict=True),
                      NativeOutput(Answer), Answer)


def prompted(url):
    for model in chat_models(url, "json"):
        form = PromptedOutput(Whatever, template="{schema}")
        reply = wait(agent(model, ANSWER_TOKENS, output_type=form).run(ASKED))
        assert isinstance(reply.output, Whatever)


def tools(url):
    """A tool that the model is made to call runs, and its result goes back to the model."""
    for model in chat_models(url):
        seen = []

        def weather(town: Literal["Oslo", "Rome"]) -> str:
            """The weather of a town."""
            seen.append(town)
            return "rain"

        caller = agent(model, ANSWER_TOKENS, tools=[weather], output_type=ToolOutput(Answer))
        try:
            reply = wait(caller.run(ASKED))
        except Exception as error:
            # The demo may call the tool again and again.
            assert "limit" in str(error), error
        else:
            assert is_answer(reply.output.model_dump())
        free = agent(model, tools=[weather])
        assert isinstance(wait(free.run(ASKED)).output, str)


def embeddings(url):
    provider = OpenAIProvider(openai_client=openai_client(url))
    embedder = Embedder(OpenAIEmbeddingModel("demo", provider=provider))
    found = wait(embedder.embed_documents(["a fox", "an owl"])).embeddings
    assert len(found) == 2 and found[0] != found[1]


def mistakes(url):
    for model in chat_models(url, "nobody"):
        error = raises(ModelHTTPError, lambda: wait(agent(model).run(ASKED)))
        assert error.status_code == 404


def responses(url):
    is_text(url, responses_model(url))
    is_structured(responses_model(url), NativeOutput(Answer))


def response_tools(url):
    is_structured(responses_model(url), ToolOutput(Answer))


def anthropic(url):
    is_text(url, anthropic_model(url))


def anthropic_tools(url):
    is_structured(anthropic_model(url), ToolOutput(Answer))


if __name__ == "__main__":
    run(versions("pydantic-ai-slim", "openai", "anthropic"), [
        chat, conversation, structured, prompted, tools, embeddings, mistakes, responses,
        response_tools, anthropic, anthropic_tools])
