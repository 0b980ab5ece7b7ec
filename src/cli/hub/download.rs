//! Fetching one repository's files, whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTypeModel;
use hf_hub::{HFError, HFRepositorySync};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Failure, Kind, MODEL_INDEX, MODEL_WEIGHTS, Repository, one_line, root_cause};

const MODEL_OPTIONAL: &[&str] =
    &["generation_config.json", "tokenizer_config.json", "chat_template.jinja"];
/// Downloads of one file that may break off before the fetch is given up.
const ATTEMPTS_MAX: u32 = 3;

/// A repository whose files are known.
pub struct Download<'a> {
    /// Which.
    pub repository: &'a Repository<'a>,
    /// Its client.
    pub remote: HFRepositorySync<RepoTypeModel>,
    /// What the revision stands for.
    pub commit: String,
    /// Bytes of each file at the top of the repository.
    pub sizes: BTreeMap<String, u64>,
    /// Where the files go.
    pub snapshot: PathBuf,
}

impl Download<'_> {
    /// The files to have. A sharded model's index is fetched here, since it names the others.
    pub fn wanted(&self) -> Result<Vec<String>, Failure> {
        let id = &self.repository.id;
        let has = |name: &str| self.sizes.contains_key(name);
        let pickle = || {
            let found = self.sizes.keys().find(|n| n.ends_with(".bin") || n.ends_with(".pt"));
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
        if self.repository.kind == Kind::Adapter {
            return Ok(wanted);
        }
        let optional = MODEL_OPTIONAL.iter().filter(|name| has(name));
        wanted.extend(optional.map(|&name| name.to_owned()));
        if has(MODEL_WEIGHTS) {
            wanted.push(MODEL_WEIGHTS.to_owned());
        } else if has(MODEL_INDEX) {
            self.one(MODEL_INDEX, None)?;
            let index = fs::read(self.snapshot.join(MODEL_INDEX));
            let index = index.map_err(|error| self.repository.disk(&error))?;
            let bad = |name| Failure::Final(format!("{MODEL_INDEX} of {id} names {name}"));
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
        let bytes = absent.iter().map(|name| self.sizes[*name]).sum();
        let bar = Arc::new(Bar::new(&self.repository.id, absent.len(), bytes));
        for name in absent {
            self.one(name, Some(&bar))?;
            bar.finish_file(self.sizes[name]);
        }
        bar.bar.finish_and_clear();
        Ok(())
    }

    /// Whether the cache has all of a file. The size is the Hub's word on it.
    fn whole(&self, name: &str) -> bool {
        let size = self.snapshot.join(name).metadata().map(|found| found.len());
        size.ok() == self.sizes.get(name).copied()
    }

    /// Fetches one file, again if the connection breaks off. The client writes it beside its place
    /// and renames it; that it did not check the answer is what the size is compared for.
    fn one(&self, name: &str, bar: Option<&Arc<Bar>>) -> Result<(), Failure> {
        let mut reason = String::new();
        for attempt in 1..=ATTEMPTS_MAX {
            if self.whole(name) {
                return Ok(());
            }
            self.discard(name).map_err(|error| self.repository.disk(&error))?;
            let fetched = self
                .remote
                .download_file()
                .filename(name)
                .revision(self.commit.as_str())
                .maybe_progress(bar.map(Arc::clone))
                .send();
            match fetched {
                Ok(_) if self.whole(name) => return Ok(()),
                Ok(path) => {
                    let found = path.metadata().map_or(0, |found| found.len());
                    let size = self.sizes.get(name).copied().unwrap_or_default();
                    reason = format!("{found} of {size} bytes came");
                }
                Err(HFError::Request { source, .. })
                    if !source.is_connect() && !source.is_timeout() =>
                {
                    reason = root_cause(&source);
                }
                Err(HFError::Xet { source, .. }) => reason = one_line(&source.to_string()),
                Err(error) => return Err(self.repository.explain(error)),
            }
            std::thread::sleep(Duration::from_millis(200) * attempt);
        }
        self.discard(name).map_err(|error| self.repository.disk(&error))?;
        Err(Failure::Final(format!(
            "{name} of {} broke off {ATTEMPTS_MAX} times ({reason}); run again, the files that are \
             whole are kept",
            self.repository.id
        )))
    }

    /// Removes a file that is not whole, and the blob behind it: nobody may take it for whole.
    /// A link to somewhere outside of this repository's cache is not ours to empty.
    fn discard(&self, name: &str) -> std::io::Result<()> {
        let link = self.snapshot.join(name);
        if link.symlink_metadata().is_err() {
            return Ok(());
        }
        let folder = self.repository.folder.canonicalize()?;
        let blob = link.canonicalize().ok().filter(|blob| blob.starts_with(folder));
        blob.map_or(Ok(()), fs::remove_file)?;
        match fs::remove_file(link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// A progress bar on a terminal, a line in the log elsewhere.
struct Bar {
    bar: ProgressBar,
    done_bytes: AtomicU64,
}

impl Bar {
    fn new(id: &str, files: usize, bytes: u64) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(template);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(bytes).with_style(style).with_message(id.to_owned())
        } else {
            tracing::info!("fetching {files} files of {id}, {} MB", bytes.div_ceil(1_000_000));
            ProgressBar::hidden()
        };
        Self { bar, done_bytes: AtomicU64::new(0) }
    }

    fn finish_file(&self, bytes: u64) {
        let done = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bar.set_position(done);
    }
}

impl ProgressHandler for Bar {
    fn on_progress(&self, event: &ProgressEvent) {
        let current = match event {
            ProgressEvent::Download(DownloadEvent::Progress { files }) => {
                files.iter().map(|file| file.bytes_completed).sum()
            }
            ProgressEvent::Download(DownloadEvent::AggregateProgress {
                bytes_completed, ..
            }) => *bytes_completed,
            _ => return,
        };
        self.bar.set_position(self.done_bytes.load(Ordering::Relaxed) + current);
    }
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
    let plain = |name: &&&str| !name.contains(['/', '\\']) && name.ends_with(".safetensors");
    match names.iter().find(|name| !plain(name)) {
        Some(name) => Err(format!("'{name}', which is no safetensors file beside it")),
        None => Ok(names.into_iter().map(str::to_owned).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
