"""jinja2, set up as transformers 5.23.0 sets it up for chat templates; needs only jinja2."""

import datetime
import json

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

JINJA2 = "3.1.6"
# A template's clock in all comparisons.
NOW = datetime.datetime(2026, 3, 7, 9, 5, 2, tzinfo=datetime.timezone.utc)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


class Generation(jinja2.ext.Extension):
    """`{% generation %}`, which only marks text."""

    tags = {"generation"}

    def parse(self, parser):
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_rendered")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(lineno)

    def _rendered(self, caller):
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Takes no names that begin with an underscore."""

    def __init__(*args, **kwargs):
        self, attrs = args[0], dict(*args[1:], **kwargs)
        for name in attrs:
            Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, attrs)

    def __setitem__(self, name, value):
        Namespace._check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


def environment():
    assert jinja2.__version__ == JINJA2, f"expected jinja2 {JINJA2}, found {jinja2.__version__}"

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: NOW.strftime(format)
    env.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)
    env.globals["namespace"] = Namespace
    return env


def without_nulls(messages):
    """What `apply_chat_template` does to messages before it renders them."""
    out = []
    for message in messages:
        message = {k: v for k, v in message.items() if v is not None}
        names = ("reasoning_content", "thinking", "reasoning")
        reasoning = next((message[k] for k in names if message.get(k) is not None), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        out.append(message)
    return out


def render(env, source, chat):
    """The text, or None if jinja2 raises."""
    try:
        return env.from_string(source).render(
            messages=without_nulls(chat["messages"]), tools=chat.get("tools"),
            documents=chat.get("documents"),
            add_generation_prompt=chat.get("add_generation_prompt", False),
            **{**SPECIAL, **chat.get("variables", {})})
    except Exception:
        return None
