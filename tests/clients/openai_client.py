#!/usr/bin/env python3
"""OpenAI's own client against the real binary serving the built-in demo.

usage: openai_client.py PATH_TO_TESSERA
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import openai
import pydantic

from harness import QUESTION, Server


def ask(client, model):
    reply = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=64)
    assert reply.model == model
    assert reply.choices[0].finish_reason in ("stop", "length")
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return reply.choices[0].message.content


def stream(client, model):
    chunks = list(client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=64, stream=True,
        stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def complete(client, models):
    for prompt in ("The fox", ["The fox", "The owl"], [5, 6, 7], [[5, 6, 7], [8, 9]]):
        reply = client.completions.create(
            model=models[0], prompt=prompt, max_tokens=8, temperature=0, logprobs=2)
        many = isinstance(prompt, list) and not isinstance(prompt[0], int)
        assert [c.index for c in reply.choices] == list(range(len(prompt) if many else 1))
        counted = sum(len(choice.logprobs.tokens) for choice in reply.choices)
        assert counted == reply.usage.completion_tokens
        for choice in reply.choices:
            logprobs = choice.logprobs
            assert len(logprobs.tokens) == len(logprobs.token_logprobs)
            assert all(value <= 0 for value in logprobs.token_logprobs)
            top = zip(logprobs.token_logprobs, logprobs.top_logprobs)
            assert all(max(alternatives.values()) == value for value, alternatives in top), \
                "greedy: the drawn token is the likeliest, to the last digit"
    chunks = list(client.completions.create(
        model=models[0], prompt="The fox", max_tokens=8, temperature=0, stream=True))
    whole = client.completions.create(
        model=models[0], prompt="The fox", max_tokens=8, temperature=0)
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    seeded = [client.completions.create(
        model=models[0], prompt="The", max_tokens=16, temperature=1, seed=7).choices[0].text
        for _ in range(2)]
    assert seeded[0] == seeded[1], "the same seed gives the same text"


def rule(client, model):
    def ids(**more):
        reply = client.completions.create(
            model=model, prompt="The fox", max_tokens=8, temperature=0,
            extra_body={"return_token_ids": True, "ignore_eos": True}, **more)
        return reply.choices[0].token_ids

    plain = ids()
    first, last = str(plain[0]), str(plain[-1])
    assert plain[0] not in ids(logit_bias={first: -100})
    assert ids(logit_bias={last: 100}) == plain[-1:] * 8
    held = {"presence_penalty": 2, "frequency_penalty": 2}
    assert ids(logit_bias={last: 3}, **held).count(plain[-1]) < 8
    assert ids(presence_penalty=0, frequency_penalty=0, logit_bias={}) == plain


ANSWER = {
    "type": "object",
    "properties": {"animal": {"enum": ["fox", "owl"]}, "legs": {"type": "integer", "minimum": 0,
                                                               "maximum": 8}},
    "required": ["animal", "legs"],
    "additionalProperties": False,
}


def structured(client, model):
    """A demo that knows nothing of JSON writes it when it is asked for."""
    form = {"type": "json_schema",
            "json_schema": {"name": "answer", "schema": ANSWER, "strict": True}}
    asked = {"model": model, "messages": QUESTION, "temperature": 1, "seed": 5, "max_tokens": 400,
             "response_format": form}
    reply = client.chat.completions.create(**asked).choices[0]
    assert reply.finish_reason == "stop", reply
    answer = json.loads(reply.message.content)
    assert answer["animal"] in ("fox", "owl") and 0 <= answer["legs"] <= 8 and len(answer) == 2
    chunks = list(client.chat.completions.create(**asked, stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == reply.message.content, "streamed or not"
    choice = client.chat.completions.create(
        model=model, messages=QUESTION, extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert choice.choices[0].message.content in ("yes", "no")


def respond(client, models):
    """The newer API says what the older one does."""
    for model in models[:2]:
        chat = ask(client, model)
        asked = {"model": model, "input": QUESTION, "temperature": 0, "max_output_tokens": 64}
        reply = client.responses.create(**asked)
        assert reply.output_text == chat and reply.model == model and reply.store is False
        assert reply.status in ("completed", "incomplete")
        assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
        with client.responses.stream(**asked) as events:
            kinds = [event.type for event in events]
            final = events.get_final_response()
        assert final.output_text == chat, (final.output_text, chat)
        assert kinds[0] == "response.created" and kinds[-1] == f"response.{reply.status}"
        assert "response.output_text.delta" in kinds
    form = {"type": "json_schema", "name": "answer", "schema": ANSWER, "strict": True}
    reply = client.responses.create(
        model=models[0], input="What is a fox?", text={"format": form}, max_output_tokens=400)
    assert json.loads(reply.output_text)["animal"] in ("fox", "owl")
    reply = client.responses.create(
        model=models[0], input="What is a fox?", max_output_tokens=4, top_logprobs=2,
        include=["message.output_text.logprobs"])
    logprobs = reply.output[0].content[0].logprobs
    assert len(logprobs) == reply.usage.output_tokens and len(logprobs[0].top_logprobs) == 2
    try:
        client.responses.create(model=models[0], input="x", previous_response_id="resp_1")
    except openai.BadRequestError as refused:
        assert refused.param == "previous_response_id"
    else:
        raise AssertionError("an answer that is not kept must be refused")


class Note(pydantic.BaseModel):
    """Writes down an animal."""

    legs: int = pydantic.Field(ge=0, le=8)
    tame: bool


def call(client, model):
    """A chat's model calls a function, and reads what came of it."""
    tools = [openai.pydantic_function_tool(Note, name="note")]
    asked = {"model": model, "messages": QUESTION, "tools": tools, "max_tokens": 200}
    for choice in ("required", {"type": "function", "function": {"name": "note"}}):
        reply = client.chat.completions.create(
            **asked, tool_choice=choice, parallel_tool_calls=False)
        made = reply.choices[0].message.tool_calls
        assert len(made) == 1 and made[0].function.name == "note"
        Note.model_validate_json(made[0].function.arguments)
    messages = [*QUESTION, reply.choices[0].message,
                {"role": "tool", "tool_call_id": made[0].id, "content": "ok"}]
    assert client.chat.completions.create(**asked | {"messages": messages}).choices[0].message


def respond_with_calls(client, model):
    """The same of the newer API."""
    tools = [openai.pydantic_function_tool(Note, name="note")["function"] | {"type": "function"}]
    asked = {"model": model, "input": QUESTION, "tools": tools, "max_output_tokens": 200}
    for choice in ("required", {"type": "function", "name": "note"}):
        reply = client.responses.parse(**asked, tool_choice=choice, parallel_tool_calls=False)
        assert reply.status == "completed" and reply.output_text == ""
        [made] = reply.output
        assert made.type == "function_call" and made.status == "completed" and made.id
        assert isinstance(made.parsed_arguments, (Note, dict)), made
        with client.responses.stream(
                **asked, tool_choice=choice, parallel_tool_calls=False, temperature=0) as events:
            kinds = [event.type for event in events]
            final = events.get_final_response()
        [streamed] = final.output
        Note.model_validate_json(streamed.arguments)
        for kind in ("output_item.added", "function_call_arguments.delta",
                     "function_call_arguments.done", "output_item.done"):
            assert f"response.{kind}" in kinds, kinds
        assert not any("output_text" in kind for kind in kinds), kinds
    history = [*QUESTION, made.model_dump(exclude={"parsed_arguments"}),
               {"type": "function_call_output", "call_id": made.call_id, "output": "ok"}]
    reply = client.responses.create(**asked | {"input": history}, tool_choice="none")
    assert reply.tools[0].name == "note" and reply.tool_choice == "none"
    for more, param in (({"input": history[-1:]}, "input"),
                        ({"tools": [{"type": "web_search"}]}, "tools"),
                        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice")):
        try:
            client.responses.create(**asked | more)
        except openai.BadRequestError as refused:
            assert refused.param == param, refused
        else:
            raise AssertionError(f"{more} must be refused")


def embed(client, models):
    texts = ["The fox", "The owl"]
    found = []
    for model in models[:2]:
        # The client asks for base64 and reads it, unless told otherwise.
        packed = client.embeddings.create(model=model, input=texts)
        plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
        assert [one.index for one in packed.data] == [0, 1] and packed.model == model
        assert packed.usage.total_tokens == packed.usage.prompt_tokens > 0
        for one, other in zip(packed.data, plain.data):
            assert all(abs(a - b) < 1e-6 for a, b in zip(one.embedding, other.embedding, strict=True))
            assert abs(sum(x * x for x in one.embedding) - 1) < 1e-5
        short = client.embeddings.create(model=model, input=texts[0], dimensions=8)
        assert len(short.data[0].embedding) == 8
        found.append(packed.data[0].embedding)
    assert found[0] != found[1], "an adapter's vectors are its own"


def refusals(client):
    for arguments, error, param in (
        ({"model": "nobody"}, openai.NotFoundError, "model"),
        ({"temperature": 9}, openai.BadRequestError, "temperature"),
        ({"n": 129}, openai.BadRequestError, "n"),
        ({"presence_penalty": 3}, openai.BadRequestError, "presence_penalty"),
        ({"logit_bias": {"1000000": 1}}, openai.BadRequestError, "logit_bias"),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "name": "a", "schema": {"type": "object", "not": {}}}}},
         openai.BadRequestError, "response_format"),
        ({"max_tokens": 10**6}, openai.BadRequestError, None),
    ):
        fields = {"model": client.models.list().data[0].id, "messages": QUESTION} | arguments
        try:
            client.chat.completions.create(**fields)
        except error as refused:
            assert refused.request_id, "every reply carries a request id"
            assert param is None or refused.param == param, (arguments, refused.param)
        else:
            raise AssertionError(f"{arguments} must be refused")


def main():
    server = Server(sys.argv[1])
    try:
        client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
        cards = client.models.list().data
        base, adapters = cards[0].id, [card.id for card in cards[1:]]
        assert len(adapters) >= 4, "the demo brings at least four adapters"
        assert all(card.parent == base for card in cards[1:])
        models = [base, *adapters]
        alone = {model: ask(client, model) for model in models}
        assert len(set(alone.values())) == len(models), f"every adapter answers its own way: {alone}"
        with ThreadPoolExecutor(len(models) * 2) as pool:
            mixed = list(pool.map(lambda model: (model, stream(client, model)), models * 2))
        for model, text in mixed:
            assert text == alone[model], f"{model} in a mixed batch: {text!r}, alone: {alone[model]!r}"
        complete(client, models)
        rule(client, base)
        with ThreadPoolExecutor(len(models)) as pool:
            list(pool.map(lambda model: structured(client, model), models))
        respond(client, models)
        call(client, base)
        respond_with_calls(client, base)
        embed(client, models)
        refusals(client)
        for model, text in alone.items():
            print(f"{model:12} {text!r}")
    finally:
        server.stop()
    print("the OpenAI client is served: 1 passed, 0 failed")


if __name__ == "__main__":
    main()
