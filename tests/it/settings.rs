//! Where settings come from, and whose fault it is when one cannot be used.

use std::fs;

use crate::process::tessera;
use crate::serve::{golden, text};

/// The settings that a start would have, or its exit code and the line that says why.
fn settings(variables: &[(&str, &str)], args: &[&str]) -> Result<String, (i32, String)> {
    let mut command = tessera(&[&["serve", "--print-config"], args].concat());
    let output = command.envs(variables.iter().copied()).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => {
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(error.lines().count(), 1, "{error}");
            Err((output.status.code().unwrap(), error))
        }
    }
}

#[test]
fn an_empty_variable_counts_as_not_set_but_an_empty_key_opens_no_server() {
    let names =
        ["MODEL", "PORT", "ADAPTER", "NO_PAGE", "ALLOWED_HOST", "ADAPTER_HOST_BYTES", "CONFIG"];
    let names = names.map(|name| format!("TESSERA_{name}"));
    let empty: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    assert_eq!(settings(&empty, &[]), settings(&[], &[]));
    for name in ["TESSERA_API_KEY", "TESSERA_METRICS_KEY"] {
        let started = tessera(&["serve"]).env(name, "").output().unwrap();
        let error = String::from_utf8(started.stderr).unwrap();
        assert_eq!(started.status.code(), Some(5), "{name}: {error}");
    }
}

#[test]
fn commas_separate_in_a_variable_and_are_part_of_what_a_flag_says() {
    let adapters = [("TESSERA_ADAPTER", "a=x,b=y"), ("TESSERA_ALLOWED_HOST", "a.org,b.org")];
    let both = settings(&adapters, &[]).unwrap();
    assert!(both.contains("adapter = [\"a=x\", \"b=y\"]  # variable"), "{both}");
    assert!(both.contains("allowed-host = [\"a.org\", \"b.org\"]  # variable"), "{both}");
    // A flag stands in place of the variable.
    for typed in [&["--adapter", "c=/srv/x,d=y"][..], &["--adapter=c=/srv/x,d=y"]] {
        let one = settings(&adapters, typed).unwrap();
        assert!(one.contains("adapter = [\"c=/srv/x,d=y\"]  # flag"), "{one}");
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    fs::write(&file, "adapter = [\"c=/srv/x,d=y\"]\n").unwrap();
    let one = settings(&[], &["--config", file.to_str().unwrap()]).unwrap();
    assert!(one.contains("adapter = [\"c=/srv/x,d=y\"]  # file"), "{one}");

    let (model, missing) = (text(&golden()), "a=/nowhere,b=/else");
    let output = tessera(&["serve", &model, "--adapter", missing]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--adapter once for each"), "{error}");
}

#[test]
fn a_wrong_value_is_told_with_the_place_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, lines: &str| {
        let file = dir.path().join(name);
        fs::write(&file, lines).unwrap();
        file.to_str().unwrap().to_owned()
    };
    /// Variables, arguments, the exit code, and what the line says.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], i32, &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        (&[], &["--port", "x"], 2, &["--port"]),
        (&[], &["--adapter", "nameless"], 2, &["--adapter", "NAME=DIR_OR_ID"]),
        (&[("TESSERA_PORT", "x")], &[], 5, &["variable TESSERA_PORT:", "'x'"]),
        (&[("TESSERA_ADAPTER", "x")], &[], 5, &["variable TESSERA_ADAPTER:", "NAME=DIR"]),
        (&[("TESSERA_NO_PAGE", "perhaps")], &[], 5, &["variable TESSERA_NO_PAGE:"]),
        (&[("TESSERA_DTYPE", "int3")], &[], 5, &["variable TESSERA_DTYPE:", "bf16"]),
        // Another's fault, beside a variable that is right.
        (&[("TESSERA_PORT", "1")], &["--dtype", "int3"], 2, &["--dtype"]),
        // A flag stands in place of it.
        (&[("TESSERA_PORT", "x")], &["--port", "y"], 2, &["'y'"]),
    ];
    for (variables, args, code, parts) in cases {
        let (got, error) = settings(variables, args).unwrap_err();
        assert_eq!(got, *code, "{variables:?} {args:?}: {error}");
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    for (name, lines, part) in [
        ("value", "port = \"x\"", "'x'"),
        ("adapter", "adapter = [\"nameless\"]", "NAME=DIR_OR_ID"),
        ("table", "[server]\nport = 1", "'server' is a table"),
        ("inner", "[port]\na = 1", "'port' is a table"),
        ("tables", "[[server]]\nport = 1", "'server' is a table"),
        ("twice", "[[adapter]]\na = 1", "'adapter' is a table"),
        ("line", "port = 1\nhost = ", "line 2"),
        ("itself", "config = \"x\"", "'config' is no setting"),
        ("near", "confg = \"x\"", "unknown key 'confg'"),
    ] {
        let path = file(name, lines);
        let (code, error) = settings(&[], &["--config", &path]).unwrap_err();
        assert!(code == 5 && error.contains(&path) && error.contains(part), "{name}: {error}");
        assert!(!error.contains("did you mean 'config'"), "{error}");
    }
    // What is typed beside it stays what is wrong.
    let path = file("good", "port = 1");
    let (code, error) = settings(&[], &["--config", &path, "--dtype", "int3"]).unwrap_err();
    assert!(code == 2 && error.contains("--dtype"), "{error}");
    assert!(settings(&[("TESSERA_PORT", "x")], &["--port", "1"]).is_ok());
}

#[test]
fn a_misspelt_variable_is_told() {
    let (model, address) = (text(&golden()), ["--host", "300.1.1.1"]);
    let mut command = tessera(&[&["serve", &model], &address[..]].concat());
    let output = command.env("TESSERA_API_KEYS", "secret").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    let told = "warning: the variable TESSERA_API_KEYS is read by no command; did you mean ";
    assert!(error.starts_with(told) && error.contains("TESSERA_API_KEY?"), "{error}");
    assert!(!error.contains("secret"), "{error}");
}
