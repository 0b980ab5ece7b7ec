#!/usr/bin/env python3
"""outlines over its models of vLLM's and OpenAI's servers.

usage: outlines_client.py URL_OR_PATH_TO_TESSERA
"""

import asyncio
import json
import re
from typing import Annotated, Literal

import openai
import outlines
from outlines.types import CFG, Regex
from pydantic import BaseModel, ConfigDict, Field

from harness import ANSWER_TOKENS, ASKED, greedy, is_answer, run, versions, wait


class Answer(BaseModel):
    # Else an object may have further properties, and a model that knows no JSON adds them for ever.
    model_config = ConfigDict(extra="forbid")

    animal: Literal["fox", "owl"]
    legs: Annotated[int, Field(ge=0, le=8)]


LARK = 'start: "yes" | "no" " "? "indeed"'


def vllm(url, kind=openai.OpenAI):
    return outlines.from_vllm(kind(base_url=url, api_key="none", max_retries=0), "demo")


def text(url):
    assert vllm(url)(ASKED, max_tokens=64, temperature=0) == greedy(url)
    parts = vllm(url).stream(ASKED, max_tokens=64, temperature=0)
    assert "".join(part or "" for part in parts) == greedy(url)


def forms(url):
    def ask(form):
        return vllm(url)(ASKED, form, max_tokens=ANSWER_TOKENS, temperature=0)

    assert is_answer(json.loads(ask(Answer)))
    assert ask(Literal["fox", "owl"]) in ("fox", "owl")
    assert re.fullmatch(r"[a-c]{3,9}", ask(Regex(r"[a-c]{3,9}")))
    assert re.fullmatch(r"[+-]?[0-9]+", ask(int).strip())
    assert ask(bool) in ("True", "False")
    assert ask(CFG(LARK)) in ("yes", "noindeed", "no indeed")


def form_streamed(url):
    parts = vllm(url).stream(ASKED, Answer, max_tokens=ANSWER_TOKENS, temperature=0)
    assert is_answer(json.loads("".join(part or "" for part in parts)))


def at_once(url):
    async def ask():
        model = vllm(url, openai.AsyncOpenAI)
        return await asyncio.gather(*(
            model(ASKED, Answer, max_tokens=ANSWER_TOKENS, temperature=0) for _ in range(8)))

    assert len(set(wait(ask()))) == 1


def openai_model(url):
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    model = outlines.from_openai(client, "demo")
    assert model(ASKED, max_tokens=64, temperature=0) == greedy(url)
    found = model(ASKED, Answer, max_tokens=ANSWER_TOKENS, temperature=0)
    assert is_answer(json.loads(found))


if __name__ == "__main__":
    run(versions("outlines", "openai"), [text, forms, form_streamed, at_once, openai_model])
