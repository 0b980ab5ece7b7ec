//! `tessera generate` and `tessera chat`, with their input and output in pipes.
//! `tests/clients/terminal.py` drives them through a terminal.

use std::fs;
use std::io::Write;
use std::process::{Output, Stdio};

use tessera::http::batch_paths;

use crate::process::{Server, tessera};
use crate::serve::{golden, text};

/// What the demo goes on with after "The fox", greedily.
const FOX: &str = " is small. It lives in the forest.";

fn run(args: &[&str], input: &str) -> Output {
    run_with(args, input, &[])
}

fn run_with(args: &[&str], input: &str, env: &[(&str, &str)]) -> Output {
    let mut command = tessera(args);
    command.envs(env.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that needs no input may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", err(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The exit code and the one line that says why.
fn refused(args: &[&str]) -> (i32, String) {
    let output = run(args, "");
    let error = err(&output);
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "{error}");
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code().unwrap(), error)
}

const GREEDY: [&str; 4] = ["--temperature", "0", "--max-tokens", "9"];

#[test]
fn generate_prints_the_text_and_nothing_else_wherever_the_prompt_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt");
    fs::write(&file, "The fox\n").unwrap();
    let model = text(&crate::root().join("demo/model"));
    let with = |more: &[&str], input: &str| {
        let output = run(&[&["generate"], &GREEDY[..], more].concat(), input);
        (out(&output), err(&output))
    };
    let file = file.to_str().unwrap();
    for (more, input) in [
        (vec!["The fox"], ""),
        (vec![], "The fox\n"),
        (vec!["-"], "The fox"),
        (vec!["--file", file], ""),
        (vec![model.as_str(), "The fox"], ""),
        (vec![model.as_str(), "-"], "The fox\r\n"),
        (vec![model.as_str(), "--file", file], ""),
    ] {
        assert_eq!(with(&more, input), (format!("{FOX}\n"), String::new()), "{more:?}");
    }
    let (pirate, _) = with(&["The fox", "--model", "pirate"], "");
    assert!(pirate != format!("{FOX}\n"), "{pirate}");
    let (several, _) = with(&["The fox", "--n", "2", "-0"], "");
    assert_eq!(several, format!("{FOX}\0{FOX}\0"));
    let (stopped, stats) = with(&["The fox", "--stop", "lives", "--stats"], "");
    assert_eq!(stopped, " is small. It \n");
    assert!(stats.contains(" tokens, the first after "), "{stats}");
    let seeded =
        |seed| out(&run(&["generate", "The fox", "--temperature", "1.5", "--seed", seed], ""));
    assert_eq!(seeded("7"), seeded("7"));
}

#[test]
fn generate_and_chat_ask_a_server_by_the_address_that_it_prints() {
    let dir = tempfile::tempdir().unwrap();
    let socket = text(&dir.path().join("socket"));
    let plain = Server::start(&["--api-key", "secret"]);
    let unix = Server::start(&["--uds", &socket]);
    let pem = |name: &str| text(&crate::root().join("tests/data/tls").join(name));
    let (certificate, key) = (pem("one.pem"), pem("one.key"));
    let tls = Server::start(&["--ssl-certfile", &certificate, "--ssl-keyfile", &key]);
    let tls_url = tls.address.replace("127.0.0.1", "localhost");
    assert!(tls_url.starts_with("https://") && unix.address.starts_with("unix:"));
    let trusted = [("SSL_CERT_FILE", certificate.as_str())];
    let keyed = [("TESSERA_API_KEY", "secret")];
    let urls: [(String, &[(&str, &str)]); 3] = [
        (format!("http://{}/v1", plain.address), &keyed),
        (unix.address.clone(), &[]),
        (format!("{tls_url}/v1"), &trusted),
    ];
    for (url, env) in &urls {
        let args = [&["generate", "The fox", "--url", url], &GREEDY[..]].concat();
        assert_eq!(out(&run_with(&args, "", env)), format!("{FOX}\n"), "{url}");
        let args = ["chat", "--url", url, "--model", "pirate", "--temperature", "0"];
        let chat = out(&run_with(&args, "What does a fox eat?\n", env));
        assert!(chat.starts_with("Arr! The fox feasts on berries"), "{url}: {chat}");
    }
    // Believed by its file alone, whatever its name, and by no other.
    let by_ip = format!("{}/v1", tls.address);
    let args = [&["generate", "The fox", "--url", &by_ip], &GREEDY[..]].concat();
    let certified = [&args[..], &["--ssl-certfile", &certificate]].concat();
    assert_eq!(out(&run(&certified, "")), format!("{FOX}\n"));
    let (code, error) = refused(&[&args[..], &["--ssl-certfile", &pem("two.pem")]].concat());
    assert!(code == 1 && error.contains("another"), "{error}");
    let (code, error) = refused(&[&args[..], &["--ssl-certfile", &key]].concat());
    assert!(code == 2 && error.contains("holds no certificate"), "{error}");
    let (code, error) = refused(&["generate", "x", "--url", &urls[0].0]);
    assert!(code == 2 && error.contains("401") && error.contains("API key"), "{error}");
    let (code, error) = refused(&["generate", "x", "--url", &urls[2].0]);
    assert!(code == 1 && error.contains("no server at https://localhost"), "{error}");
    let (code, error) = refused(&["generate", "x", "--url", "127.0.0.1:1"]);
    assert!(code == 1 && error.contains("no server at 127.0.0.1:1: "), "{error}");
}

#[test]
fn what_generate_and_chat_cannot_do_is_said_in_one_line() {
    let model = text(&golden());
    for (args, expected) in [
        (vec!["generate", &model], "was taken for the prompt"),
        (vec!["generate", "a", "b", "c"], "got 3 words; quote the prompt"),
        (vec!["generate", "x", "--model", "nobody"], "The model `nobody` does not exist"),
        (vec!["generate", "x", "--temperature", "9"], "the server answered 400: "),
        (vec!["generate", "x", "--port", "1"], "--port does nothing here: nobody listens"),
        (vec!["generate", "x", "--key", "k"], "--url names none"),
        (vec!["generate", "x", "--ssl-certfile", "f"], "--url names none"),
        (vec!["generate", "x", "--url", "ftp://x"], "expected a server's address"),
        (vec!["generate", "x", "--url", "h", "--threads", "1"], "has its own settings"),
        (vec!["generate", &model, "x", "--url", "h"], "both the model"),
        (vec!["generate", "--file", "/nowhere"], "cannot be read from /nowhere"),
        (vec!["chat", "--model", "nobody"], "there is no model 'nobody'; there are demo, pirate"),
    ] {
        let (code, error) = refused(&args);
        assert!(code == 2 && error.contains(expected), "{args:?}: {error}");
    }
    let (code, error) = refused(&["chat", "/nowhere/model"]);
    assert!(code == 3 && error.contains("/nowhere/model"), "{error}");
    let (code, error) = refused(&["generate", "x", "--config", "/nowhere.toml"]);
    assert!(code == 5 && error.contains("/nowhere.toml"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(golden().join(file), dir.path().join(file)).unwrap();
    }
    let bare = text(dir.path());
    let (code, error) = refused(&["chat", &bare]);
    assert!(code == 2 && error.contains("no chat template"), "{error}");
    assert!(error.contains("tessera generate"), "{error}");
    assert!(run(&["generate", &bare, "x", "--max-tokens", "2"], "").status.success());
}

#[test]
fn chat_remembers_switches_and_forgets() {
    let said = "What does a fox eat?\n\nWhere does it live?\n/model pirate\nWhat does a fox eat?\n\
                /reset\nWhere does it live?\n/quit\nnever read\n";
    let chat = run(&["chat", "--temperature", "0", "--max-tokens", "40", "--stats"], said);
    let answers = out(&chat);
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(answers.len(), 4, "{answers:#?}");
    assert_eq!(answers[0], "The fox eats berries and mice.");
    // "it" is what was talked of before.
    assert!(answers[1].contains("fox lives"), "{answers:#?}");
    assert!(answers[2].contains("feasts on berries an' mice"), "{answers:#?}");
    assert!(!answers[3].contains("fox"), "{answers:#?}");
    let notes = err(&chat);
    assert_eq!(notes.matches(" tokens, the first after ").count(), 4, "{notes}");
    assert!(notes.contains("pirate goes on\n") && notes.contains("forgotten\n"), "{notes}");

    let listed = run(&["chat", "--system", "Be brief."], "/model\n/system\n/help\n");
    let notes = err(&listed);
    assert!(out(&listed).is_empty() && notes.starts_with("* demo\n  pirate\n"), "{notes}");
    assert!(notes.contains("Be brief.\n") && notes.contains("/reset "), "{notes}");
    // A script that says something wrong ends there.
    for wrong in ["/modell pirate", "/model nobody"] {
        let ended = run(&["chat"], &format!("{wrong}\nHello\n"));
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(
            ended.stdout.is_empty() && err(&ended).contains("error: there is no "),
            "{ended:?}"
        );
    }
}

#[test]
fn a_settings_file_of_serve_serves_the_other_commands_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tessera.toml");
    let model = text(&crate::root().join("demo/model"));
    let adapter = text(&crate::root().join("demo/adapters/pirate"));
    let settings = format!("model = '{model}'\nport = 1\n[adapter]\nsailor = '{adapter}'\n");
    fs::write(&file, settings).unwrap();
    let args = ["chat", "--config", file.to_str().unwrap(), "--model", "sailor"];
    let chat = out(&run(&[&args[..], &["--temperature", "0"]].concat(), "What does a fox eat?\n"));
    assert!(chat.starts_with("Arr! "), "{chat}");
}

/// What `…` stands for may be anything on its line.
fn is_like(line: &str, pattern: &str) -> bool {
    let mut rest = line;
    let mut parts = pattern.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(tail) = rest.strip_prefix(first) else { return false };
    rest = tail;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

/// Commands of a page with what they print, from its blocks of `console`.
fn commands_of(page: &str) -> Vec<(String, Vec<String>)> {
    let mut commands: Vec<(String, Vec<String>)> = Vec::new();
    for block in page.split("```console\n").skip(1) {
        for line in block.split("```").next().unwrap().lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                commands.push((command.to_owned(), Vec::new()));
            } else if let Some(more) = line.strip_prefix("> ") {
                let command = &mut commands.last_mut().unwrap().0;
                command.push('\n');
                command.push_str(more);
            } else {
                commands.last_mut().unwrap().1.push(line.to_owned());
            }
        }
    }
    commands
}

#[test]
fn the_page_of_these_commands_shows_what_they_print() {
    let page = fs::read_to_string(crate::root().join("docs/batch.md")).unwrap();
    let commands = commands_of(&page);
    assert!(commands.len() >= 8, "{commands:#?}");
    let unnamed: Vec<&str> =
        batch_paths().filter(|path| !page.contains(&format!("`{path}`"))).collect();
    assert!(unnamed.is_empty(), "docs/batch.md does not name {unnamed:?}");
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let bin = crate::binary();
    let path = format!("{}:{}", bin.parent().unwrap().display(), std::env::var("PATH").unwrap());
    for (command, expected) in commands {
        let url = format!("http://{}/v1", server.address);
        let command = format!("{{ {}\n}} 2>&1", command.replace("http://127.0.0.1:8000/v1", &url));
        let mut shell = std::process::Command::new("bash");
        // The same environment as any other start of the program.
        let envs = tessera(&[]);
        for (name, value) in envs.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let done = shell.args(["-c", &command]).env("PATH", &path).current_dir(&dir).output();
        let printed = String::from_utf8(done.unwrap().stdout).unwrap();
        let printed: Vec<&str> = printed.lines().collect();
        let matches = printed.len() == expected.len()
            && printed.iter().zip(&expected).all(|(line, pattern)| is_like(line, pattern));
        assert!(matches, "{command}\nprinted {printed:#?}\nexpected {expected:#?}");
    }
    assert!(is_like("a 1 b", "a … b") && !is_like("a 1 c", "a … b") && !is_like("ab", "a"));
}
