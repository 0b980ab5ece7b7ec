//! Patterns of adapters' names.

/// A name, in which `*` stands for any characters, slashes too, and `?` for one.
#[derive(Debug)]
pub(super) struct Glob(String);

impl Glob {
    /// # Errors
    /// What a pattern is like.
    pub fn new(text: &str) -> Result<Self, String> {
        let legal = |c: char| c.is_ascii_alphanumeric() || "._:/-*?".contains(c);
        match !text.is_empty() && text.chars().all(legal) {
            true => Ok(Self(text.to_owned())),
            false => Err("must be names of adapters, in which * stands for any characters and ? \
                          for one; A-Z a-z 0-9 . _ : / - may stand beside them"
                .to_owned()),
        }
    }

    /// Whether it is the pattern of a name; takes at most their lengths' product of steps.
    pub fn fits(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut read) = (0, 0);
        // The last star, and how far what it stands for reaches.
        let mut star: Option<(usize, usize)> = None;
        while read < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, read));
                    at += 1;
                }
                Some(&byte) if byte == b'?' || byte == name[read] => {
                    at += 1;
                    read += 1;
                }
                _ => {
                    let Some((place, reach)) = star else { return false };
                    star = Some((place, reach + 1));
                    (at, read) = (place + 1, reach + 1);
                }
            }
        }
        pattern[at..].iter().all(|&byte| byte == b'*')
    }

    pub fn text(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::Glob;

    #[test]
    fn a_pattern_fits_whole_names() {
        let fits = |pattern: &str, name: &str| Glob::new(pattern).unwrap().fits(name);
        for (pattern, name) in [
            ("*", "a/b"),
            ("sql", "sql"),
            ("acme/*", "acme/"),
            ("acme/*", "acme/a/b"),
            ("*-v?", "sql-v2"),
            ("a*b*c", "aXbXbXc"),
            ("**a", "a"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("sql", "sql2"),
            ("sql", "SQL"),
            ("sql", "my-sql"),
            ("acme/*", "acme"),
            ("acme/*", "acmex/a"),
            ("?", ""),
            ("a?", "a"),
            ("a*b", "abc"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        for wrong in ["", "[a-z]", "{a,b}", "a b", "!a", "é"] {
            assert!(Glob::new(wrong).is_err(), "{wrong}");
        }
        // Not exponential.
        assert!(!fits(&"*a".repeat(100), &"a".repeat(99)));
    }
}
