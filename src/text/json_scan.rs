//! One JSON value, followed character by character.

/// What a character made of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It goes on.
    More,
    /// It ends with this character.
    Whole,
    /// The character cannot stand here.
    Wrong,
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A value; in a list that has just begun, its end too.
    Value {
        /// Whether the list may end here.
        may_end: bool,
    },
    /// A key; in an object that has just begun, its end too.
    Key {
        /// Whether the object may end here.
        may_end: bool,
    },
    /// The colon after a key.
    Colon,
    /// What comes after a value in an object or a list.
    After,
    /// More of a string.
    Text {
        /// Whether it is a key.
        is_key: bool,
        /// Characters of an escape that are missing: 5 is the one that says which.
        escape: u8,
    },
    /// More of a number.
    Number(Number),
    /// The rest of `true`, `false` or `null`.
    Word(&'static str),
}

/// How far a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    Signed,
    Power,
}

/// An object or a list that is being read.
#[derive(Clone, Debug)]
pub(super) struct JsonScan {
    /// Objects and lists that are open, outermost first; true is an object.
    open: Vec<bool>,
    next: Next,
}

impl JsonScan {
    pub fn new() -> Self {
        Self { open: Vec::new(), next: Next::Value { may_end: false } }
    }

    /// Objects and lists that are open.
    pub fn depth(&self) -> usize {
        self.open.len()
    }

    pub fn next(&self) -> Next {
        self.next
    }

    /// Takes the next character. After [`Step::Whole`] or [`Step::Wrong`] there is none.
    pub fn push(&mut self, c: char) -> Step {
        let is_blank = matches!(c, ' ' | '\t' | '\n' | '\r');
        let more = |scan: &mut Self, next| {
            scan.next = next;
            Step::More
        };
        match (self.next, c) {
            (Next::Text { is_key, escape }, c) => self.in_text(is_key, escape, c),
            (Next::Number(number), c) => match number.with(c) {
                Some(number) => more(self, Next::Number(number)),
                None if number.is_whole() => {
                    self.next = Next::After;
                    self.push(c)
                }
                None => Step::Wrong,
            },
            (Next::Word(rest), c) => match rest.strip_prefix(c) {
                Some("") => more(self, Next::After),
                Some(rest) => more(self, Next::Word(rest)),
                None => Step::Wrong,
            },
            (_, _) if is_blank => Step::More,
            (Next::Key { may_end: true }, '}') => self.close(true),
            (Next::Key { .. }, '"') => more(self, Next::Text { is_key: true, escape: 0 }),
            (Next::Colon, ':') => more(self, Next::Value { may_end: false }),
            (Next::Value { may_end: true }, ']') => self.close(false),
            (Next::Value { .. }, c) => self.value(c),
            (Next::After, ',') => match self.open.last() {
                Some(true) => more(self, Next::Key { may_end: false }),
                Some(false) => more(self, Next::Value { may_end: false }),
                None => Step::Wrong,
            },
            (Next::After, '}') => self.close(true),
            (Next::After, ']') => self.close(false),
            _ => Step::Wrong,
        }
    }

    fn value(&mut self, c: char) -> Step {
        self.next = match c {
            '{' => {
                self.open.push(true);
                Next::Key { may_end: true }
            }
            '[' => {
                self.open.push(false);
                Next::Value { may_end: true }
            }
            '"' => Next::Text { is_key: false, escape: 0 },
            't' => Next::Word("rue"),
            'f' => Next::Word("alse"),
            'n' => Next::Word("ull"),
            '-' => Next::Number(Number::Minus),
            '0' => Next::Number(Number::Zero),
            '1'..='9' => Next::Number(Number::Whole),
            _ => return Step::Wrong,
        };
        Step::More
    }

    fn in_text(&mut self, is_key: bool, escape: u8, c: char) -> Step {
        let text = |escape| Next::Text { is_key, escape };
        self.next = match (escape, c) {
            (0, '"') if is_key => Next::Colon,
            (0, '"') => Next::After,
            (0, '\\') => text(5),
            (0, '\0'..='\x1f') => return Step::Wrong,
            (0, _) => text(0),
            (5, 'u') => text(4),
            (5, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => text(0),
            (1..=4, c) if c.is_ascii_hexdigit() => text(escape - 1),
            _ => return Step::Wrong,
        };
        Step::More
    }

    fn close(&mut self, is_object: bool) -> Step {
        if self.open.last() != Some(&is_object) {
            return Step::Wrong;
        }
        self.open.pop();
        self.next = Next::After;
        if self.open.is_empty() { Step::Whole } else { Step::More }
    }
}

impl Number {
    fn with(self, c: char) -> Option<Self> {
        Some(match (self, c) {
            (Self::Minus, '0') => Self::Zero,
            (Self::Minus, '1'..='9') | (Self::Whole, '0'..='9') => Self::Whole,
            (Self::Zero | Self::Whole, '.') => Self::Point,
            (Self::Point | Self::Fraction, '0'..='9') => Self::Fraction,
            (Self::Zero | Self::Whole | Self::Fraction, 'e' | 'E') => Self::Exponent,
            (Self::Exponent, '+' | '-') => Self::Signed,
            (Self::Exponent | Self::Signed | Self::Power, '0'..='9') => Self::Power,
            _ => return None,
        })
    }

    fn is_whole(self) -> bool {
        matches!(self, Self::Zero | Self::Whole | Self::Fraction | Self::Power)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> Step {
        let mut scan = JsonScan::new();
        let mut last = Step::More;
        for c in text.chars() {
            if last != Step::More {
                return Step::Wrong;
            }
            last = scan.push(c);
        }
        last
    }

    #[test]
    fn it_takes_what_serde_json_takes() {
        let seed = r#"{"a": [1, -0.5e+3, true, null, "x\"\u00e9\n", {}], "b": {"c": false}}"#;
        assert_eq!(scan(seed), Step::Whole);
        let mut random = 1_u64;
        let mut below = |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % n
        };
        for _ in 0..20_000 {
            let mut text: Vec<char> = seed.chars().collect();
            for _ in 0..=below(2) {
                let at = below(text.len());
                match below(3) {
                    0 => text[at] = ['{', '}', '[', ']', '"', ',', ':', '0', '\\', 'e'][below(10)],
                    1 => drop(text.remove(at)),
                    _ => text.truncate(at.max(1)),
                }
            }
            let text: String = text.into_iter().collect();
            let value = serde_json::from_str::<serde_json::Value>(&text);
            // Numbers beyond any float are JSON all the same.
            let expected = match &value {
                Ok(value) => value.is_object() || value.is_array(),
                Err(error) if error.to_string().contains("out of range") => continue,
                Err(_) => false,
            };
            assert_eq!(scan(&text) == Step::Whole, expected, "{text}");
        }
    }
}
