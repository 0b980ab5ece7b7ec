"""lm-eval on a server and on transformers + peft, over the same tiny model: loglikelihoods equal
within 1e-4, greedy answers equal.

    python tools/lm-eval/compare.py TESSERA

TESSERA is the executable. Needs lm_eval[api]==0.4.13, torch, transformers and peft; nothing is
fetched. Writes tests/data/lm-eval.md.
"""

import datetime
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
                  OPENAI_API_KEY="none")

import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "tests/golden/llama"
ADAPTERS = ["lora_qv", "ia3"]
TOLERANCE = 1e-4
# transformers adds a text's tokens up in float32.
ROUNDING = 2**-23

CHOICES = [
    {"question": f"{who} said that the {what} was {how}. So it was", "choices": choices, "answer": 0}
    for who, what, how in [("She", "house", "old"), ("He", "river", "deep"), ("Bo", "tea", "cold")]
    for choices in [[" new", " old and grey", " é", "\n"], [" it", " a b c"]]
]
TEXTS = [{"text": "The quick brown fox jumps over the lazy dog.\n" * n} for n in (1, 3, 20)]
TASKS = {
    "choice": "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_target: answer\n"
              "doc_to_choice: '{{choices}}'\nmetric_list:\n  - metric: acc\n",
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
               "metric_list:\n  - metric: word_perplexity\n",
    "answer": "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: 'x'\n"
              "generation_kwargs:\n  until: ['QQ', 'WW', 'EE', 'RR', 'TT', 'YY']\n"
              "  max_gen_toks: 16\n  do_sample: false\n  temperature: 0\n"
              "metric_list:\n  - metric: exact_match\n",
}


def write_tasks(folder):
    for name, rows in [("choice", CHOICES), ("rolling", TEXTS), ("answer", CHOICES)]:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(
            f"task: tiny_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
            f"    test: {folder}/{name}.jsonl\ntest_split: test\n{TASKS[name]}")


def evaluate(model, args, tasks, manager, **more):
    """Of each task the answers to all requests, in order."""
    found = lm_eval.simple_evaluate(
        model=model, model_args=args, tasks=[f"tiny_{task}" for task in tasks], task_manager=manager,
        log_samples=True, bootstrap_iters=0, **more)
    return {task: [sample["resps"] for sample in
                   sorted(found["samples"][f"tiny_{task}"], key=lambda sample: sample["doc_id"])]
            for task in tasks}


def numbers(answers):
    """All loglikelihoods, and all that is no number."""
    if isinstance(answers, (list, tuple)):
        parts = [numbers(answer) for answer in answers]
        return [x for part in parts for x in part[0]], [x for part in parts for x in part[1]]
    if isinstance(answers, float):
        return [answers], []
    return [], [str(answers)]


def serve(binary):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    adapters = [flag for name in ADAPTERS for flag in
                ("--adapter", f"{name}={MODEL / 'adapters' / name}")]
    server = subprocess.Popen([binary, "serve", str(MODEL), "--served-model-name", "base", "--port",
                               str(port), "--dtype", "f32", *adapters])
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
            return server, f"http://127.0.0.1:{port}"
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server does not start")


def compare(name, ours, theirs, rows):
    for task, answers in ours.items():
        (a, a_rest), (b, b_rest) = numbers(answers), numbers(theirs[task])
        assert len(a) == len(b) and len(a_rest) == len(b_rest), f"{name}/{task}"
        differences = [abs(x - y) for x, y in zip(a, b)]
        worst = max(differences, default=0.0)
        close = all(d <= TOLERANCE + ROUNDING * abs(y) for d, y in zip(differences, b))
        differ = sum(x != y for x, y in zip(a_rest, b_rest))
        rows.append(f"| {name} | {task} | {len(answers)} | {len(a)} | {worst:.1e} "
                    f"| {differ} of {len(a_rest)} |")
        print(rows[-1], flush=True)
        assert close and differ == 0, f"{name}/{task}: {answers} and {theirs[task]}"


def main():
    folder = Path(tempfile.mkdtemp())
    write_tasks(folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    server, url = serve(sys.argv[1])
    rows = []
    try:
        for name in ["base", *ADAPTERS]:
            peft = {} if name == "base" else {"peft": str(MODEL / "adapters" / name)}
            local = {"pretrained": str(MODEL), "dtype": "float32", "add_bos_token": True, "max_length": 510,
                     **peft}
            theirs = evaluate("hf", local, TASKS, manager, device="cpu", batch_size=1)
            remote = {"model": name, "base_url": f"{url}/v1/completions", "tokenizer": str(MODEL),
                      "tokenizer_backend": "huggingface", "num_concurrent": 1, "max_length": 512,
                      "batch_size": 4, "add_bos_token": True}
            compare(name, evaluate("local-completions", remote, TASKS, manager), theirs, rows)
    finally:
        server.terminate()
        server.wait()
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}"
                         for package in ("lm_eval", "transformers", "peft", "torch"))
    (ROOT / "tests/data/lm-eval.md").write_text(
        "# lm-eval on Tessera and on transformers\n\nWritten by tools/lm-eval/compare.py on "
        f"{datetime.date.today()}: {versions}.\n\n"
        "| served | task | documents | loglikelihoods | largest difference | other answers differ |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
