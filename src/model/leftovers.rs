//! Tensors that a config tells nothing of, and tensors that it tells of and are not there.

use std::collections::HashSet;

use super::config::ModelConfig;
use super::error::ModelError;
use super::weights::Weights;
use crate::site::ModuleMap;

/// Heads that trainers put beside the language model's; generation never uses them.
const OTHER_HEADS: &str = "v_head.";

/// transformers drops with a warning what it does not expect. Here it must be known to change
/// nothing, or is refused.
///
/// # Errors
/// [`ModelError`] with the name of a tensor that may matter.
pub fn check(
    weights: &Weights,
    expected: &HashSet<&str>,
    modules: &ModuleMap,
    config: &ModelConfig,
    notes: &mut Vec<String>,
) -> Result<(), ModelError> {
    let (mut biases, mut heads, mut rotary) = (Vec::new(), Vec::new(), Vec::new());
    for name in weights.names().into_iter().filter(|name| !expected.contains(name)) {
        let of = name.strip_suffix(".bias");
        let is_bias = of.is_some_and(|of| modules.iter().any(|(_, module)| module.name == of));
        if is_bias && weights.values(name)?.to_f32().iter().all(|x| *x == 0.0) {
            biases.push(name);
        } else if name.starts_with(OTHER_HEADS) {
            heads.push(name);
        } else if name.ends_with("rotary_emb.inv_freq") {
            if !is_rotation(&weights.values(name)?.to_f32(), config) {
                rotary.push(name);
            }
        } else if !(name == "lm_head.weight" && config.tied) {
            // That one is the embedding again: a tied head that differed is no longer tied here.
            return Err(ModelError::Weights(format!(
                "tensor '{name}' is not part of {}: serving without it would not be this model",
                config.architecture
            )));
        }
    }
    if let Some(first) = biases.first() {
        let count = biases.len();
        notes.push(format!(
            "{count} biases that config.json does not declare are all zeros and left out ({first})"
        ));
    }
    if !heads.is_empty() {
        notes.push(format!("not used for generation: {}", heads.join(", ")));
    }
    if let Some(first) = rotary.first() {
        notes.push(format!(
            "{first} has other rotary frequencies than config.json tells of, which are followed, \
             as in transformers"
        ));
    }
    Ok(())
}

/// Whether stored frequencies are those that are used; some are stored in 16 bits.
fn is_rotation(stored: &[f32], config: &ModelConfig) -> bool {
    let near = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs() <= 0.01 * b.abs();
    config.ropes.iter().any(|rope| {
        let used = rope.frequencies();
        used.len() == stored.len() && stored.iter().zip(&used).all(near)
    })
}

/// The likely reason that `missing` is not among `names`; begins with a separator.
pub fn why_missing(missing: &str, names: &[&str]) -> String {
    let any = |part: &str| names.iter().any(|name| name.contains(part));
    let last = "layers.0.self_attn.q_proj.weight";
    let prefix = names.iter().find_map(|name| name.strip_suffix(last));
    let merge = "merge the adapter with peft's merge_and_unload() and save again";
    if any(".base_layer.") {
        return format!("; it was saved with an adapter inside: {merge}");
    }
    if any("base_model.model.") && prefix.is_none() {
        return "; these are an adapter's tensors: give its base as the model and it by --adapter"
            .into();
    }
    if any("tok_embeddings.") || any("attention.wq.") {
        return "; the names are of their author's own format: convert the model to Hugging Face's"
            .into();
    }
    if any("blk.") || any("token_embd.") {
        return "; the names are GGUF's: give the Hugging Face model".into();
    }
    let reason = match prefix {
        Some(p) if p.starts_with("base_model.model.") => format!("a peft model: {merge}"),
        Some(p) if p.starts_with("module.") => "DataParallel: save model.module".into(),
        Some(p) if p.starts_with("_orig_mod.") => "torch.compile: save model._orig_mod".into(),
        Some(p) if p.contains("language_model.") => {
            "a model of several kinds of input: save its language model alone".into()
        }
        Some(p) if p != "model." => "something around the model: save the model itself".into(),
        _ if missing == "lm_head.weight" => {
            return "; if the head is the embedding, say \"tie_word_embeddings\": true in \
                    config.json"
                .into();
        }
        _ => return String::new(),
    };
    let prefix = prefix.unwrap_or_default();
    format!("; the names begin with '{prefix}', which is of {reason}")
}
