#!/usr/bin/env python3
"""guidellm's benchmark at a constant number of streams: it ends well and counts no error.

usage: guidellm_load.py URL_OR_PATH_TO_TESSERA
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import DEMO, run, versions

REQUESTS = 24
STREAMS = 4
OUTPUT_TOKENS = 32
LOAD_SECONDS_MAX = 300


def load(url, request_format, model="demo"):
    """The report of one benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [str(Path(sys.executable).parent / "guidellm"), "run", "--disable-console-interactive",
             "--backend", f"kind=openai_http,target={url},model={model},"
                          f"request_format={request_format}",
             "--profile", f"kind=concurrent,streams={STREAMS}",
             "--constraint", f"kind=max_requests,count={REQUESTS}",
             "--data", f"kind=synthetic_text,prompt_tokens=48,output_tokens={OUTPUT_TOKENS}",
             "--tokenizer", f"kind=hf_auto,model={DEMO / 'model'}",
             "--output", f"kind=json,path={report}"],
            capture_output=True, text=True, timeout=LOAD_SECONDS_MAX, cwd=folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1"})
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(report.read_text())["benchmarks"][0]


def is_whole(benchmark):
    totals = benchmark["metrics"]["request_totals"]
    assert totals["errored"] == 0 and totals["successful"] >= REQUESTS, totals
    requests = benchmark["requests"]["successful"]
    assert all(one["output_metrics"]["text_tokens"] == OUTPUT_TOKENS for one in requests)


def chat(url):
    is_whole(load(url, "/v1/chat/completions"))


def text(url):
    is_whole(load(url, "/v1/completions", "pirate"))


def responses(url):
    is_whole(load(url, "/v1/responses"))


if __name__ == "__main__":
    run(versions("guidellm"), [chat, text, responses])
