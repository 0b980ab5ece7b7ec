//! What form an answer must have, as requests say it.

use llguidance::api::TopLevelGrammar;
use llguidance::regex_to_lark;
use serde_json::Value;
use std::sync::Arc;

use super::calls::CallsForm;
use super::gbnf;
use super::limits::{FORM_BYTES_MAX, GRAMMAR_BYTES_MAX, NESTING_MAX};
use super::schema;
use crate::ids::Digest;

/// What form an answer must have.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// JSON that a schema takes.
    Json {
        /// The schema's text.
        schema: String,
        /// Whether no blanks may stand between its tokens.
        compact: bool,
    },
    /// Text that an expression matches from end to end.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of a context-free grammar, in Lark's notation or in GBNF.
    Grammar(String),
    /// Calls of functions.
    Calls(Arc<CallsForm>),
}

impl Form {
    /// Any JSON object.
    pub fn json_object(compact: bool) -> Self {
        Self::Json { schema: r#"{"type":"object"}"#.to_owned(), compact }
    }

    /// # Errors
    /// Why it is too much, before any work is done.
    pub(super) fn check_size(&self) -> Result<(), String> {
        let bytes = match self {
            Self::Json { schema: text, .. } | Self::Regex(text) | Self::Grammar(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(String::len).sum(),
            Self::Calls(calls) => calls.bytes(),
        };
        let most =
            if matches!(self, Self::Grammar(_)) { GRAMMAR_BYTES_MAX } else { FORM_BYTES_MAX };
        if bytes > most {
            return Err(format!("it must be at most {most} bytes, got {bytes}"));
        }
        match self {
            Self::Regex(text) | Self::Grammar(text) if nesting(text) > NESTING_MAX => {
                Err(format!("its brackets must nest at most {NESTING_MAX} deep"))
            }
            Self::Choice(choices) if choices.is_empty() => {
                Err("it must hold at least one choice".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Tells it from every other.
    pub(super) fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        let mut add = |text: &str| {
            hasher.update(&text.len().to_le_bytes()).update(text.as_bytes());
        };
        match self {
            Self::Json { schema, compact } => {
                add(if *compact { "compact" } else { "json" });
                add(schema);
            }
            Self::Regex(text) => ["regex", text].into_iter().for_each(add),
            Self::Grammar(text) => ["grammar", text].into_iter().for_each(add),
            Self::Choice(choices) => {
                add("choice");
                choices.iter().for_each(|choice| add(choice));
            }
            Self::Calls(calls) => ["calls", &format!("{calls:?}")].into_iter().for_each(add),
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// As the library takes it.
    ///
    /// # Errors
    /// What of it is not understood, or not supported.
    pub(super) fn grammar(&self) -> Result<TopLevelGrammar, String> {
        match self {
            Self::Json { schema, compact } => {
                Ok(TopLevelGrammar::from_json_schema(schema::prepared(schema, *compact)?))
            }
            Self::Calls(calls) => Ok(TopLevelGrammar::from_lark(calls.to_lark()?)),
            // An empty expression would begin a comment.
            Self::Regex(text) if text.is_empty() => {
                Ok(TopLevelGrammar::from_lark("start: \"\"".to_owned()))
            }
            // Digits are those of ASCII, as in schemas.
            Self::Regex(text) => {
                Ok(TopLevelGrammar::from_lark(format!("start: /{}/", regex_to_lark(text, "d"))))
            }
            Self::Choice(choices) => {
                let quoted = choices.iter().map(|choice| Value::from(choice.as_str()).to_string());
                let choices: Vec<String> = quoted.collect();
                let lark = format!("start: CHOICE\nCHOICE: {}", choices.join(" | "));
                Ok(TopLevelGrammar::from_lark(lark))
            }
            Self::Grammar(text) if gbnf::is_gbnf(text) => {
                Ok(TopLevelGrammar::from_lark(gbnf::to_lark(text)?))
            }
            Self::Grammar(text) => {
                check_grammar(text)?;
                Ok(TopLevelGrammar::from_lark(text.clone()))
            }
        }
    }
}

/// What the library would take and not follow.
///
/// # Errors
/// What to send instead.
fn check_grammar(text: &str) -> Result<(), String> {
    if text.contains("%json") {
        return Err("%json is not supported in a grammar; send json".to_owned());
    }
    let attributes = text.lines().filter_map(|line| {
        let (name, rest) = line.split_once('[')?;
        let is_rule = name.trim().chars().all(|c| c.is_alphanumeric() || "_?!".contains(c));
        rest.split_once(']').filter(|_| is_rule).map(|(attributes, _)| attributes)
    });
    if attributes.into_iter().any(|attributes| attributes.contains("temperature")) {
        return Err("a rule cannot have a temperature of its own; leave it out".to_owned());
    }
    Ok(())
}

/// Brackets that are open at once, quoted ones among them.
fn nesting(text: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}
