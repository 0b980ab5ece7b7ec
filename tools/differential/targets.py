#!/usr/bin/env python3
"""What peft makes of module patterns: which modules an adapter's config targets, with which rank
and alpha, and which modules it saves whole.

Writes tests/data/differential/targets.json, which src/adapter/tests.rs reads. Needs
torch 2.15, transformers 5.23.0 and peft 0.21.2, and no network:

    python tools/differential/targets.py
"""

import datetime, json, re, signal, warnings
from pathlib import Path

import peft, torch, transformers
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper

ROOT = Path(__file__).resolve().parents[2]
warnings.filterwarnings("ignore")
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]

WHOLE = [
    # Look-ahead and look-behind as trainers write them.
    r"^(?!.*(visual|lm_head)).*(q_proj|v_proj)$",
    r"^(?!.*(visual|lm_head|embed|norm)).*\.(?:q|k|v|o|gate|up|down)_proj$",
    r"^(?!.*(?:vision_tower|multi_modal_projector)).*(?:q_proj|k_proj|v_proj|o_proj|down_proj)$",
    r"(?:.*?(?:language|text|model).*?(?:self_attn|attention|mlp|ffn).*?(?:q_proj|k_proj|up_proj).*?)",
    r".*layers\.(?!0\.).*q_proj", r".*layers\.(?!1).*(?<!k_)proj", r".*(?<=self_attn\.)[qk]_proj",
    r".*(?<!gate)(?<!up)_proj", r"(?=.*self_attn)(?=.*q).*", r"(?=.*mlp).*(?=up_proj).*",
    r"model(?!\.embed).*down_proj", r".*(?<=\.0\.)mlp\.\w+_proj", r"^(?!lm_head$).*_proj$",
    r"^((?!mlp).)*_proj$", r"^(?:(?!self_attn).)+_proj", r"(?!.*\.[02]\.).*_proj",
    r".*\.(?=[a-z]_)[^.]*", r"(?<!x).*q_proj(?!x)", r".*(?<=q|k)_proj", r"(?i)^(?!.*LM_HEAD).*Q_PROJ$",
    # Back-references and named groups.
    r"(m)odel.*\.\1lp\.up_proj", r"(?P<l>l)ayers", r".*(?P<p>[a-z])_(?P=p)roj",
    r"(?P<m>m)odel.*(?P=m)lp.*_proj", r".*\.(\w)\w*_proj.*(?<!\1)$", r"(.)o(.)(.).*\1.*_\w+",
    r".*(\.)(\d)\1.*proj", r".*([0-9])\.mlp.*\10?",
    # Anchors, flags, quantifiers, escapes.
    r"\Amodel.*q_proj\Z", r"^model.*q_proj$", r"model.*q_proj\b", r".*\bq_proj", r".*\Bproj",
    r"(?i).*Q_Proj", r"(?i:MODEL).*q_proj", r"(?s).*v_proj", r"(?m)^.*k_proj$", r"(?u).*o_proj",
    r"(?im).*GATE_proj", r"(?-i:model).*up_proj", r"(?x) .* q_proj", r"(?a).*\w_proj", r"(?L).*q_proj",
    r".*(?i)q_proj", r".*layers\.\d+\.self_attn\.q_proj", r".*layers\.[0-1]\.[\w.]+_proj",
    r".*layers\.(0|2)\..*", r".*\.{1}q_proj", r".*[.]{1,2}q_proj", r".*q_proj{,1}", r".*q_pro{0,}j",
    r".*\.q{1}_proj", r".*q{_proj", r".*q_proj{}", r".*q_proj{a}", r".*q_proj{1,x}",
    r"model.*+q_proj", r"[a-z]++\..*q_proj", r"model\.layers\.\d++\..*?q_proj", r"(?>model).*q_proj",
    r"(?>.*)q_proj", r".*?q_proj", r".*q_proj??", r".*q_proj?+", r".*q_pro(?:j{1}+)",
    r".**q_proj", r"*q_proj", r"+", r"?q_proj", r"^*q_proj", r"(?=.*q_proj)*.*q_proj", r".*q_proj{1}{1}",
    r".*\x71_proj", r".*\u0071_proj", r".*\U00000071_proj", r".*\161_proj", r".*\N{LATIN SMALL LETTER Q}_proj",
    r".*\q_proj", r".*\z", r".*q\_proj", r".*q\-proj", r".*\<q_proj\>", r".*\p{L}_proj", r".*\h_proj",
    r".*q_proj\Z\Z", r".*\R", r".*\Kq_proj", r".*\Gq_proj", r".*\X_proj", r".*\e", r".*\0",
    r"(?<n>.*)q_proj", r"(?'n'.*)q_proj", r"(?|a|.*)q_proj", r"(?#note).*q_proj", r".*(?#x)q_proj",
    r"(.*)(?(1)q_proj|x)", r"(?R)?.*q_proj", r".*(?P>x)q_proj", r"(?&x).*q_proj", r"((.*)q_proj",
    r".*q_proj)", r".*[q_proj", r"\\", "\\",
    # Sets.
    r".*[qk]_proj", r".*[^qkvo]_proj", r".*\.[]q]_proj", r".*\.[^]q]_proj", r".*\.[[q]_proj",
    r".*\.[[:alpha:]]_proj", r".*\.[q&&k]_proj", r".*\.[q||k]_proj", r".*\.[q~~k]_proj", r".*\.[a--z]_proj",
    r".*\.[\w--q]_proj", r".*\.[a-q]_proj", r".*\.[q-]_proj", r".*\.[-q]_proj", r".*\.[q\-v]_proj", r".*\.[\]q]_proj",
    r".*\.[\dq]_proj", r".*\.[\Dq]_proj", r".*\.[^\d]_proj", r".*\.[\b-r]_proj", r".*\.[\x71]_proj",
    r".*\.[z-a]_proj", r".*\.[q^]_proj", r".*\.[a-z&&[^q]]_proj", r".*\.[a-z--[q]]_proj", r".*[#]?q_proj",
    # Hostile and odd ones.
    r"(a+)+$", r"(.*)*x$", r"(.*a){20}.*z", r"^(?=(.*.*.*.*.*)x).*q_proj$", r"((?!z).*)*q_proj",
    r"^(?:(?!z)(?:.*)+)+Z$", r"(?=(\w+\.?)+$)(?:\w+\.?)+Z", "(" * 80 + "q" + ")" * 80, r"((a{1000}){1000}){1000}",
    r".*q_proj\n?", ".*q_proj\n", r"", r"q_proj", r"all-linear", r"ALL-LINEAR", r"All-Linear", r".*lm_head", r"lm_head",
    r".*embed_tokens", r".*(embed_tokens|q_proj)", r"model\.embed_tokens", r".*self_attn.*", r".*mlp", r".*norm",
    "q_proj|v_proj", ".*q_proj|.*v_proj", ".*(q_proj|.*v_proj)", "model.layers.0.self_attn.q_proj", r".*ſelf_attn.q_proj",
    r"(?i).*ſelf_attn.q_proj", r"(?i).*K_proj", r".*[é]?q_proj",
]
LISTS = [
    ["q_proj"], ["q_proj", "v_proj"], ATTENTION + MLP, ["self_attn.q_proj"], ["layers.0.mlp.up_proj"],
    ["model.layers.1.self_attn.k_proj"], ["proj"], ["_proj"], [".q_proj"], ["q_proj", "nothing"], ["nothing"],
    ["embed_tokens", "q_proj"], ["lm_head"], ["model.embed_tokens"], ["q.proj"], [r".*q_proj"], ["mlp"], ["norm"],
    ["Q_proj"], ["q_proj "], [],
]
KEYS = [
    "q_proj", "self_attn.q_proj", r"layers\.0\..*", "layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj",
    r".*(?<!k)_proj", r"^model.*q_proj", r"(?!.*mlp).*", r"(q|v)_proj", r"q_proj|v_proj", r"[qk]_proj$", r"\w_proj",
    r"(\w)_proj", r"(.)lp\.up_\2\w*", r"(.)_p.*\1", r"(?i)q_proj", r"(?i:Q)_proj", r"^q_proj", r"\Aq_proj", r"_proj",
    r".*_proj", r"layers\.[^0]\.mlp\..*", r"(?<=\.)q_proj", r"(?<!\.)q_proj", "q_proj\\Z", "(", r"q_proj)", r"q_proj)|(v_proj",
]


def cases():
    for pattern in WHOLE: yield {"target_modules": pattern}
    for names in LISTS: yield {"target_modules": names}
    every = {"target_modules": ATTENTION + MLP}
    for key in KEYS:
        yield {**every, "rank_pattern": {key: 3}}
        yield {**every, "alpha_pattern": {key: 5}, "lora_alpha": 16}
    yield {**every, "rank_pattern": {"q_proj": 2, r".*": 3}, "alpha_pattern": {r"mlp\..*": 1}}
    yield {**every, "rank_pattern": {r"layers\.1\..*": 2, "q_proj": 3}}
    for exclude in [["q_proj"], ["mlp.up_proj"], ["lm_head"], r".*layers\.0.*", r"^(?!.*\.2\.).*", r"q_proj", r".*(?<=k)_proj",
                    ["model.layers.0.self_attn.q_proj"], ["layers.0"], ["proj"], r"(.)o.*\1lp.*", r".*[q&&k]_proj", ATTENTION + MLP]:
        yield {**every, "exclude_modules": exclude}
        yield {"target_modules": "all-linear", "exclude_modules": exclude}
        yield {"target_modules": r".*(?!q)\w_proj", "exclude_modules": exclude}
    for saved in [["lm_head"], ["embed_tokens"], ["norm"], ["lm_head", "embed_tokens"], ["model.norm"], ["q_proj"], ["layernorm"],
                  ["self_attn"], ["mlp.up_proj"], ["q_proj|v_proj"], ["(?!q)k_proj"], ["input_layernorm"], ["score"], [r"\w_proj"]]:
        yield {**every, "modules_to_save": saved}
        yield {"target_modules": "all-linear", "modules_to_save": saved}
    for layers in [0, [0], [0, 2], [1], [7], [], [0, 1, 2]]:
        for names in [None, "layers", ["layers"], "", [], ["blocks", "layers"], r"(?<=\.)layers", r"lay\w+", "model", ["h", "layer"],
                      r"(l)ayers", r"model\.layers"]:
            yield {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": layers, "layers_pattern": names}
    for layers in [0, [1]]:
        yield {"target_modules": ["q_proj", "model.layers.2.mlp.up_proj", "lm_head"], "layers_to_transform": layers}
        yield {"target_modules": "all-linear", "layers_to_transform": layers}
        yield {"target_modules": ".*q_proj", "layers_to_transform": layers}


def kind(module):
    if isinstance(module, torch.nn.Linear): return "linear"
    if isinstance(module, torch.nn.Embedding): return "embedding"
    return "norm" if type(module).__name__.endswith("RMSNorm") else None


def build(name):
    config = transformers.AutoConfig.from_pretrained(ROOT / "tests/golden" / name)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


class Slow(Exception):
    pass


def slow(*_):
    raise Slow("no answer within 3 seconds")


def ask(name, config, index):
    signal.alarm(3)
    try:
        tuned = peft.get_peft_model(build(name), peft.LoraConfig(**config), low_cpu_mem_usage=True)
    except Exception as error:
        why = "pattern" if isinstance(error, (re.error, Slow)) else "config"
        return {"error": why}
    finally:
        signal.alarm(0)
    targets, saved = {}, []
    for path, module in tuned.base_model.model.named_modules():
        if isinstance(module, LoraLayer):
            r = module.r["default"]
            key = f"{r} {module.scaling['default'] * r:g}"
            targets.setdefault(key, []).append(index[path])
        # Containers saved whole are not among the modules that are served.
        if isinstance(module, ModulesToSaveWrapper): saved.append(index.get(path, path))
    return {"targets": targets, "saved": saved}


signal.signal(signal.SIGALRM, slow)
out = {"date": str(datetime.date.today()), "torch": torch.__version__, "transformers": transformers.__version__,
       "peft": peft.__version__, "models": {}, "cases": []}
for model in ["llama", "qwen3"]:
    modules = [(n, k) for n, m in build(model).named_modules() if (k := kind(m))]
    index = {n: i for i, (n, _) in enumerate(modules)}
    out["models"][model] = modules
    for case in cases():
        if model == "llama" or "modules_to_save" in case or "exclude_modules" in case:
            out["cases"].append([model, case, ask(model, case, index)])
lines = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in out.pop("cases"))
head = json.dumps(out, separators=(",", ":"))[:-1]
(ROOT / "tests/data/differential/targets.json").write_text(f'{head},"cases":[\n{lines}\n]}}\n')
