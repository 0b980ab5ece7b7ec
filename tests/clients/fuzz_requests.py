"""Random requests that mix the documented fields of chats and completions, drawn from a seed."""

import random

MODELS = ("demo", "pirate", "poet", "telegram", "formal", "json")
SMALL = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
         "required": ["a"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "note", "parameters": SMALL}}
STRICT = {"type": "function", "function": {"name": "mark", "parameters": SMALL, "strict": True}}
NAMED = {"type": "function", "function": {"name": "note"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {
    "mode": "required", "tools": [{"type": "function", "function": {"name": "mark"}}]}}
GBNF = 'root ::= "yes" | "no" [a-c]+'
FORM = {"name": "small", "schema": SMALL, "strict": True}
# How often a request has a field that is not required, and how often one has a value that no
# documentation allows: such requests must be refused like any other, and not break anything.
FIELD_SHARE = 0.11
WRONG_SHARE = 0.05
WRONG = (None, -1, "x", "", [], {}, 1e308, 2**63, True, 0, [None], {"a": 1}, "é" * 300)


def ids(rng, count):
    return rng.sample(range(3, 900), count)


COMMON = {
    "temperature": lambda rng: rng.choice([0, 0, 0.7, 1, 1.5]),
    "top_k": lambda rng: rng.choice([-1, 0, 1, 5, 50]),
    "top_p": lambda rng: rng.choice([0.1, 0.9, 1]),
    "min_p": lambda rng: rng.choice([0, 0.1]),
    "n": lambda rng: rng.choice([1, 2, 3]),
    "stop": lambda rng: rng.choice(["a", [" the", "."], ["zzz"], "\n", "e", ["in", " is"]]),
    "stop_token_ids": lambda rng: ids(rng, 20),
    "include_stop_str_in_output": lambda rng: rng.random() < 0.7,
    "skip_special_tokens": lambda rng: rng.random() < 0.3,
    "ignore_eos": lambda rng: rng.random() < 0.7,
    "min_tokens": lambda rng: rng.choice([0, 1, 2]),
    "logit_bias": lambda rng: {str(i): rng.choice([-100, -3, 5, 100]) for i in ids(rng, 4)},
    "presence_penalty": lambda rng: rng.choice([-1, 0.5, 2]),
    "frequency_penalty": lambda rng: rng.choice([-1, 0.5, 2]),
    "repetition_penalty": lambda rng: rng.choice([0.8, 1, 1.3]),
    "bad_words": lambda rng: rng.choice([["the"], ["fox", "a"], [" is a"]]),
    "allowed_token_ids": lambda rng: ids(rng, 300),
    "prompt_logprobs": lambda rng: rng.choice([0, 2]),
    "return_token_ids": lambda rng: True,
    "return_tokens_as_token_ids": lambda rng: True,
    "truncate_prompt_tokens": lambda rng: rng.choice([-1, 2, 5]),
    "cache_salt": lambda rng: rng.choice(["x", "y"]),
    "priority": lambda rng: rng.randint(-3, 3),
    "user": lambda rng: "somebody",
    "response_format": lambda rng: rng.choice([
        {"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "json_schema": FORM}]),
    "structured_outputs": lambda rng: rng.choice([
        {"choice": ["yes", "no", "maybe so"]}, {"regex": "[a-c]{3,9}"}, {"json": SMALL},
        {"grammar": GBNF}, {"json_object": True}]),
    "guided_json": lambda rng: SMALL,
    "guided_regex": lambda rng: "[0-9]{2}( [a-z]+)?",
    "guided_choice": lambda rng: ["fox", "foxes"],
    "guided_grammar": lambda rng: GBNF,
    "grammar": lambda rng: GBNF,
}
COMPLETION = {
    "logprobs": lambda rng: rng.choice([0, 1, 3]),
    "echo": lambda rng: True,
    "best_of": lambda rng: rng.choice([2, 4]),
    "add_special_tokens": lambda rng: rng.random() < 0.5,
    "suffix": lambda rng: " end",
}
CHAT = {
    "top_logprobs": lambda rng: rng.choice([0, 2, 5]),
    "tools": lambda rng: rng.choice([[TOOL], [TOOL, STRICT], [STRICT]]),
    "parallel_tool_calls": lambda rng: rng.random() < 0.5,
    "reasoning_effort": lambda rng: rng.choice(["none", "low", "high"]),
    "chat_template_kwargs": lambda rng: {"style": "plain"},
    "add_generation_prompt": lambda rng: rng.random() < 0.5,
    "continue_final_message": lambda rng: rng.random() < 0.5,
    "metadata": lambda rng: {"run": "1"},
}
PROMPTS = ("The fox", "The owl eats", ["a", "The"], [[5, 6, 7]], [5, 6, 7], "é☃", ["x", "y", "z"])
QUESTIONS = ("hi", "What do foxes eat?", "é ☃ tell", "a" * 50, "Describe the whale.")


def completion(rng):
    return "/completions", {"prompt": rng.choice(PROMPTS)}, COMMON | COMPLETION


def chat(rng):
    messages = [{"role": "user", "content": rng.choice(QUESTIONS)}]
    if rng.random() < 0.2:
        messages = [{"role": "system", "content": "Be brief."}, *messages]
    if rng.random() < 0.2:
        messages += [{"role": "assistant", "content": [{"type": "text", "text": "It is"}]}]
    return "/chat/completions", {"messages": messages}, COMMON | CHAT


def draw(rng):
    """A path and a body. A seed is always there, so that an answer can be asked for again."""
    path, body, fields = rng.choice([completion, chat])(rng)
    body |= {"model": rng.choice(MODELS), "seed": rng.randint(0, 99),
             "max_tokens": rng.choice([1, 3, 8, 20, 40])}
    for name, value in fields.items():
        if rng.random() < FIELD_SHARE:
            body[name] = value(rng)
    if "top_logprobs" in body:
        body["logprobs"] = True
    if "tools" in body and rng.random() < 0.7:
        body["tool_choice"] = rng.choice(["auto", "none", "required", NAMED, ALLOWED])
    if rng.random() < WRONG_SHARE:
        body[rng.choice([*fields, "model", "max_tokens"])] = rng.choice(WRONG)
    return path, body


def requests(seed, count):
    rng = random.Random(seed)
    return [draw(rng) for _ in range(count)]
