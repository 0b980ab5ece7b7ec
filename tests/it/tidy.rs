//! The layout rules, as tests: imports go one way, files stay small, `unsafe` stays where it is,
//! what is added has a test, and the pages in docs/ name what is there.

mod oracles;
mod pages;

use std::fs;
use std::path::{Path, PathBuf};

use crate::root;

/// Modules from top to bottom; a module may import only from later rows.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["config"],
    &["http"],
    &["engine"],
    &["adapter", "model", "scheduler", "structured"],
    &["text"],
    &["backend"],
    &["delta", "recipe", "request", "site"],
    &["dtype", "files", "ids", "json"],
];
/// The only files that may say `unsafe`: the vector kernels, the instructions they are made of, the
/// calls to the driver, the mapping of checkpoint files, and one word to the C library's allocator.
const UNSAFE_FILES: &[&str] = &[
    "backend/cpu/simd.rs",
    "backend/cpu/simd/elementwise.rs",
    "backend/cpu/simd/lanes.rs",
    "backend/cuda/launch.rs",
    "backend/cuda/launch/blas.rs",
    "backend/cuda/launch/event.rs",
    "backend/cuda/launch/library.rs",
    "backend/cuda/launch/nvrtc.rs",
    "backend/cuda/launch/stream.rs",
];
const FILE_LINES_MAX: usize = 500;
const LINE_COLUMNS_MAX: usize = 100;

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path
            .extension()
            .is_some_and(|e| ["rs", "cu", "cuh", "cpp", "h"].iter().any(|known| e == *known))
        {
            found.push(path);
        }
    }
}

fn layer(module: &str) -> usize {
    let found = LAYERS.iter().position(|l| l.contains(&module));
    found.unwrap_or_else(|| panic!("module {module} has no layer in tests/it/tidy.rs"))
}

/// Code lines of a source file: comments and doc comments left out.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

#[test]
fn imports_go_one_way() {
    let src = root().join("src");
    let mut found = Vec::new();
    files(&src, &mut found);
    let mut errors = Vec::new();
    for path in found {
        let relative = path.strip_prefix(&src).unwrap();
        let first = relative.iter().next().unwrap().to_str().unwrap();
        let module = first.trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for line in code_lines(&text) {
            for target in line.split("crate::").skip(1) {
                let end = target.find(|c: char| !c.is_alphanumeric() && c != '_');
                let target = &target[..end.unwrap_or(target.len())];
                if target.is_empty() {
                    errors.push(format!("{}: name the module: {line}", relative.display()));
                } else if target != module && layer(target) <= layer(module) {
                    errors.push(format!("{}: imports {target}", relative.display()));
                }
            }
        }
    }
    assert!(errors.is_empty(), "{errors:#?}");
}

#[test]
fn only_http_and_cli_speak_json_to_clients() {
    let src = root().join("src");
    let mut found = Vec::new();
    for module in ["engine", "scheduler", "backend"] {
        files(&src.join(module), &mut found);
    }
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!code_lines(&text).any(|l| l.contains("serde_json")), "{}", path.display());
    }
}

#[test]
fn the_scheduler_sees_no_tensor_no_clock_and_no_channel() {
    let mut found = Vec::new();
    files(&root().join("src/scheduler"), &mut found);
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        for word in ["backend", "Instant", "SystemTime", "mpsc", "tokio", "thread"] {
            assert!(!code_lines(&text).any(|l| l.contains(word)), "{}: {word}", path.display());
        }
    }
}

/// `cli` makes and times random models and adapters of every kind; `http` has vLLM's routes and
/// fields, which say LoRA for every kind of adapter.
#[test]
fn no_method_is_named_outside_of_adapter_and_no_family_outside_of_model() {
    let lower = |names: Vec<String>| names.into_iter().map(|name| name.to_ascii_lowercase());
    let methods: Vec<String> = lower(oracles::methods()).collect();
    let families = lower(oracles::architectures());
    let families: Vec<String> = families.map(|name| name.replace("forcausallm", "")).collect();
    let mut found = Vec::new();
    for dir in ["src", "kernels"] {
        files(&root().join(dir), &mut found);
    }
    for path in found {
        let shown = path.strip_prefix(root()).unwrap().display().to_string();
        let within = |folder: &str| shown.starts_with(folder);
        let text = fs::read_to_string(&path).unwrap();
        let words = oracles::words(&code_lines(&text).collect::<Vec<_>>().join("\n"));
        let mut known = methods.iter().filter(|name| words.contains(*name));
        let is_route = |name: &String| within("src/http/") && name == "lora";
        let named = known.find(|name| !is_route(name));
        assert!(
            named.is_none() || within("src/adapter/") || within("src/cli/"),
            "{shown}: {named:?}"
        );
        let named = families.iter().find(|name| words.contains(*name));
        // transformers has a tokenizer's class go by the family, and names both alike; vLLM's
        // parsers of calls and of thoughts have families' names too.
        let classes =
            ["src/text/class.rs", "src/text/call_syntax.rs", "src/text/thought_syntax.rs"];
        let is_class = classes.contains(&shown.as_str());
        assert!(
            named.is_none() || within("src/model/") || within("src/cli/") || is_class,
            "{shown}: {named:?}"
        );
    }
}

#[test]
fn the_engine_opens_no_file_and_nothing_is_kept_in_a_static() {
    let src = root().join("src");
    let mut found = Vec::new();
    files(&src, &mut found);
    for path in found {
        let relative = path.strip_prefix(&src).unwrap().display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        for line in code_lines(&text) {
            let is_owner = ["engine/", "scheduler"].iter().any(|m| relative.starts_with(m));
            let opens = line.contains("fs::") || line.contains("File::");
            assert!(!(is_owner && opens), "{relative}: {line}");
            let item = line.trim_start_matches("pub ").trim_start_matches("pub(super) ");
            let holds = ["mut ", "Mutex", "RwLock", "Atomic", "Once", "Lazy", "Cell"];
            let changes = item.starts_with("static ") && holds.iter().any(|h| item.contains(h));
            let kept = changes || item.starts_with("thread_local!");
            assert!(!kept, "{relative}: what a layer needs is an argument: {line}");
        }
    }
}

#[test]
fn unsafe_stays_in_its_files() {
    let src = root().join("src");
    let mut found = Vec::new();
    files(&src, &mut found);
    for path in found {
        let relative = path.strip_prefix(&src).unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let says = |l: &str| l.split(|c: char| !c.is_alphanumeric()).any(|w| w == "unsafe");
        if code_lines(&text).any(says) {
            assert!(UNSAFE_FILES.contains(&relative), "{relative} says unsafe");
        }
    }
}

#[test]
fn tests_look_for_files_where_the_repository_is_when_they_run() {
    let tests = root().join("tests/it");
    let mut found = Vec::new();
    files(&tests, &mut found);
    for path in found {
        let relative = path.strip_prefix(&tests).unwrap().to_str().unwrap();
        // The functions themselves, and this rule.
        if ["main.rs", "tidy.rs"].contains(&relative) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for place in ["env!(\"CARGO_MANIFEST_DIR", "env!(\"CARGO_BIN_EXE"] {
            assert!(!text.contains(place), "{relative}: take crate::root() or crate::binary()");
        }
    }
}

#[test]
fn files_stay_small() {
    let mut found = Vec::new();
    for dir in ["src", "tests", "benches", "kernels"] {
        files(&root().join(dir), &mut found);
    }
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{}: {lines} lines", path.display());
        for (i, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            assert!(columns <= LINE_COLUMNS_MAX, "{}:{}: {columns}", path.display(), i + 1);
        }
    }
}
