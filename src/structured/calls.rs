//! Calls of functions as a form: in the model's own syntax, with arguments that schemas take.

use std::fmt::Write;

use super::schema;
use crate::ids::TokenId;
use crate::text::CallSyntax;

/// Marks of lists of calls.
const PIPED: &str = "<|tool_call|>";
const FUNCTOOLS: &str = "functools";
/// Marks of calls in sections.
const SECTIONS: &str = "<｜tool▁calls▁begin｜>";
const SECTIONS_END: &str = "<｜tool▁calls▁end｜>";
const SECTION: &str = "<｜tool▁call▁begin｜>";
const SECTION_END: &str = "<｜tool▁call▁end｜>";
const SEPARATOR: &str = "<｜tool▁sep｜>";

/// Which calls an answer may or must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct CallsForm {
    /// How calls are written.
    pub syntax: CallSyntax,
    /// What may be called.
    pub functions: Vec<Function>,
    /// Marks that are special tokens, which no text spells.
    pub special: Vec<(&'static str, TokenId)>,
    /// There is nothing but calls, and one at least.
    pub is_required: bool,
    /// There is at most one.
    pub is_single: bool,
    /// The schema of an answer without a call; `None` takes any text.
    pub answer: Option<String>,
}

/// A function that may be called.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    /// Of letters, digits, underscores, dashes and dots.
    pub name: String,
    /// The schema of its arguments.
    pub schema: String,
}

impl CallsForm {
    /// Bytes that were sent of it.
    pub(super) fn bytes(&self) -> usize {
        let functions = self.functions.iter().map(|f| f.name.len() + f.schema.len());
        functions.sum::<usize>() + self.answer.as_ref().map_or(0, String::len)
    }

    /// In the library's notation.
    ///
    /// # Errors
    /// What of a schema is not followed.
    pub(super) fn to_lark(&self) -> Result<String, String> {
        let (open, body, close) = self.call();
        let call = [open.as_str(), body, &close].join(" ");
        let more = match (self.is_single, self.syntax) {
            (false, CallSyntax::Tagged | CallSyntax::Functions | CallSyntax::Pairs) => {
                format!("(\"\\n\" {call})*")
            }
            (false, CallSyntax::Named) => format!("({call})*"),
            _ => String::new(),
        };
        let mut lark = match (self.is_required, &self.answer) {
            (true, _) => format!("start: {call} {more}\n"),
            (false, Some(_)) => format!("start: {call} {more} | answer\n"),
            (false, None) => self.after_text(body, &close),
        };
        if let Some(answer) = &self.answer {
            let schema = schema::prepared(answer, false)?;
            _ = writeln!(lark, "answer: %json {schema}");
        }
        let count = self.functions.len();
        let any = |rule: char| {
            let all: Vec<String> = (0..count).map(|i| format!("{rule}{i}")).collect();
            all.join(" | ")
        };
        _ = writeln!(lark, "object: {}", any('o'));
        _ = writeln!(
            lark,
            "list: \"[\" object {}\"]\"",
            match self.is_single {
                true => "",
                false => "(\", \" object)* ",
            }
        );
        _ = writeln!(lark, "named: {}", any('n'));
        let section = [&self.mark(SECTION), "named", &self.mark(SECTION_END)].join(" ");
        _ = writeln!(
            lark,
            "sections: {section} {}",
            match (self.is_single, self.syntax) {
                (true, _) => String::new(),
                (false, CallSyntax::Fenced) => format!("(\"\\n\" {section})*"),
                (false, _) => format!("({section})*"),
            }
        );
        let key = if self.syntax == CallSyntax::Parameters { "parameters" } else { "arguments" };
        let args = self.mark("[ARGS]");
        let separator = self.mark(SEPARATOR);
        for (i, Function { name, schema }) in self.functions.iter().enumerate() {
            let schema = schema::prepared(schema, false);
            let schema = schema.map_err(|why| format!("the parameters of {name}: {why}"))?;
            let head = quoted(&format!("{{\"name\": \"{name}\", \"{key}\": "));
            _ = writeln!(lark, "o{i}: {head} a{i} \"}}\"");
            _ = match self.syntax {
                CallSyntax::Sections => {
                    writeln!(lark, "n{i}: {} {separator} a{i}", quoted(name))
                }
                CallSyntax::Fenced => {
                    let name = quoted(&format!("{name}\n```json\n"));
                    writeln!(lark, "n{i}: \"function\" {separator} {name} a{i} \"\\n```\"")
                }
                _ => writeln!(lark, "n{i}: {} {args} a{i}", quoted(name)),
            };
            _ = writeln!(lark, "a{i}: %json {schema}");
        }
        Ok(lark)
    }

    /// A call: its mark, what follows, and its end.
    fn call(&self) -> (String, &'static str, String) {
        match self.syntax {
            CallSyntax::Tagged | CallSyntax::Functions | CallSyntax::Pairs => {
                let close = self.mark("</tool_call>");
                (self.mark("<tool_call>"), "\"\\n\" object \"\\n\"", close)
            }
            CallSyntax::Listed => (self.mark("[TOOL_CALLS]"), "list", String::new()),
            CallSyntax::Piped => (self.mark(PIPED), "list", String::new()),
            CallSyntax::Functools => (self.mark(FUNCTOOLS), "list", String::new()),
            CallSyntax::Named => (self.mark("[TOOL_CALLS]"), "named", String::new()),
            CallSyntax::Sections | CallSyntax::Fenced => {
                (self.mark(SECTIONS), "sections", self.mark(SECTIONS_END))
            }
            CallSyntax::Json | CallSyntax::Parameters | CallSyntax::Pythonic => {
                (String::new(), "object", String::new())
            }
        }
    }

    /// Any text, in which calls may begin where they are marked, or instead of which there may be
    /// one where they are not.
    fn after_text(&self, body: &str, close: &str) -> String {
        let many = if self.is_single { "?" } else { "*" };
        let mark = match self.syntax {
            CallSyntax::Tagged | CallSyntax::Functions | CallSyntax::Pairs => "<tool_call>",
            CallSyntax::Sections | CallSyntax::Fenced => SECTIONS,
            CallSyntax::Piped => PIPED,
            CallSyntax::Functools => FUNCTOOLS,
            CallSyntax::Listed | CallSyntax::Named => "[TOOL_CALLS]",
            // Text of another kind begins otherwise.
            CallSyntax::Json | CallSyntax::Parameters | CallSyntax::Pythonic => {
                return format!("start: {body} | TEXT |\nTEXT: /[^\\s{{\\[](?s:.*)/\n");
            }
        };
        if self.special.iter().any(|(special, _)| *special == mark) {
            let open = self.mark(mark);
            return format!(
                "start: TEXT? (call TEXT?){many}\ncall: {open} {body} {close}\n\
                 TEXT: /(?s:.)+/\n"
            );
        }
        let plain = mark.replace('[', "\\[").replace(']', "\\]").replace('|', "\\|");
        format!(
            "start: (call){many} TEXT?\ncall: open {body} {close}\n\
             open[lazy]: /(?s:.*){plain}/\n\
             TEXT: /(?s:.)+/ & ~/(?s:.*){plain}(?s:.*)/\n"
        )
    }

    /// A mark: its token where it is a special one, else its text.
    fn mark(&self, mark: &str) -> String {
        let special = self.special.iter().find(|(special, _)| *special == mark);
        special.map_or_else(|| quoted(mark), |(_, id)| format!("<[{id}]>"))
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
