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
pub(super) const GIVEN: &str = "__given";
/// The method that stands for an attribute that is not called, of a name that mappings have for a
/// method.
pub(super) const UNCALLED: &str = "__uncalled";
/// Methods of Python's mappings.
pub(super) const MAPPING_METHODS: [&str; 11] = [
    "clear",
    "copy",
    "fromkeys",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
];

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
    let (all, macros) = (Vec::new(), Vec::new());
    let mut edits = Edits { tokens: &tokens, has_safe, all, macros, refused: None };
    edits.loops();
    edits.sets();
    edits.withs();
    edits.uncalled();
    edits.statement(&parsed);
    edits.given();
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
    /// Names of macros, how many arguments must be given, and the names of the others.
    macros: Vec<(String, usize, Vec<String>)>,
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

/// What stands in each tag that begins with `word`, behind it.
fn tags<'a>(
    tokens: &'a [(Token<'a>, Span)],
    word: &'static str,
) -> impl Iterator<Item = &'a [(Token<'a>, Span)]> {
    tokens.windows(2).enumerate().filter_map(move |(at, pair)| {
        let is_start = matches!(pair[0].0, Token::BlockStart);
        if !is_start || !matches!(pair[1].0, Token::Ident(name) if name == word) {
            return None;
        }
        let tag = &tokens[at + 2..];
        let end = tag.iter().position(|(token, _)| matches!(token, Token::BlockEnd));
        Some(&tag[..end.unwrap_or(0)])
    })
}

/// The arguments of a call, of which `tokens` begin behind the opening bracket.
fn arguments<'a>(tokens: &'a [(Token<'a>, Span)]) -> impl Iterator<Item = &'a [(Token<'a>, Span)]> {
    let mut depth = 1;
    let end = tokens.iter().position(|(token, _)| {
        depth += nesting(token);
        depth == 0
    });
    let mut depth = 0;
    tokens[..end.unwrap_or(0)].split(move |(token, _)| {
        depth += nesting(token);
        depth == 0 && matches!(token, Token::Comma)
    })
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
        for tag in tags(self.tokens, "for") {
            let Some(from) = tag.iter().position(|t| matches!(t.0, Token::Ident("in"))) else {
                continue;
            };
            let over = &tag[from + 1..];
            let mut depth = 0;
            let end = over.iter().position(|(token, _)| {
                depth += nesting(token);
                depth == 0 && matches!(token, Token::Ident("if" | "recursive"))
            });
            let over = &over[..end.unwrap_or(over.len())];
            if let (Some((_, first)), Some((_, last))) = (over.first(), over.last()) {
                self.wrap(ITEMS, first.start_offset as usize, last.end_offset as usize);
            }
        }
    }

    /// What a namespace is to keep: from `=` to the end of the tag.
    fn sets(&mut self) {
        for tag in tags(self.tokens, "set") {
            let [
                (Token::Ident(name), _),
                (Token::Dot, _),
                (Token::Ident(_), _),
                (Token::Assign, _),
                kept @ ..,
            ] = tag
            else {
                continue;
            };
            self.around(KEPT, &format!("({name}, ("), kept, "))");
        }
    }

    /// A value of a `with` that is made of another one of it: jinja2 makes them all at once.
    fn withs(&mut self) {
        for tag in tags(self.tokens, "with") {
            let mut given = Vec::new();
            let mut depth = 0;
            for pair in tag.windows(2) {
                depth += nesting(&pair[0].0);
                match (&pair[0].0, &pair[1].0) {
                    (Token::Ident(name), Token::Assign) if depth == 0 => given.push(*name),
                    (Token::Dot | Token::Pipe, Token::Ident(_)) => {}
                    (_, Token::Ident(name)) if given.contains(name) => {
                        self.refused =
                            Some("a value of a with may not be made of another one of it");
                    }
                    _ => {}
                }
            }
        }
    }

    /// Attributes that are not called, of names that mappings have for methods.
    fn uncalled(&mut self) {
        for (at, pair) in self.tokens.windows(2).enumerate() {
            let [(Token::Dot, _), (Token::Ident(name), span)] = pair else { continue };
            let after = self.tokens.get(at + 2).map(|(token, _)| token);
            // Of a namespace that is set, or of a call.
            let is_other = matches!(after, Some(Token::ParenOpen | Token::Assign));
            if MAPPING_METHODS.contains(name) && !is_other {
                let (start, text) = (span.start_offset as usize, format!("{UNCALLED}(\"{name}\")"));
                self.all.push((start, name.len(), Reverse(0), text));
            }
        }
    }

    /// Arguments of macros that have defaults: the engine takes what is not defined for not given.
    fn given(&mut self) {
        for at in 0..self.tokens.len() {
            let [(Token::Ident(name), _), (Token::ParenOpen, _), args @ ..] = &self.tokens[at..]
            else {
                continue;
            };
            let before = at.checked_sub(1).map(|at| &self.tokens[at].0);
            if matches!(before, Some(Token::Ident("macro") | Token::Dot | Token::Pipe)) {
                continue;
            }
            let is_it = |of: &&(String, usize, Vec<String>)| of.0 == *name;
            let Some((_, required, optional)) = self.macros.iter().rfind(is_it).cloned() else {
                continue;
            };
            for (index, arg) in arguments(args).enumerate() {
                let is_optional = |name: &str| optional.iter().any(|of| of == name);
                let value = match arg {
                    [(Token::Ident(name), _), (Token::Assign, _), value @ ..]
                        if is_optional(name) =>
                    {
                        value
                    }
                    [(Token::Ident(_), _), (Token::Assign, _), ..] => &[],
                    // What it unpacks is not known here.
                    [(Token::Mul | Token::Pow, _), ..] => &[],
                    value if index >= required => value,
                    _ => &[],
                };
                self.around(GIVEN, "((", value, "))");
            }
        }
    }

    /// Puts a function around all else that is put in at the places of these tokens.
    fn around(&mut self, function: &str, open: &str, tokens: &[(Token<'_>, Span)], close: &str) {
        if let (Some((_, first)), Some((_, last))) = (tokens.first(), tokens.last()) {
            let (start, end) = (first.start_offset as usize, last.end_offset as usize);
            self.all.push((start, 0, Reverse(usize::MAX - 1), format!("{function}{open}")));
            self.all.push((end, 0, Reverse(usize::MAX), close.to_owned()));
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
                if !s.defaults.is_empty() {
                    let required = names.len().saturating_sub(s.defaults.len());
                    self.macros.push((s.name.to_owned(), required, names[required..].to_vec()));
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
                self.expression(&e.test_expr);
                self.expression(&e.true_expr);
                self.optional(&e.false_expr);
            }
            Expr::Filter(e) => {
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
