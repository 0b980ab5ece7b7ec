//! Names of modules in the fields that peft reads as patterns. Most are plain names, of which a
//! config may hold thousands; the few that are more are compiled.

use super::config::Config;
use super::error::AdapterError;
use super::pattern::PythonPattern;

/// Where in a module's name an entry must stand: how peft builds its pattern.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// `re.match(rf"(.*\.)?({entry})$", name)`, of `rank_pattern` and `alpha_pattern`.
    End,
    /// `re.match(rf"(^|.*\.){entry}($|\..*)", name)`, of `modules_to_save`.
    Within,
}

/// An entry of one of these fields.
pub struct NamePattern {
    place: Place,
    kind: Kind,
}

enum Kind {
    Plain(PlainName),
    Python(PythonPattern),
}

impl NamePattern {
    /// Reads an entry of the field `key`.
    ///
    /// # Errors
    /// As [`PythonPattern::within`], and when the config has more patterns than are compiled.
    pub fn read(
        config: &Config<'_>,
        key: &'static str,
        place: Place,
        entry: &str,
    ) -> Result<Self, AdapterError> {
        if let Some(name) = PlainName::read(entry) {
            return Ok(Self { place, kind: Kind::Plain(name) });
        }
        config.count_pattern(key)?;
        let around = match place {
            Place::End => [r"(.*\.)?(", ")$"],
            Place::Within => [r"(^|.*\.)", r"($|\..*)"],
        };
        let pattern = PythonPattern::within(key, around, entry)?;
        Ok(Self { place, kind: Kind::Python(pattern) })
    }

    /// Whether it means the module of this name.
    ///
    /// # Errors
    /// When matching takes too many steps.
    pub fn matches(&self, name: &str) -> Result<bool, AdapterError> {
        match &self.kind {
            Kind::Plain(plain) => Ok(plain.is_at(self.place, name.as_bytes())),
            Kind::Python(pattern) => pattern.matches(name),
        }
    }
}

/// Letters, digits, `_`, `-` and dots, perhaps between `^` and `$`. To Python's `re` a dot is any
/// character, unless a backslash stands before it.
struct PlainName {
    /// `None` is any.
    bytes: Vec<Option<u8>>,
    from_start: bool,
    to_end: bool,
}

impl PlainName {
    /// `None` for what is more than a name.
    fn read(entry: &str) -> Option<Self> {
        let (inner, from_start) = match entry.strip_prefix('^') {
            Some(rest) => (rest, true),
            None => (entry, false),
        };
        let (inner, to_end) = match inner.strip_suffix('$') {
            Some(rest) => (rest, true),
            None => (inner, false),
        };
        let mut bytes = Vec::with_capacity(inner.len());
        let mut rest = inner.bytes();
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'.' => None,
                b'\\' => Some(rest.next().filter(|&next| next == b'.')?),
                b'_' | b'-' => Some(byte),
                _ if byte.is_ascii_alphanumeric() => Some(byte),
                _ => return None,
            });
        }
        (!bytes.is_empty()).then_some(Self { bytes, from_start, to_end })
    }

    fn is_at(&self, place: Place, name: &[u8]) -> bool {
        let Some(last) = name.len().checked_sub(self.bytes.len()) else { return false };
        let first = if place == Place::End || self.to_end { last } else { 0 };
        let last = if self.from_start { 0 } else { last };
        (first..=last).any(|at| {
            let end = at + self.bytes.len();
            let starts = at == 0 || name[at - 1] == b'.' && !self.from_start;
            let ends = end == name.len() || name[end] == b'.';
            starts && ends && self.is_equal(&name[at..end])
        })
    }

    fn is_equal(&self, part: &[u8]) -> bool {
        self.bytes.iter().zip(part).all(|(byte, found)| byte.is_none_or(|byte| byte == *found))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Map;

    use super::*;

    const NAMES: [&str; 9] = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.10.self_attn.q_proj",
        "model.layers.0.mlp.up_proj",
        "lm_head",
        "model.norm",
        "q_proj",
        "xq_proj",
        "q_proj.inner",
        "model.layers.0",
    ];

    /// Every entry that is taken as a plain name means what the engine says that it means.
    #[test]
    fn a_plain_name_means_what_the_pattern_would() {
        let entries = [
            "q_proj",
            "q.proj",
            r"q\.proj",
            "^q_proj",
            "q_proj$",
            "^q_proj$",
            "layers.0",
            "0",
            "model",
            "layers.1",
            "layers.1.",
            ".",
            "..",
            "^.",
            "self_attn.q_proj",
            "el.norm",
            "^model.norm",
            "model.layers.0.self_attn.q_proj",
            "lm-head",
            "norm$",
            "^model",
            "layers$",
            ".q_proj",
            "model.",
        ];
        let (mut plain, mut counts) = (0, BTreeMap::new());
        for entry in entries {
            let Some(name) = PlainName::read(entry) else { panic!("{entry} is plain") };
            for (place, around) in
                [(Place::End, [r"(.*\.)?(", ")$"]), (Place::Within, [r"(^|.*\.)", r"($|\..*)"])]
            {
                let engine = PythonPattern::within("rank_pattern", around, entry).unwrap();
                for found in NAMES {
                    let (ours, theirs) =
                        (name.is_at(place, found.as_bytes()), engine.matches(found).unwrap());
                    assert_eq!(ours, theirs, "{entry} at {place:?} in {found}");
                    *counts.entry(theirs).or_insert(0) += 1;
                    plain += 1;
                }
            }
        }
        assert!(counts[&true] > 60 && counts[&false] > 200, "{counts:?} of {plain}");
        for more in ["", "^", "$", "a|b", "a*", "[ab]", r"\d", r"a\", "é", "(a)", "a b", "a{2}"] {
            assert!(PlainName::read(more).is_none(), "{more}");
        }
    }

    #[test]
    fn patterns_are_counted_and_plain_names_are_not() {
        let map = Map::new();
        let config = Config::new(&map);
        let read = |entry: &str| NamePattern::read(&config, "rank_pattern", Place::End, entry);
        for layer in 0..5000 {
            assert!(read(&format!("model.layers.{layer}.q_proj")).is_ok());
        }
        let refused = (0..5000).find_map(|layer| read(&format!("[ab]{layer}")).err()).unwrap();
        assert!(refused.to_string().contains("'rank_pattern'"), "{refused}");
    }
}
