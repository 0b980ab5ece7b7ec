//! The command line beside serving: help, settings, this machine, completions, manual pages.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::process::tessera;
use crate::serve::text;

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command that must succeed prints.
fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    stdout(&output)
}

/// A program that these tests run; `package` is Debian's.
fn program(name: &str, package: &str) -> Command {
    let found = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&found).any(|folder| folder.join(name).exists());
    assert!(found, "{name} is not here: apt-get install {package}");
    Command::new(name)
}

#[test]
fn without_a_command_there_is_help_and_exit_code_2() {
    let output = tessera(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let help = stderr(&output);
    for part in ["Usage: tessera <COMMAND>", "serve", "Examples:", "Exit codes:", "  5  a setting"]
    {
        assert!(help.contains(part), "{part}: {help}");
    }
    assert_eq!(help, printed(&mut tessera(&["--help"])), "the same that was not asked for");
    assert!(!help.contains('\x1b'), "colours are for terminals: {help:?}");
}

#[test]
fn settings_are_printed_with_their_origin_and_read_back_alike() {
    let dir = tempfile::tempdir().unwrap();
    let (file, again) = (dir.path().join("a.toml"), dir.path().join("b.toml"));
    let lines = "max-num-seqs = 3\nno-prefix-cache = true\nadapter = { b = \"y z\", a = \"x\" }\n\
                 api-key = \"in-the-file\"\nhost = \"0.0.0.0\"\n";
    fs::write(&file, lines).unwrap();
    let path = text(&file);
    let flags = ["--port", "9000", "--config", &path, "--gpu-memory-utilization", "0.5"];
    let mut command = tessera(&[&["serve", "./base"], &flags[..], &["--print-config"]].concat());
    command.env("TESSERA_METRICS_KEY", "in-the-variable").env("TESSERA_THREADS", "7");
    let first = printed(&mut command);
    let says = |line: &str| assert!(first.lines().any(|l| l == line), "{line} in {first}");
    says("model = \"./base\"  # argument");
    says("port = 9000  # flag --port");
    says("gpu-memory-utilization = 0.5  # flag --gpu-memory-utilization");
    says("threads = 7  # variable TESSERA_THREADS");
    says(&format!("max-num-seqs = 3  # file {path}"));
    says(&format!("no-prefix-cache = true  # file {path}"));
    says("adapter-host-bytes = \"8GiB\"  # default");
    says("strict-fields = false  # default");
    says("# adapter-slots is not set");
    says(&format!("# api-key is set and hidden  # file {path}"));
    says("# metrics-key is set and hidden  # variable TESSERA_METRICS_KEY");
    assert!(!first.contains("in-the-"), "{first}");

    fs::write(&again, &first).unwrap();
    let second = printed(&mut tessera(&["serve", "--config", &text(&again), "--print-config"]));
    let settings = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines.map(|line| line.split("  # ").next().unwrap().to_owned()).collect()
    };
    assert_eq!(settings(&first), settings(&second));
    assert!(second.contains(&format!("port = 9000  # file {}", again.display())), "{second}");
    let wrong = tessera(&["serve", "--print-config", "--port", "x"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2), "what is wrong is told, and not printed");
}

/// A machine with nothing: no home, no library beside the system's, no card.
fn doctor(extra: &[&str]) -> Command {
    let mut command = tessera(&[&["doctor"], extra].concat());
    command.env_clear().env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// The verdict on a line of the report, and all of the line.
fn line<'a>(report: &'a Value, name: &str) -> (&'a str, String) {
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("no {name} in {report:#}"));
    (check["verdict"].as_str().unwrap(), check.to_string())
}

#[test]
fn doctor_says_of_a_machine_with_nothing_what_is_there() {
    let output = doctor(&["--port", "0", "--device", "cpu"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = stdout(&output);
    for name in ["cpu", "memory", "gpu", "hub cache", "hub token", "port"] {
        let verdict = |line: &str| line.get(9..).is_some_and(|rest| rest.starts_with(name));
        assert_eq!(lines.lines().filter(|l| verdict(l)).count(), 1, "{name}: {lines}");
    }
    assert!(!lines.contains('\x1b'), "{lines:?}");
    let without = doctor(&["--port", "0", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&without.stdout).unwrap();
    let (_, nvrtc) = line(&report, "nvrtc");
    assert!(nvrtc.contains("libnvrtc.so.13"), "found, or tried: {nvrtc}");
    assert_ne!(report["verdict"], "problem", "{report:#}");
}

#[test]
fn doctor_ends_with_1_for_a_port_that_is_taken_and_names_who_has_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = doctor(&["--port", &port, "--device", "cpu", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "error: there is a problem, see above\n");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (verdict, found) = line(&report, "port");
    let process = format!("process {}", std::process::id());
    assert!(verdict == "problem" && found.contains(&process), "{found}");
    assert_eq!(report["verdict"], "problem");
}

#[test]
fn doctor_looks_at_the_hubs_cache_and_never_shows_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let report = |cache: &Path| -> Value {
        let mut command = doctor(&["--port", "0", "--device", "cpu", "--json"]);
        let text = printed(command.env("HF_TOKEN", "hf_secret").env("HF_HUB_CACHE", cache));
        assert!(!text.contains("hf_secret"), "{text}");
        serde_json::from_str(&text).unwrap()
    };
    let good = report(&dir.path().join("hub"));
    assert!(line(&good, "hub cache").1.contains("it will be made"), "{good:#}");
    assert!(line(&good, "hub token").1.contains("there is one"), "{good:#}");
    assert!(!dir.path().join("hub").exists(), "it looks and makes nothing");
    let bad = report(&file.join("hub"));
    let (verdict, found) = line(&bad, "hub cache");
    assert!(verdict == "warning" && found.contains("HF_HOME"), "{found}");
}

#[test]
fn completions_load_in_bash_and_complete_flags() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tessera.bash");
    fs::write(&file, printed(&mut tessera(&["completions", "bash"]))).unwrap();
    let script = format!(
        "source {}; complete -p tessera; COMP_WORDS=(tessera serve --adapter-s); COMP_CWORD=2; \
         _tessera tessera --adapter-s serve; echo \"${{COMPREPLY[@]}}\"",
        file.display()
    );
    let said = printed(program("bash", "bash").args(["--norc", "-ec", &script]));
    assert!(said.contains("-F _tessera") && said.contains("--adapter-slots"), "{said}");
    let fish = printed(&mut tessera(&["completions", "fish"]));
    assert!(fish.contains("complete -c tessera"), "{fish}");
}

#[test]
fn completions_load_in_zsh() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("_tessera"), printed(&mut tessera(&["completions", "zsh"]))).unwrap();
    let script = format!(
        "fpath=({0} $fpath); autoload -Uz compinit; compinit -u -d {0}/dump; \
         print -r -- $_comps[tessera]; autoload +X _tessera; whence -w _tessera; \
         zsh -n {0}/_tessera",
        dir.path().display()
    );
    let mut zsh = program("zsh", "zsh");
    let output = zsh.args(["-f", "-ec", &script]).output().unwrap();
    assert_eq!(
        (stdout(&output).as_str(), stderr(&output).as_str()),
        ("_tessera\n_tessera: function\n", "")
    );
}

#[test]
fn manual_pages_are_one_a_command_and_render_without_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man");
    printed(&mut tessera(&["man", &text(&folder)]));
    let mut pages: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    pages.sort();
    let names: Vec<_> =
        pages.iter().map(|page| page.file_name().unwrap().to_str().unwrap()).collect();
    for name in ["tessera.1", "tessera-serve.1", "tessera-doctor.1", "tessera-synth-adapter.1"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for page in &pages {
        let mut groff = program("groff", "groff-base");
        let output = groff.args(["-man", "-ww", "-Kutf8", "-Tutf8"]).arg(page).output().unwrap();
        assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
        // Bold letters are written twice or marked; words within a line stand as they are.
        assert!(stdout(&output).len() > 300, "{page:?} says next to nothing");
    }
    let serve = fs::read_to_string(folder.join("tessera-serve.1")).unwrap();
    assert!(serve.contains("TESSERA_ADAPTER_SLOTS") && !serve.contains('\x1b'), "{serve}");
}
