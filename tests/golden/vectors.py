#!/usr/bin/env python3
"""Writes expected/vectors.json of golden models: what transformers and peft give for a prompt's vector
and for the logprobs of given continuations (float32, CPU), for the base and some adapters.

usage: vectors.py ; needs torch, transformers, peft. It reads and writes beside itself.
"""
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
CASES = {"llama": ["lora_qv", "lora_dora", "ia3"], "qwen2": ["lora_all_rs"]}
TEXTS = ["The quick brown fox jumps over", "Licensed under the terms of", "Ünïcode — café ☕ and 日本語", "a"]
PAIRS = [
    ("Licensed under the terms of", " the licence"),
    ("The quick brown fox", " jumps over the lazy dog"),
    ("café ☕ and", " 日本語"),
    ("a", " copy"),
    ("", "Free software"),
]



def case(model, base, tokenizer):
    vectors, scores = [], []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        states = base(model)(input_ids=ids).last_hidden_state[0]
        vectors.append({"text": text, "tokens": ids.shape[1], "last": states[-1].tolist(), "mean": states.mean(0).tolist()})
    for prompt, continuation in PAIRS:
        ids = tokenizer(prompt + continuation, return_tensors="pt").input_ids
        start = len(tokenizer(prompt).input_ids)
        assert ids[0, :start].tolist() == tokenizer(prompt).input_ids, (prompt, continuation)
        logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        own = [logprobs[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])]
        greedy = all(logprobs[i - 1].argmax() == ids[0, i] for i in range(start, ids.shape[1]))
        # What is likeliest after the prompt, so that some continuations are greedy.
        best = model.generate(ids[:, :start], do_sample=False, max_new_tokens=3, min_new_tokens=3, pad_token_id=2)[0, start:]
        whole = torch.cat([ids[0, :start], best])[None]
        of_best = model(input_ids=whole).logits[0].log_softmax(-1)
        best_logprobs = [of_best[start + i - 1, token].item() for i, token in enumerate(best)]
        scores.append({"prompt": prompt, "continuation": continuation, "prompt_ids": ids[0, :start].tolist(),
                       "continuation_ids": ids[0, start:].tolist(), "logprobs": own, "is_greedy": greedy,
                       "greedy_ids": best.tolist(), "greedy_logprobs": best_logprobs})
    return {"vectors": vectors, "scores": scores}


@torch.no_grad()
def main():
    for name, adapters in CASES.items():
        tokenizer = AutoTokenizer.from_pretrained(HERE / name)
        load = lambda: AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32).eval()
        out = {"base": case(load(), lambda m: m.model, tokenizer)}
        for adapter in adapters:
            model = PeftModel.from_pretrained(load(), HERE / name / "adapters" / adapter).eval()
            out[adapter] = case(model, lambda m: m.get_base_model().model, tokenizer)
        (HERE / name / "expected" / "vectors.json").write_text(json.dumps(out))


if __name__ == "__main__":
    main()
