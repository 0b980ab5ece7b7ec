#!/usr/bin/env python3
"""lm-eval's chat model over a task of our own: what the demo knows it answers word for word.
`tools/lm-eval/compare.py` has lm-eval's tasks of loglikelihoods.

usage: lm_eval_chat.py URL_OR_PATH_TO_TESSERA
"""

import os

from harness import HERE, run, versions

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", OPENAI_API_KEY="none")

import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

# The task names its data by a path that is relative to here.
TASKS = HERE / "lm_eval_tasks"


def score(url, model, **more):
    """The share of right answers, and how many there are."""
    os.chdir(TASKS)
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    given = {"model": model, "base_url": f"{url}/chat/completions", "max_retries": 1} | more
    found = lm_eval.simple_evaluate(
        model="local-chat-completions", model_args=given, tasks=["demo_chat"],
        task_manager=manager, apply_chat_template=True, log_samples=True, bootstrap_iters=0)
    texts = [sample["resps"][0][0] for sample in found["samples"]["demo_chat"]]
    assert all(texts), texts
    return found["results"]["demo_chat"]["exact_match,none"], len(texts)


def base(url):
    assert score(url, "demo") == (1.0, 4)


def adapter(url):
    """A pirate says it otherwise, and says something."""
    assert score(url, "pirate") == (0.0, 4)


def at_once(url):
    assert score(url, "demo", num_concurrent=4) == (1.0, 4)


if __name__ == "__main__":
    run(versions("lm_eval"), [base, adapter, at_once])
