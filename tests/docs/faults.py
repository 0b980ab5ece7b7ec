"""Pages with one fault each, which the tester must find, and one without, which it must pass."""

import tempfile
from pathlib import Path

# What is wrong, what the tester must say of it, and the page.
FAULTY = [
    ("a command that fails", "ends with status 1", "```sh\nfalse\n```"),
    ("a flag that is none", "ends with status 2", "```sh\ntessera synth --no-such\n```"),
    ("a command within a script", "ends with status 1", "```sh\nfalse\ntrue\n```"),
    ("what must not be run", "is never run", "```sh\ncargo test\n```"),
    ("a server that does not start", "not ready", "```sh\ntessera serve no-such-model\n```"),
    ("another output", "what is printed is\n    two",
     "```sh\necho two\n```\n\n```output\none\n```"),
    ("a line too many", "prints\n    one", "```console\n$ printf 'one\\ntwo\\n'\none\n```"),
    ("a program that fails", "ends with status 1", "```python\n1 / 0\n```"),
    ("a failure that does not come", "not 1", "<!-- fails: 1 -->\n```sh\ntrue\n```"),
    ("a request without a server", "no server", "```json GET /v1/models\n```"),
    ("a body that is no JSON", "is no JSON", "```json POST /v1/completions\n{'a': 1}\n```"),
    ("an output of nothing", "follows nothing", "```output\none\n```"),
    ("a block that nobody runs", "neither run nor", "```bash\nfalse\n```"),
    ("settings that are none", "is no TOML", "```toml\nport = = 1\n```"),
    ("a fence without an end", "never closed", "```sh\ntrue\n"),
    ("a link to no file", "which is not there", "[a](no-such-page.md)"),
    ("a link to no heading", "no such heading", "# One\n\n[a](#two)"),
    ("a file that is not there", "no file", "`src/no_such.rs`"),
    ("a flag in the text", "no flag", "`--no-such-flag`"),
    ("a metric in the text", "no metric", "`vllm:no_such_total`"),
]
# Answers of a server: they share one.
ANSWERED = [
    ("a request that is refused", "is answered 404", "```json GET /v1/models/none\n```"),
    ("another answer", "the answer is",
     '```json GET /v1/models\n```\n\n```json answer\n{"object": "lists"}\n```'),
]
GOOD = """# One

[this](#one) `--port` `vllm:num_requests_running` `src/adapter/NAME.rs` `config.json`

<!-- fails: 1 -->
```sh
false
```

```sh
export WORD=first
```

```console
$ echo $WORD second
first …
$ for word in a b c; do
>   echo $word
> done
a
…
```

```sh
tessera serve
```

```output
tessera …
…
ready: http://127.0.0.1:8000/v1
```

```json GET /v1/models
```

```json answer
{"object": "list", "data": [{"id": "demo", "created": "…"}, "…"]}
```
"""


def check(tester):
    """Raises SystemExit if `tester`, which counts what came of a page, takes a fault for none."""
    server = "```sh\ntessera serve\n```\n\n"
    together = server + "\n\n".join(page for _, _, page in ANSWERED)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        page = Path(folder) / "page.md"
        for what, said, text in FAULTY:
            page.write_text(text)
            failed = tester(page).failed
            if len(failed) != 1 or said not in failed[0]:
                raise SystemExit(f"{what} must be found, and said as {said!r}: {failed}")
        page.write_text(together)
        failed = tester(page).failed
        if len(failed) != len(ANSWERED) or \
                any(said not in one for one, (_, said, _) in zip(failed, ANSWERED)):
            raise SystemExit(f"wrong answers must be found: {failed}")
        page.write_text(GOOD)
        failed = tester(page).failed
        if failed:
            raise SystemExit(f"a page without a fault must pass: {failed}")
