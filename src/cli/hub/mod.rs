//! MODEL and adapter arguments: a directory, or a repository of the Hugging Face Hub, fetched into
//! the cache that Python's `huggingface_hub` uses as well.

mod cache;
mod client;
mod download;

use std::fs;
use std::path::{Path, PathBuf};

use cache::{Commit, Folders};
use client::{Client, Problem};
use download::{Download, read_index, shards};

/// What an argument names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A base model.
    Model,
    /// An adapter.
    Adapter,
}

impl Kind {
    /// Files without which there is nothing to load.
    fn required(self) -> &'static [&'static str] {
        match self {
            Kind::Model => MODEL_REQUIRED,
            Kind::Adapter => ADAPTER_REQUIRED,
        }
    }
}

/// Where the Hub and its cache are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HubSettings {
    /// `HF_ENDPOINT`.
    pub endpoint: String,
    /// `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache_dir: PathBuf,
    /// `HF_TOKEN`, or what the file `token` in `HF_HOME` holds.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: nothing but the cache.
    pub offline: bool,
}

/// Why there is no directory for an argument: one line with the way out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct HubError(String);

const MODEL_WEIGHTS: &str = "model.safetensors";
const MODEL_INDEX: &str = "model.safetensors.index.json";
const MODEL_REQUIRED: &[&str] = &["config.json", "tokenizer.json"];
const ADAPTER_REQUIRED: &[&str] = &["adapter_config.json", "adapter_model.safetensors"];
/// The Hub's own limit on the parts of an id.
const ID_PART_CHARS_MAX: usize = 96;

impl HubSettings {
    /// As the process's environment says.
    pub fn from_env() -> Self {
        Self::from_lookup(&|key| match key {
            // As the system knows it where no variable says, as in most service managers.
            "HOME" => std::env::home_dir().map(|home| home.to_string_lossy().into_owned()),
            _ => std::env::var(key).ok(),
        })
    }

    /// As the variables that `get` knows say. Empty ones count as unset, as in Python's client.
    pub fn from_lookup(get: &dyn Fn(&str) -> Option<String>) -> Self {
        let set = |key: &str| get(key).filter(|value| !value.is_empty());
        let default_home = || {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
                PathBuf::from(set("HOME").unwrap_or_else(|| ".".into())).join(".cache")
            });
            cache.join("huggingface")
        };
        let home = set("HF_HOME").map(PathBuf::from).unwrap_or_else(default_home);
        let token_file = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = set("HF_TOKEN").or_else(|| fs::read_to_string(token_file).ok());
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let offline = set("HF_HUB_OFFLINE").unwrap_or_default().to_lowercase();
        Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            cache_dir: set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            token,
            offline: ["1", "true", "yes", "on"].contains(&offline.as_str()),
        }
    }
}

/// The directory that `argument` names. An existing one wins; else `organisation/name`, with
/// `@revision` where wanted, is fetched, or found in the cache where the Hub cannot be reached.
///
/// # Errors
/// [`HubError`], one line.
pub fn resolve(argument: &str, kind: Kind, settings: &HubSettings) -> Result<PathBuf, HubError> {
    let path = Path::new(argument);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    if path.exists() {
        return Err(HubError(format!("{argument} is a file; give the directory that holds it")));
    }
    let Some((owner, name, revision)) = parse_id(argument) else {
        return Err(HubError(format!(
            "{argument} is neither a directory nor a Hub id (organisation/name or \
             organisation/name@revision)"
        )));
    };
    let id = format!("{owner}/{name}");
    let folders = Folders::new(&settings.cache_dir, owner, name);
    let repository = Repository { id, revision, folders, kind, settings };
    if settings.offline {
        return repository.cached().map_err(|missing| {
            HubError(format!(
                "HF_HUB_OFFLINE is set and the cache {} does not hold {missing} of {}; unset it, \
                 or fetch {argument} while there is a network",
                settings.cache_dir.display(),
                repository.id
            ))
        });
    }
    match repository.fetch() {
        Err(Failure::Unreachable(text)) => {
            let dir = repository.cached().map_err(|_| HubError(text.clone()))?;
            tracing::warn!("{text}; using {argument} as the cache has it");
            Ok(dir)
        }
        Err(Failure::Final(text)) => Err(HubError(text)),
        Ok(dir) => Ok(dir),
    }
}

/// Owner, name and revision, if `text` is of the form of a Hub id.
fn parse_id(text: &str) -> Option<(&str, &str, &str)> {
    let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
    let (owner, name) = id.split_once('/')?;
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= ID_PART_CHARS_MAX
            && part.chars().all(legal)
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("..")
            && !part.contains("--")
    };
    // It becomes a path in the cache: it must not lead out of it.
    let revision_legal = !revision.is_empty()
        && revision.chars().all(|c| legal(c) || c == '/')
        && revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.'));
    (part(owner) && part(name) && revision_legal).then_some((owner, name, revision))
}

/// Why a fetch failed.
enum Failure {
    /// There is no Hub to ask: what the cache holds may do.
    Unreachable(String),
    /// The Hub has answered, or the disk has failed.
    Final(String),
}

/// One repository at one revision.
struct Repository<'a> {
    id: String,
    revision: &'a str,
    folders: Folders,
    kind: Kind,
    settings: &'a HubSettings,
}

impl Repository<'_> {
    /// The snapshot in the cache, if every file that is needed is there; else what is missing.
    fn cached(&self) -> Result<PathBuf, String> {
        let commit = Commit::parse(self.revision).or_else(|| self.folders.commit_of(self.revision));
        let commit = commit.ok_or_else(|| format!("revision '{}'", self.revision))?;
        let snapshot = self.folders.snapshot(&commit);
        // Following the links: a blob that was cleaned away is missing too.
        let absent = |name: &str| !snapshot.join(name).exists();
        if let Some(name) = self.kind.required().iter().find(|name| absent(name)) {
            return Err((*name).to_owned());
        }
        if self.kind == Kind::Model && absent(MODEL_WEIGHTS) {
            let index = read_index(&snapshot.join(MODEL_INDEX));
            let index = index.map_err(|_| MODEL_WEIGHTS.to_owned())?;
            if let Some(shard) = shards(&index)?.into_iter().find(|shard| absent(shard)) {
                return Err(shard);
            }
        }
        Ok(snapshot)
    }

    /// Downloads what is not in the cache yet. The revision's name is written last, so that it
    /// never stands for half a snapshot.
    fn fetch(&self) -> Result<PathBuf, Failure> {
        let token = self.settings.token.as_deref();
        if token.is_some_and(|token| !token.chars().all(|c| c.is_ascii_graphic())) {
            let text = "HF_TOKEN holds a space or another character that no token has";
            return Err(Failure::Final(text.into()));
        }
        let explain = |problem| self.explain(problem);
        let client = Client::new(&self.settings.endpoint, &self.id, token).map_err(explain)?;
        let commit = client.commit(self.revision).map_err(explain)?;
        let pinned = Commit::parse(self.revision);
        if pinned.as_ref().is_some_and(|pinned| *pinned != commit) {
            let text = format!("asked for commit {}, it answers for {commit}", self.revision);
            return Err(self.explain(Problem::Answer(text)));
        }
        let files = client.files(&commit).map_err(explain)?;
        let snapshot = self.folders.snapshot(&commit);
        let download = Download { repository: self, client, commit, files, snapshot };
        let wanted = download.wanted()?;
        download.all(&wanted)?;
        if pinned.is_none() {
            let noted = self.folders.set_commit_of(self.revision, &download.commit);
            noted.map_err(|error| self.disk(&error))?;
        }
        Ok(download.snapshot)
    }

    fn disk(&self, error: &std::io::Error) -> Failure {
        Failure::Final(format!(
            "the cache {} cannot be written: {error}; free space there, or set HF_HOME to another \
             place",
            self.settings.cache_dir.display()
        ))
    }

    /// The client's problem in one line, with the way out.
    fn explain(&self, problem: Problem) -> Failure {
        let (id, endpoint) = (&self.id, self.settings.endpoint.trim_end_matches('/'));
        let unreachable = |cause: &str| {
            Failure::Unreachable(format!(
                "{endpoint} cannot be reached for {id} ({cause}); check the network and \
                 HF_ENDPOINT, or name a local directory"
            ))
        };
        Failure::Final(match problem {
            Problem::Endpoint => format!("HF_ENDPOINT '{endpoint}' is not a URL"),
            Problem::Unreachable(cause) => return unreachable(&cause),
            Problem::Answer(text) => format!("{id} cannot be fetched from {endpoint}: {text}"),
            Problem::Status(status @ 500.., _) => {
                return unreachable(&format!("it answers {status}"));
            }
            Problem::Status(status @ (401 | 403), code) => self.refused(status, &code),
            Problem::Status(404, code) => match code.as_str() {
                "RevisionNotFound" => format!("{id} has no revision '{}'", self.revision),
                "EntryNotFound" => format!("{endpoint} lists a file of {id} that it does not have"),
                _ => self.absent(),
            },
            Problem::Status(429, _) => {
                format!("{endpoint} limits the requests for {id}; wait, or set HF_TOKEN")
            }
            Problem::Status(status, _) => {
                format!("{id} cannot be fetched: {endpoint} answers {status}")
            }
        })
    }

    fn absent(&self) -> String {
        format!(
            "{} is no directory here and no repository at {}; check the name, or set HF_TOKEN if \
             it is private",
            self.id,
            self.settings.endpoint.trim_end_matches('/')
        )
    }

    fn refused(&self, status: u16, code: &str) -> String {
        let (id, endpoint) = (&self.id, self.settings.endpoint.trim_end_matches('/'));
        match (code, &self.settings.token) {
            // The Hub's answer to a name that is not there, from someone it does not know.
            ("RepoNotFound", _) => self.absent(),
            ("GatedRepo", _) => format!(
                "{id} is gated ({status}): accept its terms at {endpoint}/{id} and set HF_TOKEN to \
                 a token of that account"
            ),
            (_, None) => format!(
                "{endpoint} refuses {id} without a token ({status}): check the name; if it is \
                 private or gated, set HF_TOKEN"
            ),
            (_, Some(_)) => format!(
                "{endpoint} refuses {id} to this token ({status}): check the name, and that \
                 HF_TOKEN is valid and may read it"
            ),
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        assert_eq!(parse_id("org/name"), Some(("org", "name", "main")));
        assert_eq!(parse_id("org/na.me@refs/pr/1"), Some(("org", "na.me", "refs/pr/1")));
        for not in
            ["gpt2", "/org/name", "./name", "../name", "org/name/x", "org/", "a--b/c", "a b/c"]
        {
            assert_eq!(parse_id(not), None, "{not}");
        }
        for not in ["org/name@", "org/name@../../x", "org/name@/x", "org/name@a//b"] {
            assert_eq!(parse_id(not), None, "{not}");
        }
    }

    #[test]
    fn the_environment_decides_as_it_does_in_python() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("token"), "hf_from_file\n").unwrap();
        let home_text = home.path().to_str().unwrap().to_owned();
        let settings = |pairs: &[(&str, &str)]| {
            let pairs: BTreeMap<String, String> =
                pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
            HubSettings::from_lookup(&move |key| pairs.get(key).cloned())
        };
        let plain = settings(&[("HOME", "/home/x"), ("HF_TOKEN", "")]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache_dir, Path::new("/home/x/.cache/huggingface/hub"));
        assert_eq!((plain.token, plain.offline), (None, false));

        let own = settings(&[("HF_HOME", &home_text), ("HF_HUB_OFFLINE", "1")]);
        assert_eq!(own.cache_dir, home.path().join("hub"));
        assert_eq!((own.token.as_deref(), own.offline), (Some("hf_from_file"), true));

        let all = settings(&[
            ("HF_HOME", &home_text),
            ("HF_HUB_CACHE", "/cache"),
            ("HF_TOKEN", " hf_own "),
            ("HF_ENDPOINT", "http://mirror"),
            ("HF_HUB_OFFLINE", "0"),
        ]);
        assert_eq!(all.cache_dir, Path::new("/cache"));
        assert_eq!((all.token.as_deref(), all.offline), (Some("hf_own"), false));
        assert_eq!(all.endpoint, "http://mirror");
    }
}
