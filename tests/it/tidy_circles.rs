//! No circles between the files of a folder: what a file builds on does not build on it.
//!
//! The rule, for each folder of `src` but those of [`STILL`]:
//!
//! * A node is a module of the folder: a file, or a folder within it with all that it holds. The
//!   folder's root (`mod.rs`, or the file of its name beside it) is a node of its own.
//! * A node builds on another when its code says `super::other`, `crate::folder::other` or the
//!   like, in a `use` or anywhere else. A name that `mod.rs` re-exports counts as the module that
//!   it comes from; any other name beneath the folder is an item of `mod.rs`.
//! * `mod.rs` builds on a module when its code names it in anything but `mod x;` and a re-export
//!   (`pub use x::…`, `pub(super) use x::…`). So `mod.rs` may list its modules and show their
//!   items; if it uses them, they may use nothing of it.
//! * Comments and the unit tests at a file's end do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::root;

/// Folders beneath `src` that have circles still. One that has none any more leaves the list.
const STILL: &[&str] = &["backend/cuda", "backend/cuda/launch", "cli", "cli/bench", "cli/hub"];

/// Node → nodes that it builds on.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// The code of a file: no comments, no unit tests.
fn code(text: &str) -> String {
    let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    lines.map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `a::b::{c, d::e}` from the start of a text: each path in it, and where it ends. Renames and
/// anything after the paths are left out.
fn paths(text: &str) -> (Vec<Vec<String>>, usize) {
    let mut path = Vec::new();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        at += rest.len() - rest.trim_start().len();
        let rest = &text[at..];
        if rest.starts_with('{') {
            let mut all = Vec::new();
            at += 1;
            while at < text.len() && !text[at..].starts_with('}') {
                let (inner, bytes) = paths(&text[at..]);
                let joined = |tail: Vec<String>| [path.clone(), tail].concat();
                all.extend(inner.into_iter().map(joined));
                at += bytes;
                // Past ` as name` and the comma.
                at += text[at..].find([',', '}']).unwrap_or(text.len() - at);
                at += usize::from(text[at..].starts_with(','));
                at += text[at..].len() - text[at..].trim_start().len();
            }
            return (all, at + 1);
        }
        let bytes = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        path.push(rest[..bytes].to_owned());
        at += bytes;
        match text[at..].starts_with("::") {
            true => at += 2,
            false => return (vec![path], at),
        }
    }
}

/// Every path in the code that begins with `super` or `crate`, from the crate's root. `module` is
/// the path of the file's own module.
fn references(code: &str, module: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["super::", "crate::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            // Within a longer path or word: taken with its begin.
            if before.is_some_and(|c| is_word(c) || c == ':' || c == '$') {
                continue;
            }
            for path in paths(&code[at..]).0 {
                let supers = path.iter().take_while(|part| *part == "super").count();
                let base = match supers {
                    0 => &[],
                    n => &module[..module.len().saturating_sub(n)],
                };
                let tail = &path[supers.max(1)..];
                found.push([base, tail].concat());
            }
        }
    }
    found
}

/// The statements of `mod.rs` that re-export, and the rest of its code without `mod x;`.
fn split_reexports(code: &str) -> (Vec<String>, String) {
    let (mut reexports, mut rest) = (Vec::new(), String::new());
    for statement in code.split_inclusive(';') {
        let text = statement.trim();
        let is_public = text.starts_with("pub use ") || text.starts_with("pub(");
        match text.split_once("use ") {
            Some((visibility, path)) if is_public && !visibility.contains(['{', '=']) => {
                reexports.push(path.to_owned());
            }
            _ if text.contains("mod ") && text.ends_with(';') && !text.contains('{') => {}
            _ => rest.push_str(statement),
        }
    }
    (reexports, rest)
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The module that a file is, from the crate's root; `a/mod.rs` is `a`.
fn module_of(relative: &Path) -> Vec<String> {
    let parts = relative.with_extension("");
    let mut parts: Vec<_> = parts.iter().map(|p| p.to_str().unwrap().to_owned()).collect();
    parts.pop_if(|last| last == "mod");
    parts
}

/// Who builds on whom in a folder; `files` are paths beneath `src` with their texts.
fn graph(folder: &str, files: &[(PathBuf, String)]) -> Graph {
    let folder: Vec<String> = folder.split('/').map(str::to_owned).collect();
    let inside = |module: &[String]| module.strip_prefix(&folder[..]).map(<[String]>::to_vec);
    let node = |module: &[String]| module.first().cloned().unwrap_or_else(|| "mod".to_owned());
    let modules: BTreeSet<String> =
        files.iter().filter_map(|(path, _)| Some(node(&inside(&module_of(path))?))).collect();
    let mut origins = BTreeMap::new();
    let mut graph = Graph::new();
    let is_root = |path: &Path| module_of(path) == folder;
    for (path, text) in files.iter().filter(|(path, _)| is_root(path)) {
        let (reexports, rest) = split_reexports(&code(text));
        for path in reexports.iter().flat_map(|text| paths(text).0) {
            let local = path.iter().position(|part| part != "self").unwrap_or(0);
            if let (Some(first), Some(last)) = (path.get(local), path.last()) {
                origins.insert(last.clone(), first.clone());
            }
        }
        let uses = |module: &String| {
            rest.match_indices(module.as_str()).any(|(at, _)| {
                let before = rest[..at].strip_suffix("self::").unwrap_or(&rest[..at]);
                let is_start = !before.ends_with(|c| is_word(c) || c == ':');
                is_start && rest[at + module.len()..].starts_with("::")
            })
        };
        let used = modules.iter().filter(|module| uses(module)).cloned().collect();
        assert!(graph.insert("mod".to_owned(), used).is_none(), "two roots: {}", path.display());
    }
    for (path, text) in files.iter().filter(|(path, _)| !is_root(path)) {
        let module = module_of(path);
        let Some(local) = inside(&module) else { continue };
        let own = node(&local);
        let entry = graph.entry(own.clone()).or_default();
        for target in references(&code(text), &module) {
            let Some(target) = inside(&target) else { continue };
            let first = node(&target);
            let target = match modules.contains(&first) {
                true => first,
                false => origins.get(&first).cloned().unwrap_or_else(|| "mod".to_owned()),
            };
            if target != own {
                entry.insert(target);
            }
        }
    }
    graph
}

/// A circle, from a node back to itself.
fn circle(graph: &Graph) -> Option<Vec<String>> {
    fn visit(
        graph: &Graph,
        node: &str,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(start) = way.iter().position(|seen| seen == node) {
            return Some([&way[start..], &[node.to_owned()]].concat());
        }
        if done.contains(node) {
            return None;
        }
        way.push(node.to_owned());
        let next = graph.get(node).into_iter().flatten();
        let found = next.map(|next| visit(graph, next, way, done)).find(Option::is_some).flatten();
        way.pop();
        done.insert(node.to_owned());
        found
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|node| visit(graph, node, &mut Vec::new(), &mut done))
}

fn folders(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            folders(&path, found);
            found.push(path);
        }
    }
}

#[test]
fn no_file_builds_on_one_that_builds_on_it() {
    let src = root().join("src");
    let mut all = Vec::new();
    folders(&src, &mut all);
    let names = all.iter().map(|dir| dir.strip_prefix(&src).unwrap().to_str().unwrap());
    let names: Vec<&str> = names.collect();
    let gone: Vec<_> = STILL.iter().filter(|folder| !names.contains(folder)).collect();
    assert!(gone.is_empty(), "no such folders: {gone:?}");
    for (dir, folder) in all.iter().zip(names) {
        let mut found = Vec::new();
        rust_files(dir, &mut found);
        found.extend(Some(dir.with_extension("rs")).filter(|path| path.exists()));
        let read = |path: PathBuf| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(&src).unwrap().to_owned(), text)
        };
        let files: Vec<_> = found.into_iter().map(read).collect();
        match (circle(&graph(folder, &files)), STILL.contains(&folder)) {
            (Some(circle), false) => panic!("src/{folder}: {}", circle.join(" → ")),
            (None, true) => panic!("src/{folder} has no circle any more: take it off STILL"),
            (Some(_), true) | (None, false) => {}
        }
    }
}

/// The circle among files of a folder `f` with these texts.
fn circle_in(files: &[(&str, &str)]) -> Option<String> {
    let file = |(path, text): &(&str, &str)| (PathBuf::from(path), (*text).to_owned());
    let files: Vec<_> = files.iter().map(file).collect();
    circle(&graph("f", &files)).map(|nodes| nodes.join(" "))
}

#[test]
fn a_circle_is_found_however_it_is_written() {
    let root = ("f/mod.rs", "mod a;\nmod b;\n\npub(super) use b::{B, other as C};\n");
    let leaf = ("f/b.rs", "pub struct B;");
    let of_a = |text| ("f/a.rs", text);
    let of_b = |text| ("f/b.rs", text);
    assert_eq!(circle_in(&[root, leaf, of_a("use super::b::B;")]), None);
    let back = [
        "use super::a::A;",
        "use super::{\n    x,\n    a::{A, X},\n};",
        "fn f() -> super::a::A {}",
        "use crate::f::a;",
        "use crate::{g, f::{a}};",
    ];
    for text in back {
        for there in ["use super::b;", "use super::B;", "use crate::f::B as Z;"] {
            let found = circle_in(&[root, of_a(there), of_b(text)]);
            assert_eq!(found.as_deref(), Some("a b a"), "{text} {there}");
        }
    }
    let comment = "// use super::a::A;\nuse crate::g::a;\n#[cfg(test)]\nmod t { use super::a; }";
    assert_eq!(circle_in(&[root, of_a("use super::b;"), of_b(comment)]), None);
}

#[test]
fn a_module_root_is_a_file_like_the_others() {
    let a = ("f/a.rs", "use super::{Shared, b::B};");
    let b = ("f/b/mod.rs", "mod deep;");
    let deep = ("f/b/deep.rs", "use super::super::Shared;");
    let lists = ("f/mod.rs", "mod a;\nmod b;\npub use a::A;\npub struct Shared;");
    assert_eq!(circle_in(&[lists, a, b, deep]), None);
    let uses = ("f/mod.rs", "mod a;\nmod b;\nuse a::A;\npub struct Shared(A);");
    assert_eq!(circle_in(&[uses, a, b, deep]).as_deref(), Some("a b mod a"));
    let calls = ("f/mod.rs", "mod a;\nmod b;\npub struct Shared;\nfn f() { self::b::g() }");
    assert_eq!(circle_in(&[calls, a, b, deep]).as_deref(), Some("b mod b"));
    let up = ("f/b/deep.rs", "use super::super::a::A;");
    assert_eq!(circle_in(&[lists, a, b, up]).as_deref(), Some("a b a"));
}
