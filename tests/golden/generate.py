#!/usr/bin/env python3
"""Writes golden cases: tiny random models, adapters in the formats their own libraries save,
and the logits and greedy tokens that transformers + peft compute for them (float32, CPU).

usage: generate.py OUT --seed N [--models a,b] ; needs torch, transformers, peft, safetensors, tokenizers

The numbers of an adapter depend on those that are made before it: add new ones, and new models, at
the end of their lists, and the files of the others stay as they are.
"""
import argparse, json, shutil, warnings
from pathlib import Path
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
import transformers, peft
from transformers import (LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, PreTrainedTokenizerFast)
warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()

# 512 tokens, byte-level BPE, trained once on the texts of the Apache-2.0 and GPL-3 licences.
TOKENIZER = Path(__file__).resolve().parent / "llama" / "tokenizer.json"
CHAT = ("{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}")
PROMPTS = ["The quick brown fox jumps over", "Licensed under the terms of", "Ünïcode — café ☕ and 日本語", "a"]
NEW = 24


def tokenizer(out):
    t = Tokenizer.from_file(str(TOKENIZER))
    f = PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=CHAT)
    f.save_pretrained(out)
    return f


def families(s):
    """name -> (config, class); `s` varies the shapes, for a second set that differs from this one."""
    v = 512
    base = dict(vocab_size=v, bos_token_id=0, eos_token_id=1, pad_token_id=2, max_position_embeddings=512)
    return {
        "llama": (LlamaConfig(**base, hidden_size=64, intermediate_size=160 + 16 * s, num_hidden_layers=3, num_attention_heads=4,
                              num_key_value_heads=2, rope_theta=10000.0, tie_word_embeddings=False), LlamaForCausalLM),
        "llama3": (LlamaConfig(**base, hidden_size=96, intermediate_size=224, num_hidden_layers=2 + s, num_attention_heads=6,
                               num_key_value_heads=3, rope_theta=500000.0, tie_word_embeddings=True,
                               rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                 original_max_position_embeddings=64)), LlamaForCausalLM),
        "llama-bias": (LlamaConfig(**base, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                                   num_key_value_heads=4, attention_bias=True, mlp_bias=True, tie_word_embeddings=False), LlamaForCausalLM),
        "mistral": (MistralConfig(**base, hidden_size=64, intermediate_size=176, num_hidden_layers=3, num_attention_heads=8,
                                  num_key_value_heads=2, head_dim=16, sliding_window=None, tie_word_embeddings=False), MistralForCausalLM),
        "qwen2": (Qwen2Config(**base, hidden_size=64, intermediate_size=144 + 16 * s, num_hidden_layers=3, num_attention_heads=4,
                              num_key_value_heads=2, tie_word_embeddings=True, rope_theta=1000000.0), Qwen2ForCausalLM),
        "qwen3": (Qwen3Config(**base, hidden_size=64, intermediate_size=144, num_hidden_layers=2 + s, num_attention_heads=4,
                              num_key_value_heads=2, head_dim=32, tie_word_embeddings=False, rope_theta=1000000.0), Qwen3ForCausalLM),
    }


def randomize(model, gen, scale=1.0):
    """Weights with std 1/sqrt(fan_in), norms near one, biases small: logits that spread."""
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.ndim >= 2:
                std = (0.08 if model.config.tie_word_embeddings else 1.0) if "embed" in n else scale / p.shape[-1] ** 0.5
                p.copy_(torch.randn(p.shape, generator=gen) * std)
            elif "norm" in n:
                p.copy_(1 + 0.2 * torch.randn(p.shape, generator=gen))
            else:
                p.copy_(0.2 * torch.randn(p.shape, generator=gen))


def stir(model, gen, names):
    """Gives the adapter's own parameters (zero or identity at init) values that matter."""
    with torch.no_grad():
        for n, p in model.named_parameters():
            if not any(k in n for k in names):
                continue
            if "vera_lambda" in n:
                p.copy_(torch.randn(p.shape, generator=gen) * (1.5 if n.endswith("_b") or "_b." in n else 1.0))
            elif "vblora_logits" in n or "vblora_vector_bank" in n:
                p.copy_(torch.randn(p.shape, generator=gen))
            elif "lora_E" in n:
                p.copy_(torch.randn(p.shape, generator=gen))
            elif p.ndim >= 2 and p.abs().sum() == 0:
                p.copy_(torch.randn(p.shape, generator=gen) * 0.7 / p.shape[-1] ** 0.5)
            else:
                p.add_(torch.randn(p.shape, generator=gen) * 0.25 * (p.abs().mean() + 0.05))


LIN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapters(s):
    from peft import (LoraConfig, IA3Config, VeraConfig, AdaLoraConfig, LoHaConfig, LoKrConfig, VBLoRAConfig, RandLoraConfig,
                      LNTuningConfig, ShiraConfig, OFTConfig, PrefixTuningConfig, PromptTuningConfig, TrainableTokensConfig)
    t = dict(task_type="CAUSAL_LM")
    r = 4 + s
    out = {
        "lora_qv": LoraConfig(r=2 * r, lora_alpha=16, target_modules=["q_proj", "v_proj"], **t),
        "lora_all_rs": LoraConfig(r=r, lora_alpha=8, use_rslora=True, target_modules="all-linear", **t),
        "lora_ranks": LoraConfig(r=r, lora_alpha=8, target_modules=LIN, rank_pattern={"down_proj": 2 * r + 1, "layers.0.self_attn.q_proj": 1},
                                 alpha_pattern={"o_proj": 32}, **t),
        "lora_regex": LoraConfig(r=r, lora_alpha=4, target_modules=r".*layers\.[01]\..*(o|down)_proj", **t),
        "lora_dora": LoraConfig(r=r, lora_alpha=8, use_dora=True, target_modules=LIN, **t),
        "lora_layer1": LoraConfig(r=r, lora_alpha=8, layers_to_transform=[1], target_modules=["gate_proj", "up_proj"], **t),
        "lora_bias": LoraConfig(r=r, lora_alpha=8, lora_bias=True, target_modules=["q_proj", "o_proj"], **t),
        "lora_embed": LoraConfig(r=r, lora_alpha=8, target_modules=["embed_tokens", "q_proj"], **t),
        "lora_head": LoraConfig(r=r, lora_alpha=8, target_modules=["lm_head", "v_proj"], **t),
        "lora_saved_norm": LoraConfig(r=r, lora_alpha=8, target_modules=["v_proj"], modules_to_save=["input_layernorm"], **t),
        "adalora": AdaLoraConfig(init_r=r + 2, target_r=r, total_step=10, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], **t),
        "ia3": IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **t),
        "vera": VeraConfig(r=16 + s, target_modules=["o_proj"], projection_prng_key=7, **t),
        "loha": LoHaConfig(r=3, alpha=6, target_modules=["q_proj", "down_proj"], **t),
        "lokr": LoKrConfig(r=4, alpha=8, target_modules=["q_proj", "up_proj"], **t),
        "vblora": VBLoRAConfig(r=4, num_vectors=16, vector_length=16, topk=2, target_modules=["q_proj", "o_proj"], **t),
        "randlora": RandLoraConfig(r=8, target_modules=["o_proj"], projection_prng_key=11, **t),
        "ln_tuning": LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm", "norm"], **t),
        "shira": ShiraConfig(r=2, target_modules=["q_proj", "v_proj"], random_seed=3, **t),
        "oft": OFTConfig(r=0, oft_block_size=16, target_modules=["q_proj", "v_proj"], **t),
        "prefix": PrefixTuningConfig(num_virtual_tokens=5, **t),
        "prompt": PromptTuningConfig(num_virtual_tokens=6, **t),
        "tokens": TrainableTokensConfig(token_indices=[0, 58, 227, 85], **t),
    }
    return out


STIR = ["lora_", "ia3_", "vera_", "hada_", "lokr_", "vblora_", "randlora_", "ln_tuning", "shira_", "oft_", "prompt_encoder", "modules_to_save",
        "trainable_tokens", "layernorm", ".norm."]


def expected(model, tok, path, prefix_tokens=0):
    rows, meta = {}, {"prompts": []}
    for i, p in enumerate(PROMPTS):
        ids = tok(p, return_tensors="pt").input_ids
        with torch.no_grad():
            lg = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
        lg = lg[-ids.shape[1]:]
        cur, greedy, lps = ids, [], []
        with torch.no_grad():
            for _ in range(NEW):
                l = model(input_ids=cur, attention_mask=torch.ones_like(cur), use_cache=False).logits[0, -1].float()
                n = int(l.argmax()); top2 = l.topk(2).values
                greedy.append(n); lps.append(float(torch.log_softmax(l, -1)[n]))
                meta.setdefault("min_gap", 1e9); meta["min_gap"] = min(meta["min_gap"], float(top2[0] - top2[1]))
                cur = torch.cat([cur, torch.tensor([[n]])], 1)
        rows[f"p{i}.logits"] = (lg if i == 0 else lg[-1:]).contiguous()
        meta["prompts"].append({"text": p, "ids": ids[0].tolist(), "greedy": greedy, "logprobs": [round(x, 6) for x in lps],
                                "greedy_text": tok.decode(greedy)})
    save_file(rows, str(path.with_suffix(".safetensors")))
    path.with_suffix(".json").write_text(json.dumps(meta, ensure_ascii=False, indent=1))


def linears(model):
    return [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]


def mos(model, gen, ad, layout, s):
    """Mixture of Shards: pools of shards shared by all layers of one module type; each layer picks its own.

    A row j = concat_i pool_A[mask_A[j*l+i]], B row j likewise (independent mask); scale alpha/r. Public shards are drawn
    from (e-p)*L*l, the p private rows of a layer from its own range. Returns {module: (A [r,in], B [out,r]*scale)}."""
    L, r, e, p, l, alpha = model.config.num_hidden_layers, 6 + s, 4, 2, 4, 16
    pub = (e - p) * L * l
    r = min(r, p + pub // l)
    kinds = {}
    for n, m in linears(model):
        kinds.setdefault(n.split(".")[-1], (m.in_features, m.out_features))
    rnd = lambda *z: torch.randn(*z, generator=gen)
    pools = {t: (rnd(e * L * l, i // l) * 0.8 / i ** 0.5, rnd(e * L * l, o // l) * 0.8) for t, (i, o) in kinds.items()}

    def mask(layer):
        return torch.cat([torch.randperm(pub, generator=gen)[:(r - p) * l], pub + torch.arange(layer * p * l, (layer + 1) * p * l)])
    off, comp, dense, idx = {}, {}, {}, {}
    for n, m in linears(model):
        t, layer = n.split(".")[-1], int(n.split(".layers.")[1].split(".")[0])
        ma, mb = mask(layer), mask(layer); A, B = pools[t]; pre = f"base_model.model.{n}."
        off |= {pre + "lora_A.weight": A.clone(), pre + "lora_B.weight": B.t().contiguous(), pre + "lora_A_vec": torch.ones(r),
                pre + "lora_A_anti_vec": torch.ones(r), pre + "lora_pair_mask": ma, pre + "lora_pair_mask_B": mb}
        idx[(t, layer)] = (ma.view(r, l), mb.view(r, l))
        dense[n] = (A[ma].view(r, -1), (B[mb].view(r, -1)).t() * alpha / r)
    for t in kinds:
        comp |= {f"mos.{t}.pool_A": pools[t][0], f"mos.{t}.pool_B": pools[t][1],
                 f"mos.{t}.index_A": torch.stack([idx[(t, k)][0] for k in range(L)]).int(),
                 f"mos.{t}.index_B": torch.stack([idx[(t, k)][1] for k in range(L)]).int()}
    cfg = {"peft_type": "LORA" if layout == "official" else "MOS", "task_type": "CAUSAL_LM", "r": r, "lora_alpha": alpha, "target_modules": sorted(kinds),
           "bias": "none", "fan_in_fan_out": False, "lora_dropout": 0.0, "inference_mode": True, "base_model_name_or_path": f"tiny/{model.config.model_type}",
           "enable_lora_vec": True, "valid_param_lora_r": e, "valid_param_private_r": p, "num_chunk_per_vec": l, "ft_mode": "mos"}
    ad.mkdir(parents=True)
    save_file(off if layout == "official" else comp, str(ad / "adapter_model.safetensors"), {"format": "pt"})
    (ad / "adapter_config.json").write_text(json.dumps(cfg, indent=2, sort_keys=True))
    with torch.no_grad():
        for n, m in linears(model):
            A, B = dense[n]; m.weight += B @ A


def ssf(model, gen, ad, s):
    """Scale and shift after every linear and norm: y = ssf_scale * module(x) + ssf_shift."""
    st = {}
    mods = [(n, m) for n, m in model.named_modules() if (isinstance(m, torch.nn.Linear) and "lm_head" not in n) or n.endswith("norm") or n.endswith("layernorm")]
    mods = [(n, m) for n, m in mods if not n.endswith(("q_norm", "k_norm"))]
    for n, m in mods:
        w = m.out_features if isinstance(m, torch.nn.Linear) else m.weight.shape[0]
        sc, sh = 1 + 0.25 * torch.randn(w, generator=gen), 0.1 * torch.randn(w, generator=gen)
        st[f"base_model.model.{n}.ssf_scale"], st[f"base_model.model.{n}.ssf_shift"] = sc, sh
        m.register_forward_hook(lambda mod, i, o, sc=sc, sh=sh: o * sc + sh)
    ad.mkdir(parents=True)
    save_file(st, str(ad / "adapter_model.safetensors"), {"format": "pt"})
    (ad / "adapter_config.json").write_text(json.dumps({"peft_type": "SSF", "task_type": "CAUSAL_LM", "inference_mode": True,
        "base_model_name_or_path": f"tiny/{model.config.model_type}", "target_modules": sorted({n.split(".")[-1] for n, _ in mods})}, indent=2, sort_keys=True))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("out"); ap.add_argument("--seed", type=int, default=0); ap.add_argument("--variant", type=int, default=0)
    ap.add_argument("--models", default="")
    a = ap.parse_args()
    root = Path(a.out); torch.set_num_threads(2); report = []
    for fi, (fam, (cfg, cls)) in enumerate(families(a.variant).items()):
        if a.models and fam not in a.models.split(","):
            continue
        gen = torch.Generator().manual_seed(a.seed * 1000 + fi)
        d = root / fam; d.mkdir(parents=True, exist_ok=True)
        tok = tokenizer(d)
        torch.manual_seed(a.seed * 1000 + fi)
        model = cls(cfg).float().eval(); model.config._attn_implementation = "eager"
        randomize(model, gen)
        model.save_pretrained(d, safe_serialization=True)
        (d / "expected").mkdir(exist_ok=True); (d / "adapters").mkdir(exist_ok=True)
        expected(model, tok, d / "expected" / "base")
        for name, c in adapters(a.variant).items():
            if fam not in ("llama", "qwen2") and name not in ("lora_qv", "lora_all_rs", "lora_dora", "ia3", "lora_ranks"):
                continue
            try:
                torch.manual_seed(a.seed * 77 + fi)
                m = cls.from_pretrained(d, dtype=torch.float32, attn_implementation="eager").eval()
                pm = peft.get_peft_model(m, c).eval()
                stir(pm, gen, STIR) if name != "ln_tuning" else stir(pm, gen, ["ln_tuning_layers"])
                ad = d / "adapters" / name
                pm.save_pretrained(ad, safe_serialization=True)
                cj = json.loads((ad / "adapter_config.json").read_text()); cj["base_model_name_or_path"] = f"tiny/{fam}"
                (ad / "adapter_config.json").write_text(json.dumps(cj, indent=2))
                # reload from disk: what counts is what the files say
                m2 = cls.from_pretrained(d, dtype=torch.float32, attn_implementation="eager").eval()
                pm2 = peft.PeftModel.from_pretrained(m2, ad).eval()
                expected(pm2, tok, d / "expected" / name)
                for junk in ("README.md",):
                    (ad / junk).unlink(missing_ok=True)
                report.append((fam, name, "ok"))
            except Exception as e:
                report.append((fam, name, f"{type(e).__name__}: {str(e)[:160]}"))
                shutil.rmtree(d / "adapters" / name, ignore_errors=True)
        for name in ("mos_official", "mos_compact", "ssf"):
            m = cls.from_pretrained(d, dtype=torch.float32, attn_implementation="eager").eval()
            ad = d / "adapters" / name; shutil.rmtree(ad, ignore_errors=True)
            g2 = torch.Generator().manual_seed(a.seed * 31 + fi)
            ssf(m, g2, ad, a.variant) if name == "ssf" else mos(m, g2, ad, name.split("_")[1], a.variant)
            expected(m, tok, d / "expected" / name); report.append((fam, name, "ok"))
    for r in report:
        print(*r)
    (root / "VERSIONS.json").write_text(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__, "seed": a.seed, "variant": a.variant}) + "\n")


main()
