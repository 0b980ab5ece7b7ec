//! Hundreds of loads while other threads replace what is loaded.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{CONFIG, MODEL, exchange, mkfifo, version, ways};
use crate::Rng;

/// How long files are replaced. Most of it is spent waiting.
const RACE: Duration = Duration::from_secs(4);
/// Rests between bursts of replacements, at most: long enough for a load, if it begins in time.
const REST_MS_MAX: usize = 90;
const BURST_MAX: usize = 30;

/// One name beneath the root, what is done to it, and the digests that it may have.
struct Raced {
    name: &'static str,
    digests: Vec<String>,
    swap: Box<dyn Fn() + Send + Sync>,
}

/// `root/NAME` of version 1, and `root/.NAME` of version 2.
fn pair(root: &Path, name: &str) -> ([PathBuf; 2], Vec<String>) {
    let dirs = [root.join(name), root.join(format!(".{name}"))];
    let digests = vec![version(&dirs[0], 1), version(&dirs[1], 2)];
    (dirs, digests)
}

/// Directories that are replaced whole: each read is of the one that was opened.
fn whole(root: &Path, outside: &Path) -> Vec<Raced> {
    let raced = |name, digests, at: PathBuf, other: PathBuf| {
        let swap = Box::new(move || exchange(&at, &other));
        Raced { name, digests, swap }
    };
    let ([at, other], digests) = pair(root, "directory");
    let directory = raced("directory", digests, at, other);
    let (_, digests) = pair(root, "versions");
    symlink("versions", root.join("link")).unwrap();
    symlink(".versions", root.join(".link")).unwrap();
    let link = raced("link", digests, root.join("link"), root.join(".link"));
    let ([at, _], mut digests) = pair(root, "left");
    digests.truncate(1);
    symlink(outside, root.join(".out")).unwrap();
    let left = raced("left", digests, at, root.join(".out"));
    fs::create_dir(root.join("part")).unwrap();
    let digests = vec![version(&root.join("part/adapter"), 1)];
    symlink(outside.parent().unwrap(), root.join(".part")).unwrap();
    let part = raced("part/adapter", digests, root.join("part"), root.join(".part"));
    vec![directory, link, left, part]
}

/// Files and links within a directory. Two versions have the same config where only the tensors
/// are replaced, so that there is nothing between them.
fn within(root: &Path, outside: &Path) -> Vec<Raced> {
    let alike = |name: &'static str| {
        let ([at, other], _) = pair(root, name);
        fs::copy(at.join(CONFIG), other.join(CONFIG)).unwrap();
        let digests = vec![super::digest(&at), super::digest(&other)];
        (at.join(MODEL), other.join(MODEL), digests)
    };
    let raced = |name, digests, at: PathBuf, other: PathBuf| {
        let swap = Box::new(move || exchange(&at, &other));
        Raced { name, digests, swap }
    };
    let (at, other, digests) = alike("file");
    let file = raced("file", digests, at, other);
    let (at, other, mut digests) = alike("file-left");
    digests.truncate(1);
    fs::remove_file(&other).unwrap();
    symlink(outside.join(MODEL), &other).unwrap();
    let left = raced("file-left", digests, at, other);
    let (at, other, mut digests) = alike("pipe");
    digests.truncate(1);
    fs::remove_file(&other).unwrap();
    mkfifo(&other);
    let pipe = raced("pipe", digests, at, other);
    vec![file, left, pipe, kubernetes(root)]
}

fn kubernetes(root: &Path) -> Raced {
    let at = root.join("volume");
    let digests = vec![version(&at.join("..1"), 1), version(&at.join("..2"), 2)];
    for name in [CONFIG, MODEL] {
        symlink(Path::new("..data").join(name), at.join(name)).unwrap();
    }
    let [data, other] = [("..data", "..1"), ("..data_tmp", "..2")].map(|(name, target)| {
        symlink(target, at.join(name)).unwrap();
        at.join(name)
    });
    Raced { name: "volume", digests, swap: Box::new(move || exchange(&data, &other)) }
}

/// Replacements in bursts, until all is over.
fn race(raced: &Raced, over: &AtomicBool, seed: u64) {
    let mut rng = Rng(seed);
    while !over.load(Ordering::Acquire) {
        for _ in 0..rng.below(BURST_MAX) {
            (raced.swap)();
            std::thread::sleep(Duration::from_micros(rng.below(500) as u64));
        }
        std::thread::sleep(Duration::from_millis(rng.below(REST_MS_MAX) as u64));
    }
}

#[test]
fn every_load_beneath_swapped_files_is_one_version_whole_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let outside = dir.path().join("outside/adapter");
    version(&outside, 3);
    fs::create_dir(&root).unwrap();
    let all = whole(&root, &outside).into_iter().chain(within(&root, &outside)).collect::<Vec<_>>();
    let ways = ways(&root);
    let over = AtomicBool::new(false);
    // By way and name: what each load came to.
    type Counts = BTreeMap<(&'static str, &'static str), BTreeMap<String, usize>>;
    let counts: Mutex<Counts> = Mutex::default();
    let load = |way: &super::Way, raced: &Raced| {
        let found = (way.read)(raced.name);
        let found = match found {
            Ok(digest) => match raced.digests.iter().position(|known| *known == digest) {
                Some(i) => format!("version {}", i + 1),
                None => format!("neither version: {digest}"),
            },
            Err(text) => text,
        };
        let mut counts = counts.lock().unwrap();
        *counts.entry((way.name, raced.name)).or_default().entry(found).or_default() += 1;
    };
    std::thread::scope(|scope| {
        for (seed, raced) in all.iter().enumerate() {
            let over = &over;
            scope.spawn(move || race(raced, over, seed as u64));
        }
        let (begun, load) = (Instant::now(), &load);
        let loaders: Vec<_> = ways
            .iter()
            .flat_map(|way| all.iter().map(move |raced| (way, raced)))
            .map(|(way, raced)| {
                scope.spawn(move || {
                    while begun.elapsed() < RACE {
                        load(way, raced)
                    }
                })
            })
            .collect();
        let ends: Vec<_> = loaders.into_iter().map(|loader| loader.join()).collect();
        over.store(true, Ordering::Release);
        ends.into_iter().for_each(|end| end.unwrap());
    });
    let counts = counts.into_inner().unwrap();
    let all_loads: usize = counts.values().flat_map(|found| found.values()).sum();
    assert!(all_loads > 300, "{all_loads} loads");
    for (raced, found) in &counts {
        let fine = |(text, _): &(&String, &usize)| {
            let refusals = ["adapter_changing", "outside the adapter root", "is a pipe"];
            text.starts_with("version ")
                || *text == "path_outside_root"
                || refusals.iter().any(|refusal| text.contains(refusal))
        };
        let wrong: Vec<_> = found.iter().filter(|entry| !fine(entry)).collect();
        assert!(wrong.is_empty(), "{raced:?}: {wrong:?}");
        assert!(found.keys().any(|text| text.starts_with("version ")), "{raced:?}: {found:?}");
    }
    println!("{all_loads} loads: {counts:#?}");
}
