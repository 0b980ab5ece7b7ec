//! What form an answer must have: OpenAI's `response_format`, vLLM's `structured_outputs` and its
//! older fields, and those of GGUF's servers. Exactly one of them may ask for one.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::fields::Common;
use super::raw::Raw;
use crate::http::error::{RequestError, shown};
use crate::http::state::State;
use crate::json;
use crate::request::{Guide, Invalid};
use crate::structured::Form;
use crate::text::ServedText;

/// Characters of a schema's name, as OpenAI has it.
const NAME_CHARS_MAX: usize = 64;

/// A form, and the field that asks for it.
pub(in crate::http) type Asked = (&'static str, Form);

/// The form that a request asks for, if any.
///
/// # Errors
/// [`Invalid`] for a field of the wrong form, and for a second one.
pub(in crate::http) fn read(common: &mut Common) -> Result<Option<Asked>, Invalid> {
    let fields: [(&'static str, Option<Raw>, Reader); 8] = [
        ("response_format", common.response_format.take(), response_format),
        ("structured_outputs", common.structured_outputs.take(), structured_outputs),
        ("guided_json", common.guided_json.take(), |raw| schema(raw, false).map(Some)),
        ("guided_regex", common.guided_regex.take(), |raw| Ok(Some(Form::Regex(read_as(raw)?)))),
        ("guided_choice", common.guided_choice.take(), |raw| Ok(Some(Form::Choice(read_as(raw)?)))),
        ("guided_grammar", common.guided_grammar.take(), |raw| {
            Ok(Some(Form::Grammar(read_as(raw)?)))
        }),
        // An empty one asks for nothing there.
        ("grammar", common.grammar.take(), |raw| {
            let text: String = read_as(raw)?;
            Ok((!text.is_empty()).then_some(Form::Grammar(text)))
        }),
        ("json_schema", common.json_schema.take(), |raw| schema(raw, false).map(Some)),
    ];
    let mut asked: Option<Asked> = None;
    for (param, raw, read) in fields {
        let Some(Raw(raw)) = raw else { continue };
        let form = read(&raw);
        let form =
            form.map_err(|why| Invalid::value(param, format!("{param}: {}", shown(&why))))?;
        match (form, &asked) {
            (None, _) => {}
            (Some(_), Some((first, _))) => {
                let message = format!("an answer can have one form; send {first} or {param}");
                return Err(Invalid::value(param, message));
            }
            (Some(form), None) => asked = Some((param, form)),
        }
    }
    Ok(asked)
}

/// What follows the form; slow where it is new.
///
/// # Errors
/// [`RequestError::Invalid`] for a form that is broken, not supported, or too much.
pub(in crate::http) fn guide(
    state: &State,
    text: &Arc<ServedText>,
    common: &Common,
    asked: Option<Asked>,
) -> Result<Option<Box<dyn Guide>>, RequestError> {
    let Some((param, form)) = asked else { return Ok(None) };
    let ends = match common.ignore_eos {
        Some(true) => &[][..],
        _ => &text.eos_tokens,
    };
    let guide = state.forms.guide(&text.tokenizer, &form, ends);
    let guide = guide.map_err(|error| Invalid::value(param, format!("{param}: {error}")))?;
    Ok(Some(guide))
}

type Reader = fn(&RawValue) -> Result<Option<Form>, String>;

/// The fields of `response_format`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResponseFormat {
    r#type: String,
    json_schema: Option<Box<RawValue>>,
    /// Beside `json_object`, as several servers have it.
    schema: Option<Box<RawValue>>,
}

/// Its `json_schema`. The schema is followed whether `strict` or not.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonSchema {
    name: String,
    schema: Option<Box<RawValue>>,
    #[serde(rename = "strict")]
    _strict: Option<bool>,
    #[serde(rename = "description")]
    _description: Option<String>,
}

fn response_format(raw: &RawValue) -> Result<Option<Form>, String> {
    let ResponseFormat { r#type, json_schema, schema: beside } = read_as(raw)?;
    match (r#type.as_str(), json_schema, beside) {
        ("text", None, None) => Ok(None),
        ("json_object", None, None) => Ok(Some(Form::json_object(false))),
        ("json_object", None, Some(raw)) => schema(&raw, false).map(Some),
        ("json_schema", Some(raw), None) => {
            let JsonSchema { name, schema: raw, .. } =
                read_as(&raw).map_err(|why| format!("json_schema: {why}"))?;
            let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if !(1..=NAME_CHARS_MAX).contains(&name.len()) || !name.chars().all(is_plain) {
                return Err(format!(
                    "json_schema.name must be 1 to {NAME_CHARS_MAX} of a-z, A-Z, 0-9, _ and -, got \
                     {name:?}"
                ));
            }
            let raw = raw.ok_or("json_schema.schema must be given")?;
            schema(&raw, false).map(Some)
        }
        ("json_schema", None, _) => Err("json_schema must be given with this type".to_owned()),
        ("json_schema", Some(_), Some(_)) => {
            Err("schema belongs into json_schema with this type".to_owned())
        }
        ("text" | "json_object", ..) => {
            Err("type \"json_schema\" is what json_schema or schema belongs to".to_owned())
        }
        (other, ..) => {
            Err(format!("type must be \"text\", \"json_object\" or \"json_schema\", got {other:?}"))
        }
    }
}

/// The fields of vLLM's `structured_outputs`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StructuredOutputs {
    json: Option<Box<RawValue>>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    json_object: Option<bool>,
    disable_any_whitespace: Option<bool>,
    disable_additional_properties: Option<bool>,
    whitespace_pattern: Option<String>,
    structural_tag: Option<Box<RawValue>>,
}

fn structured_outputs(raw: &RawValue) -> Result<Option<Form>, String> {
    let asked: StructuredOutputs = read_as(raw)?;
    let not_built = [
        ("disable_additional_properties", asked.disable_additional_properties == Some(true)),
        ("whitespace_pattern", asked.whitespace_pattern.is_some()),
        ("structural_tag", asked.structural_tag.is_some()),
    ];
    if let Some((name, _)) = not_built.iter().find(|(_, is_asked)| *is_asked) {
        return Err(format!("{name} is not supported by this server; leave it out"));
    }
    let compact = asked.disable_any_whitespace == Some(true);
    let forms = [
        asked.json.map(|raw| schema(&raw, compact)).transpose()?,
        asked.regex.map(Form::Regex),
        asked.choice.map(Form::Choice),
        asked.grammar.map(Form::Grammar),
        (asked.json_object == Some(true)).then(|| Form::json_object(compact)),
    ];
    let mut forms = forms.into_iter().flatten();
    match (forms.next(), forms.next()) {
        (Some(form @ Form::Json { .. }), None) => Ok(Some(form)),
        (Some(_), None) if compact => {
            Err("disable_any_whitespace is of json and json_object only".to_owned())
        }
        (Some(form), None) => Ok(Some(form)),
        _ => Err("it must hold one of json, regex, choice, grammar and json_object".to_owned()),
    }
}

/// A schema, as JSON or as a string of JSON.
fn schema(raw: &RawValue, compact: bool) -> Result<Form, String> {
    let schema = match raw.get().starts_with('"') {
        true => read_as(raw)?,
        false => raw.get().to_owned(),
    };
    Ok(Form::Json { schema, compact })
}

fn read_as<T: DeserializeOwned>(raw: &RawValue) -> Result<T, String> {
    json::from_str(raw.get()).map_err(|error| error.to_string())
}
