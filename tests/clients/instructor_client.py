#!/usr/bin/env python3
"""instructor: objects of pydantic's classes, in each of its modes that a server must know.

usage: instructor_client.py URL_OR_PATH_TO_TESSERA
"""

import asyncio

import instructor
import openai
from instructor import Mode

from answers import Answer, Whatever
from harness import ANSWER_TOKENS, QUESTION, is_answer, run, versions, wait

ASK = {"messages": QUESTION, "temperature": 0, "max_tokens": ANSWER_TOKENS, "max_retries": 0}


def client(url, mode, kind=openai.OpenAI):
    return instructor.from_openai(kind(base_url=url, api_key="none", max_retries=0), mode=mode)


def create(url, mode, form=Answer, model="demo", **more):
    asked = ASK | more
    return client(url, mode).chat.completions.create(model=model, response_model=form, **asked)


def tools(url):
    assert is_answer(create(url, Mode.TOOLS).model_dump())


def strict_tools(url):
    assert is_answer(create(url, Mode.TOOLS_STRICT).model_dump())


def json_schema(url):
    assert is_answer(create(url, Mode.JSON_SCHEMA).model_dump())


def json_object(url):
    assert isinstance(create(url, Mode.JSON, Whatever, "json"), Whatever)


def partial(url):
    """Objects that grow while the answer comes."""
    for mode in (Mode.TOOLS, Mode.JSON_SCHEMA):
        parts = list(client(url, mode).chat.completions.create_partial(
            model="demo", response_model=Answer, **ASK))
        assert is_answer(parts[-1].model_dump())


def with_completion(url):
    answer, raw = client(url, Mode.TOOLS).chat.completions.create_with_completion(
        model="demo", response_model=Answer, **ASK)
    assert is_answer(answer.model_dump()) and raw.usage.completion_tokens > 0


def at_once(url):
    async def ask(mode):
        reply = await client(url, mode, openai.AsyncOpenAI).chat.completions.create(
            model="pirate", response_model=Answer, **ASK)
        return is_answer(reply.model_dump())

    async def all_of(modes):
        return await asyncio.gather(*map(ask, modes))

    assert all(wait(all_of([Mode.TOOLS, Mode.JSON_SCHEMA] * 4)))


def response_tools(url):
    assert is_answer(create(url, Mode.RESPONSES_TOOLS).model_dump())


if __name__ == "__main__":
    run(versions("instructor", "openai"), [
        tools, strict_tools, json_schema, json_object, partial, with_completion, at_once,
        response_tools])
