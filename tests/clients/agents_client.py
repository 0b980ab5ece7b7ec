#!/usr/bin/env python3
"""OpenAI's agents library over both of its APIs.

usage: agents_client.py URL_OR_PATH_TO_TESSERA
"""

from typing import Annotated, Literal

from agents import (Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner,
                    function_tool, set_tracing_disabled)
from openai import AsyncOpenAI
from pydantic import BaseModel, Field

from harness import ANSWER_TOKENS, ASKED, greedy, is_answer, run, versions, wait


class Answer(BaseModel):
    """What the animal is."""

    animal: Literal["fox", "owl"]
    legs: Annotated[int, Field(ge=0, le=8)]


def agent(url, api, tokens=64, settings=None, **more):
    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    given = ModelSettings(temperature=0, max_tokens=tokens, **(settings or {}))
    return Agent(name="guide", model=api(model="demo", openai_client=client), model_settings=given,
                 **more)


def is_text(url, api):
    assert wait(Runner.run(agent(url, api), ASKED)).final_output == greedy(url)

    async def read():
        stream = Runner.run_streamed(agent(url, api), ASKED)
        kinds = [event.type async for event in stream.stream_events()]
        return stream.final_output, kinds

    text, kinds = wait(read())
    assert text == greedy(url) and "raw_response_event" in kinds


def calls_once(url, api):
    """A call that is forced runs the tool; its result goes back, and the answer ends the run."""
    seen = []

    @function_tool
    def weather(town: Literal["Oslo", "Rome"]) -> str:
        """The weather of a town."""
        seen.append(town)
        return "rain"

    caller = agent(url, api, ANSWER_TOKENS, {"tool_choice": "required"}, tools=[weather],
                   tool_use_behavior="stop_on_first_tool")
    assert wait(Runner.run(caller, ASKED)).final_output == "rain" and seen
    # The library asks for a call once and then leaves the choice to the model.
    caller = agent(url, api, ANSWER_TOKENS, {"tool_choice": "weather"}, tools=[weather])
    assert isinstance(wait(Runner.run(caller, ASKED)).final_output, str)


def structured(url, api):
    form = agent(url, api, ANSWER_TOKENS, output_type=Answer)
    assert is_answer(wait(Runner.run(form, ASKED)).final_output.model_dump())


def chat(url):
    is_text(url, OpenAIChatCompletionsModel)


def chat_tools(url):
    calls_once(url, OpenAIChatCompletionsModel)


def chat_structured(url):
    structured(url, OpenAIChatCompletionsModel)


def responses(url):
    is_text(url, OpenAIResponsesModel)


def response_tools(url):
    calls_once(url, OpenAIResponsesModel)


def response_structured(url):
    structured(url, OpenAIResponsesModel)


if __name__ == "__main__":
    set_tracing_disabled(True)
    run(versions("openai-agents", "openai"), [
        chat, chat_tools, chat_structured, responses, response_tools, response_structured])
