//! The functions that a chat's model may call, must call or must not call, as OpenAI's requests say
//! it, in their newer form and in the older one.

use std::sync::Arc;

use serde_json::{Value, json};

use super::called::{CallTerms, special_marks};
use crate::http::error::{RequestError, shown};
use crate::http::request::fields::ChatFields;
use crate::http::request::forms::Asked;
use crate::http::request::messages::Objects;
use crate::http::request::raw::Raw;
use crate::http::settings::ToolCallParser;
use crate::request::Invalid;
use crate::structured::{CallsForm, Form, Function};
use crate::text::ServedText;

/// Functions of one request, as OpenAI has it. More are answered 400.
pub(in crate::http) const TOOLS_MAX: usize = 128;
/// Characters of a function's name, likewise.
const NAME_CHARS_MAX: usize = 64;

/// Which calls an answer may hold.
pub(in crate::http) struct Tools {
    /// The functions that may be called.
    functions: Vec<Offered>,
    choice: Choice,
    /// Some of those that were given may not be called.
    is_restricted: bool,
    /// At most one is called.
    is_single: bool,
    /// They were asked for by OpenAI's older fields, and are answered so.
    pub is_old: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    Auto,
    Required,
    Named,
}

struct Offered {
    name: String,
    parameters: Value,
    is_strict: bool,
}

/// The names that a field takes, as messages show them.
struct Fields {
    tools: &'static str,
    choice: &'static str,
}

const NEW: Fields = Fields { tools: "tools", choice: "tool_choice" };
const OLD: Fields = Fields { tools: "functions", choice: "function_call" };

/// Takes the fields of tools out of a request: what may be called, and what the template shows of
/// it. Where nothing may be called, nothing is shown.
///
/// # Errors
/// [`RequestError`], with the field at fault.
pub(in crate::http) fn read(
    own: &mut ChatFields,
) -> Result<Option<(Tools, Vec<Value>)>, RequestError> {
    let new = (own.tools.take(), own.tool_choice.take());
    let old = (own.functions.take(), own.function_call.take());
    let is_single = own.parallel_tool_calls.take() == Some(false);
    let is_empty = |tools: &Option<Objects>| tools.as_ref().is_none_or(|all| all.0.is_empty());
    let is_old = is_empty(&new.0) && new.1.is_none();
    let has_old = !is_empty(&old.0) || old.1.is_some();
    if !is_old && has_old {
        let message = "functions and function_call are older names of tools and tool_choice; \
                       leave them out";
        return Err(Invalid::value("functions", message).into());
    }
    let ((tools, choice), fields) = if is_old { (old, OLD) } else { (new, NEW) };
    let mut all: Vec<Value> = tools.map_or_else(Vec::new, |Objects(all)| all);
    if all.len() > TOOLS_MAX {
        let message = format!("at most {TOOLS_MAX} functions, got {}", all.len());
        return Err(Invalid::value(fields.tools, message).into());
    }
    if is_old {
        all.iter_mut().for_each(|f| *f = json!({"type": "function", "function": f.take()}));
    }
    let mut functions = Vec::new();
    for (i, tool) in all.iter_mut().enumerate() {
        let function = offered(tool, i, &fields)?;
        if functions.iter().any(|other: &Offered| other.name == function.name) {
            let message = format!("{}: the name '{}' is given twice", fields.tools, function.name);
            return Err(Invalid::value(fields.tools, message).into());
        }
        functions.push(function);
    }
    let given = functions.len();
    let choice = chosen(choice, &mut functions, &mut all, &fields).map_err(|why| {
        Invalid::value(fields.choice, format!("{}: {}", fields.choice, shown(&why)))
    })?;
    let Some(choice) = choice else { return Ok(None) };
    let is_single = is_single || is_old || choice == Choice::Named;
    let is_restricted = functions.len() < given;
    Ok(Some((Tools { functions, choice, is_restricted, is_single, is_old }, all)))
}

/// A function, left in the form that templates show.
fn offered(tool: &mut Value, i: usize, fields: &Fields) -> Result<Offered, RequestError> {
    let at = fields.tools;
    let invalid = |what: &str| Invalid::value(at, format!("{at}[{i}] {what}"));
    match tool.get("type") {
        Some(Value::String(kind)) if kind == "function" => {}
        Some(Value::String(kind)) => {
            let message = format!(
                "{at}[{i}]: tools of type '{}' are not supported by this server; send functions",
                shown(kind)
            );
            return Err(RequestError::Unsupported { param: at.to_owned(), message });
        }
        _ => return Err(invalid("must have a type, \"function\"").into()),
    }
    let Some(Value::Object(function)) = tool.get_mut("function") else {
        return Err(invalid("must have a function, an object").into());
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let name = match function.get("name") {
        Some(Value::String(name))
            if (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(is_plain) =>
        {
            name.clone()
        }
        _ => {
            let what = format!(
                "must have a function with a name, 1 to {NAME_CHARS_MAX} of a-z, A-Z, 0-9, _, - \
                 and ."
            );
            return Err(invalid(&what).into());
        }
    };
    if !matches!(function.get("description"), None | Some(Value::Null | Value::String(_))) {
        return Err(invalid("must have a description that is a string").into());
    }
    // What models are trained on has no such field.
    let is_strict = match function.remove("strict") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(is_strict)) => is_strict,
        Some(_) => return Err(invalid("must have a strict that is true or false").into()),
    };
    let mut parameters = match function.get("parameters") {
        Some(Value::Object(parameters)) => Value::Object(parameters.clone()),
        None | Some(Value::Null) => {
            let none = json!({"type": "object", "properties": {}});
            function.insert("parameters".to_owned(), none.clone());
            none
        }
        Some(_) => return Err(invalid("must have parameters that are a JSON schema").into()),
    };
    match parameters.get("type") {
        Some(Value::String(kind)) if kind == "object" => {}
        None | Some(Value::Null) => parameters["type"] = "object".into(),
        Some(_) => {
            return Err(invalid("must have parameters of type \"object\"").into());
        }
    }
    Ok(Offered { name, parameters, is_strict })
}

/// What may be called: `functions` keeps those that may, `all` those that are shown.
fn chosen(
    choice: Option<Raw>,
    functions: &mut Vec<Offered>,
    all: &mut Vec<Value>,
    fields: &Fields,
) -> Result<Option<Choice>, String> {
    let choice: Value = match choice {
        None => "auto".into(),
        Some(Raw(raw)) => serde_json::from_str(raw.get()).map_err(|error| error.to_string())?,
    };
    let kind = choice.get("type").and_then(Value::as_str).unwrap_or("function");
    let mode = match (&choice, kind) {
        (Value::String(word), _) => word.as_str(),
        (Value::Object(_), "allowed_tools") => allow(&choice, functions, all, fields)?,
        (Value::Object(_), "function") => {
            let name = named(&choice).ok_or("an object must hold the name of a function")?;
            check_known(name, functions, fields)?;
            functions.retain(|function| function.name == name);
            return Ok(Some(Choice::Named));
        }
        (Value::Object(_), kind) => {
            return Err(format!("an object of type '{}' is not supported", shown(kind)));
        }
        (other, _) => return Err(format!("expected a string or an object, got {other}")),
    };
    match mode {
        "none" => Ok(None),
        "auto" => Ok(Some(Choice::Auto).filter(|_| !functions.is_empty())),
        "required" if functions.is_empty() => {
            Err(format!("\"required\" needs functions; send {}", fields.tools))
        }
        "required" if fields.choice == NEW.choice => Ok(Some(Choice::Required)),
        other => Err(format!(
            "it must be \"none\", \"auto\", {}or an object with the name of a function, got '{}'",
            if fields.choice == NEW.choice { "\"required\" " } else { "" },
            shown(other)
        )),
    }
}

fn check_known(name: &str, functions: &[Offered], fields: &Fields) -> Result<(), String> {
    match functions.iter().any(|function| function.name == name) {
        true => Ok(()),
        false => Err(format!("'{}' is no function of {}", shown(name), fields.tools)),
    }
}

/// The name in `{"type": "function", "function": {"name": …}}`, or in OpenAI's other forms of it.
fn named(choice: &Value) -> Option<&str> {
    choice.pointer("/function/name").or_else(|| choice.get("name"))?.as_str()
}

/// Keeps what `allowed_tools` allows. Its mode.
fn allow<'a>(
    choice: &'a Value,
    functions: &mut Vec<Offered>,
    all: &mut Vec<Value>,
    fields: &Fields,
) -> Result<&'a str, String> {
    let allowed = choice.get("allowed_tools").unwrap_or(choice);
    let mode = match allowed.get("mode").and_then(Value::as_str) {
        Some(mode @ ("auto" | "required")) => mode,
        _ => return Err("mode of allowed_tools must be \"auto\" or \"required\"".to_owned()),
    };
    let tools = allowed.get("tools").and_then(Value::as_array);
    let tools = tools.filter(|tools| !tools.is_empty());
    let tools = tools.ok_or("allowed_tools must have tools, a list of at least one")?;
    let mut names = Vec::new();
    for tool in tools {
        let name = named(tool).ok_or("each of allowed_tools must have the name of a function")?;
        check_known(name, functions, fields)?;
        names.push(name);
    }
    functions.retain(|function| names.contains(&function.name.as_str()));
    all.retain(|tool| named(tool).is_some_and(|name| names.contains(&name)));
    Ok(mode)
}

impl Tools {
    /// The form that the answer must have, and how calls are found in it. `asked` is the form that
    /// the request's other fields ask for.
    ///
    /// # Errors
    /// [`Invalid`] for a form that cannot stand beside functions.
    pub fn plan(
        self,
        text: &ServedText,
        parser: ToolCallParser,
        asked: Option<Asked>,
    ) -> Result<(Option<Asked>, Option<CallTerms>), Invalid> {
        let Self { functions, choice, is_restricted, is_single, is_old } = self;
        let own = match parser {
            ToolCallParser::Syntax(syntax) => Some(syntax),
            ToolCallParser::Auto => text.template.as_ref().map(|template| template.call_syntax()),
            ToolCallParser::None => None,
        };
        let is_strict = functions.iter().any(|function| function.is_strict);
        if choice == Choice::Auto && own.is_none() {
            return Ok((asked, None));
        }
        let is_masked = choice != Choice::Auto || is_strict || is_restricted || asked.is_some();
        let own = own.unwrap_or_default();
        let syntax = if is_masked { own.masked() } else { own };
        let names = functions.iter().map(|function| function.name.clone()).collect();
        let schemas = functions.iter().map(|function| function.parameters.clone());
        let special = special_marks(syntax, &text.tokenizer);
        let terms = CallTerms {
            syntax,
            names,
            schemas: if syntax.is_typed() { schemas.collect() } else { Arc::new([]) },
            is_single,
            finish: match (choice, is_old) {
                (Choice::Named, _) => "stop",
                (_, true) => "function_call",
                (_, false) => "tool_calls",
            },
            shown: special.iter().map(|(_, id)| *id).collect(),
        };
        if !is_masked {
            return Ok((None, Some(terms)));
        }
        let answer = match (asked, choice) {
            (None, _) | (Some(_), Choice::Required | Choice::Named) => None,
            (Some((_, Form::Json { schema, compact: false })), _) => Some(schema),
            (Some((param, _)), _) => {
                let message = format!(
                    "beside functions that may be called {param} can only ask for JSON; leave out \
                     the functions, or ask for a call by tool_choice"
                );
                return Err(Invalid::value(param, message));
            }
        };
        let follows = |function: &Offered| choice != Choice::Auto || function.is_strict;
        let functions = functions.into_iter().map(|function| Function {
            schema: match follows(&function) {
                true => function.parameters.to_string(),
                false => r#"{"type":"object"}"#.to_owned(),
            },
            name: function.name,
        });
        let form = CallsForm {
            syntax,
            functions: functions.collect(),
            special,
            is_required: choice != Choice::Auto,
            is_single,
            answer,
        };
        let param = if is_old { OLD.tools } else { NEW.tools };
        Ok((Some((param, Form::Calls(Arc::new(form)))), Some(terms)))
    }
}
