//! Keys from a TOML file. Whatever is wrong with it, no error holds a part of a key.

use toml::{Table, Value};

use super::glob::Glob;
use super::hash::KeyHash;
use super::meter::Rates;
use super::tenant::Policy;
use crate::adapter::check_name;
use crate::request::{SHARE_WEIGHT_MAX, SHARE_WEIGHT_MIN, ShareWeight};

/// Entries of a file. More are refused: every request is compared with every key.
const ENTRIES_MAX: usize = 4096;
/// Keys of one entry, of which all but one are old or new.
const KEYS_OF_ENTRY_MAX: usize = 4;
const FIELDS: &[&str] = &[
    "name",
    "key",
    "adapters",
    "base",
    "admin",
    "requests_per_minute",
    "tokens_per_minute",
    "concurrency",
    "weight",
    "priority",
];

/// A tenant of the file, and its keys.
#[derive(Debug)]
pub(super) struct Entry {
    pub hashes: Vec<KeyHash>,
    pub policy: Policy,
}

/// All entries, which are one at least.
///
/// # Errors
/// One line that names the entry and the field.
pub(super) fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        // Its own message could quote the file.
        let start = error.span().map_or(0, |span| span.start);
        let line = text.as_bytes().iter().take(start).filter(|&&byte| byte == b'\n').count() + 1;
        format!("line {line} is not TOML, or names something twice")
    })?;
    if let Some(other) = table.keys().find(|key| *key != "keys") {
        return Err(format!("expected [[keys]] and nothing beside, found {}", shown(other)));
    }
    let entries = match table.get("keys") {
        Some(Value::Array(entries)) if !entries.is_empty() => entries,
        _ => return Err("expected at least one [[keys]], found none".to_owned()),
    };
    if entries.len() > ENTRIES_MAX {
        return Err(format!("at most {ENTRIES_MAX} [[keys]], found {}", entries.len()));
    }
    let read = |(i, value): (usize, &Value)| {
        let wrong = |what: String| format!("[[keys]] number {}: {what}", i + 1);
        let table = value.as_table().ok_or_else(|| wrong("expected a table".to_owned()))?;
        entry(table).map_err(wrong)
    };
    entries.iter().enumerate().map(read).collect()
}

/// A name of a field that is surely no key.
fn shown(field: &str) -> String {
    let is_word = field.len() <= 24 && field.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    if is_word { format!("'{field}'") } else { "another field".to_owned() }
}

fn entry(table: &Table) -> Result<Entry, String> {
    if let Some(other) = table.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        return Err(format!("{} is not known; known are {}", shown(other), FIELDS.join(", ")));
    }
    let name = table.get("name").and_then(Value::as_str);
    let name = name.ok_or("name must be given, a string")?;
    check_name(name).map_err(|_| {
        "name must be 1 to 256 of the characters A-Z a-z 0-9 . _ : / -, without .., with more than \
         . between / and at its ends, and not other"
    })?;
    let admin = flag(table, "admin")?.unwrap_or(false);
    let given = ["adapters", "base"].into_iter().find(|field| table.contains_key(*field));
    if let Some(field) = given.filter(|_| admin) {
        return Err(format!(
            "{field} and admin = true exclude each other: who may load adapters may use all; leave \
             {field} out"
        ));
    }
    let adapters = match table.get("adapters") {
        None => vec!["*"],
        Some(list) => strings(list).ok_or("adapters must be a list of strings")?,
    };
    let adapters = adapters.into_iter().map(Glob::new).collect::<Result<_, _>>();
    let rates = Rates {
        requests_per_minute: count(table, "requests_per_minute")?,
        tokens_per_minute: count(table, "tokens_per_minute")?,
        concurrency: count(table, "concurrency")?,
    };
    let policy = Policy {
        name: name.to_owned(),
        adapters: adapters.map_err(|what| format!("adapters {what}"))?,
        base: flag(table, "base")?.unwrap_or(true),
        admin,
        rates,
        weight: weight(table)?,
        priority: match table.get("priority") {
            None => 0,
            Some(value) => value.as_integer().ok_or("priority must be a whole number")?,
        },
    };
    Ok(Entry { hashes: hashes(table)?, policy })
}

fn hashes(table: &Table) -> Result<Vec<KeyHash>, String> {
    let keys = match table.get("key") {
        Some(Value::String(key)) => vec![key.as_str()],
        Some(list) => strings(list).unwrap_or_default(),
        None => Vec::new(),
    };
    if !(1..=KEYS_OF_ENTRY_MAX).contains(&keys.len()) {
        return Err(format!(
            "key must be given, a string or a list of up to {KEYS_OF_ENTRY_MAX} strings"
        ));
    }
    keys.into_iter().map(KeyHash::read).collect()
}

fn strings(list: &Value) -> Option<Vec<&str>> {
    list.as_array()?.iter().map(Value::as_str).collect()
}

fn flag(table: &Table, field: &str) -> Result<Option<bool>, String> {
    let flag = |value: &Value| value.as_bool().ok_or_else(|| format!("{field} is true or false"));
    table.get(field).map(flag).transpose()
}

fn count(table: &Table, field: &str) -> Result<Option<u32>, String> {
    let count = |value: &Value| {
        let n = value.as_integer().and_then(|n| u32::try_from(n).ok()).filter(|&n| n >= 1);
        n.ok_or_else(|| {
            format!("{field} must be a whole number from 1 to {}; without it, no limit", u32::MAX)
        })
    };
    table.get(field).map(count).transpose()
}

fn weight(table: &Table) -> Result<ShareWeight, String> {
    let Some(value) = table.get("weight") else { return Ok(ShareWeight::ONE) };
    let weight = value.as_float().or_else(|| value.as_integer().map(|n| n as f64));
    weight.and_then(ShareWeight::new).ok_or_else(|| {
        format!(
            "weight must be a number from {SHARE_WEIGHT_MIN} to {SHARE_WEIGHT_MAX}; shares are \
             by the ratio of weights"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn an_entry_says_what_a_tenant_may_do() {
        let text = "[[keys]]\nname = 'acme'\nkey = ['new', 'old']\nadapters = ['acme/*', 'sql']\n\
                    base = false\nrequests_per_minute = 60\ntokens_per_minute = 9\n\
                    concurrency = 4\n\
                    weight = 2\npriority = -1\n[[keys]]\nname = 'ops'\nkey = 'o'\nadmin = true\n\
                    [[keys]]\nname = 'none'\nkey = 'n'\nadapters = []\n";
        let entries = parse(text).unwrap();
        let told: Vec<String> = entries.iter().map(|entry| entry.policy.describe()).collect();
        assert_eq!(
            told,
            [
                "key acme: adapters acme/* sql, not the base, 60 requests a minute, 9 tokens a \
                 minute, 4 requests at once, weight 2, priority -1",
                "key ops: adapters *, the base, may administer",
                "key none: adapters none, the base",
            ]
        );
        assert_eq!(entries[0].hashes.len(), 2);
    }

    #[test]
    fn what_is_wrong_is_named_and_no_key_is() {
        let secret = "sk-verysecret1";
        let cases = [
            (String::new(), "at least one [[keys]]"),
            ("keys = 5".into(), "at least one [[keys]]"),
            ("keys = []".into(), "at least one [[keys]]"),
            ("keys = ['sk-verysecret1']".into(), "number 1: expected a table"),
            (format!("{secret} = 1"), "found another field"),
            ("port = 1".into(), "found 'port'"),
            (format!("[[keys]]\nname = 'a'\nkey = {secret}"), "line 3 is not TOML"),
            (format!("[[keys]]\nkey = '{secret}'\nkey = '{secret}'"), "line 3 is not TOML"),
            (format!("[[keys]]\nkey = '{secret}'"), "name must be given"),
            (format!("[[keys]]\nname = '{secret} x'\nkey = 'k'"), "name must be 1 to 256"),
            ("[[keys]]\nname = 'a'".into(), "key must be given"),
            ("[[keys]]\nname = 'a'\nkey = 9876543210".into(), "key must be given"),
            ("[[keys]]\nname = 'a'\nkey = []".into(), "key must be given"),
            ("[[keys]]\nname = 'a'\nkey = ''".into(), "a key must be 1 to 1024"),
            (format!("[[keys]]\nname = 'a'\nkey = '{secret} '"), "a key must be 1 to 1024"),
            (format!("[[keys]]\nname = 'a'\nkey = 'sha256:{secret}'"), "64 hexadecimal digits"),
            (format!("[[keys]]\nname = 'a'\n{secret} = 'k'"), "another field is not known"),
            ("[[keys]]\nname = 'a'\nkey = 'k'\nadmn = true".into(), "'admn' is not known"),
            ("[[keys]]\nname = 'a'\nkey = 'k'\nadmin = 1".into(), "admin is true or false"),
            ("[[keys]]\nname = 'a'\nkey = 'k'\nadapters = 'x'".into(), "a list of strings"),
            ("[[keys]]\nname = 'a'\nkey = 'k'\nadapters = ['[a]']".into(), "adapters must be"),
            (
                "[[keys]]\nname = 'a'\nkey = 'k'\nadmin = true\nbase = false".into(),
                "base and admin = true exclude each other",
            ),
            ("[[keys]]\nname = 'a'\nkey = 'k'\nconcurrency = 0".into(), "concurrency must be"),
            ("[[keys]]\nname = 'a'\nkey = 'k'\nweight = nan".into(), "weight must be"),
            ("[[keys]]\nname = 'a'\nkey = 'k'\nweight = 0".into(), "from 0.001 to 1000"),
            ("[[keys]]\nname = 'a'\nkey = 'k'\nweight = 1001".into(), "from 0.001 to 1000"),
            ("[[keys]]\nname = 'a'\nkey = 'k'\npriority = 0.5".into(), "priority must be"),
        ];
        for (text, expected) in cases {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("verysecret") && !error.contains("98765"), "{error}");
        }
    }
}
