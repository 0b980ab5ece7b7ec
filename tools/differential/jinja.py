"""Writes tests/data/differential/jinja.json: what jinja2 renders for small templates.

    python tools/differential/jinja.py
"""

import json
from pathlib import Path

from transformers_jinja import environment, render

ROOT = Path(__file__).resolve().parent.parent.parent

# Each line is a template, or an expression if it has no tag. `v` holds the values below.
VALUES = {"s": "Hello World", "u": "éÀ ß", "i": 7, "n": -7, "f": 2.5, "e": 1e16, "t": 1e-05,
          "l": [3, 1, 2], "m": {"b": 1, "a": "x", "c": None}, "z": None, "y": True, "x": "",
          "w": "  a b  c ", "q": "it's", "ll": [{"k": "b", "n": 1}, {"k": "a", "n": 2},
          {"k": "b", "n": 3}], "big": 12345678901234567890, "d": {"a": {"b": [1, {"c": "d"}]}}}


def main():
    cases, env = [], environment()
    lines = (Path(__file__).parent / "jinja.txt").read_text().splitlines()
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        source = line if "{%" in line or "{{" in line or "{#" in line else "{{ " + line + " }}"
        # A line holds these as they are written in Python.
        source = source.replace("<CR>", "\r").replace("<LF>", "\n")
        chat = {"messages": [], "variables": {"v": VALUES}}
        cases.append([source, render(env, source, chat)])
    out = ROOT / "tests/data/differential/jinja.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    out.write_text('{"values": ' + json.dumps(VALUES, ensure_ascii=False) + ',\n"cases": [\n'
                   + rows + "\n]}\n")
    raised = sum(expected is None for _, expected in cases)
    print(f"{len(cases)} templates, of which jinja2 refuses {raised}")


if __name__ == "__main__":
    main()
