"""Writes tests/data/differential/tokenizers.json: what transformers makes of the files of a tokenizer,
spelled in many ways.

    pip install torch==2.15.0 transformers==5.23.0 tokenizers==0.23.3
    python tools/differential/tokenizer_files.py

A case holds what it puts into the files of one of two tokenizers (as pointers into tokenizer.json, and
the other files whole), and what transformers makes of them: the ids of texts and their text with and
without special tokens, the added tokens, the special tokens that a template sees, and the ids that
end a sequence. `null` instead: transformers refuses the files.
"""

import copy
import datetime
import json
import logging
import random
import tempfile
from pathlib import Path

import tokenizers
import transformers
from transformers import AutoTokenizer, GenerationConfig

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT / "tests/data"
BASES = {
    "byte_level": (DATA / "text/byte_level/tokenizer.json",
                   {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}),
    "metaspace": (DATA / "text/metaspace.json",
                  {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
}
# Special tokens at every place, letters that normalizers change, digits, spaces of each kind.
TEXTS = [
    "<s><|user|>\nHello the cat<|end|>\n<|assistant|>\n",
    "<|im_start|>user\nhi <|im_end|>\n x<|end|> y <|end|>z",
    "  The cat's 1234  don't\n\n  sat.   — cafe\u0301 café 日本 😀 ",
    "<tool>a<tool> <TOOL> b<image></s> the <|a|><|b|>hello world",
    "<0x41> ▁the Hello</s>",
]
TEMPLATE = "|".join("{{ %s_token }}" % name for name in
                    "bos eos unk sep pad cls mask image think tool".split())


def token(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False,
            "single_word": False, "special": True, **flags}


def file_token(id, content, **flags):
    return {"id": id, **token(content, **flags)}


def point(json_value, pointer, value):
    """Sets what an RFC 6901 pointer names; `...` takes it away."""
    *path, last = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    for part in path:
        json_value = json_value[part]
    if value is ...:
        json_value.pop(last)
    else:
        json_value[last] = value


class Case:
    def __init__(self, name, base="byte_level", model="llama", tokenizer=(), config=(), **files):
        """`tokenizer`: pointers into tokenizer.json; `config`: fields over the base's
        tokenizer_config.json (`...`: without); others: whole files by name."""
        self.name, self.base = name, base
        self.tokenizer = dict(tokenizer)
        fields = {**BASES[base][1], **dict(config)}
        self.files = {"tokenizer_config": {k: v for k, v in fields.items() if v is not ...},
                      "config": {"model_type": model, "vocab_size": 600}, **files}

    def write(self, dir):
        value = json.loads(BASES[self.base][0].read_text())
        for pointer, to in self.tokenizer.items():
            point(value, pointer, to)
        (dir / "tokenizer.json").write_text(json.dumps(value))
        for name, value in self.files.items():
            (dir / (name + ".json")).write_text(json.dumps(value))

    def row(self, table):
        removed = [pointer for pointer, to in self.tokenizer.items() if to is ...]
        tokenizer = {pointer: to for pointer, to in self.tokenizer.items() if to is not ...}
        row = {"name": self.name, "base": self.base, "files": self.files}
        if tokenizer:
            row["tokenizer"] = tokenizer
        if removed:
            row["removed"] = removed
        return {**row, "expected": self.expected(table)}

    def expected(self, table):
        with tempfile.TemporaryDirectory() as dir:
            self.write(Path(dir))
            try:
                return measure(Path(dir), self.files, table)
            except Exception as error:  # whatever it is, transformers does not serve it
                print(f"  refused: {self.name}: {type(error).__name__}: {str(error)[:100]!r}")
                return None


def measure(dir, files, table):
    tok = AutoTokenizer.from_pretrained(dir)
    texts = []
    for text in TEXTS:
        ids = tok(text, add_special_tokens=False).input_ids
        texts.append(table.of([ids, tok.decode(ids), tok.decode(ids, skip_special_tokens=True)]))
    chat = [{"role": "user", "content": ""}]
    named = tok.apply_chat_template(chat, chat_template=TEMPLATE, tokenize=False)
    added = sorted(tok.added_tokens_decoder.items())
    eos = files.get("config", {}).get("eos_token_id")
    if "generation_config" in files:
        eos = GenerationConfig.from_pretrained(dir).eos_token_id
    ends = eos if isinstance(eos, list) else [eos] if eos is not None else []
    own = [tok.eos_token_id] if tok.eos_token is not None else []
    return {
        "texts": texts,
        "with_special": table.of(tok(TEXTS[2]).input_ids),
        # Whether text leaves it out: a mark of one of the files may still hold where another says no.
        "added": table.of([[id, t.content, tok.decode([id], skip_special_tokens=True) == ""]
                           for id, t in added]),
        "named": named,
        "ends": list(dict.fromkeys(ends + own)),
    }


class Table:
    """Values that many cases share, each once."""

    def __init__(self):
        self.rows, self.ids = [], {}

    def of(self, value):
        key = json.dumps(value)
        if key not in self.ids:
            self.ids[key] = len(self.rows)
            self.rows.append(value)
        return self.ids[key]


CASES = []


def add(name, **parts):
    CASES.append(Case(name, **parts))


# Of each base: ids of tokens that it has, and the next free one.
NEXT = {"byte_level": 512, "metaspace": 331}
KNOWN = {"byte_level": {"<s>": 0, "</s>": 1, "<|end|>": 6}, "metaspace": {"<s>": 1, "</s>": 2, "<unk>": 0}}


def flags():
    """The same token with other flags, known or new, in either file."""
    for base in BASES:
        free, known = NEXT[base], ("<|end|>", 6) if base == "byte_level" else ("</s>", 2)
        for change in [{"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True},
                       {"special": False}, {"special": False, "normalized": True},
                       {"lstrip": True, "rstrip": True, "special": False}]:
            label = f"{base} " + " ".join(f"{k}={v}" for k, v in change.items())
            add(f"flags of a known token: {label}", base=base,
                config={"added_tokens_decoder": {str(known[1]): token(known[0], **change)}})
            add(f"flags of a new token: {label}", base=base,
                config={"added_tokens_decoder": {str(free): token("<tool>", **change)}})
            add(f"flags, tokenizer.json only: {label}", base=base,
                tokenizer={"/added_tokens": [file_token(known[1], known[0], **change),
                                             file_token(free, "<tool>", **change)]})
    for base in BASES:
        for content in ["Hello", "é", "<|im start|>", " the", "Ġthe", "▁the", "日本", "\n", "<0x41>", "user", "<"]:
            add(f"{base}: a token spelled {content!r}", base=base, config={"added_tokens_decoder": {
                str(NEXT[base]): token(content, special=False)}})
    add("a token with some flags left out",
        config={"added_tokens_decoder": {"512": {"content": "<tool>", "special": True}}})
    add("a token with a type", config={"added_tokens_decoder": {
        "512": {"__type": "AddedToken", **token("<tool>")}}})
    add("special in tokenizer_config, not in tokenizer.json",
        tokenizer={"/added_tokens": [file_token(6, "<|end|>", special=False)]},
        config={"added_tokens_decoder": {"6": token("<|end|>", special=True)}})
    add("special in tokenizer.json, not in tokenizer_config",
        config={"added_tokens_decoder": {"6": token("<|end|>", special=False)}})


def places():
    """Where new tokens and marks are said."""
    two = {"512": token("<|im_start|>"), "513": token("<|im_end|>")}
    add("decoder lists new tokens", config={"added_tokens_decoder": two})
    add("both files list new tokens", config={"added_tokens_decoder": two}, tokenizer={
        "/added_tokens": [file_token(int(i), t["content"]) for i, t in two.items()]})
    add("in the vocabulary, special only by tokenizer_config",
        tokenizer={"/added_tokens": [file_token(0, "<s>")]},
        config={"added_tokens_decoder": {"4": token("<|user|>"), "6": token("<|end|>")}})
    add("new token in the model's vocabulary, marked by the decoder",
        tokenizer={"/model/vocab/<|im_start|>": 512},
        config={"added_tokens_decoder": {"512": token("<|im_start|>")}})
    add("new token in the model's vocabulary, not marked", tokenizer={"/model/vocab/<|im_start|>": 512})
    add("empty decoder", config={"added_tokens_decoder": {}})
    for field in ["extra_special_tokens", "additional_special_tokens"]:
        add(f"{field}: strings", config={field: ["<|im_start|>", "<|im_end|>"]})
        add(f"{field}: known and new", config={field: ["<|end|>", "<tool>"]})
        add(f"{field}: typed objects", config={field: [
            {"__type": "AddedToken", **token("<tool>", rstrip=True)}]})
        add(f"{field}: objects without a type", config={field: [token("<tool>")]})
        add(f"{field}: empty", config={field: []})
        add(f"{field}: null", config={field: None})
        add(f"{field}: twice the same", config={field: ["<tool>", "<tool>"]})
        add(f"{field}: a letter sequence of the vocabulary", config={field: ["the", " the"]})
        add(f"{field}: a string", config={field: "<tool>"})
        add(f"{field}: beside a decoder", config={field: ["<tool>"], "added_tokens_decoder": two})
        add(f"{field}: dict", config={field: {"image_token": "<image>", "think_token": "<tool>"}})
        add(f"{field}: metaspace", base="metaspace", config={field: ["<|im_start|>", "▁the"]})
    add("both lists, equal", config={"extra_special_tokens": ["<tool>"],
                                     "additional_special_tokens": ["<tool>"]})
    add("both lists, different", config={"extra_special_tokens": ["<tool>"],
                                         "additional_special_tokens": ["<image>"]})
    add("both lists, the first empty", config={"extra_special_tokens": [],
                                               "additional_special_tokens": ["<image>"]})
    add("a dict and a list", config={"extra_special_tokens": {"image_token": "<image>"},
                                     "additional_special_tokens": ["<tool>"]})


def names():
    """Named tokens, standard and not."""
    for name in ["eos_token", "bos_token", "pad_token", "unk_token", "mask_token"]:
        add(f"{name}: another known one", config={name: "<|end|>"})
        add(f"{name}: new", config={name: "<tool>"})
        add(f"{name}: null", config={name: None})
        add(f"{name}: a typed object", config={name: {"__type": "AddedToken", **token("<tool>", lstrip=True)}})
        add(f"{name}: not special until it is named", config={name: "<tool>", "added_tokens_decoder": {
            "512": token("<tool>", special=False)}})
    add("eos_token: an object without a type", config={"eos_token": token("</s>")})
    add("eos_token: an object without a type, not in the vocabulary", config={"eos_token": token("<tool>")})
    add("eos_token: letters of the vocabulary", config={"eos_token": "the"})
    add("eos_token: empty", config={"eos_token": ""})
    add("eos_token: a number", config={"eos_token": 1})
    add("no names at all", config={"bos_token": ..., "eos_token": ..., "pad_token": ...})
    add("image_token: a string", config={"image_token": "<image>"})
    add("image_token: a typed object", config={"image_token": {"__type": "AddedToken", **token("<image>")}})
    add("image_token: an object", config={"image_token": token("<image>")})
    add("image_token: null", config={"image_token": None})
    add("model_specific_special_tokens", config={"model_specific_special_tokens": {"image_token": "<image>"}})
    add("model_specific_special_tokens beside a string", config={
        "model_specific_special_tokens": {"image_token": "<image>"}, "think_token": "<tool>"})
    add("a token like a field", config={"image_token": "<image>", "extra_special_tokens": ["<image>"]})
    add("two names of one new token", config={"pad_token": "<tool>", "eos_token": "<tool>"})
    add("names and extras in order", config={"mask_token": "<image>", "cls_token": "<|a|>",
                                             "extra_special_tokens": ["<|b|>"], "image_token": "<tool>"})


def maps():
    """special_tokens_map.json and added_tokens.json."""
    decoder = {"added_tokens_decoder": {"512": token("<|im_start|>")}}
    none = {"bos_token": ..., "eos_token": ..., "pad_token": ...}
    for label, config in [("", {}), (", no names in the config", none), (", beside a decoder", decoder)]:
        add("map names strings" + label, config=config,
            special_tokens_map={"bos_token": "<s>", "eos_token": "<|end|>"})
        add("map names objects" + label, config=config, special_tokens_map={
            "eos_token": {k: v for k, v in token("<tool>", lstrip=True).items() if k != "special"}})
        add("map lists extras" + label, config=config, special_tokens_map={
            "additional_special_tokens": ["<|im_start|>", "<|end|>"]})
        add("map has a name of its own" + label, config=config, special_tokens_map={"image_token": "<image>"})
        add("added_tokens.json" + label, config=config, added_tokens={"<|im_start|>": 512, "<|im_end|>": 513})
    add("map and added_tokens.json", config={}, added_tokens={"<tool>": 513, "<|im_end|>": 512},
        special_tokens_map={"eos_token": "<|im_end|>"})
    add("map lists extras as objects", special_tokens_map={"extra_special_tokens": [token("<tool>")]})
    add("map lists extras, without a mark", special_tokens_map={"extra_special_tokens": [
        {k: v for k, v in token("<tool>").items() if k != "special"}]})
    add("map lists extras as strings", special_tokens_map={"extra_special_tokens": ["<tool>", "<|end|>"]})
    add("map has a dict of extras", special_tokens_map={"extra_special_tokens": {"image_token": "<image>"}})
    add("map lists extras of both spellings", special_tokens_map={
        "extra_special_tokens": ["<tool>"], "additional_special_tokens": ["<image>"]})
    add("map's extras beside the config's", config={"extra_special_tokens": ["<image>"]},
        special_tokens_map={"extra_special_tokens": ["<tool>"]})
    add("map's old extras beside the config's", config={"additional_special_tokens": ["<image>"]},
        special_tokens_map={"additional_special_tokens": ["<tool>"]})
    add("map has null", special_tokens_map={"eos_token": None})
    add("map has something else", special_tokens_map={"eos_token": "</s>", "note": "x"})
    add("added_tokens.json with a hole", added_tokens={"<tool>": 515})
    add("added_tokens.json of a known token", added_tokens={"<|end|>": 6})
    add("added_tokens.json of a known token, other id", added_tokens={"<|end|>": 9})
    add("added_tokens.json of a vocabulary token", added_tokens={"the": 512})


def ids():
    """Ids that files declare."""
    for label, decoder in {
        "wrong id of a known token": {"9": token("<|end|>")},
        "a hole": {"514": token("<tool>")},
        "a hole between": {"512": token("<tool>"), "520": token("<image>")},
        "the id of another token": {"6": token("<tool>")},
        "one content twice": {"512": token("<tool>"), "513": token("<tool>")},
        "from the end": {"513": token("<image>"), "512": token("<tool>")},
        "ten and nine": {"1000": token("<image>"), "512": token("<tool>")},
        "a space": {" 512": token("<tool>")},
        "no number": {"a": token("<tool>")},
        "negative": {"-1": token("<tool>")},
        "no object": {"512": "<tool>"},
        "empty content": {"512": token("")},
        "an unknown flag": {"512": token("<tool>", strip=True)},
        "a flag that is no bool": {"512": token("<tool>", lstrip="yes")},
    }.items():
        add(f"decoder: {label}", config={"added_tokens_decoder": decoder})
    add("decoder is a list", config={"added_tokens_decoder": [token("<tool>")]})
    add("tokenizer.json: a hole", tokenizer={"/added_tokens": [file_token(515, "<tool>")]})
    add("tokenizer.json: wrong id", tokenizer={"/added_tokens": [file_token(9, "<|end|>")]})
    add("tokenizer.json: two of one id", tokenizer={"/added_tokens": [
        file_token(512, "<tool>"), file_token(512, "<image>")]})
    add("tokenizer.json: a vocabulary with a hole", tokenizer={"/model/vocab/<tool>": 515,
        "/added_tokens": [file_token(515, "<tool>")]}, config={"extra_special_tokens": ["<image>"]})
    add("the files disagree on an id", tokenizer={"/added_tokens": [file_token(512, "<tool>")]},
        config={"added_tokens_decoder": {"513": token("<tool>"), "512": token("<image>")}})
    add("the files disagree on a content", tokenizer={"/added_tokens": [file_token(512, "<tool>")]},
        config={"added_tokens_decoder": {"512": token("<image>")}})


CLASSES = ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "PreTrainedTokenizer",
           "TokenizersBackend", "Qwen2Tokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer", "GPTNeoXTokenizerFast",
           "CodeLlamaTokenizer", "CohereTokenizerFast", "GemmaTokenizerFast", "BloomTokenizerFast", "T5Tokenizer",
           "BertTokenizer", "OurTokenizer", "", None]


def classes():
    for base in BASES:
        for name in CLASSES:
            add(f"class {name} over {base}", base=base, config={"tokenizer_class": name})
    for model in ["qwen2", "qwen3", "mistral"]:
        for name in [..., "LlamaTokenizerFast", "Qwen2Tokenizer", "PreTrainedTokenizerFast", "GPT2Tokenizer"]:
            for base in BASES:
                label = "none" if name is ... else name
                add(f"class {label} of a {model} over {base}", base=base, model=model,
                    config={"tokenizer_class": name})
    for name in ["LlamaTokenizer", "CodeLlamaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer", "GPTNeoXTokenizer", "PreTrainedTokenizerFast"]:
        base = "metaspace" if "Llama" in name else "byte_level"
        free = str(NEXT[base])
        for fields in [{"add_prefix_space": True}, {"add_prefix_space": False}, {"add_prefix_space": None},
                       {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True},
                       {"legacy": True}, {"legacy": False}, {"legacy": None},
                       {"legacy": True, "add_prefix_space": False}, {"bos_token": ..., "eos_token": ...},
                       {"added_tokens_decoder": {free: token("<tool>", lstrip=True)}},
                       {"added_tokens_decoder": {"6": token("<|end|>" if base == "byte_level" else "a",
                                                            special=False)}},
                       {"extra_special_tokens": ["<tool>"]}, {"pad_token": "<tool>"}]:
            label = ", ".join(f"{k} {'gone' if v is ... else json.dumps(v)[:40]}" for k, v in fields.items())
            add(f"{name} with {label}", base=base, config={"tokenizer_class": name, **fields})
        add(f"{name} with added tokens in tokenizer.json", base=base, config={"tokenizer_class": name},
            tokenizer={"/added_tokens": [file_token(NEXT[base], "<tool>"), file_token(NEXT[base] + 1, "<image>",
                                                                                      special=False)]})
    for fields in [{"prefix_token": "<tool>"}, {"prefix_token": None, "fill_token": None},
                   {"additional_special_tokens": ["<tool>"]}, {"extra_special_tokens": {"think_token": "<tool>"}},
                   {"bos_token": None}]:
        add(f"CodeLlamaTokenizer with {json.dumps(fields)}", base="metaspace",
            config={"tokenizer_class": "CodeLlamaTokenizer", **fields})
    CASES.append(Case("class named by config.json", base="metaspace"))
    CASES[-1].files["config"]["tokenizer_class"] = "LlamaTokenizer"


def rest():
    """Other fields and other parts of tokenizer.json."""
    for base in BASES:
        for fields in [{"clean_up_tokenization_spaces": True}, {"split_special_tokens": True},
                       {"split_special_tokens": False}, {"model_max_length": 8}, {"padding_side": "left"},
                       {"truncation_side": "left"}, {"add_eos_token": True}, {"add_bos_token": False},
                       {"spaces_between_special_tokens": False}, {"errors": "replace"},
                       {"use_default_system_prompt": True}, {"sp_model_kwargs": {}}, {"something": 1},
                       {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
                        "clean_up_tokenization_spaces": True}, {"auto_map": {"AutoModel": "a.B"}},
                       {"add_prefix_space": True}, {"add_prefix_space": False}]:
            add(f"{base}: {json.dumps(fields)[:70]}", base=base, config=fields)
        add(f"{base}: no post-processor", base=base, tokenizer={"/post_processor": None})
        add(f"{base}: no post-processor, add_bos_token", base=base, tokenizer={"/post_processor": None},
            config={"add_bos_token": True})
        add(f"{base}: lower case", base=base, tokenizer={"/normalizer": {"type": "Lowercase"}},
            config={"added_tokens_decoder": {str(NEXT[base]): token("<TOOL>", normalized=True, special=False),
                                             str(NEXT[base] + 1): token("<image>", normalized=False)}})
        add(f"{base}: truncation", base=base, tokenizer={"/truncation": {
            "max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}})
        add(f"{base}: padding", base=base, tokenizer={"/padding": {
            "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]"}}, config={"pad_token": ...})
        add(f"{base}: no tokenizer_config.json", base=base)
        CASES[-1].files.pop("tokenizer_config")


def ends():
    """Ids that end a sequence."""
    for label, generation, model in [
        ("a number", {"eos_token_id": 6}, {}), ("a list", {"eos_token_id": [6, 1, 6, 4]}, {}),
        ("of config.json", None, {"eos_token_id": 6}), ("a list of config.json", None, {"eos_token_id": [4, 5]}),
        ("of both", {"eos_token_id": 6}, {"eos_token_id": 4}), ("none", None, {}),
        ("beyond the tokenizer", {"eos_token_id": 599}, {}),
    ]:
        for eos in ["</s>", "<|end|>", None, "<tool>"]:
            add(f"end: {label}, the tokenizer's is {eos}", config={"eos_token": eos},
                **({"generation_config": generation} if generation is not None else {}))
            CASES[-1].files["config"] |= model


def mixed():
    """Several of these at once."""
    draw = random.Random(7)
    plain = [case for case in CASES if case.base == "byte_level"]
    for number in range(90):
        chosen = draw.sample(plain, draw.choice([2, 2, 3]))
        case = copy.deepcopy(chosen[0])
        for other in chosen[1:]:
            case.tokenizer.update(copy.deepcopy(other.tokenizer))
            for name, value in other.files.items():
                case.files.setdefault(name, {})
                base = BASES["byte_level"][1] if name == "tokenizer_config" else {}
                case.files[name] |= {k: v for k, v in copy.deepcopy(value).items() if base.get(k, ...) != v}
        case.name = "mixed: " + " + ".join(other.name for other in chosen)
        CASES.append(case)


def main():
    logging.disable(logging.WARNING)
    for make in [flags, places, names, maps, ids, classes, rest, ends, mixed]:
        make()
    table = Table()
    rows = [case.row(table) for case in CASES]
    compact = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    versions = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
                "date": datetime.date.today().isoformat()}
    out = DATA / "differential/tokenizers.json"
    out.write_text('{"versions":' + compact(versions) + ',\n"texts":' + compact(TEXTS)
                   + ',\n"template":' + compact(TEMPLATE)
                   + ',\n"table":[\n' + ",\n".join(map(compact, table.rows))
                   + '],\n"cases":[\n' + ",\n".join(map(compact, rows)) + "]}\n")
    refused = sum(row["expected"] is None for row in rows)
    print(f"{len(rows)} cases, of which transformers refuses {refused}; {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
