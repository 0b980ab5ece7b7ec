#!/usr/bin/env python3
"""LlamaIndex, whose OpenAILike is meant for servers such as ours.

usage: llamaindex_client.py URL_OR_PATH_TO_TESSERA
"""

from typing import Annotated, Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

from harness import ANSWER_TOKENS, ASKED, CONTEXT_TOKENS, greedy, is_answer, run, versions, wait


class Answer(BaseModel):
    """What the animal is."""

    animal: Literal["fox", "owl"]
    legs: Annotated[int, Field(ge=0, le=8)]


def weather(town: Literal["Oslo", "Rome"], days: Annotated[int, Field(ge=0, le=9)]) -> str:
    """The weather of a town."""
    return f"rain in {town} for {days} days"


TOOL = FunctionTool.from_defaults(fn=weather)
MESSAGES = [ChatMessage(role="user", content=ASKED)]


def model(url, name="demo", **more):
    given = {"is_chat_model": True, "is_function_calling_model": True, "temperature": 0,
             "max_tokens": 64} | more
    return OpenAILike(api_base=url, api_key="none", model=name, context_window=CONTEXT_TOKENS,
                      max_retries=0, **given)


def chat(url):
    for name in ("demo", "pirate"):
        assert model(url, name).chat(MESSAGES).message.content == greedy(url, name)
        assert model(url, name).complete(ASKED).text == greedy(url, name)
    assert wait(model(url).achat(MESSAGES)).message.content == greedy(url)


def streamed(url):
    assert [part.message.content for part in model(url).stream_chat(MESSAGES)][-1] == greedy(url)
    assert "".join(part.delta or "" for part in model(url).stream_complete(ASKED)) == greedy(url)


def text(url):
    """Without a chat the prompt goes to the route of completions."""
    plain = model(url, is_chat_model=False, max_tokens=8)
    whole = plain.complete("The fox").text
    assert whole and "".join(part.delta or "" for part in plain.stream_complete("The fox")) == whole
    scored = model(url, is_chat_model=False, max_tokens=8, logprobs=True, top_logprobs=2)
    assert scored.complete("The fox").text == whole


def tools(url):
    caller = model(url, max_tokens=ANSWER_TOKENS)
    for required in ({"tool_required": True}, {"tool_choice": "weather"}):
        reply = caller.chat_with_tools([TOOL], user_msg=ASKED, **required)
        call = caller.get_tool_calls_from_response(reply)[0]
        assert call.tool_name == "weather" and weather(**call.tool_kwargs).startswith("rain")
    parts = list(caller.stream_chat_with_tools([TOOL], user_msg=ASKED, tool_required=True))
    streamed_call = caller.get_tool_calls_from_response(parts[-1])[0]
    assert weather(**streamed_call.tool_kwargs).startswith("rain")
    done = caller.predict_and_call([TOOL], user_msg=ASKED, tool_required=True)
    assert done.response.startswith("rain in")


def structured(url):
    prompt = PromptTemplate("What is {what}?")
    for functions in (True, False):
        form = model(url, is_function_calling_model=functions, max_tokens=ANSWER_TOKENS,
                     should_use_structured_outputs=not functions)
        assert is_answer(form.structured_predict(Answer, prompt, what="a fox").model_dump())
        found = form.as_structured_llm(Answer).complete(ASKED)
        assert is_answer(found.raw.model_dump())


def embeddings(url):
    embedder = OpenAILikeEmbedding(model_name="demo", api_base=url, api_key="none")
    one, two = embedder.get_text_embedding_batch(["a fox", "an owl"])
    assert one != two and len(one) == len(two)
    assert max(abs(a - b) for a, b in zip(one, embedder.get_query_embedding("a fox"))) < 1e-6
    short = OpenAILikeEmbedding(model_name="demo", api_base=url, api_key="none", dimensions=8)
    assert len(short.get_text_embedding("a fox")) == 8


if __name__ == "__main__":
    run(versions("llama-index-core", "llama-index-llms-openai-like"), [
        chat, streamed, text, tools, structured, embeddings])
