#!/usr/bin/env python3
"""The `llm` command, told of the server in its own file of further models.

usage: llm_command.py URL_OR_PATH_TO_TESSERA
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import ANSWER_TOKENS, ASKED, greedy, is_answer, run, versions

SCHEMA = json.dumps({
    "type": "object", "required": ["animal", "legs"], "additionalProperties": False,
    "properties": {"animal": {"enum": ["fox", "owl"]},
                   "legs": {"type": "integer", "minimum": 0, "maximum": 8}}})
MODELS = """
- {{model_id: fox, model_name: demo, api_base: "{url}",
    supports_schema: true, supports_tools: true}}
- {{model_id: fox-pirate, model_name: pirate, api_base: "{url}"}}
- {{model_id: fox-text, model_name: demo, api_base: "{url}", completion: true}}
- {{model_id: fox-new, model_name: demo, api_base: "{url}", responses: true, supports_schema: true}}
"""


def llm(url, *arguments):
    """What the command prints, run with a folder of its own for its settings."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "extra-openai-models.yaml").write_text(MODELS.format(url=url))
        done = subprocess.run(
            [str(Path(sys.executable).parent / "llm"), *arguments], capture_output=True, text=True,
            env={**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ask(url, model, *more, tokens=64):
    options = ("-o", "temperature", "0", "-o", "max_tokens", str(tokens))
    return llm(url, "-m", model, *options, *more, ASKED)


def chat(url):
    for model, name in (("fox", "demo"), ("fox-pirate", "pirate")):
        for more in ((), ("--no-stream",), ("--async",)):
            assert ask(url, model, *more) == greedy(url, name).strip()
    assert ask(url, "fox", "--system", "Be brief.")


def schema(url):
    assert is_answer(json.loads(ask(url, "fox", "--schema", SCHEMA, tokens=ANSWER_TOKENS)))


def tools(url):
    """A tool that may be called: by itself the demo calls none."""
    code = "def weather(town: str) -> str:\n    'The weather of a town.'\n    return 'rain'\n"
    assert ask(url, "fox", "--functions", code)


def text(url):
    assert ask(url, "fox-text", tokens=8)


def responses(url):
    assert ask(url, "fox-new") == greedy(url).strip()


def models(url):
    assert "fox-pirate" in llm(url, "models")


if __name__ == "__main__":
    run(versions("llm", "openai"), [chat, schema, tools, text, responses, models])
