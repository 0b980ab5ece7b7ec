//! `config.json` in both spellings, and what of it is refused.

use serde_json::{Value, json};
use tessera::dtype::Dtype;
use tessera::model::{ModelConfig, ModelError, Rope, RopeScaling};

fn config(architecture: &str, more: Value) -> Value {
    let mut config = json!({"architectures": [architecture], "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn parse(architecture: &str, more: Value) -> Result<ModelConfig, ModelError> {
    ModelConfig::parse(config(architecture, more).to_string().as_bytes())
}

#[test]
fn transformers_4_and_5_spell_the_same_model() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let mut parameters = llama3.clone();
    parameters["rope_theta"] = json!(500_000.0);
    let old = json!({"rope_theta": 500_000.0, "rope_scaling": llama3, "torch_dtype": "bfloat16"});
    let new = json!({"rope_parameters": parameters, "dtype": "bfloat16"});
    let old = parse("LlamaForCausalLM", old).unwrap();
    assert_eq!(old, parse("LlamaForCausalLM", new).unwrap());
    assert_eq!(old.dtype, Some(Dtype::BF16));
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 };
    assert_eq!(old.ropes, [Rope { theta: 500_000.0, scaling: llama3, dims: 16 }]);

    // `type` is what rope_type was called before.
    let linear = json!({"rope_scaling": {"type": "linear", "factor": 2.0}});
    let linear = parse("LlamaForCausalLM", linear).unwrap();
    assert_eq!(linear.ropes[0].scaling, RopeScaling::Linear { factor: 2.0 });
    let plain = parse("LlamaForCausalLM", json!({"rope_scaling": null})).unwrap();
    let halved = plain.ropes[0].frequencies().iter().map(|f| f / 2.0).collect::<Vec<_>>();
    assert_eq!(linear.ropes[0].frequencies(), halved);
    let auto = parse("LlamaForCausalLM", json!({"torch_dtype": "auto"})).unwrap();
    assert_eq!((auto.dtype, auto.notes), (None, Vec::new()), "the weights say");
    let full = parse("LlamaForCausalLM", json!({"dtype": "torch.bfloat16"})).unwrap();
    assert_eq!(full.dtype, Some(Dtype::BF16));
}

#[test]
fn sliding_windows_are_where_each_family_puts_them() {
    let windows = |architecture, more| parse(architecture, more).unwrap().family.windows;
    let all = vec![Some(4096); 3];
    assert_eq!(windows("MistralForCausalLM", json!({})), all, "transformers' default");
    assert_eq!(windows("MistralForCausalLM", json!({"sliding_window": null})), vec![None; 3]);
    assert_eq!(windows("MistralForCausalLM", json!({"sliding_window": 8})), vec![Some(8); 3]);
    let qwen = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 2});
    assert_eq!(windows("Qwen2ForCausalLM", qwen), vec![None, None, Some(8)]);
    let off = json!({"use_sliding_window": false, "sliding_window": 8, "max_window_layers": 0});
    assert_eq!(windows("Qwen3ForCausalLM", off), vec![None; 3]);
    let typed = json!({"use_sliding_window": true, "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"]});
    assert_eq!(windows("Qwen2ForCausalLM", typed), vec![None, Some(8), None]);
    assert_eq!(windows("LlamaForCausalLM", json!({"sliding_window": 8})), vec![None; 3]);
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    let cases = [
        ("MambaForCausalLM", json!({}), "MambaForCausalLM"),
        ("LlamaForCausalLM", json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), "yarn"),
        ("LlamaForCausalLM", json!({"rope_scaling": {"factor": 4.0}}), "rope_type"),
        ("LlamaForCausalLM", json!({"rope_parameters": 3}), "rope_parameters"),
        ("LlamaForCausalLM", json!({"hidden_act": "gelu"}), "gelu"),
        ("LlamaForCausalLM", json!({"quantization_config": {"quant_method": "awq"}}), "awq"),
        ("LlamaForCausalLM", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (
            "LlamaForCausalLM",
            json!({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}),
            "full_attention",
        ),
        ("LlamaForCausalLM", json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        ("LlamaForCausalLM", json!({"head_dim": 15}), "head_dim"),
        ("LlamaForCausalLM", json!({"hidden_size": "64"}), "hidden_size"),
        ("LlamaForCausalLM", json!({"num_hidden_layers": 0}), "num_hidden_layers"),
        ("LlamaForCausalLM", json!({"torch_dtype": "int8"}), "torch_dtype"),
        ("LlamaForCausalLM", json!({"rms_norm_eps": -1}), "rms_norm_eps"),
        ("Qwen2ForCausalLM", json!({"layer_types": vec!["linear_attention"; 3]}), "linear"),
        ("Qwen2ForCausalLM", json!({"layer_types": ["full_attention"]}), "layer_types"),
        ("Qwen2ForCausalLM", json!({"max_window_layers": -1}), "max_window_layers"),
        ("LlamaForCausalLM", json!({"architectures": [], "model_type": 3}), "model_type"),
        ("LlamaForCausalLM", json!({"architectures": "LlamaForCausalLM"}), "architectures"),
        ("LlamaForCausalLM", json!({"model_type": "qwen2"}), "'architectures' says"),
        ("LlamaForCausalLM", json!({"model_type": "llama4"}), "llama4"),
        ("LlamaForCausalLM", json!({"is_causal": false}), "is_causal"),
        ("LlamaForCausalLM", json!({"text_config": {"hidden_size": 4}}), "text_config"),
        ("LlamaForCausalLM", json!({"per_layer_config": [{}]}), "per_layer_config"),
        ("LlamaForCausalLM", json!({"transformers_weights": "a.safetensors"}), "transformers_we"),
        ("LlamaForCausalLM", json!({"quantization": {"bits": 4}}), "'quantization'"),
        ("LlamaForCausalLM", json!({"architectures": ["LlamaModel", "X"]}), "architectures"),
        ("LlamaForCausalLM", json!({"hidden_act": null}), "hidden_act"),
        ("LlamaForCausalLM", json!({"rope_theta": null}), "rope_theta"),
        ("LlamaForCausalLM", json!({"rms_norm_eps": null}), "rms_norm_eps"),
        ("LlamaForCausalLM", json!({"rope_scaling": {"type": "linear"}}), "factor"),
        ("LlamaForCausalLM", json!({"rope_scaling": "linear"}), "rope_scaling"),
        ("Qwen3ForCausalLM", json!({"head_dim": null}), "head_dim"),
    ];
    for (architecture, more, named) in cases {
        let error = parse(architecture, more.clone()).expect_err(named).to_string();
        assert!(error.contains(named), "{more}: {error}");
    }
    assert!(ModelConfig::parse(b"[]").is_err());
    assert!(ModelConfig::parse(b"{").is_err());
}
