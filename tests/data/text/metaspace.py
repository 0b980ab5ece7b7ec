#!/usr/bin/env python3
"""Writes metaspace.json: a small tokenizer in the form of Llama 2's (SentencePiece BPE with byte fallback)."""
import json
from pathlib import Path

words = "▁Hello ▁hello ▁world ▁the ▁cat ▁sat ▁on ▁café ing ed ▁▁ ▁▁▁▁".split()
vocab, merges = {"<unk>": 0, "<s>": 1, "</s>": 2}, []
for byte in range(256):
    vocab[f"<0x{byte:02X}>"] = len(vocab)
for letter in "▁abcdefghijklmnopqrstuvwxyzHTW.,!?é日本\n":
    vocab.setdefault(letter, len(vocab))
for word in words:
    for n in range(2, len(word) + 1):
        if word[:n] not in vocab:
            vocab[word[:n]] = len(vocab)
            merges.append([word[: n - 1], word[n - 1]])
special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
tokenizer = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [dict(id=i, content=t, **special) for t, i in list(vocab.items())[:3]],
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": None,
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
              "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
              "vocab": vocab, "merges": merges},
}
text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
(Path(__file__).parent / "metaspace.json").write_text(text + "\n")
