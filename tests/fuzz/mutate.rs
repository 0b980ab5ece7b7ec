//! From good inputs to others: bytes, words and JSON values put in, left out, repeated, exchanged.

use serde_json::{Map, Value, json};

use crate::Rng;

/// Between the parts of an input.
const SEPARATOR: &[u8] = b"\n=====\n";
/// A longer input is cut.
const INPUT_BYTES_MAX: usize = 256 << 10;
/// The usual length of what is repeated, and the rare one.
const REPEATED_BYTES: [usize; 2] = [200, 100_000];
/// Levels of values that are nested on purpose.
const NESTED: [usize; 3] = [10, 126, 5_000];

/// Numbers at the borders of types and ranges.
const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "8",
    "15",
    "16",
    "17",
    "31",
    "63",
    "64",
    "65",
    "100",
    "127",
    "128",
    "255",
    "256",
    "511",
    "512",
    "513",
    "1000",
    "1024",
    "1025",
    "4096",
    "16384",
    "16385",
    "65535",
    "65536",
    "1000000",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740992",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e999",
    "-1e999",
    "1e308",
    "1e39",
    "1e-320",
    "0.1",
    "0.5",
    "-0.5",
    "1.5",
    "2.5",
    "1e2",
    "NaN",
    "Infinity",
];

/// Texts that are more than their characters to somebody.
const TEXTS: &[&str] = &[
    "",
    " ",
    "\n",
    "\r\n",
    "\t",
    "\0",
    "\u{1b}[2J",
    "\u{7}",
    "\u{7f}",
    "\u{85}",
    "\u{9b}31m",
    "\u{202e}",
    "\u{2028}",
    "\u{feff}",
    "\u{fffd}",
    "é",
    "e\u{301}",
    "ß",
    "İ",
    "ſ",
    "K",
    "日本",
    "😀",
    "👨‍👩‍👧",
    "\u{10ffff}",
    "\u{d7ff}",
    "../",
    "/",
    "\\",
    ".",
    "..",
    ".*",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "{{",
    "}}",
    "{%",
    "%}",
    "'",
    "\"",
    "`",
    "%",
    "%s",
    "%n",
    "$",
    "^",
    "|",
    "?",
    "*",
    "+",
    ",",
    ":",
    ";",
    "#",
    "&",
    "=",
    "<",
    ">",
    "\\d",
    "\\1",
    "(?i)",
    "(?=",
    "\\u0000",
    "\\ud800",
    "null",
    "true",
    "false",
    "[]",
    "{}",
    "-",
    "--",
    "a",
    "x",
    "0",
];

/// The parts of an input; one at least.
pub fn parts(input: &[u8]) -> Vec<&[u8]> {
    let (mut parts, mut rest) = (Vec::new(), input);
    let find = |text: &[u8]| text.windows(SEPARATOR.len()).position(|bytes| bytes == SEPARATOR);
    while let Some(at) = find(rest) {
        parts.push(&rest[..at]);
        rest = &rest[at + SEPARATOR.len()..];
    }
    parts.push(rest);
    parts
}

/// An input of these parts.
pub fn joined<T: AsRef<[u8]>>(parts: &[T]) -> Vec<u8> {
    parts.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(SEPARATOR)
}

/// Makes inputs.
pub struct Mutator {
    pub rng: Rng,
    /// What the target knows by name.
    pub words: &'static [&'static str],
}

impl Mutator {
    /// Another input, with something of `other` perhaps.
    pub fn mutate(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut all: Vec<Vec<u8>> = parts(input).into_iter().map(<[u8]>::to_vec).collect();
        let others = parts(other);
        for _ in 0..1 + self.rng.below(4) {
            // The last part is the largest in most targets.
            let at = if self.rng.one_in(3) { self.rng.below(all.len()) } else { all.len() - 1 };
            let other = others[at.min(others.len() - 1)];
            let value = serde_json::from_slice(&all[at]).ok();
            all[at] = match value.filter(|_| !self.rng.one_in(4)) {
                Some(value) => self.json(value, other),
                None => self.bytes(&all[at], other),
            };
        }
        let mut input = joined(&all);
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn word(&mut self) -> &'static str {
        let all = match self.rng.below(4) {
            0 => NUMBERS,
            1 => TEXTS,
            _ if self.words.is_empty() => TEXTS,
            _ => self.words,
        };
        self.rng.pick(all)
    }

    /// A place in something of this length, its end included.
    fn place(&mut self, length: usize) -> usize {
        self.rng.below(length + 1)
    }

    /// A stretch of something of this length, rather a short one.
    fn stretch(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.place(length);
        let most = if self.rng.one_in(4) { length } else { 16.min(length) };
        start..(start + self.place(most)).min(length)
    }

    /// How often something of this length is repeated.
    fn times(&mut self, length: usize) -> usize {
        let bytes = REPEATED_BYTES[usize::from(self.rng.one_in(30))];
        1 + self.rng.below(1 + bytes / length.max(1))
    }

    fn bytes(&mut self, input: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        match self.rng.below(9) {
            0 if !bytes.is_empty() => {
                let at = self.rng.below(bytes.len());
                bytes[at] ^= 1 << self.rng.below(8);
            }
            1 if !bytes.is_empty() => {
                let at = self.rng.below(bytes.len());
                bytes[at] = self.rng.bits() as u8;
            }
            2 => {
                let gone = self.stretch(bytes.len());
                bytes.drain(gone);
            }
            3 => {
                let copied = self.stretch(bytes.len());
                let copied = bytes[copied].to_vec();
                let (at, times) = (self.place(bytes.len()), self.times(copied.len()));
                bytes.splice(at..at, copied.repeat(times));
            }
            4 => {
                let (taken, place) = (self.stretch(other.len()), self.stretch(bytes.len()));
                bytes.splice(place, other[taken].iter().copied());
            }
            5 => {
                let (word, at) = (self.word(), self.place(bytes.len()));
                let times = if self.rng.one_in(8) { self.times(word.len()) } else { 1 };
                bytes.splice(at..at, word.repeat(times).into_bytes());
            }
            6 => self.number(&mut bytes),
            _ => {
                let (word, place) = (self.word(), self.stretch(bytes.len()));
                bytes.splice(place, word.bytes());
            }
        }
        bytes
    }

    /// Another number in the place of one.
    fn number(&mut self, bytes: &mut Vec<u8>) {
        let from = self.place(bytes.len());
        let is_digit = |byte: &u8| byte.is_ascii_digit();
        let Some(start) = bytes[from..].iter().position(is_digit).map(|at| from + at) else {
            return;
        };
        let digits = bytes[start..].iter().take_while(|&byte| is_digit(byte)).count();
        bytes.splice(start..start + digits, self.rng.pick(NUMBERS).bytes());
    }

    fn json(&mut self, mut value: Value, other: &[u8]) -> Vec<u8> {
        let other = serde_json::from_slice(other).unwrap_or(Value::Null);
        for _ in 0..1 + self.rng.below(3) {
            let mut at = self.rng.below(count(&value));
            let node = nth(&mut value, &mut at).expect("a node of so many");
            self.node(node, &other);
        }
        let mut text = value.to_string().into_bytes();
        if self.rng.one_in(10) {
            self.number(&mut text);
        }
        text
    }

    fn node(&mut self, node: &mut Value, other: &Value) {
        let (word, value) = (self.word(), self.value());
        match (self.rng.below(8), &mut *node) {
            (0, _) => *node = value,
            (1, _) => {
                let mut at = self.rng.below(count(other));
                *node = nth(&mut other.clone(), &mut at).expect("a node of so many").clone();
            }
            (2, _) => *node = self.nested(node.take()),
            (_, Value::Object(map)) => self.object(map, word, value),
            (_, Value::Array(list)) => self.list(list, value),
            (_, Value::String(text)) => {
                let bytes = self.bytes(text.as_bytes(), word.as_bytes());
                *text = String::from_utf8_lossy(&bytes).into_owned();
            }
            _ => *node = serde_json::from_str(self.rng.pick(NUMBERS)).unwrap_or(value),
        }
    }

    fn object(&mut self, map: &mut Map<String, Value>, word: &str, value: Value) {
        let keys: Vec<String> = map.keys().cloned().collect();
        match self.rng.below(4) {
            0 if !keys.is_empty() => drop(map.shift_remove(&keys[self.rng.below(keys.len())])),
            1 if !keys.is_empty() => {
                let moved = map.shift_remove(&keys[self.rng.below(keys.len())]).unwrap_or_default();
                map.insert(word.to_owned(), moved);
            }
            2 if !keys.is_empty() => {
                let copied = map[&keys[self.rng.below(keys.len())]].clone();
                map.insert(word.to_owned(), copied);
            }
            3 if self.rng.one_in(10) => {
                let times = self.times(8);
                map.extend((0..times).map(|i| (format!("{word}{i}"), value.clone())));
            }
            _ => drop(map.insert(word.to_owned(), value)),
        }
    }

    fn list(&mut self, list: &mut Vec<Value>, value: Value) {
        let at = self.place(list.len());
        match self.rng.below(4) {
            0 if at < list.len() => drop(list.remove(at)),
            1 if at < list.len() => {
                let times = self.times(list[at].to_string().len());
                list.extend(vec![list[at].clone(); times]);
            }
            2 => list.reverse(),
            _ => list.insert(at, value),
        }
    }

    fn value(&mut self) -> Value {
        let word = self.word();
        match self.rng.below(6) {
            0 => serde_json::from_str(self.rng.pick(NUMBERS)).unwrap_or_default(),
            1 => json!([word]),
            2 => json!({word: word}),
            3 => [json!(null), json!(true), json!([]), json!({})][self.rng.below(4)].take(),
            _ => {
                let times = if self.rng.one_in(8) { self.times(word.len()) } else { 1 };
                word.repeat(times).into()
            }
        }
    }

    fn nested(&mut self, mut value: Value) -> Value {
        let is_list = self.rng.one_in(2);
        let levels = if self.rng.one_in(4) { self.rng.pick(&NESTED) } else { 1 };
        for _ in 0..levels {
            // `json!` would copy the whole value for each level.
            value = match is_list {
                true => Value::Array(vec![value]),
                false => Value::Object(Map::from_iter([("type".to_owned(), value)])),
            };
        }
        value
    }
}

/// Values within a value, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The value at a place in the order of the text.
fn nth<'a>(value: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|value| nth(value, at)),
        Value::Object(map) => map.values_mut().find_map(|value| nth(value, at)),
        _ => None,
    }
}
