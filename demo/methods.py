"""MoS and SSF, the two methods here that peft does not have: their maths as forward hooks, and their files.

Both change what a linear (or a norm) gives back, so a hook on the module's output is all that training and inference need.
"""
import json
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file


def linears(model):
    return [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]


def norms(model):
    return [(n, m) for n, m in model.named_modules() if n.endswith("norm")]


def layer_and_type(name):
    """'model.layers.3.self_attn.q_proj' -> (3, 'q_proj')"""
    return int(name.split(".layers.")[1].split(".")[0]), name.split(".")[-1]


def write(path, tensors, config):
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().half().contiguous() if v.is_floating_point() else v for k, v in tensors.items()},
              str(path / "adapter_model.safetensors"), {"format": "pt"})
    common = {"base_model_name_or_path": "tessera-demo", "inference_mode": True, "task_type": "CAUSAL_LM"}
    (path / "adapter_config.json").write_text(json.dumps(common | config, indent=2, sort_keys=True) + "\n")


class Mos:
    """Mixture of Shards: all layers of a module type share two pools of shards; each layer joins its own selection of them.

    Row j of A is the l shards pool_A[index_A[layer, j, :]] side by side, column j of B likewise from pool_B with indices
    of its own. The indices are drawn once and never trained: the first (e-p)*L*l shards are open to every layer, and p*l
    further ones belong to one layer alone. y = W x + alpha/r * B (A x).
    """

    def __init__(self, model, tensors=None, r=8, e=3, p=1, l=4, alpha=16, seed=0):
        self.r, self.e, self.p, self.l, self.alpha = r, e, p, l, alpha
        layers, gen = model.config.num_hidden_layers, torch.Generator().manual_seed(seed)
        self.t = tensors or {}
        open_shards = (e - p) * layers * l
        for name, m in linears(model):
            layer, kind = layer_and_type(name)
            if tensors is None and layer == 0:
                a = torch.randn(e * layers * l, m.in_features // l, generator=gen) / m.in_features ** 0.5
                self.t[f"mos.{kind}.pool_A"] = a.requires_grad_()
                self.t[f"mos.{kind}.pool_B"] = torch.zeros(e * layers * l, m.out_features // l, requires_grad=True)
                for side in "AB":
                    rows = []
                    for k in range(layers):
                        private = open_shards + torch.arange(k * p * l, (k + 1) * p * l)
                        rows.append(torch.cat([torch.randperm(open_shards, generator=gen)[:(r - p) * l], private]).view(r, l))
                    self.t[f"mos.{kind}.index_{side}"] = torch.stack(rows).int()
            m.register_forward_hook(self.hook(layer, kind))

    def hook(self, layer, kind):
        def add(module, args, out):
            a, b = (self.t[f"mos.{kind}.pool_{s}"][self.t[f"mos.{kind}.index_{s}"][layer].long()].view(self.r, -1) for s in "AB")
            return out + (self.alpha / self.r) * ((args[0] @ a.T) @ b)
        return add

    def parameters(self):
        return [v for k, v in self.t.items() if ".pool_" in k]

    def save(self, path):
        write(path, self.t, {"peft_type": "MOS", "r": self.r, "lora_alpha": self.alpha, "valid_param_lora_r": self.e,
                             "valid_param_private_r": self.p, "num_chunk_per_vec": self.l, "ft_mode": "mos", "enable_lora_vec": True,
                             "bias": "none", "fan_in_fan_out": False, "lora_dropout": 0.0,
                             "target_modules": sorted({k.split(".")[1] for k in self.t})})


class Ssf:
    """Scale and shift after every linear and norm: y = scale * module(x) + shift."""

    def __init__(self, model, tensors=None):
        self.t = tensors or {}
        for name, m in linears(model) + norms(model):
            key = f"base_model.model.{name}.ssf_"
            if tensors is None:
                width = m.out_features if isinstance(m, torch.nn.Linear) else m.weight.shape[0]
                self.t[key + "scale"] = torch.ones(width, requires_grad=True)
                self.t[key + "shift"] = torch.zeros(width, requires_grad=True)
            m.register_forward_hook(lambda module, args, out, key=key: out * self.t[key + "scale"] + self.t[key + "shift"])

    def parameters(self):
        return list(self.t.values())

    def save(self, path):
        write(path, self.t, {"peft_type": "SSF", "target_modules": sorted({k.split(".")[-2] for k in self.t})})


def load(model, path, trainable=False):
    """Puts the adapter at `path` onto the model, whatever its method: a PeftModel, a Mos or an Ssf."""
    cfg = json.loads((Path(path) / "adapter_config.json").read_text())
    if cfg["peft_type"] not in ("MOS", "SSF"):
        return PeftModel.from_pretrained(model, path, is_trainable=trainable)
    tensors = load_file(str(Path(path) / "adapter_model.safetensors"))
    tensors = {k: v.float().requires_grad_(trainable) if v.is_floating_point() else v for k, v in tensors.items()}
    if cfg["peft_type"] == "SSF":
        return Ssf(model, tensors)
    return Mos(model, tensors, cfg["r"], cfg["valid_param_lora_r"], cfg["valid_param_private_r"], cfg["num_chunk_per_vec"], cfg["lora_alpha"])
