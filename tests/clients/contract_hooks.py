"""What schemathesis is told of this server, and the one check that it does not have.

`contract.py` starts it. The names of what is served come by the environment.
"""

import atexit
import collections
import json
import os
import re
import threading
import zlib

import jsonschema_rs
import schemathesis

NAMES = os.environ["CONTRACT_NAMES"].split(",")
# Tokens of an answer: what comes after is the same for the contract.
TOKENS = 6

# Why a request that fits the schema may be refused all the same: what a schema cannot say.
UNSAYABLE = [
    # What is there depends on the server.
    r"The model `.*` does not exist", r"The adapter `.*` does not exist",
    r"The lora adapter '.*' cannot be found", r"No adapter found for", r"base model cannot be",
    r"beneath the server's --adapter-root", r"has already been loaded", r"conflicts with a served",
    r"An adapter name must|adapter's name|name of an adapter", r"Loading lora .* failed",
    # Lengths in tokens and bytes.
    r"maximum context length", r"must be at most \d+ bytes", r"at most \d+ sequences at once",
    r"must hold at least one (token|message)", r"needs one before it", r"token ids must be below",
    r"more than white space", r"must have a text|must not be empty",
    # Fields that exclude or need each other.
    r"stream_options may only be given with stream", r"prompt_logprobs cannot be streamed",
    r"best_of must be at least n|best_of above n", r"min_tokens must be at most",
    r"top_logprobs may only be given with", r"0 is for those who ask for the prompt alone",
    r"cannot both be (given|true)", r"an answer can have one form", r"must hold one of json, regex",
    r"older names of tools", r"suffix cannot be given|suffix must be left out",
    r"leave no token that could come", r"leave it out|send .* instead",
    r"disable_any_whitespace is of json", r"both be texts", r"is given twice",
    r"is no function of|needs functions", r"only ask for JSON",
    r"tool_choice may only be given with tools", r"tool_choice must have a name if",
    # Calls and their results, which belong together.
    r"has no tool_result|one tool_result|is that of no tool_use|must come first in a user's turn",
    r"two calls have|has two outputs|has no function_call_output|is that of no function_call",
    # Languages within strings: schemas, expressions, grammars, JSON of arguments, templates.
    r"^(response_format|structured_outputs|guided_\w+|grammar|json_schema|tools|functions)\b",
    r"^(output_config|text)\b.*", r"arguments must be an object", r"template",
    r"must not end with whitespace", r"structured_output",
]

FORMS = ["response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
         "guided_grammar", "grammar", "json_schema"]

counts = collections.Counter()
refusals = collections.Counter()
lock = threading.Lock()
validators = {}


def mix(value):
    """A number that depends on a value and on nothing else."""
    return zlib.crc32(repr(value).encode("utf-8", "replace"))


def is_of_schema(case, body):
    """Whether the body is what the document says; none is where none is asked for."""
    definition = case.operation.definition.raw.get("requestBody")
    if case.method != "POST" or definition is None:
        return True
    at = definition["content"]["application/json"]["schema"]["$ref"]
    with lock:
        if at not in validators:
            schema = case.operation.schema.raw_schema
            part = {"$ref": at, "components": schema["components"]}
            validators[at] = jsonschema_rs.Draft202012Validator(part)
    try:
        return validators[at].is_valid(body)
    except (TypeError, ValueError):
        return False


def fits(case):
    """Whether the request was made to be one that the document takes."""
    return case.meta is not None and case.meta.generation.mode.is_positive


def is_set(body, *fields):
    return any(body.get(field) not in (None, [], {}) for field in fields)


def name_what_is_there(body):
    if isinstance(body.get("model"), str) and mix(body["model"]) % 8:
        body["model"] = NAMES[mix(body) % len(NAMES)]


def ask_for_little(body):
    for field in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(body.get(field), int):
            body[field] = max(1, min(body[field], TOKENS))


def ask_once_or_twice(body):
    for field in ("n", "best_of"):
        if isinstance(body.get(field), int):
            body[field] = min(body[field], 2)


def ask_for_one_form(body):
    forms = [field for field in FORMS if body.get(field) is not None]
    for field in forms:
        if field != forms[mix(body) % len(forms)] or mix(field) % 3:
            body.pop(field)


def stream_or_not(body):
    if body.get("stream_options") is not None:
        body["stream"] = True
    if body.get("stream") is True:
        body.pop("prompt_logprobs", None)
        body.pop("best_of", None)


def order_numbers(body):
    if isinstance(body.get("best_of"), int) and isinstance(body.get("n"), int):
        body["best_of"] = max(body["n"], body["best_of"])
    if body.get("min_tokens"):
        body["min_tokens"] = 1
    if "top_logprobs" in body and "messages" in body:
        body["logprobs"] = True


def spell_once(body):
    if body.get("stop_sequences") is not None:
        body.pop("stop", None)
    if is_set(body, "tools", "tool_choice"):
        body.pop("functions", None)
        body.pop("function_call", None)
    if body.get("continue_final_message"):
        body.pop("add_generation_prompt", None)


def choose_no_tool_that_is_not_there(body):
    for choice in ("tool_choice", "function_call"):
        if body.get(choice) not in (None, "none", "auto"):
            body.pop(choice)


def leave_out(field):
    def step(body):
        if mix(body) % 4:
            body.pop(field, None)
    return step


# Each takes away a reason to refuse a request before all of it is looked at.
STEPS = [
    name_what_is_there, ask_for_little, ask_once_or_twice, ask_for_one_form, stream_or_not,
    order_numbers, spell_once, choose_no_tool_that_is_not_there,
    *map(leave_out, ["suffix", "documents", "tools", "functions", "allowed_token_ids",
                     "truncate_prompt_tokens"]),
]


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """Most requests get further: one that fits still does, and one that does not still does not."""
    body = case.body
    if not isinstance(body, dict) or case.meta is None or mix(body) % 8 == 0:
        return
    fit = is_of_schema(case, body)
    for step in STEPS:
        changed = dict(body)
        try:
            step(changed)
        except TypeError:
            continue
        if is_of_schema(case, changed) == fit:
            body = changed
    case.body = body


@schemathesis.hook
def after_call(ctx, case, response):
    with lock:
        counts["requests"] += 1
        counts[str(response.status_code)] += 1
        counts["fitting" if fits(case) else "not fitting"] += 1


def message(response):
    try:
        error = response.json()["error"]
        return f"{error.get('message')}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


@schemathesis.check
def refused_only_for_what_no_schema_says(ctx, response, case):
    """A request that fits is refused only for one of the reasons above."""
    if not fits(case) or response.status_code not in (400, 413, 415, 422):
        return
    text = message(response)
    with lock:
        refusals[re.sub(r"\d+", "N", text)[:100]] += 1
    assert any(re.search(reason, text, re.DOTALL) for reason in UNSAYABLE), (
        f"a request that fits the schema was refused: {text}")


@schemathesis.check
def taken_only_if_it_fits(ctx, response, case):
    """By another validator than the one that made the request."""
    if isinstance(case.body, (dict, list)) and not is_of_schema(case, case.body):
        assert response.status_code >= 400, "a body that does not fit the schema was taken"


@atexit.register
def tell():
    with lock:
        told = {"counts": dict(counts), "refusals": refusals.most_common()}
    with open(os.environ["CONTRACT_COUNTS"], "w") as file:
        json.dump(told, file, indent=1)
