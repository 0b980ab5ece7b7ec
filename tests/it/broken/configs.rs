//! `adapter_config.json` says what cannot be, what is not supported, or not enough.

use serde_json::json;

use super::{Case, config, edit, field};

const CONFIG: &str = "adapter_config.json";
const COUNT: &str = "'r' must be a whole number of at least 1, got";
const FINITE: &str = "'lora_alpha' must be a finite number, got";
const TARGETS: &str = "'target_modules'";
const SET: &str = "adapter_config.json sets";

pub fn cases() -> Vec<Case> {
    [
        texts(),
        kinds(),
        numbers(),
        target_patterns(),
        contradictions(),
        modules(),
        narrowed(),
        features(),
        patterns(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn texts() -> Vec<Case> {
    vec![
        config("a config of no bytes", &[CONFIG, "JSON", "EOF"], |_| Vec::new()),
        config("a config cut short", &[CONFIG, "JSON"], |text| text[..text.len() / 2].into()),
        config("a config that is a list", &[CONFIG, "an object"], |_| b"[\"LORA\"]".to_vec()),
        config("a config that is not UTF-8", &[CONFIG, "UTF-8 from byte 1"], |text| {
            let mut bytes = text.into_bytes();
            bytes[1] = 0xff;
            bytes
        }),
        config("a config with a byte order mark", &[CONFIG, "JSON", "column 1"], |text| {
            format!("\u{feff}{text}").into_bytes()
        }),
        config("a field twice", &[CONFIG, "'r' is there twice"], |text| {
            text.replacen('{', r#"{"r": 8, "#, 1).into_bytes()
        }),
        config("a config nested too deep", &[CONFIG, "recursion"], |text| {
            text.replacen('{', &format!(r#"{{"x": {}"#, "[".repeat(5000)), 1).into_bytes()
        }),
        config("a number beyond any float", &[CONFIG, "out of range"], |text| {
            text.replacen(r#""lora_alpha":16"#, r#""lora_alpha":1e999"#, 1).into_bytes()
        }),
        config("a number that is NaN", &[CONFIG, "JSON"], |text| {
            text.replacen(r#""lora_alpha":16"#, r#""lora_alpha":NaN"#, 1).into_bytes()
        }),
    ]
}

fn kinds() -> Vec<Case> {
    vec![
        edit("no peft_type", "lora_qv", &["no 'peft_type'"], |d| d.unset("peft_type")),
        field(
            "peft_type unknown",
            &["'XLORA'", "LORA", "MOS", "SSF", "IA3"],
            "peft_type",
            r#""XLORA""#,
        ),
        field("peft_type a number", &["'peft_type' must be a string, got 7"], "peft_type", "7"),
        field(
            "peft_type of another method: SSF",
            &["ssf_scale' is missing"],
            "peft_type",
            r#""SSF""#,
        ),
        edit("peft_type of another method: LORA", "ia3", &["lora_A.weight' is missing"], |d| {
            d.set("peft_type", "LORA");
            d.set("r", 3);
        }),
        edit("peft_type of another method: IA3", "lora_all_rs", &["ia3_l' is missing"], |d| {
            d.set("peft_type", "IA3");
        }),
        edit(
            "peft_type of another method: MOS",
            "lora_qv",
            &["mos.q_proj.index_A' is missing"],
            |d| {
                d.set("peft_type", "MOS");
            },
        ),
        field(
            "use_dora a word",
            &["'use_dora' must be true or false, got \"yes\""],
            "use_dora",
            r#""yes""#,
        ),
        field("pissa", &["'init_lora_weights' is 'pissa'"], "init_lora_weights", r#""pissa""#),
        field(
            "pissa by iteration",
            &["'init_lora_weights' is 'pissa_niter_16'"],
            "init_lora_weights",
            r#""pissa_niter_16""#,
        ),
        field("olora", &["'init_lora_weights' is 'olora'"], "init_lora_weights", r#""olora""#),
        field("loftq", &["'init_lora_weights' is 'loftq'"], "init_lora_weights", r#""loftq""#),
        field("corda", &["'init_lora_weights' is 'corda'"], "init_lora_weights", r#""corda""#),
        field(
            "lora_ga",
            &["'init_lora_weights' is 'lora_ga'"],
            "init_lora_weights",
            r#""lora_ga""#,
        ),
        field(
            "an initialisation nobody knows",
            &["'init_lora_weights' must be", "\"spiral\""],
            "init_lora_weights",
            r#""spiral""#,
        ),
    ]
}

fn numbers() -> Vec<Case> {
    vec![
        field("r as a string", &[COUNT, "\"8\""], "r", r#""8""#),
        field("r of 0", &[COUNT, "got 0"], "r", "0"),
        field("r below 0", &[COUNT, "got -8"], "r", "-8"),
        field("r with a fraction", &[COUNT, "got 8.5"], "r", "8.5"),
        field("r as a float", &[COUNT, "got 8.0"], "r", "8.0"),
        field("r null", &[COUNT, "got null"], "r", "null"),
        field("r as a list", &[COUNT, "got [8]"], "r", "[8]"),
        field(
            "r of 10^9",
            &["q_proj.lora_A.weight", "[8, 64]", "[1000000000, 64]"],
            "r",
            "1000000000",
        ),
        field("r of 2^64 - 1", &["[18446744073709551615, 64]"], "r", "18446744073709551615"),
        field("r one too many", &["[8, 64]; expected [9, 64] (A)", "'r' is 9"], "r", "9"),
        field("alpha null", &[FINITE, "got null"], "lora_alpha", "null"),
        field("alpha as a string", &[FINITE, "\"16\""], "lora_alpha", r#""16""#),
        field("alpha NaN in quotes", &[FINITE, "\"NaN\""], "lora_alpha", r#""NaN""#),
        field("alpha true", &[FINITE, "got true"], "lora_alpha", "true"),
        field(
            "alpha beyond what fits",
            &["model.layers.0.self_attn.q_proj", "f32"],
            "lora_alpha",
            "1e300",
        ),
        field("use_rslora a number", &["'use_rslora' must be true or false"], "use_rslora", "1"),
        field("lora_bias a word", &["'lora_bias' must be true or false"], "lora_bias", r#""none""#),
        field("bias true", &["'bias' must be", "got true"], "bias", "true"),
        field(
            "bias of an unknown kind",
            &["'bias' must be none, all or lora_only"],
            "bias",
            r#""some""#,
        ),
    ]
}

/// The config says one thing and the tensors another: a message names both.
fn contradictions() -> Vec<Case> {
    vec![
        edit(
            "rank_pattern against a tensor",
            "lora_qv",
            &["q_proj.lora_A.weight' has shape [8, 64]; expected [4, 64]", "'rank_pattern' is 4"],
            |d| d.set("rank_pattern", json!({ "q_proj": 4 })),
        ),
        edit(
            "a target that the model lacks",
            "lora_qv",
            &["c_attn.lora_A.weight' is not used", "the base model has no such module"],
            |d| {
                d.rename(|name| name.replace("v_proj", "c_attn"));
                d.set("target_modules", json!(["q_proj", "c_attn"]));
            },
        ),
        edit(
            "use_dora without magnitudes",
            "lora_qv",
            &["lora_magnitude_vector' is missing", "'use_dora' is true"],
            |d| d.set("use_dora", true),
        ),
        edit(
            "lora_bias without its tensors",
            "lora_qv",
            &["lora_B.bias' is missing", "'lora_bias' is true"],
            |d| d.set("lora_bias", true),
        ),
        edit(
            "modules_to_save without its tensors",
            "lora_qv",
            &["model.norm.weight' is missing", "'modules_to_save' names the module"],
            |d| d.set("modules_to_save", json!(["model.norm"])),
        ),
        edit(
            "names of kohya's trainers",
            "lora_qv",
            &["lora_unet_", "is not used", "kohya's or diffusers'"],
            |d| {
                d.rename(|name| name.replace("base_model.model.model.layers.0", "lora_unet_down"));
                d.set("layers_to_transform", json!([1, 2]));
            },
        ),
    ]
}

fn target_patterns() -> Vec<Case> {
    vec![
        field(
            "targets by a broken pattern",
            &[TARGETS, "'(q_proj'", "unclosed group"],
            "target_modules",
            r#""(q_proj""#,
        ),
        field(
            "targets by a condition",
            &[TARGETS, "'(?(1)q_pro' is not supported"],
            "target_modules",
            r#""(.*)(?(1)q_proj|x)""#,
        ),
        field(
            "targets by a group within itself",
            &[TARGETS, "'\\1' refers to a group that is still open"],
            "target_modules",
            r#"".*(q|v\\1)_proj""#,
        ),
        field(
            "targets by a pattern that takes for ever",
            &[TARGETS, "more than 100000 steps back on the name model.embed_tokens"],
            "target_modules",
            r#""(?=((?:.+)+))(?:(?!z).+)+Z""#,
        ),
        field(
            "targets by a pattern too big",
            &[TARGETS, "size limit"],
            "target_modules",
            r#""(.{1000}){1000}""#,
        ),
    ]
}

fn modules() -> Vec<Case> {
    vec![
        field(
            "targets match nothing",
            &[TARGETS, "matches no module"],
            "target_modules",
            r#"["c_attn"]"#,
        ),
        field(
            "targets match nothing: a pattern",
            &[TARGETS, "matches no module"],
            "target_modules",
            r#"".*c_attn""#,
        ),
        field("targets empty", &["'target_modules' is empty"], "target_modules", "[]"),
        field(
            "targets of numbers",
            &[TARGETS, "a list of strings, got [1,2]"],
            "target_modules",
            "[1, 2]",
        ),
        field(
            "targets an object",
            &[TARGETS, "a list of strings"],
            "target_modules",
            r#"{"q_proj": 1}"#,
        ),
        edit("targets a norm", "lora_qv", &["model.layers.0.input_layernorm, a norm"], |d| {
            d.set("target_modules", json!(["q_proj", "v_proj", "input_layernorm"]));
        }),
        edit(
            "targets too many",
            "lora_qv",
            &[
                "k_proj.lora_A.weight' is missing",
                "names model.layers.0.self_attn.k_proj, and 'r' is 8",
            ],
            |d| {
                d.set("target_modules", json!(["q_proj", "v_proj", "k_proj"]));
            },
        ),
        edit(
            "targets too few",
            "lora_qv",
            &["v_proj.lora_A.weight' is not used", "'target_modules' does not name it"],
            |d| {
                d.set("target_modules", json!(["q_proj"]));
            },
        ),
        edit("targets excluded", "lora_qv", &["q_proj.lora_A.weight' is not used"], |d| {
            d.set("exclude_modules", json!(["q_proj"]));
        }),
    ]
}

fn narrowed() -> Vec<Case> {
    vec![
        field(
            "layers given for a pattern",
            &["'layers_to_transform'", "pattern"],
            "layers_to_transform",
            "[0, 1]",
        )
        .with(|d| d.set("target_modules", ".*(q|v)_proj")),
        field(
            "targets match nothing: layers",
            &[TARGETS, "matches no module"],
            "layers_to_transform",
            "[7]",
        ),
        field(
            "layers below 0",
            &["'layers_to_transform' must be whole numbers"],
            "layers_to_transform",
            "[-1]",
        ),
        field(
            "layers fewer than the file's",
            &["layers.1.self_attn.q_proj.lora_A"],
            "layers_to_transform",
            "0",
        ),
        field(
            "saved modules of no name",
            &["'modules_to_save'", "\"\""],
            "modules_to_save",
            r#"[""]"#,
        ),
        field(
            "saved modules match nothing",
            &["'modules_to_save'", "\"score\""],
            "modules_to_save",
            r#"["score"]"#,
        ),
        field(
            "saved modules not in the file",
            &["lm_head.weight' is missing", "[512, 64]"],
            "modules_to_save",
            r#"["lm_head"]"#,
        ),
        field(
            "saved modules a number",
            &["'modules_to_save' must be a list"],
            "modules_to_save",
            "3",
        ),
        field(
            "excluded by a broken pattern",
            &["'exclude_modules'", "'['"],
            "exclude_modules",
            r#""[""#,
        ),
    ]
}

fn features() -> Vec<Case> {
    vec![
        field(
            "layers replicated",
            &[SET, "'layer_replication'", "[[0,2],[1,3]]"],
            "layer_replication",
            "[[0,2],[1,3]]",
        ),
        field("QALoRA", &[SET, "'use_qalora' to true"], "use_qalora", "true"),
        field("BD-LoRA", &[SET, "'use_bdlora'"], "use_bdlora", r#"{"nblocks": 2}"#),
        field("KaSA", &[SET, "'kasa_config'"], "kasa_config", r#"{"beta": 0.1}"#),
        field("Arrow", &[SET, "'arrow_config'"], "arrow_config", r#"{"top_k": 3}"#),
        field("MonteCLoRA", &[SET, "'monteclora_config'"], "monteclora_config", r#"{"n": 4}"#),
        field("Megatron", &[SET, "'megatron_config'"], "megatron_config", r#"{"a": 1}"#),
        field(
            "aLoRA",
            &["'alora_invocation_tokens'", "[5,6]"],
            "alora_invocation_tokens",
            "[5, 6]",
        ),
        field(
            "aLoRA without tokens",
            &["'alora_invocation_tokens'", "[]"],
            "alora_invocation_tokens",
            "[]",
        ),
        field(
            "trainable tokens",
            &[SET, "'trainable_token_indices'"],
            "trainable_token_indices",
            "[1, 2]",
        ),
        field(
            "expert parameters",
            &[SET, "'target_parameters'"],
            "target_parameters",
            r#"["a.b"]"#,
        ),
        field(
            "a field nobody knows",
            &[SET, "'zeta_gain' to 1.5", "--allow-unknown"],
            "zeta_gain",
            "1.5",
        ),
        field(
            "a field nobody knows, an object",
            &[SET, "'theta'", r#"{"a":0}"#],
            "theta",
            r#"{"a": 0}"#,
        ),
        edit("MoS with rsLoRA", "mos_compact", &[SET, "'use_rslora'"], |d| {
            d.set("use_rslora", true)
        }),
        edit("MoS with DoRA", "mos_official", &[SET, "'use_dora'"], |d| d.set("use_dora", true)),
        edit("MoS of another mode", "mos_compact", &["'ft_mode'", "\"vera\""], |d| {
            d.set("ft_mode", "vera");
        }),
        edit("SSF with a rank", "ssf", &[SET, "'r' to 8"], |d| d.set("r", 8)),
        edit("IA3 with alpha", "ia3", &[SET, "'lora_alpha' to 16"], |d| d.set("lora_alpha", 16)),
        edit("SSF with trained biases", "ssf", &["'bias'", "\"all\""], |d| d.set("bias", "all")),
    ]
}

fn patterns() -> Vec<Case> {
    vec![
        field(
            "rank pattern a list",
            &["'rank_pattern' must be an object of numbers"],
            "rank_pattern",
            "[4]",
        ),
        field(
            "rank pattern a list: of words",
            &["'rank_pattern' must be an object"],
            "rank_pattern",
            r#"{"q_proj": "4"}"#,
        ),
        field(
            "rank pattern of 0",
            &["'rank_pattern'", "got 0"],
            "rank_pattern",
            r#"{"q_proj": 0}"#,
        ),
        field(
            "rank pattern with a fraction",
            &["'rank_pattern'", "2.5"],
            "rank_pattern",
            r#"{"q_proj": 2.5}"#,
        ),
        field(
            "rank pattern of another rank",
            &["q_proj", "[8, 64]; expected [3, 64]"],
            "rank_pattern",
            r#"{"q_proj": 3}"#,
        ),
        field(
            "rank pattern broken",
            &["'rank_pattern'", "'q_proj)'"],
            "rank_pattern",
            r#"{"q_proj)": 8}"#,
        ),
        field(
            "alpha pattern null",
            &["'alpha_pattern' must be an object of numbers"],
            "alpha_pattern",
            r#"{"q_proj": null}"#,
        ),
        field(
            "alpha pattern broken",
            &["'alpha_pattern'", "'*q'"],
            "alpha_pattern",
            r#"{"*q": 8}"#,
        ),
        field("layers pattern broken", &["'layers_pattern'", "'('"], "layers_pattern", r#""(""#),
    ]
}
