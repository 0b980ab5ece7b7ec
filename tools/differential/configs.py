"""What transformers computes for config.json and weights in the spellings that users have.

Needs torch 2.15, transformers 5.23.0 and safetensors, no network. From the project's root:

    python tools/differential/configs.py tests/golden tests/data/differential/configs.json

Every case is a golden model with keys of config.json set and unset, and tensors changed by named
recipes (`apply` here, `Recipe` in tests/it/config_files.rs). What is written is the logits of the
last position of one prompt in float32, at some token ids, and the best ids; or why there are none.
"""

import json
import os
import shutil
import sys
import tempfile
import warnings
from datetime import date
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
warnings.filterwarnings("ignore")

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

transformers.utils.logging.disable_progress_bar()

PROMPT = [(i * 37 + 11) % 509 + 3 for i in range(72)]
PROBES = [i * 31 + 5 for i in range(16)]
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
MODELS = ["llama", "llama-bias", "llama3", "mistral", "qwen2", "qwen3"]
KINDS = {"float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def pattern(shape, scale):
    """A tensor that Rust makes as well: (i · 7919 mod 1000) / 1000 - 0.5, scaled in f64."""
    count = int(torch.tensor(shape).prod())
    ramp = (torch.arange(count, dtype=torch.int64) * 7919 % 1000).double() / 1000.0 - 0.5
    return (ramp * scale).float().reshape(shape)


def apply(w, recipe):
    """One change of the weights."""
    kind, *rest = recipe
    if kind == "head":
        w[HEAD] = w[EMBEDDING] + pattern(list(w[EMBEDDING].shape), rest[0])
    elif kind == "move":
        w[rest[1]] = w.pop(rest[0])
    elif kind == "drop":
        del w[rest[0]]
    elif kind == "insert":
        w[rest[0]] = pattern(rest[1], rest[2])
    elif kind == "biases":
        names = [n for n in w if n.endswith("_proj.weight") and rest[0] in n]
        for name in names:
            bias = name[: -len("weight")] + "bias"
            if bias not in w:
                w[bias] = pattern([w[name].shape[0]], rest[1])
    elif kind == "cast":
        for name in [n for n in w if rest[0] in n]:
            w[name] = w[name].to(KINDS[rest[1]])
    elif kind == "strip":
        for name in [n for n in w if n.startswith(rest[0])]:
            w[name[len(rest[0]):]] = w.pop(name)
    elif kind == "prefix":
        for name in list(w):
            w[rest[0] + name] = w.pop(name)
    else:
        raise ValueError(kind)


def cases():
    """(model, name, keys set, keys unset, recipes)."""
    out = []

    def case(model, name, put=None, drop=(), weights=()):
        out.append((model, name, put or {}, list(drop), [list(r) for r in weights]))

    for model in MODELS:
        rotary(case, model)
        identity(case, model)
        numbers(case, model)
        weights(case, model)
    families(case)
    for model in ["llama", "llama3", "mistral", "qwen2", "qwen3"]:
        odd(case, model)
    return out


def rotary(case, m):
    """Two blocks, two keys of theta, and who wins."""
    old = ["rope_parameters"]
    case(m, "as it is")
    case(m, "scaling beside parameters", {"rope_scaling": LINEAR})
    case(m, "scaling with its own theta", {"rope_scaling": {**LINEAR, "rope_theta": 5e5}})
    case(m, "scaling and top theta", {"rope_scaling": LINEAR, "rope_theta": 5e5})
    case(m, "llama3 scaling beside parameters", {"rope_scaling": LLAMA3})
    case(m, "top theta beside parameters", {"rope_theta": 77777.0})
    case(m, "parameters without theta", {"rope_parameters": {"rope_type": "default"}})
    case(m, "parameters without theta, top theta",
         {"rope_parameters": {"rope_type": "default"}, "rope_theta": 77777})
    case(m, "scaling null", {"rope_scaling": None})
    case(m, "scaling empty", {"rope_scaling": {}})
    case(m, "parameters null", {"rope_parameters": None, "rope_theta": 77777.0})
    case(m, "parameters empty", {"rope_parameters": {}})
    case(m, "nothing rotary", {}, old)
    case(m, "old spelling", {"rope_theta": 77777.0, "rope_scaling": LINEAR}, old)
    case(m, "old spelling, type", {"rope_theta": 77777,
                                   "rope_scaling": {"type": "linear", "factor": 2}}, old)
    case(m, "type and rope_type disagree",
         {"rope_scaling": {"type": "dynamic", "rope_type": "linear", "factor": 2.0}}, old)
    case(m, "default with a factor", {"rope_scaling": {"rope_type": "default", "factor": 2.0}}, old)
    case(m, "factor without a type", {"rope_scaling": {"factor": 2.0}}, old)
    for kind in ["dynamic", "yarn", "longrope", "mrope", "su", "proportional"]:
        case(m, f"scaling {kind}", {"rope_scaling": {"type": kind, "factor": 2.0}}, old)
    case(m, "theta null", {"rope_theta": None}, old)
    case(m, "llama3 without original", {"rope_scaling": {k: v for k, v in LLAMA3.items()
                                                         if not k.startswith("original")}}, old)
    case(m, "llama3 with original on top", {"rope_scaling": LLAMA3,
                                            "original_max_position_embeddings": 32}, old)
    case(m, "llama3 without factors", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, old)
    case(m, "linear with original", {"rope_scaling": {
        **LINEAR, "original_max_position_embeddings": 128}}, old)
    case(m, "linear with yarn's keys", {"rope_scaling": {**LINEAR, "beta_fast": 32}}, old)
    case(m, "linear by less than 1", {"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, old)
    case(m, "linear without factor", {"rope_scaling": {"rope_type": "linear"}}, old)
    nested = {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
              "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    case(m, "parameters by layer type", {"rope_parameters": nested})
    case(m, "partial 1", {"partial_rotary_factor": 1.0})
    case(m, "partial half", {"partial_rotary_factor": 0.5})
    case(m, "partial half of linear", {"rope_scaling": {**LINEAR, "partial_rotary_factor": 0.5}})


def identity(case, m):
    """Which family a config is of."""
    family = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    prefix = family[m.split("-")[0].removesuffix("3") if m.startswith("llama") else m]
    case(m, "no architectures", {}, ["architectures"])
    case(m, "architectures null", {"architectures": None})
    case(m, "architectures empty", {"architectures": []})
    case(m, "base class", {"architectures": [f"{prefix}Model"]})
    case(m, "classifier", {"architectures": [f"{prefix}ForSequenceClassification"]})
    case(m, "no model_type", {}, ["model_type"])
    other = "Llama" if prefix != "Llama" else "Mistral"
    case(m, "architectures of another family", {"architectures": [f"{other}ForCausalLM"]})
    case(m, "model_type of another family", {"model_type": other.lower()})
    case(m, "unknown class", {"architectures": [f"{prefix}CustomForCausalLM"]})
    case(m, "remote code beside", {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}})


def numbers(case, m):
    """Absent, null, and of another type."""
    case(m, "no eps", {}, ["rms_norm_eps"])
    case(m, "eps null", {"rms_norm_eps": None})
    case(m, "another eps", {"rms_norm_eps": 1e-2})
    case(m, "head_dim null", {"head_dim": None})
    case(m, "no head_dim", {}, ["head_dim"] if m != "qwen2" else [])
    case(m, "heads null", {"num_key_value_heads": None})
    case(m, "no key/value heads", {}, ["num_key_value_heads"])
    case(m, "positions absent", {}, ["max_position_embeddings"])
    case(m, "act absent", {}, ["hidden_act"])
    case(m, "act swish", {"hidden_act": "swish"})
    case(m, "act gelu", {"hidden_act": "gelu"})
    case(m, "tie absent", {}, ["tie_word_embeddings"])
    case(m, "tie null", {"tie_word_embeddings": None})
    case(m, "vocabulary absent", {}, ["vocab_size"])
    case(m, "width absent", {}, ["hidden_size"])
    case(m, "layers fewer", {"num_hidden_layers": 1, "layer_types": None})
    case(m, "both dtypes", {"torch_dtype": "bfloat16"})
    case(m, "dtype auto", {"dtype": "auto"})
    case(m, "dtype float64", {"dtype": "float64"})
    case(m, "no dtype", {}, ["dtype"])
    case(m, "cousins' fields", {"logits_scaling": 8.0, "embedding_multiplier": 12.0,
                                "attention_multiplier": 0.1, "residual_multiplier": 0.2})
    case(m, "more cousins' fields", {"final_logit_softcapping": 3.0, "qk_layernorm": True,
                                     "attn_logit_softcapping": 2.0, "num_experts": 4,
                                     "scale_emb": 12, "query_pre_attn_scalar": 4})
    case(m, "not causal", {"is_causal": False})
    case(m, "use_cache off, tensor parallel", {"use_cache": False, "pretraining_tp": 4})
    case(m, "sliding_window 16", {"sliding_window": 16})
    case(m, "sliding layers", {"sliding_window": 16, "use_sliding_window": True,
                               "layer_types": ["sliding_attention"] * 2
                               + ["full_attention"] * (0 if m in ["llama3", "qwen3"] else 1)})
    case(m, "layer_types null", {"layer_types": None, "sliding_window": 16,
                                 "use_sliding_window": True, "max_window_layers": 1})
    case(m, "layer_types too short", {"layer_types": ["full_attention"]})


def weights(case, m):
    """Tied or not, and tensors that the config does not tell of."""
    tied = m in ["llama3", "qwen2"]
    case(m, "tied, head differs", {"tie_word_embeddings": True}, (), [["head", 0.06]])
    case(m, "tied, head equal", {"tie_word_embeddings": True}, (), [["head", 0.0]])
    only = [["head", 0.06], ["drop", EMBEDDING]]
    case(m, "tied, only the head", {"tie_word_embeddings": True}, (), only)
    case(m, "tied, neither", {"tie_word_embeddings": True}, (),
         [["drop", EMBEDDING]] + ([] if tied else [["drop", HEAD]]))
    case(m, "untied, head differs", {"tie_word_embeddings": False}, (), [["head", 0.06]])
    case(m, "untied, no head", {"tie_word_embeddings": False}, (),
         [] if tied else [["drop", HEAD]])
    case(m, "untied, no embedding", {"tie_word_embeddings": False}, (), only)
    case(m, "zero biases", {}, (), [["biases", "_proj", 0.0]])
    case(m, "biases", {}, (), [["biases", "o_proj", 0.5]])
    case(m, "attention_bias declared", {"attention_bias": True}, (),
         [["biases", "self_attn", 0.5]])
    case(m, "mlp_bias declared", {"mlp_bias": True}, (), [["biases", "mlp", 0.5]])
    case(m, "inv_freq", {}, (),
         [["insert", "model.layers.0.self_attn.rotary_emb.inv_freq", [8], 1.0]])
    case(m, "value head", {}, (), [["insert", "v_head.summary.weight", [1, 64], 1.0],
                                   ["insert", "v_head.summary.bias", [1], 1.0]])
    case(m, "another tensor", {}, (), [["insert", "model.extra.weight", [4], 1.0]])
    case(m, "F64", {}, (), [["cast", "", "float64"]])
    case(m, "F64 norms", {}, (), [["cast", "norm", "float64"]])
    case(m, "F16 MLP", {}, (), [["cast", "mlp", "float16"]])
    case(m, "no model. prefix", {}, (), [["strip", "model."]])
    for prefix in ["base_model.model.", "transformer.", "module.", "_orig_mod.", "model."]:
        case(m, f"prefix {prefix}", {}, (), [["prefix", prefix]])


def odd(case, m):
    """Values that hand edits and other programs leave."""
    old = ["rope_parameters"]
    theta = {"rope_theta": 5e5}
    case(m, "both blocks scaled", {"rope_parameters": {**LLAMA3, **theta}, "rope_scaling": LINEAR})
    case(m, "scaling default beside linear", {"rope_parameters": {**LINEAR, **theta},
                                              "rope_scaling": {"rope_type": "default"}})
    blocks = {
        "list": [], "false": False, "theta alone": theta,
        "theta null": {**LINEAR, "rope_theta": None},
        "rope_type null": {"rope_type": None, "type": "linear", "factor": 2.0},
        "type null": {"rope_type": "linear", "type": None, "factor": 2.0},
        "rope_type before type": {"rope_type": "default", "type": "linear", "factor": 2.0},
        "rope_type of no letters": {"rope_type": "", "factor": 2.0},
        "rope_type in capitals": {"rope_type": "Linear", "factor": 2.0},
        "factor string": {"rope_type": "linear", "factor": "2.0"},
        "factor null": {"rope_type": "linear", "factor": None},
        "factor 1": {"rope_type": "linear", "factor": 1},
        "attention_factor": {**LINEAR, "attention_factor": 0.5},
        "llama3 of equal bounds": {**LLAMA3, "high_freq_factor": 1.0},
        "llama3 of swapped bounds": {**LLAMA3, "low_freq_factor": 8.0},
        "llama3 of a null bound": {**LLAMA3, "low_freq_factor": None},
        "llama3 by float": {**LLAMA3, "original_max_position_embeddings": 64.0},
        "llama3 by null": {**LLAMA3, "original_max_position_embeddings": None},
        "llama3 of attention_factor": {**LLAMA3, "attention_factor": 0.5},
    }
    for name, block in blocks.items():
        case(m, f"scaling: {name}", {"rope_scaling": block}, old)
    case(m, "theta whole", {"rope_theta": 77777}, old)
    case(m, "theta string", {"rope_theta": "77777"}, old)
    case(m, "theta 0", {"rope_theta": 0}, old)
    case(m, "partial null", {"partial_rotary_factor": None})
    case(m, "original on top, linear", {"rope_scaling": LINEAR,
                                        "original_max_position_embeddings": 128}, old)
    values = {
        "rms_norm_eps": [1, 0, "1e-6", -1e-6], "hidden_act": [None, "SiLU", "relu"],
        "num_attention_heads": [4.0, None, 0], "tie_word_embeddings": [1, "true"],
        "attention_bias": [None, 0], "mlp_bias": [None], "use_sliding_window": [None, True],
        "sliding_window": [0, -1, True, "16", 16.0, None, 1, 72, 71, 73],
        "max_window_layers": [None, -1, 0],
        "max_position_embeddings": [None, 512.0, 64, 0], "layer_types": [[], ["chunked"] * 3, "x"],
        "dtype": ["torch.bfloat16", "bf16", "int8", None, 32], "head_dim": [0, 8, 16.0],
        "model_type": [m.upper(), None, ""],
        "architectures": ["X", ["X", "Y"], [None]], "vocab_size": [None, 511, 1024],
        "num_hidden_layers": [0, None, 3.0, True], "intermediate_size": [None, 4],
        "quantization_config": [{}, {"quant_method": "awq"}, None], "text_config": [{}, None],
    }
    for key, list_ in values.items():
        for value in list_:
            case(m, f"{key} {json.dumps(value)}", {key: value})
    tied = {"tie_word_embeddings": True}
    case(m, "tied, zero bias of the head", tied, (), [["head", 0.0], ["insert", "lm_head.bias",
                                                                     [512], 0.0]])
    case(m, "tied, head in F16", tied, (), [["head", 0.0], ["cast", HEAD, "float16"]])
    case(m, "tied, head of another shape", tied, (), [["insert", HEAD, [511, 64], 0.1]])
    case(m, "embedding of more rows", {}, (), [["insert", EMBEDDING, [520, 64], 0.1]])
    case(m, "prefix of some", {}, (), [["strip", "model.layers.0."]])
    case(m, "no prefix, only the head", tied, (), [["head", 0.0], ["drop", EMBEDDING],
                                                   ["strip", "model."]])
    for prefix in ["language_model.", "model.language_model.", "model.text_model."]:
        case(m, f"prefix {prefix}", {}, (), [["strip", "model."], ["prefix", prefix]])
    layer = "model.layers.0."
    for name, shape, scale in [
        ("model.norm.bias", [64], 0.0), ("model.norm.bias", [64], 0.5),
        (layer + "self_attn.q_norm.weight", [16], 1.0),
        (layer + "mlp.up_proj.weight_scale", [1], 1.0),
        (layer + "self_attn.rotary_emb.cos_cached", [4], 1.0), (layer + "self_attn.bias", [4], 0.0),
        ("score.weight", [2, 64], 1.0), ("v_head.weight", [1, 64], 0.0),
        ("model.layers.3.mlp.up_proj.weight", [4], 1.0), ("model.embed_tokens.bias", [64], 0.0),
    ]:
        case(m, f"{name} by {scale}", {}, (), [["insert", name, shape, scale]])


def families(case):
    """What one family alone has."""
    sliding = ["full_attention", "sliding_attention", "full_attention"]
    case("mistral", "no sliding_window", {}, ["sliding_window"])
    case("mistral", "layer types", {"sliding_window": 16, "layer_types": sliding})
    case("llama", "layer types", {"sliding_window": 16, "layer_types": sliding})
    case("qwen2", "layer types", {"sliding_window": 16, "layer_types": sliding,
                                  "use_sliding_window": True})
    case("qwen2", "layer types, switched off", {"sliding_window": 16, "layer_types": sliding})
    for m in ["qwen2", "qwen3"]:
        on = {"use_sliding_window": True, "sliding_window": 16}
        case(m, "windows from the first layer", {**on, "max_window_layers": 0}, ["layer_types"])
        case(m, "windows beyond the last", {**on, "max_window_layers": 28}, ["layer_types"])
        case(m, "windows, no first layer", on, ["layer_types", "max_window_layers"])
        case(m, "attention_bias false", {"attention_bias": False})
        case(m, "window null", {"use_sliding_window": True, "sliding_window": None},
             ["layer_types"])


def expected(dir):
    """Logits of the last position, or why there are none."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            dir, dtype=torch.float32, output_loading_info=True)
        if info["missing_keys"] or info.get("mismatched_keys"):
            lost = sorted(map(str, [*info["missing_keys"], *info.get("mismatched_keys", [])]))
            return {"random": lost[0][:60]}
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0, -1]
    except Exception as e:
        return {"refused": f"{type(e).__name__}: {e}".replace(str(dir), "DIR")[:80].split("\n")[0]}
    if not logits.isfinite().all():
        return {"refused": "logits that are no numbers"}
    at = [round(float(logits[i]), 5) for i in PROBES]
    return {"logits": at, "top": logits.topk(8).indices.tolist()}


def main(golden, out):
    listed = []
    work = Path(tempfile.mkdtemp())
    for model, name, put, drop, recipes in cases():
        config = json.loads((golden / model / "config.json").read_text())
        config = {k: v for k, v in {**config, **put}.items() if k not in drop}
        (work / "config.json").write_text(json.dumps(config))
        source = golden / model / "model.safetensors"
        if recipes:
            tensors = load_file(source)
            for recipe in recipes:
                apply(tensors, recipe)
            tensors = {k: v.contiguous().clone() for k, v in tensors.items()}
            save_file(tensors, work / "model.safetensors", {"format": "pt"})
        else:
            shutil.copy(source, work / "model.safetensors")
        case = {"model": model, "name": name, "set": put, "unset": drop, "weights": recipes}
        listed.append({k: v for k, v in case.items() if v} | expected(work))
    shutil.rmtree(work)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    head = {"date": str(date.today()), "versions": versions, "prompt": PROMPT, "probes": PROBES}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in listed)
    out.write_text(json.dumps(head)[:-1] + ', "cases": [\n' + lines + "\n]}\n")


main(Path(sys.argv[1]), Path(sys.argv[2]))
