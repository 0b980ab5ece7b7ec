//! Which family a `config.json` is of. transformers goes by `model_type`, vLLM by `architectures`:
//! both are read, and must not tell of two families.

use serde_json::Value;

use super::error::ModelError;
use super::fields::{Fields, bad};

/// Ends the name of every class that is served.
const SERVED: &str = "ForCausalLM";

/// transformers' other classes of a family: the same decoder, with another head or none.
const COUSINS: &[&str] = &[
    "Model",
    "PreTrainedModel",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
];

/// The name in `known` of the class to serve.
///
/// # Errors
/// When the fields are absent, of the wrong form, or name what is not served or two families.
pub fn architecture<'a>(
    fields: &Fields<'_>,
    known: &[&'a str],
    notes: &mut Vec<String>,
) -> Result<&'a str, ModelError> {
    let list = fields.get("architectures");
    let named = match list {
        Some(Value::Array(names)) if names.len() < 2 => names.first(),
        None => None,
        Some(_) => return Err(bad("architectures", "a list with one name", list)),
    };
    let named = match named {
        Some(Value::String(name)) => Some(name.as_str()),
        None => None,
        Some(_) => return Err(bad("architectures", "a list with one name", list)),
    };
    let kind = match fields.get("model_type") {
        Some(Value::String(kind)) => Some(kind.as_str()),
        None => None,
        other => return Err(bad("model_type", "a name", other)),
    };
    let Some(kind) = kind else {
        let Some(named) = named else {
            return Err(bad(
                "architectures",
                "a list with one name, as 'model_type' is absent",
                list,
            ));
        };
        let found = known.iter().find(|name| **name == named);
        return found.copied().ok_or_else(|| unknown(named, "absent", known));
    };
    let by_kind = known.iter().find(|name| stem(name).eq_ignore_ascii_case(kind));
    match (by_kind, named) {
        (Some(served), None) => Ok(served),
        (Some(served), Some(named)) if *served == named => Ok(served),
        (Some(served), Some(named)) if is_cousin(named, stem(served)) => {
            notes.push(format!("'architectures' says {named}; it is served as {served}"));
            Ok(served)
        }
        (Some(served), Some(named)) if known.contains(&named) => Err(ModelError::Config(format!(
            "'architectures' says {named} and 'model_type' '{kind}', which is {served}: make both \
             name the model that was trained"
        ))),
        (_, named) => Err(unknown(named.unwrap_or("not given"), kind, known)),
    }
}

/// `LlamaForCausalLM` → `Llama`.
fn stem(name: &str) -> &str {
    name.strip_suffix(SERVED).unwrap_or(name)
}

fn is_cousin(name: &str, stem: &str) -> bool {
    name.strip_prefix(stem).is_some_and(|rest| COUSINS.contains(&rest))
}

fn unknown(named: &str, kind: &str, known: &[&str]) -> ModelError {
    let known = known.join(", ");
    ModelError::Unsupported(format!(
        "architecture '{named}' of 'architectures', 'model_type' {kind} (supported: {known})"
    ))
}
