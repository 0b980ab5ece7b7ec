//! Whatever computes something has a test against an oracle that names it: every adapter method,
//! every model family, every kernel. The lists are read from the source.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::code_lines;
use crate::root;

/// Kernels whose oracle is no test of the kernel alone: what names them instead, and where.
const KERNELS_ELSEWHERE: &[(&str, &str, &str)] = &[
    // Against the same adapter unmerged.
    ("fold", "check_folding", "tests/it/cuda/steps.rs"),
];

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The code of a Rust file, without comments.
fn code(path: &str) -> String {
    code_lines(&read(path)).collect::<Vec<_>>().join("\n")
}

/// Files of a folder with this extension, from the repository's root, in order.
fn files_of(folder: &str, extension: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|e| e == extension));
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut files: Vec<_> = files.map(|path| format!("{folder}/{}", name(&path))).collect();
    files.sort();
    files
}

/// What stands in double quotes in a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').skip(1).step_by(2)
}

/// Runs of letters and digits, lower case: `use_dora` is `use` and `dora`.
pub fn words(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.map(str::to_ascii_lowercase).collect()
}

/// Golden cases that are there with their expected logits: (model, name of the adapter or `base`).
fn golden_cases() -> Vec<(String, String)> {
    let models = fs::read_dir(root().join("tests/golden")).unwrap().map(|e| e.unwrap().path());
    let mut cases = Vec::new();
    for model in models.filter(|model| model.join("config.json").exists()) {
        let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
        let expected = fs::read_dir(model.join("expected")).unwrap().map(|e| e.unwrap().path());
        for logits in expected.filter(|path| path.extension().is_some_and(|e| e == "safetensors")) {
            cases.push((name(&model), name(&logits)));
        }
    }
    cases
}

/// Every adapter method's name, from the files that implement one.
pub fn methods() -> Vec<String> {
    let implementing = files_of("src/adapter", "rs");
    let texts = implementing.iter().map(|path| code(path));
    let texts = texts.filter(|text| text.contains("impl Method for "));
    let name = |text: String| {
        let body = text.split("fn name(&self) -> &'static str").nth(1).expect("no name");
        quoted(body).next().expect("a method's name is not a literal").to_owned()
    };
    texts.map(name).collect()
}

/// Every family's name in `config.json`, from the table of families.
pub fn architectures() -> Vec<String> {
    let table = code("src/model/config.rs");
    let table = table.split("FAMILIES: &[(&str, ReadFamily)] = &[").nth(1).unwrap();
    quoted(table.split("];").next().unwrap()).map(str::to_owned).collect()
}

#[test]
fn every_adapter_method_has_a_definition_and_golden_logits() {
    let definitions = words(&code("tests/it/definitions/methods.rs"));
    let golden: BTreeSet<String> =
        golden_cases().iter().flat_map(|(_, adapter)| words(adapter)).collect();
    let methods = methods();
    let listed = code("src/adapter/loader.rs");
    let listed = listed.split("METHODS: &[&dyn Method] = &[").nth(1).unwrap();
    let listed = listed.split(';').next().unwrap().matches('&').count();
    assert_eq!(methods.len(), listed, "methods that are written and those of METHODS");
    for method in methods.iter().map(|name| name.to_ascii_lowercase()) {
        assert!(definitions.contains(&method), "{method}: tests/it/definitions/methods.rs");
        assert!(golden.contains(&method), "{method}: no golden case has it in its name");
    }
}

#[test]
fn every_model_family_has_golden_logits_and_an_independent_implementation() {
    let architectures = architectures();
    let files = files_of("src/model", "rs");
    let families = files.iter().filter(|path| code(path).contains("pub fn family("));
    assert_eq!(families.count(), architectures.len(), "families that are written and FAMILIES");
    let code = code("tests/it/families.rs");
    let named: BTreeSet<&str> = quoted(&code).collect();
    let bases = golden_cases().into_iter().filter(|(_, adapter)| adapter == "base");
    let bases: Vec<String> = bases.map(|(model, _)| model).collect();
    for architecture in architectures {
        let config = |model: &str| read(&format!("tests/golden/{model}/config.json"));
        let is_of = |model: &&String| config(model).contains(&format!("\"{architecture}\""));
        let golden: Vec<&String> = bases.iter().filter(is_of).collect();
        assert!(!golden.is_empty(), "{architecture}: no golden model");
        let compared = golden.iter().any(|model| named.contains(model.as_str()));
        let told = named.contains(architecture.as_str());
        assert!(compared && told, "{architecture}: tests/it/families.rs");
    }
}

/// The kernels of a source file: those it declares itself, and those that a macro of it declares.
fn kernels_of(source: &str) -> BTreeSet<String> {
    let argument = |line: &str, macro_name: &str| {
        let inner = line.strip_prefix(macro_name)?.strip_prefix('(')?;
        Some(inner.split([',', ')']).next()?.trim().to_owned())
    };
    let source = source.replace("\\\n", " ");
    let defined = source.lines().filter_map(|line| line.strip_prefix("#define "));
    let declares = defined.filter(|definition| definition.contains("KERNEL("));
    let macros = declares.filter_map(|definition| definition.split('(').next());
    let macros: Vec<&str> = macros.chain(["KERNEL"]).collect();
    let kernels = source.lines().filter(|line| !line.starts_with("#define "));
    kernels.filter_map(|line| macros.iter().find_map(|name| argument(line, name))).collect()
}

/// Whether a test's code launches a kernel of this name: by its constant (`DELTA_MIX`), or by a
/// literal, whole or in two (`"delta_mix"` and `"_float"`).
fn names(code: &str, kernel: &str) -> bool {
    let constant = kernel.to_ascii_uppercase();
    if code.split(|c: char| c != '_' && !c.is_alphanumeric()).any(|word| word == constant) {
        return true;
    }
    let literals: BTreeSet<&str> = quoted(code).flat_map(|text| text.split(['{', '}'])).collect();
    let halves = (1..kernel.len()).map(|at| kernel.split_at(at));
    literals.contains(kernel)
        || halves.into_iter().any(|(a, b)| literals.contains(a) && literals.contains(b))
}

#[test]
fn every_kernel_is_loaded_and_has_a_test_that_launches_it() {
    let compiled = code("src/backend/cuda/compile.rs");
    let table = read("src/backend/cuda/kernels.rs");
    let table = table.split("\nkernels! {").nth(1).unwrap().split("\n}").next().unwrap();
    let listed: BTreeSet<&str> = quoted(table).filter(|name| !name.ends_with(".cu")).collect();
    // That test is of the table, and names whatever stands in it.
    let tests = files_of("tests/it/kernels", "rs").into_iter();
    let tests = tests.filter(|path| !path.ends_with("/table.rs"));
    let tests: Vec<String> = tests.map(|path| code(&path)).collect();
    let mut all = BTreeSet::new();
    for path in files_of("kernels", "cu") {
        let file = path.trim_start_matches("kernels/");
        assert!(compiled.contains(&format!("\"{file}\"")), "{path}: src/backend/cuda/compile.rs");
        let kernels = kernels_of(&read(&path));
        assert!(!kernels.is_empty(), "{path} declares no kernel");
        for kernel in &kernels {
            let name = kernel.as_str();
            assert!(listed.contains(name), "{name} of {path}: src/backend/cuda/kernels.rs");
            let elsewhere = KERNELS_ELSEWHERE.iter().find(|(kernel, ..)| *kernel == name);
            let tested = match elsewhere {
                Some((_, what, path)) => code(path).contains(what),
                None => tests.iter().any(|test| names(test, name)),
            };
            assert!(tested, "{name} of {path}: no test in tests/it/kernels launches it");
        }
        all.extend(kernels);
    }
    let gone: Vec<_> = listed.iter().filter(|name| !all.contains(**name)).collect();
    assert!(gone.is_empty(), "src/backend/cuda/kernels.rs lists what is not there: {gone:?}");
}

#[test]
fn kernels_are_found_however_they_are_declared() {
    let source = "#define TWO(name, n) \\\n    KERNEL(name, Args, 64) { f<n>(args); } \\\n    \
                  EXPORT(name)\nTWO(two_a, 1)\nTWO(two_b, 2)\nKERNEL(one, Args, 128) { }\n\
                  // KERNEL(none, Args, 1)\nEXPORT(one)\n";
    assert_eq!(kernels_of(source).into_iter().collect::<Vec<_>>(), ["one", "two_a", "two_b"]);
    let test = "launch(\"add\"); let mix = format!(\"{name}{}\", \"_float\"); go(\"mix\");";
    assert!(names(test, "add") && names(test, "mix_float"));
    assert!(names("launch(kernels::FOLD)", "fold") && !names("FOLDER", "fold"));
    assert!(!names(test, "ad") && !names(test, "add_tiles") && !names(test, "shrink_float"));
}
