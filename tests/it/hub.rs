//! MODEL and adapter arguments against a local server that speaks the Hub's routes.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tessera::adapter::{AdapterFile, FileLimits};
use tessera::cli::hub::{HubSettings, Kind, resolve};
use tessera::cli::synth::{AdapterKind, Family, synth_adapter, synth_model};
use tessera::engine::CheckpointBase;
use tessera::files::Folder;
use tessera::model::Checkpoint;

use crate::hub_server::{COMMIT, Lies, Plan, Server, files_of};
use crate::synth::{adapter_shape, tiny};

/// Where the files of `org/model` and `org/adapter` come from, and a cache of its own.
pub struct World {
    pub source: TempDir,
    pub cache: TempDir,
    pub server: Server,
}

impl World {
    pub fn new() -> Self {
        let source = tempfile::tempdir().unwrap();
        let (model, adapter) = (source.path().join("model"), source.path().join("adapter"));
        synth_model(&model, &tiny(Family::Llama)).unwrap();
        let base = CheckpointBase::new(Checkpoint::open(&model, None).unwrap().into());
        synth_adapter(&adapter, &adapter_shape(AdapterKind::Lora), &base).unwrap();
        fs::write(adapter.join("chat_template.jinja"), "{{ messages }}").unwrap();
        fs::write(adapter.join("special_tokens_map.json"), "{}").unwrap();
        fs::write(adapter.join("added_tokens.json"), "{ }").unwrap();
        let mut plan = Plan::default();
        plan.repositories.insert("org/model".into(), files_of(&model));
        plan.repositories.insert("org/adapter".into(), files_of(&adapter));
        for files in plan.repositories.values_mut() {
            files.insert("README.md".into(), b"not needed".to_vec());
            files.insert("pytorch_model.bin".into(), b"never fetched".to_vec());
        }
        Self { source, cache: tempfile::tempdir().unwrap(), server: Server::start(plan) }
    }

    pub fn settings(&self) -> HubSettings {
        HubSettings {
            endpoint: self.server.url.clone(),
            cache_dir: self.cache.path().to_owned(),
            token: None,
            offline: false,
        }
    }

    pub fn offline(&self) -> HubSettings {
        // Nothing listens there: offline must not even ask.
        HubSettings { offline: true, endpoint: "http://127.0.0.1:9".into(), ..self.settings() }
    }

    pub fn refused(&self, argument: &str, kind: Kind) -> String {
        let error = resolve(argument, kind, &self.settings()).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    }

    /// Names in the snapshot and blobs of a repository.
    pub fn names(&self, repository: &str, folder: &str) -> Vec<String> {
        let dir = self.cache.path().join(format!("models--org--{repository}")).join(folder);
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }
}

pub fn same_files(source: &Path, fetched: &Path, names: &[&str]) {
    for name in names {
        let (a, b) = (fs::read(source.join(name)).unwrap(), fs::read(fetched.join(name)).unwrap());
        assert!(a == b, "{name} differs");
    }
}

pub const MODEL_FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];
const ADAPTER_FILES: [&str; 5] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "added_tokens.json",
    "chat_template.jinja",
    "special_tokens_map.json",
];

#[test]
fn a_model_is_fetched_into_the_cache_layout_of_python_and_found_there_without_a_network() {
    let world = World::new();
    let dir = resolve("org/model", Kind::Model, &world.settings()).unwrap();
    let folder = world.cache.path().join("models--org--model");
    assert_eq!(dir, folder.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    same_files(&world.source.path().join("model"), &dir, &MODEL_FILES);
    assert_eq!(world.names("model", &format!("snapshots/{COMMIT}")), MODEL_FILES);
    let target = fs::read_link(dir.join("model.safetensors")).unwrap();
    assert!(target.starts_with("../../blobs"), "{target:?}");
    Checkpoint::open(&dir, None).unwrap();

    let before = world.server.downloads();
    assert_eq!(before, MODEL_FILES.len());
    assert_eq!(resolve("org/model", Kind::Model, &world.settings()).unwrap(), dir);
    assert_eq!(world.server.downloads(), before, "a second fetch takes nothing again");
    let asked = world.server.seen().len();
    assert_eq!(resolve("org/model", Kind::Model, &world.offline()).unwrap(), dir);
    let at_commit = format!("org/model@{COMMIT}");
    assert_eq!(resolve(&at_commit, Kind::Model, &world.offline()).unwrap(), dir);
    assert_eq!(world.server.seen().len(), asked, "offline asks nobody");
}

#[test]
fn an_adapter_takes_its_files_those_of_its_text_and_nothing_else() {
    let world = World::new();
    let dir = resolve("org/adapter@main", Kind::Adapter, &world.settings()).unwrap();
    assert_eq!(world.names("adapter", &format!("snapshots/{COMMIT}")), ADAPTER_FILES);
    same_files(&world.source.path().join("adapter"), &dir, &ADAPTER_FILES);
    AdapterFile::read(&Folder::open(&dir).unwrap(), &FileLimits::new(1 << 30)).unwrap();
    assert_eq!(resolve("org/adapter", Kind::Adapter, &world.offline()).unwrap(), dir);
}

#[test]
fn a_sharded_model_is_fetched_by_its_index() {
    let world = World::new();
    let sharded = world.source.path().join("sharded");
    let mut shape = tiny(Family::Llama);
    shape.shard_bytes_max = 20_000;
    synth_model(&sharded, &shape).unwrap();
    let mut files = files_of(&sharded);
    assert!(files.len() > MODEL_FILES.len() + 1, "more than one shard");
    files.insert("other.safetensors".into(), vec![0; 9]);
    world.server.change(|plan| {
        plan.repositories.insert("org/sharded".into(), files);
    });
    let dir = resolve("org/sharded", Kind::Model, &world.settings()).unwrap();
    Checkpoint::open(&dir, None).unwrap();
    assert!(!dir.join("other.safetensors").exists());
    resolve("org/sharded", Kind::Model, &world.offline()).unwrap();
    let mut shards = fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.path());
    let shard = shards.find(|path| path.to_string_lossy().contains("model-00001")).unwrap();
    fs::remove_file(&shard).unwrap();
    let error = resolve("org/sharded", Kind::Model, &world.offline()).unwrap_err().to_string();
    assert!(error.contains("model-00001"), "a shard that is gone is missed: {error}");
}

#[test]
fn offline_without_the_files_says_so() {
    let world = World::new();
    let error = resolve("org/model", Kind::Model, &world.offline()).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE") && error.contains("revision 'main'"), "{error}");
    assert!(world.server.seen().is_empty());
}

#[test]
fn a_local_directory_wins_and_other_words_are_told_apart() {
    let world = World::new();
    let model = world.source.path().join("model");
    let text = model.to_str().unwrap();
    assert_eq!(resolve(text, Kind::Model, &world.settings()).unwrap(), model);
    let file = format!("{text}/config.json");
    assert!(world.refused(&file, Kind::Model).contains("is a file"));
    assert!(world.refused("no such thing", Kind::Model).contains("neither a directory nor"));
    assert!(world.refused("/no/such/dir", Kind::Model).contains("neither a directory nor"));
    assert!(world.server.seen().is_empty());
}

#[test]
fn what_the_hub_does_not_have_is_named() {
    let world = World::new();
    let error = world.refused("org/absent", Kind::Model);
    assert!(error.contains("org/absent is no directory here and no repository at"), "{error}");
    let error = world.refused("org/model@v9", Kind::Model);
    assert!(error.contains("org/model has no revision 'v9'"), "{error}");
    let error = world.refused("org/adapter", Kind::Model);
    assert!(error.contains("org/adapter has no config.json"), "{error}");
    world.server.change(|plan| {
        for files in plan.repositories.values_mut() {
            files.remove("model.safetensors");
            files.remove("adapter_model.safetensors");
        }
    });
    let error = world.refused("org/model", Kind::Model);
    assert!(error.contains("no safetensors weights"), "{error}");
    assert!(error.contains("pytorch_model.bin is a pickle"), "{error}");
    let error = world.refused("org/adapter", Kind::Adapter);
    assert!(error.contains("has no adapter_model.safetensors"), "{error}");
    assert_eq!(world.server.downloads(), 0);
}

#[test]
fn a_refusal_says_what_to_do_with_the_token() {
    let world = World::new();
    let error = |status, code| {
        world.server.change(|plan| plan.refuse = Some((status, code)));
        world.refused("org/model", Kind::Model)
    };
    let plain = error(401, "");
    assert!(plain.contains("without a token (401)") && plain.contains("set HF_TOKEN"), "{plain}");
    let gated = error(403, "GatedRepo");
    assert!(gated.contains("gated (403): accept its terms at"), "{gated}");
    // The Hub's answer to a name that is not there, from someone it does not know.
    let absent = error(401, "RepoNotFound");
    assert!(absent.contains("no repository at"), "{absent}");
    let settings = HubSettings { token: Some("hf_old".into()), ..world.settings() };
    world.server.change(|plan| plan.refuse = Some((401, "")));
    let old = resolve("org/model", Kind::Model, &settings).unwrap_err().to_string();
    assert!(old.contains("HF_TOKEN is valid"), "{old}");
}

#[test]
fn without_a_network_the_cache_serves_or_the_error_names_the_endpoint() {
    let world = World::new();
    let dir = resolve("org/model", Kind::Model, &world.settings()).unwrap();
    let nobody = HubSettings { endpoint: "http://127.0.0.1:9".into(), ..world.settings() };
    assert_eq!(resolve("org/model", Kind::Model, &nobody).unwrap(), dir);
    let error = resolve("org/adapter", Kind::Adapter, &nobody).unwrap_err().to_string();
    assert!(error.contains("http://127.0.0.1:9 cannot be reached"), "{error}");
}

#[test]
fn a_connection_cut_in_the_middle_of_a_file_is_tried_again() {
    let world = World::new();
    world.server.change(|plan| plan.cut = Some(("model.safetensors".into(), 2)));
    let dir = resolve("org/model", Kind::Model, &world.settings()).unwrap();
    same_files(&world.source.path().join("model"), &dir, &MODEL_FILES);
    assert_eq!(world.server.downloads(), MODEL_FILES.len() + 2);
}

#[test]
fn half_a_file_is_never_taken_for_a_whole_one() {
    let world = World::new();
    world.server.change(|plan| plan.cut = Some(("model.safetensors".into(), usize::MAX)));
    let error = world.refused("org/model", Kind::Model);
    assert!(
        error.contains("model.safetensors of org/model did not come whole in 3 tries"),
        "{error}"
    );
    assert!(!world.names("model", &format!("snapshots/{COMMIT}")).contains(&MODEL_FILES[2].into()));
    assert!(resolve("org/model", Kind::Model, &world.offline()).is_err());
    // The same for an answer that is whole but not the file.
    world.server.change(|plan| {
        plan.cut = None;
        plan.error_page = Some("model.safetensors".into());
    });
    let error = world.refused("org/model", Kind::Model);
    assert!(error.contains("bytes came"), "{error}");
    assert!(resolve("org/model", Kind::Model, &world.offline()).is_err());
    // And nothing that was left behind is in the way of the next fetch.
    world.server.change(|plan| plan.error_page = None);
    let dir = resolve("org/model", Kind::Model, &world.settings()).unwrap();
    same_files(&world.source.path().join("model"), &dir, &MODEL_FILES);
}

#[test]
fn a_file_that_was_cut_on_disk_is_fetched_again() {
    let world = World::new();
    let dir = resolve("org/model", Kind::Model, &world.settings()).unwrap();
    let weights = dir.join("model.safetensors").canonicalize().unwrap();
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 3]).unwrap();
    resolve("org/model", Kind::Model, &world.settings()).unwrap();
    assert!(fs::read(dir.join("model.safetensors")).unwrap() == bytes);
}

#[test]
fn the_token_goes_to_the_endpoint_and_not_where_it_redirects_to() {
    let world = World::new();
    let elsewhere = World::new();
    world.server.change(|plan| plan.redirect = Some(elsewhere.server.url.clone()));
    let settings = HubSettings { token: Some("hf_secret".into()), ..world.settings() };
    let dir = resolve("org/adapter", Kind::Adapter, &settings).unwrap();
    // The other server has drawn the same adapter: equal seeds give equal files.
    same_files(&world.source.path().join("adapter"), &dir, &ADAPTER_FILES);
    let asked = world.server.seen();
    assert!(asked.iter().all(|s| s.authorization.as_deref() == Some("Bearer hf_secret")));
    let redirected = elsewhere.server.seen();
    assert_eq!(redirected.len(), ADAPTER_FILES.len());
    assert!(redirected.iter().all(|s| s.authorization.is_none()), "{redirected:?}");

    // A mirror may name the content by the plain header.
    world.server.change(|plan| plan.redirect_etag = Some("ETag"));
    let other = tempfile::tempdir().unwrap();
    let at_other = HubSettings { cache_dir: other.path().to_owned(), ..settings.clone() };
    resolve("org/adapter", Kind::Adapter, &at_other).unwrap();

    // Its refusal is not the Hub's, and may be of an address that was good for a while only.
    elsewhere.server.change(|plan| plan.refuse = Some((403, "")));
    let error = resolve("org/model", Kind::Model, &settings).unwrap_err().to_string();
    assert!(error.contains("did not come whole in 3 tries (127.0.0.1 answers 403)"), "{error}");
}

#[test]
fn without_a_token_none_is_sent() {
    let world = World::new();
    resolve("org/adapter", Kind::Adapter, &world.settings()).unwrap();
    assert!(world.server.seen().iter().all(|s| s.authorization.is_none()));
    let settings = HubSettings { token: Some("two words".into()), ..world.settings() };
    let error = resolve("org/model", Kind::Model, &settings).unwrap_err().to_string();
    assert!(error.contains("HF_TOKEN holds a space"), "{error}");
}

#[test]
fn a_fetch_goes_on_where_the_last_one_broke_off() {
    let world = World::new();
    world.server.change(|plan| plan.cut = Some(("model.safetensors".into(), usize::MAX)));
    world.refused("org/model", Kind::Model);
    world.server.change(|plan| plan.cut = None);
    let dir = resolve("org/model", Kind::Model, &world.settings()).unwrap();
    same_files(&world.source.path().join("model"), &dir, &MODEL_FILES);
    let seen = world.server.seen();
    let starts: Vec<usize> = seen
        .iter()
        .filter(|s| s.method == "GET" && s.path.ends_with("/model.safetensors"))
        .map(|s| s.from)
        .collect();
    assert_eq!((starts.len(), starts[0]), (4, 0));
    assert!(starts.is_sorted_by(|a, b| a < b), "{starts:?}");
}

#[test]
fn a_file_of_the_right_length_with_other_bytes_is_refused() {
    let world = World::new();
    world.server.change(|plan| plan.lies.content = Some("model.safetensors".into()));
    let error = world.refused("org/model", Kind::Model);
    assert!(error.contains("has not the hash that the Hub names"), "{error}");
    assert!(resolve("org/model", Kind::Model, &world.offline()).is_err());
    world.server.change(|plan| plan.lies.content = None);
    let dir = resolve("org/model", Kind::Model, &world.settings()).unwrap();
    same_files(&world.source.path().join("model"), &dir, &MODEL_FILES);
}

/// Every path below a directory, links not followed.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        found.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            found.extend(tree(&entry.path()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_hostile_hub_writes_nothing_outside_of_its_repository() {
    let elsewhere = tempfile::tempdir().unwrap();
    let absolute = elsewhere.path().join("x").to_str().unwrap().to_owned();
    // The cache lies this deep, so that "../../.." stays where it can be looked for.
    let outside = tempfile::tempdir().unwrap();
    let cache_dir = outside.path().join("a/b/cache");
    let long = "a".repeat(5000);
    let lies: [fn(&mut Lies, String); 3] = [
        |lies, bad| lies.etag = Some(bad),
        |lies, bad| lies.sha = Some(bad),
        |lies, bad| lies.commit = Some(bad),
    ];
    let world = World::new();
    let settings = HubSettings { cache_dir: cache_dir.clone(), ..world.settings() };
    for bad in ["../../x", "../../../../../x", "..", ".", "", "x/y", "x.lock", &absolute, &long] {
        for lie in lies {
            world.server.change(|plan| {
                plan.lies = Lies::default();
                lie(&mut plan.lies, bad.to_owned());
            });
            let error = resolve("org/adapter", Kind::Adapter, &settings).unwrap_err().to_string();
            assert!(!error.contains('\n') && error.contains("org/adapter"), "{error}");
            assert!(!cache_dir.exists(), "{:?}", tree(outside.path()));
        }
    }
    // A commit that was asked for by its name is that one or none.
    world.server.change(|plan| {
        plan.lies = Lies { sha: Some("f".repeat(40)), ..Lies::default() };
    });
    let pinned = format!("org/adapter@{COMMIT}");
    let error = resolve(&pinned, Kind::Adapter, &settings).unwrap_err().to_string();
    assert!(error.contains("it answers for ffff"), "{error}");
    assert!(tree(outside.path()).is_empty(), "{:?}", tree(outside.path()));
    assert!(tree(elsewhere.path()).is_empty());
}

#[test]
fn names_of_files_that_lead_elsewhere_are_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let cache_dir = outside.path().join("a/b/cache");
    let world = World::new();
    let settings = HubSettings { cache_dir: cache_dir.clone(), ..world.settings() };
    for bad in ["../../../x.safetensors", "/tmp/x.safetensors", "a/x.safetensors", ".safetensors"] {
        let index = serde_json::json!({ "weight_map": { "w": bad } }).to_string();
        world.server.change(|plan| {
            let files = plan.repositories.get_mut("org/model").unwrap();
            files.remove("model.safetensors");
            files.insert("model.safetensors.index.json".into(), index.into_bytes());
            files.insert(bad.into(), vec![0; 9]);
        });
        let error = resolve("org/model", Kind::Model, &settings).unwrap_err().to_string();
        assert!(error.contains("which is no safetensors file beside it"), "{error}");
        let asked = world.server.seen();
        assert!(!asked.iter().any(|s| s.path.contains("x.safetensors")), "{asked:?}");
    }
    let repository = outside.path().join("a/b/cache/models--org--model");
    let locks = outside.path().join("a/b/cache/.locks");
    for path in tree(outside.path()) {
        let inside = path.starts_with(&repository) || path.starts_with(&locks);
        assert!(inside || repository.starts_with(&path), "{path:?}");
    }
}

#[test]
fn a_renamed_repository_is_followed_with_the_token() {
    let world = World::new();
    world.server.change(|plan| plan.renamed = true);
    let settings = HubSettings { token: Some("hf_secret".into()), ..world.settings() };
    let dir = resolve("org/old-name", Kind::Model, &settings).unwrap();
    same_files(&world.source.path().join("model"), &dir, &MODEL_FILES);
    let asked = world.server.seen();
    assert!(asked.iter().all(|s| s.authorization.as_deref() == Some("Bearer hf_secret")));
}

#[test]
fn a_list_of_files_may_have_pages_and_a_revision_slashes() {
    let world = World::new();
    world.server.change(|plan| plan.page = Some(2));
    let dir = resolve("org/model@refs/pr/1", Kind::Model, &world.settings()).unwrap();
    same_files(&world.source.path().join("model"), &dir, &MODEL_FILES);
    let folder = world.cache.path().join("models--org--model");
    assert_eq!(fs::read_to_string(folder.join("refs/refs/pr/1")).unwrap(), COMMIT);
    assert_eq!(resolve("org/model@refs/pr/1", Kind::Model, &world.offline()).unwrap(), dir);
}

#[test]
fn what_may_pass_is_tried_again_and_then_told_apart() {
    let world = World::new();
    world.server.change(|plan| plan.refuse = Some((429, "")));
    let error = world.refused("org/model", Kind::Model);
    assert!(error.contains("limits the requests for org/model"), "{error}");
    assert_eq!(world.server.seen().len(), 4);
    world.server.change(|plan| plan.refuse = Some((503, "")));
    let error = world.refused("org/model", Kind::Model);
    assert!(error.contains("cannot be reached for org/model (it answers 503)"), "{error}");
    // Not so a refusal, of one file as of all.
    world.server.change(|plan| {
        plan.refuse = None;
        plan.refuse_files = Some((403, "GatedRepo"));
    });
    let asked = world.server.seen().len();
    let error = world.refused("org/model", Kind::Model);
    assert!(error.contains("gated (403): accept its terms at"), "{error}");
    assert_eq!(world.server.seen().len() - asked, 3);
    let settings = HubSettings { endpoint: "hub.example".into(), ..world.settings() };
    let error = resolve("org/model", Kind::Model, &settings).unwrap_err().to_string();
    assert!(error.contains("HF_ENDPOINT 'hub.example' is not a URL"), "{error}");
}

#[test]
fn two_fetches_at_once_take_each_file_once() {
    let world = World::new();
    let fetch = || resolve("org/model", Kind::Model, &world.settings()).unwrap();
    let dirs: Vec<_> = std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..4).map(|_| scope.spawn(fetch)).collect();
        fetches.into_iter().map(|fetch| fetch.join().unwrap()).collect()
    });
    for dir in dirs {
        same_files(&world.source.path().join("model"), &dir, &MODEL_FILES);
    }
    assert_eq!(world.server.downloads(), MODEL_FILES.len());
    let blobs = world.names("model", "blobs");
    assert!(blobs.iter().all(|name| name.len() == 64), "nothing is left over: {blobs:?}");
}
