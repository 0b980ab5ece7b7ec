//! Patterns of adapter configs: Python's `re` syntax, on an engine that backtracks within limits.
//!
//! The two syntaxes look alike and part in places. Each construct is passed on, spelled as the
//! engine reads it, or refused by name; none is left to chance.

use std::collections::BTreeMap;

use fancy_regex::{CompileError, Error, Regex, RegexBuilder};

use super::error::AdapterError;

/// A longer pattern is refused. Trainers write a few kilobytes where they name every module.
const PATTERN_BYTES_MAX: usize = 64 << 10;
/// Bytes that a compiled pattern may take, and its engine's cache beside it; a hostile config
/// cannot make us spend memory.
const COMPILED_BYTES_MAX: usize = 1 << 20;
const CACHE_BYTES_MAX: usize = 256 << 10;
/// Steps back while one name is matched, about a millisecond's worth. Patterns of trainers take a
/// few dozen.
const BACKTRACKS_MAX: usize = 100_000;
/// Looks ahead and behind, back-references and the like. Each parts a pattern into two that are
/// compiled alone.
const PARTINGS_MAX: usize = 64;

/// A compiled pattern of one field.
#[derive(Debug)]
pub struct PythonPattern {
    regex: Regex,
    key: &'static str,
    shown: String,
}

impl PythonPattern {
    /// `re.fullmatch(pattern, …)`.
    ///
    /// # Errors
    /// When Python would not compile it, or the engine cannot match as Python does.
    pub fn full(key: &'static str, pattern: &str) -> Result<Self, AdapterError> {
        Self::compile(key, pattern, pattern, r"\z")
    }

    /// `re.match(before + pattern + after, …)`: peft builds most of its patterns so, and the groups
    /// that it adds count for back-references.
    ///
    /// # Errors
    /// As [`PythonPattern::full`].
    pub fn within(
        key: &'static str,
        [before, after]: [&str; 2],
        pattern: &str,
    ) -> Result<Self, AdapterError> {
        Self::compile(key, pattern, &format!("{before}{pattern}{after}"), "")
    }

    /// `pattern` is what the config has, `text` what Python compiles.
    fn compile(
        key: &'static str,
        pattern: &str,
        text: &str,
        end: &str,
    ) -> Result<Self, AdapterError> {
        let shown: String = match pattern.char_indices().nth(80) {
            Some((end, _)) => format!("{}…", &pattern[..end]),
            None => pattern.to_owned(),
        };
        let unusable = |reason: &str| {
            AdapterError::Invalid(format!(
                "adapter_config.json: '{key}' holds the pattern '{shown}', which cannot be used: \
                 {reason}; list the module names instead"
            ))
        };
        if pattern.len() > PATTERN_BYTES_MAX {
            let found = pattern.len();
            let reason = format!("it is {found} bytes long; at most {PATTERN_BYTES_MAX} are read");
            return Err(unusable(&reason));
        }
        let (inner, partings) = Reader::new(text).read().map_err(|reason| unusable(&reason))?;
        if partings > PARTINGS_MAX {
            return Err(unusable(&format!(
                "it looks ahead, behind or back {partings} times; at most {PARTINGS_MAX} are read"
            )));
        }
        let parts = 2 * partings + 1;
        let built = RegexBuilder::new(&format!(r"\A(?:{inner}){end}"))
            .backtrack_limit(BACKTRACKS_MAX)
            .delegate_size_limit(COMPILED_BYTES_MAX / parts)
            .delegate_dfa_size_limit(CACHE_BYTES_MAX / parts)
            .build();
        match built {
            Ok(regex) => Ok(Self { regex, key, shown }),
            Err(error) => Err(unusable(&cause_of(&error))),
        }
    }

    /// Whether the name matches.
    ///
    /// # Errors
    /// When that takes too many steps.
    pub fn matches(&self, name: &str) -> Result<bool, AdapterError> {
        self.regex.is_match(name).map_err(|_| self.too_slow(name))
    }

    /// What the last group captured, if the name matches.
    ///
    /// # Errors
    /// When that takes too many steps.
    pub fn last_group<'a>(&self, name: &'a str) -> Result<Option<Option<&'a str>>, AdapterError> {
        let found = self.regex.captures(name).map_err(|_| self.too_slow(name))?;
        Ok(found.map(|groups| groups.get(groups.len() - 1).map(|group| group.as_str())))
    }

    fn too_slow(&self, name: &str) -> AdapterError {
        AdapterError::Invalid(format!(
            "adapter_config.json: '{}' holds the pattern '{}', which takes more than \
             {BACKTRACKS_MAX} steps back on the name {name}; list the module names instead",
            self.key, self.shown
        ))
    }
}

/// Why a pattern did not compile, in a line.
fn cause_of(error: &Error) -> String {
    let limit = match error {
        Error::CompileError(error) => match &**error {
            CompileError::InnerError(error) => error.size_limit(),
            _ => None,
        },
        _ => None,
    };
    if let Some(limit) = limit {
        return format!("compiled it exceeds the size limit of {limit} bytes");
    }
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim().trim_end_matches('.').to_owned()
}

/// Reads a Python pattern and spells it for the engine.
struct Reader<'a> {
    rest: &'a str,
    out: String,
    /// Whether flags may come next.
    at_start: bool,
    /// Whether a quantifier may come next.
    repeatable: bool,
    /// What the engine parts a pattern at, so far.
    partings: usize,
    /// Groups that capture, so far.
    groups: usize,
    /// The numbers of named groups. The engine takes numbers only beside no names.
    named: BTreeMap<&'a str, usize>,
    /// The number of each open group, if it captures.
    open: Vec<Option<usize>>,
}

impl<'a> Reader<'a> {
    fn new(pattern: &'a str) -> Self {
        Self {
            rest: pattern,
            out: String::new(),
            at_start: true,
            repeatable: false,
            partings: 0,
            groups: 0,
            named: BTreeMap::new(),
            open: Vec::new(),
        }
    }

    /// The pattern as the engine reads it, and how often it is parted.
    fn read(mut self) -> Result<(String, usize), String> {
        while let Some(c) = self.rest.chars().next() {
            self.rest = &self.rest[c.len_utf8()..];
            let at_start = std::mem::take(&mut self.at_start);
            match c {
                '\\' => self.escape()?,
                '[' => self.class()?,
                '(' => self.group(at_start)?,
                '*' | '+' | '?' => self.quantifier(&c.to_string())?,
                '{' => self.braces()?,
                ')' => {
                    self.open.pop().ok_or("a ')' closes nothing")?;
                    self.put(")", true);
                }
                '|' | '^' | '$' => self.put(&c.to_string(), false),
                _ => self.put(&c.to_string(), true),
            }
        }
        match self.open.is_empty() {
            true => Ok((self.out, self.partings)),
            false => Err("unclosed group".into()),
        }
    }

    fn put(&mut self, text: &str, repeatable: bool) {
        self.out.push_str(text);
        self.repeatable = repeatable;
    }

    /// Takes `text` off the front.
    fn take(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next();
        self.rest = chars.as_str();
        next
    }

    fn escape(&mut self) -> Result<(), String> {
        let Some(c) = self.next() else { return Err("it ends with a backslash".into()) };
        match c {
            'Z' => self.put(r"\z", false),
            'A' | 'b' | 'B' => self.put(&format!(r"\{c}"), false),
            // A group's number; with a zero in front or three digits Python reads octal.
            '1'..='9' => {
                let digits = self.rest.bytes().take_while(u8::is_ascii_digit).count();
                let number = format!("{c}{}", &self.rest[..digits]);
                self.rest = &self.rest[digits..];
                match number.parse() {
                    Ok(group) if digits < 2 => self.reference(group, &format!(r"\{number}"))?,
                    _ => return Err(format!(r"'\{number}' is not supported")),
                }
            }
            _ => {
                let text = self.escaped_char(c)?;
                self.put(&text, true);
            }
        }
        Ok(())
    }

    fn reference(&mut self, group: usize, shown: &str) -> Result<(), String> {
        if group > self.groups {
            return Err(format!("'{shown}' refers to a group that is not there before it"));
        }
        if self.open.contains(&Some(group)) {
            return Err(format!("'{shown}' refers to a group that is still open"));
        }
        self.partings += 1;
        // Brackets keep digits that follow apart.
        self.put(&format!(r"(?:\{group})"), true);
        Ok(())
    }

    /// An escape that means the same within brackets and outside of them.
    fn escaped_char(&mut self, c: char) -> Result<String, String> {
        match c {
            'd' | 'D' | 's' | 'S' | 'w' | 'W' | 'a' | 'f' | 'n' | 'r' | 't' | 'v' => {
                Ok(format!(r"\{c}"))
            }
            'x' | 'u' | 'U' => {
                let digits = match c {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let hex = self.rest.get(..digits);
                let hex = hex.filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
                let hex = hex.ok_or(format!(r"'\{c}' wants {digits} hexadecimal digits"))?;
                self.rest = &self.rest[digits..];
                Ok(format!(r"\x{{{hex}}}"))
            }
            _ if c.is_ascii_alphanumeric() => Err(format!(r"'\{c}' is not supported")),
            _ => Ok(literal(c)),
        }
    }

    /// In brackets Python knows neither sets within sets nor operations between them.
    fn class(&mut self) -> Result<(), String> {
        let negated = self.take("^");
        let mut text = String::from(if negated { "[^" } else { "[" });
        let mut first = true;
        loop {
            let Some(c) = self.next() else { return Err("a '[' is not closed".into()) };
            match c {
                ']' if !first => break,
                '-' if self.rest.starts_with('-') => return Err("'--' is not supported".into()),
                '-' => text.push('-'),
                '\\' => match self.next() {
                    Some('b') => text.push_str(r"\x08"),
                    Some(c) => text.push_str(&self.escaped_char(c)?),
                    None => return Err("it ends with a backslash".into()),
                },
                _ => text.push_str(&literal(c)),
            }
            first = false;
        }
        text.push(']');
        self.put(&text, true);
        Ok(())
    }

    fn group(&mut self, at_start: bool) -> Result<(), String> {
        let named = self.take("?P<");
        if named || !self.take("?") {
            self.groups += 1;
            if named {
                let end = self.rest.find('>').ok_or("a group's name is not closed")?;
                if self.named.insert(&self.rest[..end], self.groups).is_some() {
                    return Err("two groups have one name".into());
                }
                self.rest = &self.rest[end + 1..];
            }
            self.open.push(Some(self.groups));
            self.put("(", false);
            return Ok(());
        }
        for opening in [":", "=", "!", "<=", "<!", ">"] {
            if self.take(opening) {
                self.partings += usize::from(opening != ":");
                self.open.push(None);
                self.put(&format!("(?{opening}"), false);
                return Ok(());
            }
        }
        if self.take("#") {
            let end = self.rest.find(')').ok_or("a comment is not closed")?;
            self.rest = &self.rest[end + 1..];
            return Ok(());
        }
        if self.take("P=") {
            let end = self.rest.find(')').ok_or("a back-reference is not closed")?;
            let name = &self.rest[..end];
            self.rest = &self.rest[end + 1..];
            let shown = format!("(?P={name})");
            let group = self.named.get(name).copied();
            return self.reference(group.ok_or(format!("'{shown}' names no group"))?, &shown);
        }
        let end = self.rest.find([':', ')']).unwrap_or(self.rest.len());
        let flags = &self.rest[..end];
        let whole = self.rest[end..].starts_with(')');
        // 'u' is the default; under 'x', 'a' and 'L' the two read differently.
        let (on, off) = flags.split_once('-').unwrap_or((flags, ""));
        let known = |flags: &str, known: &str| flags.chars().all(|flag| known.contains(flag));
        let sound = known(on, "imsu") && known(off, "ims") && !flags.is_empty();
        if !sound || end == self.rest.len() || flags.ends_with('-') {
            let start: String = self.rest.chars().take(8).collect();
            return Err(format!("'(?{start}' is not supported"));
        }
        if whole && (!at_start || flags.contains('-')) {
            return Err(format!("'(?{flags})' must stand at the start of the whole pattern"));
        }
        self.rest = &self.rest[end + 1..];
        let on = on.replace('u', "");
        let text = if off.is_empty() { format!("(?{on}") } else { format!("(?{on}-{off}") };
        if !whole {
            self.open.push(None);
            self.put(&format!("{text}:"), false);
        } else if !on.is_empty() {
            self.put(&format!("{text})"), false);
        }
        Ok(())
    }

    /// `{m}`, `{m,}`, `{,n}`, `{m,n}`; any other brace is itself.
    fn braces(&mut self) -> Result<(), String> {
        let inside = self.rest.split_once('}').map(|(inside, _)| inside);
        let number = |text: &str| text.is_empty() || text.bytes().all(|b| b.is_ascii_digit());
        let (low, high) = match inside.map(|inside| (inside, inside.split_once(','))) {
            Some((_, Some((low, high)))) if number(low) && number(high) => (low, Some(high)),
            Some((exact, None)) if !exact.is_empty() && number(exact) => (exact, None),
            _ => {
                self.put(r"\{", true);
                return Ok(());
            }
        };
        self.rest = &self.rest[inside.map_or(0, str::len) + 1..];
        let low = if low.is_empty() { "0" } else { low };
        match high {
            None => self.quantifier(&format!("{{{low}}}")),
            Some(high) => self.quantifier(&format!("{{{low},{high}}}")),
        }
    }

    fn quantifier(&mut self, text: &str) -> Result<(), String> {
        if !self.repeatable {
            return Err(format!("there is nothing that '{text}' could repeat"));
        }
        let mode = ["?", "+"].into_iter().find(|mode| self.take(mode)).unwrap_or("");
        self.partings += usize::from(mode == "+");
        self.put(&format!("{text}{mode}"), false);
        Ok(())
    }
}

/// A character as itself, also within brackets.
fn literal(c: char) -> String {
    match c {
        '<' | '>' | '_' | ' ' => c.to_string(),
        _ if c.is_ascii_punctuation() => format!(r"\{c}"),
        _ => c.to_string(),
    }
}
