//! Fetching one repository's files, whole or not at all.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use ureq::Body;
use ureq::http::{Response, StatusCode, header};

use super::cache::{Blob, Commit, Etag, Partial, is_plain};
use super::client::{Client, Listed, Problem};
use super::{Failure, Kind, MODEL_INDEX, MODEL_WEIGHTS, Repository, one_line};
use crate::cli::progress;
use crate::text::TEXT_FILES;

/// Downloads of one file that may break off before the fetch is given up.
const ATTEMPTS_MAX: u32 = 3;
/// An index has a line for each tensor; more is none.
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// A connection that brings less than so many bytes in so many seconds is given up, and the file
/// gone on with on another.
const SLOW_BYTES: u64 = 64 << 10;
const SLOW_S: u64 = 60;
/// Bytes that are read, hashed and written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A repository whose files are known.
pub struct Download<'a> {
    /// What is fetched.
    pub repository: &'a Repository<'a>,
    /// Its client.
    pub client: Client,
    /// What the revision stands for.
    pub commit: Commit,
    /// The files at the top of the repository.
    pub files: BTreeMap<String, Listed>,
    /// Where the files go.
    pub snapshot: PathBuf,
}

impl Download<'_> {
    /// The files to have. A sharded model's index is fetched here, since it names the others.
    pub fn wanted(&self) -> Result<Vec<String>, Failure> {
        let id = &self.repository.id;
        let has = |name: &str| self.files.contains_key(name);
        let pickle = || {
            let found = self.files.keys().find(|n| n.ends_with(".bin") || n.ends_with(".pt"));
            found.map_or(String::new(), |name| {
                format!("; {name} is a pickle, which can run code when read, and is not fetched")
            })
        };
        let required = self.repository.kind.required();
        if let Some(name) = required.iter().find(|name| !has(name)) {
            let hint = if name.ends_with("safetensors") { pickle() } else { String::new() };
            return Err(Failure::Final(format!("{id} has no {name} on the Hub{hint}")));
        }
        let mut wanted: Vec<String> = required.iter().map(|&name| name.to_owned()).collect();
        let optional = TEXT_FILES.iter().filter(|name| has(name) && !required.contains(name));
        wanted.extend(optional.map(|&name| name.to_owned()));
        if self.repository.kind == Kind::Adapter {
            return Ok(wanted);
        }
        if has(MODEL_WEIGHTS) {
            wanted.push(MODEL_WEIGHTS.to_owned());
        } else if has(MODEL_INDEX) {
            let bad = |name| Failure::Final(format!("{MODEL_INDEX} of {id} names {name}"));
            if self.bytes(MODEL_INDEX) > INDEX_BYTES_MAX {
                let text = format!("too much: it has more than {INDEX_BYTES_MAX} bytes");
                return Err(bad(text));
            }
            self.one(MODEL_INDEX, None)?;
            let index = read_index(&self.snapshot.join(MODEL_INDEX));
            let index = index.map_err(|error| self.repository.disk(&error))?;
            let shards = shards(&index).map_err(bad)?;
            if let Some(absent) = shards.iter().find(|shard| !has(shard)) {
                let text = format!("{absent}, which is not in the repository");
                return Err(bad(text));
            }
            wanted.extend(shards);
        } else {
            return Err(Failure::Final(format!(
                "{id} has no safetensors weights ({MODEL_WEIGHTS} or {MODEL_INDEX}){}",
                pickle()
            )));
        }
        Ok(wanted)
    }

    /// Fetches those of `names` that are not in the cache.
    pub fn all(&self, names: &[String]) -> Result<(), Failure> {
        let absent: Vec<&String> = names.iter().filter(|name| !self.whole(name)).collect();
        if absent.is_empty() {
            return Ok(());
        }
        let bytes = absent.iter().map(|name| self.bytes(name)).fold(0, u64::saturating_add);
        let bar = Bar::new(&self.repository.id, absent.len(), bytes);
        for name in absent {
            self.one(name, Some(&bar))?;
            bar.finish_file(self.bytes(name));
        }
        bar.bar.finish_and_clear();
        Ok(())
    }

    /// Whether the cache has all of a file. The size is the Hub's word on it.
    fn whole(&self, name: &str) -> bool {
        let size = self.snapshot.join(name).metadata().map(|found| found.len());
        size.ok() == self.files.get(name).map(|file| file.bytes)
    }

    fn bytes(&self, name: &str) -> u64 {
        self.files.get(name).map_or(0, |file| file.bytes)
    }

    /// Fetches one file's content and then gives it its name.
    fn one(&self, name: &str, bar: Option<&Bar>) -> Result<(), Failure> {
        if self.whole(name) {
            return Ok(());
        }
        let disk = |error| self.repository.disk(&error);
        let size = self.bytes(name);
        let etag = self.client.etag(&self.commit, name);
        let etag = etag.map_err(|problem| self.repository.explain(problem))?;
        let blob = self.repository.folders.blob(etag).map_err(disk)?;
        if !blob.is_whole(size) {
            self.fill(&blob, name, size, bar)?;
        }
        blob.link(&self.snapshot, name).map_err(disk)
    }

    /// Fetches a content, again if the connection breaks off.
    fn fill(&self, blob: &Blob, name: &str, size: u64, bar: Option<&Bar>) -> Result<(), Failure> {
        let disk = |error| self.repository.disk(&error);
        let mut reason = String::new();
        let mut partial = blob.partial().map_err(disk)?;
        let missing = size.saturating_sub(partial.len());
        if let Some(free) = partial.free_bytes().filter(|&free| free < missing) {
            let text = format!("{name} needs {missing} bytes more and {free} are free");
            return Err(disk(io::Error::other(text)));
        }
        for attempt in 1..=ATTEMPTS_MAX {
            match self.receive(&blob.etag, &mut partial, name, bar) {
                Ok(()) => return partial.finish().map_err(disk),
                Err(Broken::Disk(error)) => return Err(disk(error)),
                Err(Broken::Refused(problem)) => return Err(self.repository.explain(problem)),
                Err(Broken::Off(text)) if partial.is_vouched_for() => reason = text,
                Err(Broken::Off(text) | Broken::Wrong(text)) => {
                    partial.restart().map_err(disk)?;
                    reason = text;
                }
            }
            std::thread::sleep(Duration::from_millis(200) * attempt);
        }
        Err(Failure::Final(format!(
            "{name} of {} did not come whole in {ATTEMPTS_MAX} tries ({reason}); run again, the \
             files that are whole are kept",
            self.repository.id
        )))
    }

    /// One try: `partial` is the whole file afterwards, or an error says why not.
    fn receive(
        &self,
        etag: &Etag,
        partial: &mut Partial<'_>,
        name: &str,
        bar: Option<&Bar>,
    ) -> Result<(), Broken> {
        let size = self.bytes(name);
        if partial.len() > size {
            partial.restart().map_err(Broken::Disk)?;
        }
        if partial.len() < size {
            let from = partial.len();
            let response = match self.client.content(&self.commit, name, etag, from) {
                // Another server's refusal: the Hub will name a place anew.
                Err(Problem::Answer(text)) => return Err(Broken::Off(text)),
                Err(problem) => return Err(Broken::Refused(problem)),
                Ok(response) => response,
            };
            let start = match (response.status(), begins_at(&response)) {
                (StatusCode::OK, _) => 0,
                (StatusCode::PARTIAL_CONTENT, Some(start)) if start == from => start,
                _ => return Err(Broken::Wrong("another part was sent".into())),
            };
            let announced = response.body().content_length();
            if let Some(bytes) = announced.filter(|&bytes| bytes != size - start) {
                // A page for the reader of a browser, perhaps: none of it belongs into the file.
                return Err(Broken::Off(format!("{} of {size} bytes came", start + bytes)));
            }
            if start == 0 {
                partial.restart().map_err(Broken::Disk)?;
            }
            copy(response, partial, size, bar)?;
        }
        let come = partial.len();
        match come.cmp(&size) {
            std::cmp::Ordering::Less => Err(Broken::Off(format!("{come} of {size} bytes came"))),
            std::cmp::Ordering::Greater => {
                Err(Broken::Wrong(format!("more than {size} bytes came")))
            }
            std::cmp::Ordering::Equal => {
                let listed = self.files.get(name).and_then(|file| file.hash.as_ref());
                let is_listed = listed.map_or(Ok(true), |hash| partial.has(hash));
                match partial.is_genuine() && is_listed.map_err(Broken::Disk)? {
                    true => Ok(()),
                    false => {
                        Err(Broken::Wrong("what came has not the hash that the Hub names".into()))
                    }
                }
            }
        }
    }
}

/// Why a file did not come.
enum Broken {
    /// What came is its beginning.
    Off(String),
    /// What came is something else.
    Wrong(String),
    /// The Hub does not give it.
    Refused(Problem),
    /// It cannot be kept.
    Disk(std::io::Error),
}

/// How fast a file comes.
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0 }
    }

    /// Counts bytes that have come; whether too few have, over a while.
    fn is_slow(&mut self, bytes: u64, now: Instant) -> bool {
        self.bytes += bytes;
        if now.saturating_duration_since(self.since) < Duration::from_secs(SLOW_S) {
            return false;
        }
        let is_slow = self.bytes < SLOW_BYTES;
        *self = Self::new(now);
        is_slow
    }
}

/// The position in the file at which an answer begins, if it says so.
fn begins_at(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// Appends an answer's body, one byte beyond `size` at most.
fn copy(
    response: Response<Body>,
    partial: &mut Partial<'_>,
    size: u64,
    bar: Option<&Bar>,
) -> Result<(), Broken> {
    let mut body = response.into_body().into_reader().take(size - partial.len() + 1);
    let mut bytes = vec![0; CHUNK_BYTES];
    let mut pace = Pace::new(Instant::now());
    loop {
        let read = body.read(&mut bytes);
        let n = read.map_err(|error| Broken::Off(one_line(&error.to_string())))?;
        if n == 0 {
            return Ok(());
        }
        partial.append(&bytes[..n]).map_err(Broken::Disk)?;
        if pace.is_slow(n as u64, Instant::now()) {
            return Err(Broken::Off(format!("less than {SLOW_BYTES} bytes came in {SLOW_S} s")));
        }
        if let Some(bar) = bar {
            bar.bar.set_position(bar.done_bytes.get() + partial.len());
        }
    }
}

/// A progress bar on a terminal, a line in the log elsewhere.
struct Bar {
    bar: ProgressBar,
    /// Of the files that are whole.
    done_bytes: Cell<u64>,
}

impl Bar {
    fn new(id: &str, files: usize, bytes: u64) -> Self {
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let bar = progress::bar(bytes, template).with_message(id.to_owned());
        if bar.is_hidden() {
            tracing::info!("fetching {files} files of {id}, {} MB", bytes.div_ceil(1_000_000));
        }
        Self { bar, done_bytes: Cell::new(0) }
    }

    fn finish_file(&self, bytes: u64) {
        self.done_bytes.set(self.done_bytes.get() + bytes);
        self.bar.set_position(self.done_bytes.get());
    }
}

/// The bytes of an index.
pub fn read_index(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(INDEX_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The files that an index lists; what is wrong with it otherwise.
pub fn shards(index: &[u8]) -> Result<BTreeSet<String>, String> {
    let index: serde_json::Value =
        serde_json::from_slice(index).map_err(|_| "nothing: it is not JSON".to_owned())?;
    let map = index.get("weight_map").and_then(|map| map.as_object());
    let names = map.and_then(|map| map.values().map(|name| name.as_str()).collect());
    let Some(names): Option<BTreeSet<&str>> = names else {
        return Err("nothing: it has no 'weight_map' of file names".to_owned());
    };
    let plain = |name: &&&str| is_plain(name) && name.ends_with(".safetensors");
    match names.iter().find(|name| !plain(name)) {
        Some(name) => Err(format!("'{name}', which is no safetensors file beside it")),
        None => Ok(names.into_iter().map(str::to_owned).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_drips_is_given_up_and_one_that_comes_is_not() {
        let start = Instant::now();
        let after = |s: u64| start + Duration::from_secs(s);
        let mut pace = Pace::new(start);
        assert!(!pace.is_slow(1, after(SLOW_S - 1)), "it has a while");
        assert!(pace.is_slow(1, after(SLOW_S)));
        let mut pace = Pace::new(start);
        assert!((1..1000).all(|minute| !pace.is_slow(SLOW_BYTES, after(minute * SLOW_S))));
        assert!(pace.is_slow(SLOW_BYTES - 1, after(1000 * SLOW_S)), "what came before is over");
    }

    #[test]
    fn an_index_may_name_nothing_outside_its_directory() {
        let names = |json: &str| shards(json.as_bytes());
        let good = names(r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-1.safetensors"}}"#);
        assert_eq!(good.unwrap().len(), 1);
        for bad in ["{}", "x", r#"{"weight_map": {"a": "../m.safetensors"}}"#] {
            assert!(names(bad).is_err(), "{bad}");
        }
        assert!(names(r#"{"weight_map": {"a": "pytorch_model.bin"}}"#).is_err());
    }
}
