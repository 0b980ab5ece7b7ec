//! Settings as a TOML file that says where each comes from: `tessera serve --print-config`.

use std::fmt::Write;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::file::NO_SETTINGS;

/// A file of settings, and the ids of the flags that it has values for.
pub struct FromFile<'a> {
    /// The file.
    pub path: &'a Path,
    /// Ids, as clap has them.
    pub ids: &'a [String],
}

/// Every setting of `serve`, its value and its origin. `--config` reads the text back: what has no
/// value and what is secret stands in comments.
pub fn describe(serve: &Command, matches: &ArgMatches, file: Option<&FromFile<'_>>) -> String {
    let mut text = format!(
        "# Settings of tessera serve {}. A flag beats a variable, which beats the file, which \
         beats the default.\n",
        env!("CARGO_PKG_VERSION")
    );
    let args = || serve.get_arguments().filter(|arg| !NO_SETTINGS.contains(&arg.get_id().as_str()));
    let mut headings: Vec<&str> = Vec::new();
    for heading in args().map(|arg| arg.get_help_heading().unwrap_or("Model")) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n# {heading}");
        let own = args().filter(|arg| arg.get_help_heading().unwrap_or("Model") == heading);
        own.for_each(|arg| text.push_str(&line(arg, matches, file)));
    }
    text
}

fn line(arg: &Arg, matches: &ArgMatches, file: Option<&FromFile<'_>>) -> String {
    let id = arg.get_id().as_str();
    let key = id.replace('_', "-");
    let Some(source) = matches.value_source(id) else {
        return format!("# {key} is not set\n");
    };
    let origin = origin(arg, source, file);
    let raw = matches.get_raw(id).into_iter().flatten();
    let values: Vec<String> = raw.map(|value| value.to_string_lossy().into_owned()).collect();
    // A key, or a URL with a password in it.
    let has_password = |value: &String| value.contains("://") && value.contains('@');
    if arg.is_hide_env_values_set() || values.iter().any(has_password) {
        return format!("# {key} is set and hidden  # {origin}\n");
    }
    let value = match arg.get_action() {
        ArgAction::SetTrue => toml::Value::Boolean(matches.get_flag(id)),
        ArgAction::Append => toml::Value::from(values),
        _ => scalar(&values.concat()),
    };
    format!("{key} = {value}  # {origin}\n")
}

fn origin(arg: &Arg, source: ValueSource, file: Option<&FromFile<'_>>) -> String {
    let id = arg.get_id().as_str();
    match (source, file.filter(|file| file.ids.iter().any(|known| known == id))) {
        (ValueSource::EnvVariable, _) => {
            let name = arg.get_env().unwrap_or_default();
            format!("variable {}", name.to_string_lossy())
        }
        (ValueSource::DefaultValue, Some(file)) => format!("file {}", file.path.display()),
        (ValueSource::DefaultValue, None) => "default".to_owned(),
        _ => arg.get_long().map_or("argument".to_owned(), |long| format!("flag --{long}")),
    }
}

/// A number where it is written as TOML would write it, else a text.
fn scalar(text: &str) -> toml::Value {
    let whole = text.parse::<i64>().ok().filter(|n| n.to_string() == text);
    let broken = text.parse::<f64>().ok().filter(|x| x.is_finite() && x.to_string() == text);
    match (whole, broken) {
        (Some(n), _) => toml::Value::Integer(n),
        (None, Some(x)) => toml::Value::Float(x),
        (None, None) => toml::Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::scalar;

    #[test]
    fn what_is_no_number_as_it_stands_stays_a_text() {
        assert_eq!(scalar("8000").to_string(), "8000");
        assert_eq!(scalar("0.9").to_string(), "0.9");
        for text in ["007", "1e3", "8GiB", "", "nan", "a \"b\"\n"] {
            assert_eq!(scalar(text), toml::Value::String(text.to_owned()));
        }
    }
}
