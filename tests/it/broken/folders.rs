//! The path holds something else than an adapter of peft: it is told what that is.

use std::fs;
use std::path::Path;

use super::{Case, disk};
use crate::files::Draft;

const NONE: &str = "no adapter_config.json";
const MODEL: &str = "adapter_model.safetensors";

fn good(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    Draft::golden("llama", "lora_qv").write(dir);
}

fn files(
    name: &'static str,
    expect: &'static [&'static str],
    files: &'static [(&'static str, &'static str)],
) -> Case {
    disk(name, expect, move |dir| {
        for (file, content) in files {
            fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
            fs::write(dir.join(file), content).unwrap();
        }
    })
}

pub fn cases() -> Vec<Case> {
    let mut cases = trainers();
    cases.extend(others());
    cases
}

fn trainers() -> Vec<Case> {
    vec![
        disk("a trainer's folder", &[NONE, "checkpoint-100 is the newest"], |dir| {
            ["checkpoint-20", "checkpoint-100", "checkpoint-9"]
                .iter()
                .for_each(|name| good(&dir.join(name)));
            // Begun and not finished.
            fs::create_dir(dir.join("checkpoint-120")).unwrap();
            fs::write(dir.join("trainer_state.json"), "{}").unwrap();
        }),
        files(
            "a trainer's folder of whole models",
            &[NONE, "checkpoint-7 holds no adapter either"],
            &[("checkpoint-7/config.json", "{}"), ("checkpoint-7/model.safetensors", "")],
        ),
        disk("the adapter in a folder below", &[NONE, "there is one in adapter"], |dir| {
            good(&dir.join("adapter"));
        }),
        disk("a file of the adapter", &["the path is a file; give the directory"], |dir| {
            fs::remove_dir(dir).unwrap();
            fs::write(dir, "").unwrap();
        }),
        files(
            "a whole model",
            &[NONE, "whole model", "tessera serve DIRECTORY"],
            &[("config.json", "{}"), ("model-00001-of-00002.safetensors", "")],
        ),
        files("tensors without a config", &[NONE, "is there; copy"], &[(MODEL, "")]),
        files(
            "an adapter in parts",
            &["adapter_model.safetensors.index.json", "one file"],
            &[
                ("adapter_config.json", r#"{"peft_type": "LORA"}"#),
                ("adapter_model.safetensors.index.json", "{}"),
            ],
        ),
        files(
            "tensors by another name",
            &["is missing", "model.safetensors has another name"],
            &[("adapter_config.json", r#"{"peft_type": "LORA"}"#), ("model.safetensors", "")],
        ),
    ]
}

fn others() -> Vec<Case> {
    vec![
        files(
            "MLX's adapter",
            &["MLX adapter", "mlx_lm.fuse"],
            &[
                ("adapter_config.json", r#"{"fine_tune_type": "lora", "lora_parameters": {}}"#),
                ("adapters.safetensors", ""),
            ],
        ),
        files("MLX's adapter: no config", &["MLX adapter"], &[("adapters.npz", "")]),
        disk("MLX's adapter: tensors renamed", &["MLX adapter"], |dir| {
            good(dir);
            fs::write(dir.join("adapter_config.json"), r#"{"fine_tune_type": "lora"}"#).unwrap();
        }),
        files("a GGUF adapter", &[NONE, "GGUF", "peft adapter"], &[("Lora-F16.GGUF", "GGUF")]),
        files(
            "mistral-finetune's adapter",
            &[NONE, "lora.safetensors is what a trainer", "convert"],
            &[("lora.safetensors", ""), ("params.json", "{}")],
        ),
        files(
            "diffusers' adapter",
            &[NONE, "diffusers"],
            &[("pytorch_lora_weights.safetensors", "")],
        ),
        files(
            "kohya's adapter",
            &[NONE, "style_v2.safetensors is a tensor file", "kohya"],
            &[("style_v2.safetensors", "")],
        ),
    ]
}
