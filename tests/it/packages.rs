//! What images and packages take of the repository is there, and says one version.
//! tools/image-check and tools/package-check build and try them; that takes longer than tests may.

use std::fs;
use std::path::{Path, PathBuf};

use crate::root;

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn manifest() -> toml::Table {
    read("Cargo.toml").parse().unwrap()
}

#[test]
fn the_images_layer_of_dependencies_knows_every_target() {
    let dockerfile = read("Dockerfile");
    let manifest = manifest();
    let mut files = vec!["src/lib.rs".to_owned(), "src/main.rs".to_owned()];
    for (kind, folder) in [("test", "tests"), ("bench", "benches")] {
        let targets = manifest.get(kind).and_then(|t| t.as_array()).into_iter().flatten();
        files.extend(targets.map(|target| {
            let path = target.get("path").map(|path| path.as_str().unwrap().to_owned());
            path.unwrap_or_else(|| format!("{folder}/{}.rs", target["name"].as_str().unwrap()))
        }));
    }
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        assert!(
            dockerfile.contains(&file),
            "cargo wants {file}, which the Dockerfile does not make"
        );
    }
}

#[test]
fn the_image_says_the_version_of_the_crate() {
    let manifest = manifest();
    let version = manifest["package"]["version"].as_str().unwrap();
    let label = format!("org.opencontainers.image.version=\"{version}\"");
    assert!(read("Dockerfile").contains(&label), "the Dockerfile wants the label {label}");
}

#[test]
fn what_the_binary_embeds_is_in_the_images_context() {
    let ignored: Vec<String> = read(".dockerignore").lines().map(str::to_owned).collect();
    let src = root().join("src");
    let mut found = Vec::new();
    files(&src, &mut found);
    let mut seen = 0;
    for path in found.iter().filter(|path| path.extension().is_some_and(|e| e == "rs")) {
        let text = fs::read_to_string(path).unwrap();
        for named in text.split("include_").skip(1).filter_map(embedded) {
            let embedded = match named.strip_prefix('/') {
                Some(beneath_root) => PathBuf::from(beneath_root),
                None => beneath(&path.parent().unwrap().join(named)),
            };
            let first = embedded.components().next().unwrap();
            let first = first.as_os_str().to_str().unwrap().to_owned();
            let is_test = path.ends_with("tests.rs");
            seen += 1;
            assert!(
                is_test || !ignored.contains(&first),
                "{}: {} is not in the image's context, by .dockerignore",
                path.display(),
                embedded.display()
            );
        }
    }
    assert!(seen > 2, "{seen} embedded files were found");
}

/// The path in what follows `include_` of `include_str!` or `include_bytes!`.
fn embedded(after: &str) -> Option<&str> {
    let after = after.strip_prefix("str!(").or_else(|| after.strip_prefix("bytes!("))?;
    // Of concat!, which begins with the crate's folder, or of a plain path.
    let after = after.trim_start().split_once("CARGO_MANIFEST_DIR\"").map_or(after, |(_, a)| a);
    after.split('"').nth(1)
}

/// A path with `..` in it, from the repository's root.
fn beneath(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.strip_prefix(root()).unwrap() {
        match part.to_str() {
            Some("..") => assert!(plain.pop(), "{} leaves the repository", path.display()),
            _ => plain.push(part),
        }
    }
    plain
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

#[test]
fn what_the_debian_package_takes_is_there() {
    let manifest = manifest();
    let deb = &manifest["package"]["metadata"]["deb"];
    for asset in deb["assets"].as_array().unwrap() {
        let path = asset[0].as_str().unwrap();
        assert!(path.starts_with("target/") || root().join(path).is_file(), "{path}");
    }
    let unit =
        format!("{}/tessera.service", deb["systemd-units"]["unit-scripts"].as_str().unwrap());
    let unit = read(&unit);
    // The settings that are kept over an upgrade are those that the unit reads.
    for kept in deb["conf-files"].as_array().unwrap() {
        assert!(unit.contains(kept.as_str().unwrap()), "the unit reads {kept:?}");
    }
    assert!(unit.contains("ExecStart=/usr/bin/tessera "), "{unit}");
    let settings = read("deploy/debian/tessera.env");
    let named = settings.lines().filter_map(|line| line.strip_prefix("#TESSERA_"));
    let mut config = vec![root().join("src/config.rs")];
    files(&root().join("src/config"), &mut config);
    let config: String = config.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    for variable in named.filter_map(|line| line.split_once('=')).map(|(name, _)| name) {
        let known = format!("\"TESSERA_{variable}\"");
        assert!(config.contains(&known), "no flag has the variable TESSERA_{variable}");
    }
}
