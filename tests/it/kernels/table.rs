//! The host's table of kernels against their sources.

use std::collections::BTreeMap;
use std::fs;

use tessera::backend::cuda::kernels::ALL;

/// What stands in the parentheses after `word` at the beginning of a line, split at commas.
fn calls<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = Vec<&'a str>> {
    text.lines().filter_map(move |line| {
        let inner = line.strip_prefix(word)?.strip_prefix('(')?;
        Some(inner.split(')').next()?.split(',').map(str::trim).collect())
    })
}

/// File and launch bound of every kernel of one source, by name; and the names it exports.
fn of_source(file: &str, text: &str) -> (BTreeMap<String, (String, u32)>, Vec<String>) {
    let bound = |call: &[&str]| (file.to_owned(), call[2].parse().unwrap());
    let mut kernels: BTreeMap<_, _> =
        calls(text, "KERNEL").map(|call| (call[0].to_owned(), bound(&call))).collect();
    let mut exported: Vec<_> = calls(text, "EXPORT").map(|call| call[0].to_owned()).collect();
    // A macro of a file's own that makes one kernel a line.
    for definition in text.split("#define ").skip(1) {
        let (name, body) = definition.split_once('(').unwrap();
        let end = body.lines().take_while(|line| line.trim_end().ends_with('\\')).count();
        let body: Vec<_> = body.lines().take(end + 1).map(str::trim).collect();
        let Some(made) = body.iter().find_map(|line| calls(line, "KERNEL").next()) else {
            continue;
        };
        assert!(body.iter().any(|line| line.starts_with("EXPORT(name)")), "{file}: {name}");
        for call in calls(text, name) {
            kernels.insert(call[0].to_owned(), bound(&made));
            exported.push(call[0].to_owned());
        }
    }
    (kernels, exported)
}

#[test]
fn every_exported_kernel_is_in_the_table_with_its_launch_bound() {
    let (mut of_sources, mut exported) = (BTreeMap::new(), Vec::new());
    for entry in fs::read_dir(crate::root().join("kernels")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "cu") {
            let file = path.file_name().unwrap().to_str().unwrap();
            let (kernels, names) = of_source(file, &fs::read_to_string(&path).unwrap());
            of_sources.extend(kernels);
            exported.extend(names);
        }
    }
    let of_table: BTreeMap<_, _> =
        ALL.iter().map(|k| (k.name.to_owned(), (k.file.to_owned(), k.threads))).collect();
    assert_eq!(of_table, of_sources);
    assert_eq!(of_table.len(), ALL.len(), "a name stands twice in the table");
    exported.sort_unstable();
    assert!(exported.iter().eq(of_table.keys()), "{exported:?}");
}
