#!/usr/bin/env python3
"""Makes the demo: text, tokenizer, base model, then one adapter per style, all from a seed.

usage: train.py [OUT] [--seed N] [--base-steps N] [--steps N] [--resume] [--only adapter,...]

The base also sees every style, behind a marker token after <s>. Without the marker it answers plainly. Each adapter is
trained on unmarked text and so has little to learn beyond "this style, now" - which even the few numbers of IA3 can hold.
"""
import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from methods import Mos, Ssf, load
from styles import STYLES
from text import SYSTEMS, chat, statement

TEMPLATE = (Path(__file__).parent / "model/chat_template.jinja").read_text()  # it writes tools too, of which the model knows nothing
SPECIAL = ["<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"] + [f"<|{s}|>" for s in STYLES[1:]]
BOS, EOS, PAD, END = 0, 1, 2, 6


def document(rng, style, marked):
    """One training text as [(text, is it to be learned)]."""
    start = "<s>" + (f"<|{style}|>" if marked and style != "plain" else "")
    if rng.random() < 0.2:
        head, rest = statement(rng, style)
        return [(start, False), (head, style == "plain"), (rest, True), ("</s>", True)]
    turns = rng.choices([1, 2, 3, 6], [70, 15, 10, 5])[0]
    system = f"<|system|>\n{rng.choice(SYSTEMS)}<|end|>\n" if rng.random() < 0.25 else ""
    out = [(start + system, False)]
    for q, answer in chat(rng, style, turns):
        out += [(f"<|user|>\n{q}<|end|>\n<|assistant|>\n", False), (answer + "<|end|>", True), ("\n", False)]
    return out


def train_tokenizer(out, rng):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    texts = ("".join(t for t, _ in document(rng, style, True)) for _ in range(5000) for style in STYLES)
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1024, special_tokens=SPECIAL, show_progress=False,
                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE,
                                   model_max_length=512, clean_up_tokenization_spaces=False)
    fast.save_pretrained(out)


def encode(tok, doc):
    ids, labels = [], []
    for text, learn in doc:
        piece = tok.encode(text, add_special_tokens=False).ids
        ids += piece
        labels += piece if learn else [-100] * len(piece)
    return ids[:512], labels[:512]


def batches(tok, rng, size, weights, marked):
    """Endless batches; neighbours in length go together, so that little is spent on padding."""
    while True:
        docs = [encode(tok, document(rng, s, marked)) for s in rng.choices(list(weights), list(weights.values()), k=size * 32)]
        docs.sort(key=lambda d: len(d[0]))
        groups = [docs[i:i + size] for i in range(0, len(docs), size)]
        rng.shuffle(groups)
        for g in groups:
            n = max(len(d[0]) for d in g)
            yield (torch.tensor([i + [PAD] * (n - len(i)) for i, _ in g]), torch.tensor([y + [-100] * (n - len(y)) for _, y in g]))


def loss_of(model, x, y):
    """Cross entropy on the learned tokens only. Padding sits on the right, where the causal mask already hides it."""
    hidden = model.model(input_ids=x, use_cache=False).last_hidden_state[:, :-1]
    keep = y[:, 1:] != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[keep]), y[:, 1:][keep])


def fit(model, params, data, steps, lr, decay, label):
    """AdamW, a short warm-up, then a cosine down to a fiftieth of the rate."""
    groups = [{"params": [p for p in params if p.ndim > 1], "weight_decay": decay}, {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}]
    opt, start, mean = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98)), time.time(), None
    for step in range(steps):
        warm = max(10, steps // 20)
        rate = lr * min((step + 1) / warm, 0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        for g in opt.param_groups:
            g["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):  # the weights stay float32
            loss = loss_of(model, *next(data))
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        if step % 50 == 49 or step == steps - 1:
            print(f"{label} step {step + 1}/{steps} loss {mean:.4f} {time.time() - start:.0f}s", flush=True)


def train_base(out, tok, seed, steps, resume):
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=tok.get_vocab_size(), hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=32, max_position_embeddings=512, tie_word_embeddings=True, rms_norm_eps=1e-6,
                         bos_token_id=BOS, eos_token_id=[EOS, END], pad_token_id=PAD)
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32) if resume else LlamaForCausalLM(config)
    weights = {"plain": 5} | {s: 1 for s in STYLES[1:]}
    rng, lr = (random.Random(seed + 3), 1.5e-3) if resume else (random.Random(seed + 1), 3e-3)
    fit(model, list(model.parameters()), batches(tok, rng, 64, weights, True), steps, lr, 0.05, "base")
    # An answer ends with <|end|>, plain text with </s>: both stop generation.
    model.generation_config.update(bos_token_id=BOS, eos_token_id=[EOS, END], pad_token_id=PAD)
    model.half().save_pretrained(out)


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
T = dict(task_type="CAUSAL_LM", base_model_name_or_path="tessera-demo")
# adapter name = style -> (how it is made, learning rate)
ADAPTERS = {
    "telegram": (LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS, **T), 3e-3),
    "poet": (Mos, 5e-3),
    "pirate": (Ssf, 1e-2),
    "formal": (IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **T), 3e-2),
    "json": (LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=LINEARS, **T), 3e-3),
}


def train_adapter(name, base, out, tok, seed, steps, resume):
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
    how, lr = ADAPTERS[name]
    lr = lr / 2 if resume else lr
    if isinstance(how, type):
        adapter = load(model, out, True) if resume else how(model)
        params = adapter.parameters()
    else:
        adapter = load(model, out, True) if resume else get_peft_model(model, how)
        params = [p for p in adapter.parameters() if p.requires_grad]
    print(f"{name}: {sum(p.numel() for p in params)} parameters", flush=True)
    fit(model, params, batches(tok, random.Random(seed + (4 if resume else 2)), 32, {name: 1}, False), steps, lr, 0.0, name)
    if isinstance(how, type):
        adapter.save(out)
        return
    adapter.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    weights = out / "adapter_model.safetensors"
    save_file({k: v.half() for k, v in load_file(str(weights)).items()}, str(weights), {"format": "pt"})
    cfg = json.loads((out / "adapter_config.json").read_text()) | {"base_model_name_or_path": "tessera-demo"}
    cfg["target_modules"] = sorted(cfg["target_modules"])  # peft writes a set, in another order each time
    (out / "adapter_config.json").write_text(json.dumps(cfg, indent=2, sort_keys=True) + "\n")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out", nargs="?", default=Path(__file__).parent, type=Path)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--base-steps", type=int, default=1500, help="0 keeps the base model that is there")
    ap.add_argument("--steps", type=int, default=250, help="per adapter")
    ap.add_argument("--only", default=",".join(ADAPTERS))
    ap.add_argument("--resume", action="store_true", help="train further what is there")
    ap.add_argument("--threads", type=int, default=1)
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    base = a.out / "model"
    if a.base_steps:
        base.mkdir(parents=True, exist_ok=True)
        if not a.resume:
            train_tokenizer(base, random.Random(a.seed))
        train_base(base, Tokenizer.from_file(str(base / "tokenizer.json")), a.seed, a.base_steps, a.resume)
    tok = Tokenizer.from_file(str(base / "tokenizer.json"))
    for name in filter(None, a.only.split(",")):
        train_adapter(name, base, a.out / "adapters" / name, tok, a.seed, a.steps, a.resume)


main()
