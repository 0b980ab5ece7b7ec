//! Settings from a TOML file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// More than any settings take.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Flags that say where settings are, or what to do with them.
pub(super) const NO_SETTINGS: &[&str] = &["config", "help", "print_config", "version"];

/// Makes the values of a TOML file the defaults of `command`'s flags. With the command come the ids
/// of the flags that the file has values for.
///
/// # Errors
/// One line: the file cannot be read, is not TOML, or holds a key or value that is not known.
pub fn with_file(
    command: clap::Command,
    path: &Path,
) -> Result<(clap::Command, Vec<String>), String> {
    let shown = path.display();
    let text = read(path)?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let start = e.span().map_or(0, |span| span.start);
        let line = text.as_bytes().iter().take(start).filter(|&&byte| byte == b'\n').count() + 1;
        // The library's words for it are about its own types.
        let what = match e.message().contains("i128") {
            true => "a whole number has 63 bits at most",
            false => e.message(),
        };
        format!("{shown} is not TOML: line {line}: {what}")
    })?;
    table.into_iter().try_fold((command, Vec::new()), |(command, mut ids), (key, value)| {
        let id = key.replace('-', "_");
        let ids_known = command.get_arguments().map(|arg| arg.get_id().to_string());
        let known: Vec<String> =
            ids_known.filter(|id| !NO_SETTINGS.contains(&id.as_str())).collect();
        if NO_SETTINGS.contains(&id.as_str()) {
            return Err(format!("{shown}: '{key}' is no setting; it is a flag alone"));
        }
        let of_tables = value.as_array().is_some_and(|list| list.iter().any(toml::Value::is_table));
        if of_tables || value.is_table() && id != "adapter" {
            return Err(format!(
                "{shown}: '{key}' is a table; settings stand at the top of the file, and [adapter] \
                 alone is a table"
            ));
        }
        if !known.contains(&id) {
            let near = nearest(&id, &known);
            return Err(format!("{shown}: unknown key '{key}'; did you mean '{near}'?"));
        }
        let values = values(&value).ok_or_else(|| {
            format!("{shown}: '{key}' must be a string, number, flag, list of strings or table")
        })?;
        ids.push(id.clone());
        Ok((command.mut_arg(id, |arg| arg.default_values(values)), ids))
    })
}

/// The text of a file, or of a pipe.
fn read(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let mut text = String::new();
    let read =
        File::open(path).and_then(|file| file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text));
    read.map_err(|e| format!("the config file {shown} cannot be read: {e}"))?;
    match text.len() as u64 > CONFIG_BYTES_MAX {
        true => Err(format!("the config file {shown} has more than {CONFIG_BYTES_MAX} bytes")),
        false => Ok(text),
    }
}

/// A TOML value as flag values. A table is a list of `key=value`, as `--adapter` takes them.
fn values(value: &toml::Value) -> Option<Vec<String>> {
    let one = |value: &toml::Value| match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    };
    match value {
        toml::Value::Array(list) => list.iter().map(one).collect(),
        toml::Value::Table(table) => {
            table.iter().map(|(k, v)| Some(format!("{k}={}", one(v)?))).collect()
        }
        other => one(other).map(|text| vec![text]),
    }
}

/// The known word with the fewest edits from `word`.
fn nearest(word: &str, known: &[String]) -> String {
    let best = known.iter().min_by_key(|other| strsim::levenshtein(word, other));
    best.map(|word| word.replace('_', "-")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_key_gets_the_nearest_known_one() {
        let known = ["max_num_seqs".to_owned(), "port".to_owned()];
        assert_eq!(nearest("max_seqs", &known), "max-num-seqs");
        assert_eq!(nearest("prot", &known), "port");
    }
}
