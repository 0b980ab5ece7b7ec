//! A template's source, as the template engine must see it to render what jinja2 renders.

use std::cmp::Reverse;

use minijinja::machinery::ast::{BinOp, BinOpKind, CallArg, Expr, Spanned, Stmt};
use minijinja::machinery::{Span, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};
use regex::Regex;

/// The functions that stand for what the engine does otherwise than Python.
pub(super) const REMAINDER: &str = "__remainder";
pub(super) const CONCAT: &str = "__concat";
pub(super) const ITEMS: &str = "__items";
pub(super) const SUM: &str = "__sum";
pub(super) const KEPT: &str = "__kept";
/// The filter that stands for those that Python has not for what it makes as it goes.
pub(super) const NOT_OF_GENERATORS: &str = "__not_of_generators";
const GENERATORS: [&str; 9] =
    ["map", "select", "reject", "selectattr", "rejectattr", "unique", "batch", "slice", "items"];

/// The source with plain line ends, which jinja2 makes of all others, without the marks that
/// transformers knows, with its strings as Python reads them, and with calls of the functions above
/// for `%`, `~`, what loops go over and what namespaces keep.
pub(super) fn prepared(source: &str, syntax: &SyntaxConfig) -> Result<String, Error> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    // It marks the assistant's text for training; for rendering it is a block like any other.
    let marks = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
        .map_err(|error| Error::new(ErrorKind::SyntaxError, error.to_string()))?;
    let plain = marks.replace_all(&source, |found: &regex::Captures<'_>| {
        let tag = if found.get(2).is_some() { "endwith" } else { "with" };
        format!("{{%{} {tag} {}%}}", &found[1], &found[3])
    });
    let source = with_escapes(&plain, syntax)?;
    let tokens = tokenize(&source, false, syntax.clone()).collect::<Result<Vec<_>, _>>()?;
    let parsed = parse(&source, "chat_template", syntax.clone())?;
    let has_safe = tokens
        .windows(2)
        .any(|pair| matches!(pair, [(Token::Pipe, _), (Token::Ident("safe" | "escape" | "e"), _)]));
    let mut edits = Edits { tokens: &tokens, has_safe, all: Vec::new(), refused: None };
    edits.loops();
    edits.sets();
    edits.statement(&parsed);
    match edits.refused {
        Some(problem) => Err(Error::new(ErrorKind::SyntaxError, problem)),
        None => Ok(edits.applied(&source)),
    }
}

/// The source with the escapes in its strings that the engine reads otherwise than Python.
fn with_escapes(source: &str, syntax: &SyntaxConfig) -> Result<String, Error> {
    let mut out = String::with_capacity(source.len());
    let mut copied = 0;
    for token in tokenize(source, false, syntax.clone()) {
        let (Token::Str(_) | Token::String(_), span) = token? else { continue };
        let (start, end) = (span.start_offset as usize, span.end_offset as usize);
        out.push_str(&source[copied..start]);
        copied = end;
        let mut letters = source[start..end].chars();
        while let Some(letter) = letters.next() {
            let escaped = if letter == '\\' { letters.next() } else { None };
            match escaped {
                None => out.push(letter),
                Some('/') => out.push_str("\\\\/"),
                Some('a') => out.push_str("\\x07"),
                Some('v') => out.push_str("\\x0b"),
                // A line's end within a string that is escaped is none.
                Some('\n') => {}
                Some('U') => {
                    let digits: String = letters.by_ref().take(8).collect();
                    let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                    out.push(code.ok_or_else(|| Error::from(ErrorKind::BadEscape))?);
                }
                Some('N') => {
                    let problem = "\\N{...} in a string is not supported; write the character";
                    return Err(Error::new(ErrorKind::SyntaxError, problem));
                }
                Some(other) => out.extend(['\\', other]),
            }
        }
    }
    out.push_str(&source[copied..]);
    Ok(out)
}

/// What to put where into the source.
struct Edits<'a> {
    tokens: &'a [(Token<'a>, Span)],
    /// Whether there may be text that is marked as safe, to which `+` adds text escaped.
    has_safe: bool,
    /// Where, how long the text is that it replaces, in what order at the same place, and what.
    all: Vec<(usize, usize, Reverse<usize>, String)>,
    /// What the engine would render otherwise than jinja2.
    refused: Option<&'static str>,
}

fn nesting(token: &Token<'_>) -> i32 {
    match token {
        Token::ParenOpen | Token::BracketOpen | Token::BraceOpen => 1,
        Token::ParenClose | Token::BracketClose | Token::BraceClose => -1,
        _ => 0,
    }
}

impl Edits<'_> {
    fn applied(mut self, source: &str) -> String {
        self.all.sort();
        let mut out = String::with_capacity(source.len() + 16 * self.all.len());
        let mut copied = 0;
        for (at, replaced, _, text) in self.all {
            out.push_str(&source[copied..at]);
            out.push_str(&text);
            copied = at + replaced;
        }
        out.push_str(&source[copied..]);
        out
    }

    fn wrap(&mut self, function: &str, start: usize, end: usize) {
        self.all.push((start, 0, Reverse(end), format!("{function}(")));
        self.all.push((end, 0, Reverse(usize::MAX), ")".to_owned()));
    }

    /// What loops go over: from `in` to `if`, `recursive` or the end of the tag.
    fn loops(&mut self) {
        let mut rest = self.tokens;
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            let is_for = matches!(after.first(), Some((Token::Ident("for"), _)));
            if !matches!(first.0, Token::BlockStart) || !is_for {
                continue;
            }
            let Some(from) = after.iter().position(|t| matches!(t.0, Token::Ident("in"))) else {
                continue;
            };
            let mut depth = 0;
            let ends = |(token, _): &(Token<'_>, Span)| {
                depth += nesting(token);
                let ends = matches!(token, Token::Ident("if" | "recursive") | Token::BlockEnd);
                depth == 0 && ends
            };
            let over = &after[from + 1..];
            let over = &over[..over.iter().position(ends).unwrap_or(0)];
            if let (Some((_, first)), Some((_, last))) = (over.first(), over.last()) {
                self.wrap(ITEMS, first.start_offset as usize, last.end_offset as usize);
            }
        }
    }

    /// What a namespace is to keep: from `=` to the end of the tag.
    fn sets(&mut self) {
        for at in 0..self.tokens.len() {
            let tag = &self.tokens[at..];
            let [(Token::BlockStart, _), (Token::Ident("set"), _), (Token::Ident(name), _), ..] =
                tag
            else {
                continue;
            };
            let [(Token::Dot, _), (Token::Ident(_), _), (Token::Assign, _), kept @ ..] = &tag[3..]
            else {
                continue;
            };
            let end = kept.iter().position(|(token, _)| matches!(token, Token::BlockEnd));
            let kept = &kept[..end.unwrap_or(0)];
            if let (Some((_, first)), Some((_, last))) = (kept.first(), kept.last()) {
                let (start, end) = (first.start_offset as usize, last.end_offset as usize);
                // Around all else that is put in at the same place.
                self.all.push((start, 0, Reverse(usize::MAX - 1), format!("{KEPT}({name}, (")));
                self.all.push((end, 0, Reverse(usize::MAX), "))".to_owned()));
            }
        }
    }

    fn operator(&mut self, operation: &Spanned<BinOp<'_>>) {
        let function = match operation.op {
            BinOpKind::Rem => REMAINDER,
            BinOpKind::Concat => CONCAT,
            BinOpKind::Add if self.has_safe => SUM,
            _ => return,
        };
        let span = operation.span();
        let place = |at: u32| self.tokens.partition_point(|(_, token)| token.start_offset < at);
        let within = self.tokens[place(span.start_offset)..place(span.end_offset)].iter();
        let mut depth = 0;
        // The last one outside of brackets, because operators of a rank go from left to right.
        let sign = within.filter(|(token, _)| {
            depth += nesting(token);
            let is_it = match operation.op {
                BinOpKind::Rem => matches!(token, Token::Mod),
                BinOpKind::Add => matches!(token, Token::Plus),
                _ => matches!(token, Token::Tilde),
            };
            depth == 0 && is_it
        });
        let Some(sign) = sign.last().map(|(_, sign)| *sign) else { return };
        let (at, end) = (sign.start_offset as usize, sign.end_offset as usize);
        self.all.push((at, end - at, Reverse(0), ",".to_owned()));
        self.wrap(function, span.start_offset as usize, span.end_offset as usize);
    }

    fn statements(&mut self, all: &[Stmt<'_>]) {
        all.iter().for_each(|statement| self.statement(statement));
    }

    fn statement(&mut self, statement: &Stmt<'_>) {
        match statement {
            Stmt::Template(s) => self.statements(&s.children),
            Stmt::EmitExpr(s) => self.expression(&s.expr),
            Stmt::ForLoop(s) => {
                self.expression(&s.iter);
                self.optional(&s.filter_expr);
                self.statements(&s.body);
                self.statements(&s.else_body);
            }
            Stmt::IfCond(s) => {
                self.truth(&s.expr);
                self.expression(&s.expr);
                self.statements(&s.true_body);
                self.statements(&s.false_body);
            }
            Stmt::WithBlock(s) => {
                s.assignments.iter().for_each(|(_, value)| self.expression(value));
                self.statements(&s.body);
            }
            Stmt::Set(s) => self.expression(&s.expr),
            Stmt::SetBlock(s) => {
                self.optional(&s.filter);
                self.statements(&s.body);
            }
            Stmt::AutoEscape(_) => self.refused = Some("autoescape is not supported"),
            Stmt::FilterBlock(s) => {
                self.expression(&s.filter);
                self.statements(&s.body);
            }
            Stmt::Macro(s) => {
                let name = |argument: &Expr<'_>| match argument {
                    Expr::Var(variable) => Some(variable.id.to_owned()),
                    _ => None,
                };
                let names: Vec<_> = s.args.iter().filter_map(name).collect();
                if s.defaults.iter().filter_map(name).any(|default| names.contains(&default)) {
                    self.refused = Some("a macro's default may not be another of its arguments");
                }
                s.defaults.iter().for_each(|value| self.expression(value));
                self.statements(&s.body);
            }
            Stmt::CallBlock(s) => {
                self.expression(&s.call.expr);
                self.arguments(&s.call.args);
                self.statements(&s.macro_decl.body);
            }
            Stmt::Do(s) => self.arguments(&s.call.args),
            Stmt::EmitRaw(_) | Stmt::Continue(_) | Stmt::Break(_) => {}
        }
    }

    /// What a condition looks at: Python's generators are true, also where nothing comes of them.
    fn truth(&mut self, expression: &Expr<'_>) {
        match expression {
            Expr::Filter(e) if GENERATORS.contains(&e.name) => {
                self.refused =
                    Some("what a filter makes one by one is always true; put |list behind it");
            }
            Expr::UnaryOp(e) => self.truth(&e.expr),
            Expr::BinOp(e) if matches!(e.op, BinOpKind::ScAnd | BinOpKind::ScOr) => {
                self.truth(&e.left);
                self.truth(&e.right);
            }
            _ => {}
        }
    }

    fn optional(&mut self, expression: &Option<Expr<'_>>) {
        expression.iter().for_each(|expression| self.expression(expression));
    }

    fn arguments(&mut self, all: &[CallArg<'_>]) {
        for argument in all {
            match argument {
                CallArg::Pos(value)
                | CallArg::Kwarg(_, value)
                | CallArg::PosSplat(value)
                | CallArg::KwargSplat(value) => self.expression(value),
            }
        }
    }

    fn expression(&mut self, expression: &Expr<'_>) {
        match expression {
            Expr::Var(_) | Expr::Const(_) => {}
            Expr::Slice(e) => {
                self.expression(&e.expr);
                [&e.start, &e.stop, &e.step].into_iter().for_each(|bound| self.optional(bound));
            }
            Expr::UnaryOp(e) => self.expression(&e.expr),
            Expr::BinOp(e) => {
                self.operator(e);
                self.expression(&e.left);
                self.expression(&e.right);
            }
            Expr::Compare(e) => {
                self.expression(&e.expr);
                e.ops.iter().for_each(|op| self.expression(&op.expr));
            }
            Expr::IfExpr(e) => {
                self.truth(&e.test_expr);
                self.expression(&e.test_expr);
                self.expression(&e.true_expr);
                self.optional(&e.false_expr);
            }
            Expr::Filter(e) => {
                let of = match &e.expr {
                    Some(Expr::Filter(inner)) => inner.name,
                    _ => "",
                };
                let is_refused = ["tojson", "length", "count", "last"].contains(&e.name);
                if is_refused && GENERATORS.contains(&of) {
                    let at = e.span().start_offset as usize;
                    let name = NOT_OF_GENERATORS.to_owned();
                    self.all.push((at, e.name.len(), Reverse(0), name));
                }
                self.optional(&e.expr);
                self.arguments(&e.args);
            }
            Expr::Test(e) => {
                self.expression(&e.expr);
                self.arguments(&e.args);
            }
            Expr::GetAttr(e) => self.expression(&e.expr),
            Expr::GetItem(e) => {
                self.expression(&e.expr);
                self.expression(&e.subscript_expr);
            }
            Expr::Call(e) => {
                self.expression(&e.expr);
                self.arguments(&e.args);
            }
            Expr::List(e) => e.items.iter().for_each(|item| self.expression(item)),
            Expr::Tuple(e) => e.items.iter().for_each(|item| self.expression(item)),
            Expr::Map(e) => e.keys.iter().chain(&e.values).for_each(|item| self.expression(item)),
        }
    }
}
