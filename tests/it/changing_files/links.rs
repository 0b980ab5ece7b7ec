//! Links: what stays beneath a bound is followed, what leaves it is refused and not looked at.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{CONFIG, MODEL, exchange, version, ways};
use crate::process::tessera;

const OUTSIDE: &str = "path_outside_root";

/// A directory with these links.
fn linked(dir: &Path, links: &[(&str, &str)]) {
    fs::create_dir_all(dir).unwrap();
    for (name, target) in links {
        let _ = fs::remove_file(dir.join(name));
        symlink(target, dir.join(name)).unwrap();
    }
}

/// `outside/one` and, beneath `root`, `good`: the digests of both.
fn world(dir: &Path) -> [String; 2] {
    [version(&dir.join("outside/one"), 3), version(&dir.join("root/good"), 1)]
}

/// Files of a directory beneath the root that are links: the file, where it points, what is told.
fn linking(outside: &Path) -> Vec<(&'static str, String, &'static str)> {
    let mut all = vec![
        (MODEL, MODEL.to_owned(), "leads through more links"),
        (MODEL, "none".to_owned(), "is missing"),
        (CONFIG, "none".to_owned(), "there is no adapter_config.json"),
    ];
    for target in [
        outside.join(CONFIG).to_str().unwrap(),
        &format!("../../outside/one/{CONFIG}"),
        &format!("../absolute/{CONFIG}"),
        "/dev/stdin",
        "/proc/self/fd/0",
        "/dev/zero",
        "/no/such/thing",
        "../../nothing",
    ] {
        let told = "is a link to outside the adapter root";
        let files = [CONFIG, MODEL, "tokenizer_config.json"];
        all.extend(files.map(|file| (file, target.to_owned(), told)));
    }
    all
}

#[test]
fn links_that_leave_the_root_are_refused_wherever_they_stand() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    world(dir.path());
    let outside = dir.path().join("outside/one");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let held = fs::File::open(&outside).unwrap();
    let magic = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    let absolute = text(&outside);
    linked(
        &root,
        &[
            ("absolute", &absolute),
            ("relative", "../outside/one"),
            ("above", ".."),
            ("far", "good/../../outside/one"),
            ("back", "../root/good"),
            ("magic", &magic),
            ("proc", "/proc/self/fd"),
            ("cwd", "/proc/self/cwd"),
            ("nowhere", "none"),
            ("nothing", "/no/such/thing"),
            ("loop", "loop"),
            ("ring", "ring2"),
            ("ring2", "ring"),
        ],
    );
    let dirs = [
        "absolute",
        "relative",
        "above",
        "above/outside/one",
        "far",
        "back",
        "magic",
        "proc",
        "cwd",
        "nowhere",
        "nowhere/x",
        "nothing",
        "nothing/x",
        "loop",
        "loop/x",
        "ring",
    ];
    let linking = linking(&outside);
    for (i, (file, target, _)) in linking.iter().enumerate() {
        version(&root.join(i.to_string()), 1);
        linked(&root.join(i.to_string()), &[(file, target)]);
    }
    for way in ways(&root) {
        let name = way.name;
        for path in dirs {
            assert_eq!((way.read)(path), Err(OUTSIDE.to_owned()), "{name}: {path}");
        }
        for (i, (file, target, told)) in linking.iter().enumerate() {
            let found = (way.read)(&i.to_string());
            let text = found.as_ref().err().map_or("", String::as_str);
            let is_told = text.contains(told) && (text.contains(file) || !text.contains(' '));
            assert!(is_told, "{name}: {file} -> {target}: {found:?}");
        }
    }
}

#[test]
fn links_that_stay_beneath_the_root_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    let root = real.join("root");
    let [_, good] = world(&real);
    let inside = root.join("good");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    // The root by another name: a link's text may have either.
    let alias = real.join("alias");
    symlink(&root, &alias).unwrap();
    let links = |target: &str| [CONFIG, MODEL].map(|name| (name, format!("{target}/{name}")));
    for (name, target) in [
        ("siblings", "../good"),
        ("roundabout", "../siblings/../good"),
        ("absolute", &*text(&inside)),
        ("by-alias", &*text(&alias.join("good"))),
        ("through", "../directory"),
        ("deep/down", "../../good"),
        ("here", "..data"),
    ] {
        let at = root.join(name);
        links(target).iter().for_each(|(name, target)| linked(&at, &[(name, target)]));
    }
    linked(&root, &[("directory", "good"), ("by-root", &text(&inside)), ("chain-0", "good")]);
    linked(&root.join("here"), &[("..data", "../directory")]);
    (1..40).for_each(|i| {
        linked(&root, &[(&format!("chain-{i}"), &format!("chain-{}", i - 1))]);
    });
    linked(&root, &[("chain-40", "chain-39")]);
    let absolute = [text(&inside), text(&alias.join("good")), text(&root.join("directory"))];
    for way in ways(&alias) {
        for path in [
            "good",
            "./good/",
            "siblings",
            "roundabout",
            "absolute",
            "by-alias",
            "through",
            "deep/down",
            "here",
            "directory",
            "by-root",
            "chain-39",
        ]
        .into_iter()
        .chain(absolute.iter().map(String::as_str))
        {
            assert_eq!((way.read)(path), Ok(good.clone()), "{}: {path}", way.name);
        }
        assert_eq!((way.read)("chain-40"), Err(OUTSIDE.to_owned()), "as far as the kernel goes");
    }
}

/// What a kubelet makes of a ConfigMap or a volume of secrets.
fn kubernetes(dir: &Path, number: u32) -> String {
    let at = dir.join(format!("..2026_0{number}"));
    let digest = version(&at, number);
    if !dir.join("..data").exists() {
        linked(dir, &[("..data", at.file_name().unwrap().to_str().unwrap())]);
        let links = [CONFIG, MODEL].map(|name| (name, format!("..data/{name}")));
        links.iter().for_each(|(name, target)| linked(dir, &[(name, target)]));
    }
    digest
}

#[test]
fn a_volume_of_kubernetes_is_read_and_read_anew_after_its_update() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("volume");
    let digests = [kubernetes(&at, 1), kubernetes(&at, 2)];
    for way in ways(dir.path()) {
        assert_eq!((way.read)("volume"), Ok(digests[0].clone()), "{}", way.name);
        linked(&at, &[("..data_tmp", "..2026_02")]);
        exchange(&at.join("..data_tmp"), &at.join("..data"));
        assert_eq!((way.read)("volume"), Ok(digests[1].clone()), "{}", way.name);
        exchange(&at.join("..data_tmp"), &at.join("..data"));
        fs::remove_file(at.join("..data_tmp")).unwrap();
    }
}

#[test]
fn a_snapshot_of_the_hubs_cache_is_read_and_nothing_outside_of_its_repository() {
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--org--adapter");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = repository.join("snapshots").join(commit);
    let source = crate::root().join("demo/adapters/json");
    for folder in ["blobs", "refs"] {
        fs::create_dir_all(repository.join(folder)).unwrap();
    }
    fs::write(repository.join("refs/main"), commit).unwrap();
    for name in [CONFIG, MODEL] {
        fs::copy(source.join(name), repository.join("blobs").join(name)).unwrap();
        linked(&snapshot, &[(name, &format!("../../blobs/{name}"))]);
    }
    let inspect = |place: &str| {
        let mut command = tessera(&["inspect", place]);
        let output = command.env("HF_HUB_CACHE", cache.path()).output().unwrap();
        (output.status.success(), format!("{output:?}"))
    };
    let (is_fine, text) = inspect("org/adapter");
    assert!(is_fine, "{text}");
    linked(&snapshot, &[(CONFIG, source.join(CONFIG).to_str().unwrap())]);
    let (is_fine, text) = inspect("org/adapter");
    assert!(!is_fine && text.contains("outside its repository's folder in the cache"), "{text}");
    // An operator's own directory may link to wherever it likes.
    let (is_fine, text) = inspect(snapshot.to_str().unwrap());
    assert!(is_fine, "{text}");
}
