//! Fields of a `config.json` that belong to other models: those that a library would follow are
//! refused, those that none reads for a served family are named.

use serde_json::Value;

use super::error::ModelError;
use super::fields::{Fields, bad, quoted};

/// What never changes the forward pass of a served family: descriptions, training, generation's
/// special tokens (which the text files tell of), and switches of how a library computes.
const INERT: &[&str] = &[
    "attention_dropout",
    "attn_implementation",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "embd_pdrop",
    "hidden_dropout",
    "resid_pdrop",
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "initializer_range",
    "keys_to_ignore_at_inference",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    // Splits products over devices; the sum is the same.
    "pretraining_tp",
    "return_dict",
    "task_specific_params",
    "tokenizer_class",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

/// Why nothing but the text of a plain float checkpoint is served.
const REFUSED: &[(&str, &str)] = &[
    ("text_config", "a config within the config ('text_config'): take the text model alone"),
    ("per_layer_config", "layers of different shapes ('per_layer_config')"),
    ("transformers_weights", "weights of another name ('transformers_weights')"),
];

/// Refuses what is not served.
///
/// # Errors
/// [`ModelError`] naming the field.
pub fn check(fields: &Fields<'_>) -> Result<(), ModelError> {
    for key in ["quantization_config", "compression_config", "quantization"] {
        if let Some(quantised) = fields.get(key) {
            let method = quantised.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            return Err(ModelError::Unsupported(format!(
                "quantised weights ('{key}' with method '{method}'); use the f32, f16 or bf16 \
                 checkpoint"
            )));
        }
    }
    let says_something = |value: &Value| match value {
        Value::Bool(said) => *said,
        Value::Object(object) => !object.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    };
    let mut refused = REFUSED.iter();
    if let Some((_, why)) = refused.find(|(key, _)| fields.get(key).is_some_and(says_something)) {
        return Err(ModelError::Unsupported((*why).into()));
    }
    if !fields.flag("is_causal", true)? {
        return Err(bad(
            "is_causal",
            "true: tokens do not see later ones",
            fields.get("is_causal"),
        ));
    }
    match fields.raw("hidden_act") {
        None => Ok(()),
        Some(Value::String(act)) if act == "silu" || act == "swish" => Ok(()),
        Some(other) => {
            let found = other.to_string().replace('"', "'");
            let text = format!("hidden_act {found} (supported: 'silu')");
            Err(ModelError::Unsupported(text))
        }
    }
}

/// Names what nobody has read, once everything is: a cousin's field that a conversion left behind,
/// or one that changes this model in a program that knows it.
pub fn unread(fields: &Fields<'_>, notes: &mut Vec<String>) {
    let names = fields.unread(INERT);
    if !names.is_empty() {
        notes.push(format!("not read for this kind of model: {}", quoted(&names)));
    }
}
