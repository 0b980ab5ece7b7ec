//! Grammars in GBNF, which many clients send (`root ::= "a" | [0-9]+`), as Lark's.
//!
//! In GBNF a text is one row of characters. Lark cuts it into lexemes first, each as long as may
//! be, so that `[a-z]+ "x"` would find no x left. What does not refer back to itself is therefore
//! put into one expression, where such a rule means the same in both.

use std::collections::HashMap;
use std::fmt::Write;

use super::limits::FORM_BYTES_MAX;

/// How often something may be asked to come.
const TIMES_MAX: usize = 100_000;

/// Whether a grammar is written in GBNF: its first rule has a name and `::=`.
pub(super) fn is_gbnf(text: &str) -> bool {
    let lines = text.lines().map(str::trim);
    let first = lines.into_iter().find(|line| !line.is_empty() && !line.starts_with('#'));
    let head = first.and_then(|line| line.split_once("::="));
    head.is_some_and(|(name, _)| name.trim().chars().all(is_of_name))
}

/// The same grammar in Lark's notation.
///
/// # Errors
/// Where it is broken.
pub(super) fn to_lark(text: &str) -> Result<String, String> {
    let Rules { names, bodies } = Rules::read(text)?;
    let Some(&root) = names.get("root") else {
        return Err("it has no rule root".to_owned());
    };
    let mut writer = Writer { bodies: &bodies, known: vec![Known::Nothing; bodies.len()] };
    let mut lark = format!("start: {}\n", writer.lark(&Node::Rule(root))?);
    let mut written = vec![false; bodies.len()];
    let mut open = vec![root];
    while let Some(rule) = open.pop() {
        if std::mem::replace(&mut written[rule], true) {
            continue;
        }
        let body = &bodies[rule];
        body.rules(&mut open);
        if writer.rule(rule)?.is_none() {
            let _ = writeln!(lark, "r{rule}: {}", writer.lark(body)?);
        }
    }
    Ok(lark)
}

/// A part of a rule.
#[derive(Debug)]
enum Node {
    /// An expression for one text, or one of several characters.
    Expression(String),
    Rule(usize),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    /// At least and at most so often.
    Repeat(Box<Node>, usize, Option<usize>),
}

impl Node {
    /// The rules that it refers to.
    fn rules(&self, found: &mut Vec<usize>) {
        match self {
            Self::Expression(_) => {}
            Self::Rule(rule) => found.push(*rule),
            Self::Sequence(all) | Self::Choice(all) => all.iter().for_each(|n| n.rules(found)),
            Self::Repeat(node, ..) => node.rules(found),
        }
    }
}

struct Rules {
    names: HashMap<String, usize>,
    bodies: Vec<Node>,
}

impl Rules {
    fn read(text: &str) -> Result<Self, String> {
        let mut reader = Reader { rest: text, text, names: HashMap::new() };
        let mut bodies: HashMap<usize, Node> = HashMap::new();
        reader.skip();
        while !reader.rest.is_empty() {
            let name = reader.name().ok_or_else(|| reader.wrong("a rule's name"))?;
            reader.take("::=").ok_or_else(|| reader.wrong("::="))?;
            let rule = reader.rule(&name);
            let body = reader.choice()?;
            if bodies.insert(rule, body).is_some() {
                return Err(format!("the rule {name} is given twice"));
            }
        }
        let names = reader.names;
        if let Some((name, _)) = names.iter().find(|(_, rule)| !bodies.contains_key(rule)) {
            return Err(format!("the rule {name} is not given"));
        }
        let bodies = (0..names.len()).filter_map(|rule| bodies.remove(&rule)).collect();
        Ok(Self { names, bodies })
    }
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

struct Reader<'a> {
    rest: &'a str,
    text: &'a str,
    names: HashMap<String, usize>,
}

impl Reader<'_> {
    fn wrong(&self, expected: &str) -> String {
        let line = self.text[..self.text.len() - self.rest.len()].matches('\n').count() + 1;
        let found: String = self.rest.chars().take(12).collect();
        format!("line {line}: expected {expected}, found {found:?}")
    }

    /// Past blanks and remarks.
    fn skip(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.find('\n').map_or("", |end| &self.rest[end..]);
        }
    }

    fn take(&mut self, word: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(word)?;
        self.skip();
        Some(())
    }

    fn name(&mut self) -> Option<String> {
        let end = self.rest.find(|c| !is_of_name(c)).unwrap_or(self.rest.len());
        let name = self.rest[..end].to_owned();
        self.rest = &self.rest[end..];
        self.skip();
        (!name.is_empty()).then_some(name)
    }

    fn rule(&mut self, name: &str) -> usize {
        let next = self.names.len();
        *self.names.entry(name.to_owned()).or_insert(next)
    }

    fn choice(&mut self) -> Result<Node, String> {
        let mut all = vec![self.sequence()?];
        while self.take("|").is_some() {
            all.push(self.sequence()?);
        }
        Ok(Node::Choice(all))
    }

    fn sequence(&mut self) -> Result<Node, String> {
        let mut all = Vec::new();
        while let Some(node) = self.item()? {
            all.push(self.repeated(node)?);
        }
        Ok(Node::Sequence(all))
    }

    /// `None` where a sequence ends.
    fn item(&mut self) -> Result<Option<Node>, String> {
        let node = match self.rest.chars().next() {
            Some('"') => Node::Expression(self.literal()?),
            Some('[') => Node::Expression(self.class()?),
            Some('.') => {
                self.rest = &self.rest[1..];
                Node::Expression("(?s:.)".to_owned())
            }
            Some('(') => {
                self.take("(");
                let node = self.choice()?;
                if !self.rest.starts_with(')') {
                    return Err(self.wrong(")"));
                }
                self.rest = &self.rest[1..];
                node
            }
            Some(c) if is_of_name(c) => {
                let before = self.rest;
                let name = self.name().unwrap_or_default();
                if self.rest.starts_with("::=") {
                    self.rest = before;
                    return Ok(None);
                }
                Node::Rule(self.rule(&name))
            }
            None | Some('|' | ')') => return Ok(None),
            Some(_) => return Err(self.wrong("a text, a class, a name or (")),
        };
        Ok(Some(node))
    }

    fn repeated(&mut self, mut node: Node) -> Result<Node, String> {
        loop {
            self.skip();
            let (least, most) = match self.rest.chars().next() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    let (inner, _) =
                        self.rest[1..].split_once('}').ok_or_else(|| self.wrong("}"))?;
                    let times = |text: &str| {
                        let times = text.trim().parse().ok().filter(|times| *times <= TIMES_MAX);
                        times.ok_or_else(|| self.wrong("{least,most}"))
                    };
                    let bounds = match inner.split_once(',') {
                        None => (times(inner)?, Some(times(inner)?)),
                        Some((least, most)) if most.trim().is_empty() => (times(least)?, None),
                        Some((least, most)) => (times(least)?, Some(times(most)?)),
                    };
                    if bounds.1.is_some_and(|most| most < bounds.0) {
                        return Err(self.wrong("{least,most}"));
                    }
                    self.rest = &self.rest[inner.len() + 1..];
                    bounds
                }
                _ => return Ok(node),
            };
            self.rest = &self.rest[1..];
            node = Node::Repeat(Box::new(node), least, most);
        }
    }

    fn literal(&mut self) -> Result<String, String> {
        let mut chars = self.rest[1..].chars();
        let mut expression = String::new();
        loop {
            match self.letter(&mut chars)? {
                (false, '\n' | '\0') => return Err(self.wrong("a text that ends on its line")),
                (false, '"') => break,
                (_, letter) => push(&mut expression, letter),
            }
        }
        self.rest = chars.as_str();
        Ok(expression)
    }

    fn class(&mut self) -> Result<String, String> {
        let mut chars = self.rest[1..].chars();
        let mut expression = "[".to_owned();
        if chars.as_str().starts_with('^') {
            chars.next();
            expression.push('^');
        }
        let empty = expression.len();
        loop {
            match self.letter(&mut chars)? {
                (false, '\0') => return Err(self.wrong("a class that ends")),
                (false, ']') => break,
                (false, '-') if expression.len() > empty && !chars.as_str().starts_with(']') => {
                    expression.push('-');
                }
                (_, letter) => push(&mut expression, letter),
            }
        }
        if expression.len() == empty {
            return Err(self.wrong("a class of one character at least"));
        }
        self.rest = chars.as_str();
        expression.push(']');
        Ok(expression)
    }

    /// The next character, and whether it was escaped; `(false, '\0')` at the end.
    fn letter(&self, chars: &mut std::str::Chars<'_>) -> Result<(bool, char), String> {
        let Some(letter) = chars.next() else { return Ok((false, '\0')) };
        if letter != '\\' {
            return Ok((false, letter));
        }
        let wrong = || self.wrong("a known escape");
        let digits = match chars.next().ok_or_else(wrong)? {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            'n' => return Ok((true, '\n')),
            'r' => return Ok((true, '\r')),
            't' => return Ok((true, '\t')),
            other if other.is_ascii_punctuation() => return Ok((true, other)),
            _ => return Err(wrong()),
        };
        let text = chars.as_str();
        let code = text.get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let letter = code.and_then(char::from_u32).ok_or_else(wrong)?;
        *chars = text[digits..].chars();
        Ok((true, letter))
    }
}

/// Adds a character to an expression that stands between slashes.
fn push(expression: &mut String, letter: char) {
    match letter.is_ascii_alphanumeric() {
        true => expression.push(letter),
        false => {
            let _ = write!(expression, "\\x{{{:X}}}", u32::from(letter));
        }
    }
}

/// What is known of a rule.
#[derive(Clone)]
enum Known {
    Nothing,
    /// It is being worked out: who asks now refers back to it.
    Open,
    /// It is as good as this expression.
    Expression(String),
    /// It refers back to itself, or to a rule that does.
    Recursive,
}

struct Writer<'a> {
    bodies: &'a [Node],
    known: Vec<Known>,
}

impl Writer<'_> {
    /// A rule as an expression, unless it is recursive.
    fn rule(&mut self, rule: usize) -> Result<Option<String>, String> {
        match &self.known[rule] {
            Known::Nothing => {}
            Known::Open | Known::Recursive => return Ok(None),
            Known::Expression(expression) => return Ok(Some(expression.clone())),
        }
        self.known[rule] = Known::Open;
        let bodies = self.bodies;
        let expression = self.expression(&bodies[rule])?;
        self.known[rule] = expression.clone().map_or(Known::Recursive, Known::Expression);
        Ok(expression)
    }

    fn expression(&mut self, node: &Node) -> Result<Option<String>, String> {
        match node {
            Node::Expression(expression) => Ok(Some(expression.clone())),
            Node::Rule(rule) => Ok(self.rule(*rule)?.map(|inner| format!("(?:{inner})"))),
            Node::Sequence(all) => self.joined(all, ""),
            Node::Choice(all) if all.len() == 1 => self.expression(&all[0]),
            Node::Choice(all) => Ok(self.joined(all, "|")?.map(|inner| format!("(?:{inner})"))),
            Node::Repeat(node, least, most) => {
                let most = most.map_or_else(String::new, |most| most.to_string());
                let inner = self.expression(node)?;
                Ok(inner.map(|inner| format!("(?:{inner}){{{least},{most}}}")))
            }
        }
    }

    fn joined(&mut self, all: &[Node], between: &str) -> Result<Option<String>, String> {
        let mut whole = String::new();
        for (i, node) in all.iter().enumerate() {
            let Some(part) = self.expression(node)? else { return Ok(None) };
            whole += if i > 0 { between } else { "" };
            whole += &part;
            if whole.len() > FORM_BYTES_MAX {
                let message = format!(
                    "with its rules put into each other it must be at most {FORM_BYTES_MAX} bytes"
                );
                return Err(message);
            }
        }
        Ok(Some(whole))
    }

    fn lark(&mut self, node: &Node) -> Result<String, String> {
        if let Some(expression) = self.expression(node)? {
            return Ok(quoted(&expression));
        }
        match node {
            Node::Expression(expression) => Ok(quoted(expression)),
            Node::Rule(rule) => Ok(format!("r{rule}")),
            Node::Sequence(all) => {
                let mut parts = Vec::new();
                let mut run = String::new();
                for node in all {
                    match self.expression(node)? {
                        Some(expression) => run += &expression,
                        None => {
                            if !run.is_empty() {
                                parts.push(quoted(&std::mem::take(&mut run)));
                            }
                            parts.push(self.lark(node)?);
                        }
                    }
                }
                if !run.is_empty() {
                    parts.push(quoted(&run));
                }
                Ok(parts.join(" "))
            }
            Node::Choice(all) => {
                let all: Result<Vec<_>, _> = all.iter().map(|node| self.lark(node)).collect();
                Ok(format!("({})", all?.join(" | ")))
            }
            Node::Repeat(node, least, most) => {
                let most = most.map_or_else(String::new, |most| most.to_string());
                Ok(format!("({}){{{least},{most}}}", self.lark(node)?))
            }
        }
    }
}

/// An expression in Lark's notation; an empty one would begin a remark.
fn quoted(expression: &str) -> String {
    match expression.is_empty() {
        true => "\"\"".to_owned(),
        false => format!("/{expression}/"),
    }
}
