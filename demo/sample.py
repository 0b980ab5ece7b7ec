#!/usr/bin/env python3
"""Asks the base and every adapter the same questions, greedily, from the saved files: a check, and the table in README.md.

usage: sample.py [--dir DIR] [--markdown] [--score N] [QUESTION ...]
"""
import argparse
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from methods import load
from text import ask, held_out
from styles import say

QUESTIONS = ["Tell me about the fox.", "What do otters eat?", "What should I do when it rains?", "Is the bear bigger than the mouse?",
             "Who lives in the jungle?", "Hello!", "What is the capital of France?", "Tell me a story about a penguin."]
STARTS = ["The fox lives in", "Honey is"]


def answer(model, tok, ids, limit=120):
    """(text, did it stop by itself)"""
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False)[0, ids.shape[1]:]
    return tok.decode(out, skip_special_tokens=True), out[-1].item() in (1, 6)


def prompt(tok, question):
    return tok.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True).input_ids


def score(model, tok, style, n):
    """The share of questions never shown in training that get exactly the intended answer."""
    rng, right, wrong = random.Random(99), 0, []
    for _ in range(n):
        while True:
            q, yes, facts, _ = ask(rng)
            if held_out(q) and facts[0][1] != "unknown":
                break
        want, (got, stopped) = say(style, yes, facts), answer(model, tok, prompt(tok, q))
        right += got == want and stopped
        if got != want:
            wrong.append((q, got))
    return right / n, wrong


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--dir", default=Path(__file__).parent, type=Path)
    ap.add_argument("--markdown", action="store_true")
    ap.add_argument("--score", type=int, default=0)
    ap.add_argument("questions", nargs="*", default=QUESTIONS)
    a = ap.parse_args()
    torch.set_num_threads(1)
    tok = AutoTokenizer.from_pretrained(a.dir / "model")
    for name in ["base"] + sorted(p.name for p in (a.dir / "adapters").iterdir()):
        model = AutoModelForCausalLM.from_pretrained(a.dir / "model", dtype=torch.float32).eval()
        if name != "base":
            load(model, a.dir / "adapters" / name)  # changes the model's own modules
            model.eval()
        if a.score:
            share, wrong = score(model, tok, "plain" if name == "base" else name, a.score)
            print(f"{name}: {share:.0%} of {a.score} new questions answered as intended; e.g. {wrong[:4]}", flush=True)
            continue
        rows = [(q, *answer(model, tok, prompt(tok, q))) for q in a.questions]
        if not a.markdown:
            rows += [(s, *answer(model, tok, tok(s, return_tensors="pt").input_ids)) for s in STARTS]
        print(f"| {name} | " + " | ".join(t.replace("\n", "<br>") for _, t, _ in rows) + " |" if a.markdown else f"== {name}")
        for q, t, stopped in [] if a.markdown else rows:
            print(f"{q}\n    {t!r}" + ("" if stopped else "   (did not stop)"), flush=True)


main()
